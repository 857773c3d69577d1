"""config.json in its three forms, and configs that lie."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_checkpoint import V1_CONFIG, V2_CONFIG

from ocr2cli.errors import ModelError
from ocr2cli.model.config import ClipConfig, DecoderConfig, ModelConfig, SamConfig
from ocr2cli.weights.read_config import parse_config, read_config

# The published files' keys (deepseek-ai/DeepSeek-OCR-2 and DeepSeek-OCR, config.json).
TEXT = {
    "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_size": 1280,
    "intermediate_size": 6848, "kv_lora_rank": None, "lm_head": True,
    "max_position_embeddings": 8192, "moe_intermediate_size": 896, "n_group": 1,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 10,
    "num_experts_per_tok": 6, "num_hidden_layers": 12, "num_key_value_heads": 10,
    "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "rm_head": False,
    "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16", "use_mla": False,
    "v_head_dim": 0, "vocab_size": 129280,
}
SAM = {
    "downsample_channels": [512, 1024], "global_attn_indexes": [2, 5, 8, 11], "heads": 12,
    "layers": 12, "width": 768,
}
PUBLISHED_V2 = {
    "model_type": "deepseek_vl_v2", "language_config": TEXT,
    "projector_config": {"input_dim": 896, "n_embed": 1280, "projector_type": "linear"},
    "vision_config": {
        "image_size": 1024, "mlp_ratio": 3.7362, "model_name": "deepencoderv2",
        "width": {"qwen2-0-5b": {"dim": 896}, "sam_vit_b": SAM},
    },
}
PUBLISHED_V1 = {
    "model_type": "deepseek_vl_v2", "language_config": TEXT,
    "projector_config": {"input_dim": 2048, "n_embed": 1280, "projector_type": "linear"},
    "vision_config": {
        "image_size": 1024, "mlp_ratio": 3.7362, "model_name": "deeplip_b_l",
        "width": {
            "clip-l-14-224": {
                "heads": 16, "image_size": 224, "layers": 24, "patch_size": 14, "width": 1024,
            },
            "sam_vit_b": SAM,
        },
    },
}
NATIVE = {
    "model_type": "deepseek_ocr2",
    "image_token_id": 128815,
    "text_config": {
        "vocab_size": 129280, "hidden_size": 1280, "intermediate_size": 6848,
        "num_hidden_layers": 12, "num_attention_heads": 10, "moe_intermediate_size": 896,
        "num_experts_per_tok": 6, "max_position_embeddings": 8192, "bos_token_id": 0,
        "eos_token_id": 1, "mlp_layer_types": ["dense"] + ["sparse"] * 11,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "vision_config": {"encoder_config": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }},
}


def edited(data, path, value):
    """A deep copy of `data` with one value changed."""
    copy = json.loads(json.dumps(data))
    *parents, last = path.split("/")
    target = copy
    for key in parents:
        target = target[key]
    target[last] = value
    return copy


def test_published_v2_has_896_sam_channels_although_its_config_says_1024():
    config = parse_config(PUBLISHED_V2, "config.json")
    assert config == ModelConfig()
    assert config.sam.downsample_channels == (512, 896)


def test_published_v1_keeps_its_1024_channels():
    config = parse_config(PUBLISHED_V1, "config.json")
    sam = SamConfig(downsample_channels=(512, 1024))
    assert config == ModelConfig(sam=sam, query_encoder=None, clip=ClipConfig())


def test_the_real_config_file_reads_as_the_published_sizes():
    folder = Path(__file__).parents[2] / "../shared/reference/deepseek-ocr-2"
    if folder.exists():
        assert read_config(folder) == ModelConfig()


def test_text_sizes_are_read_from_the_top_level_when_there_is_no_language_config():
    flat = {**TEXT, "vision_config": PUBLISHED_V2["vision_config"]}
    assert parse_config(flat, "config.json") == ModelConfig()


def test_native_form_reads_as_the_same_model():
    assert parse_config(NATIVE, "config.json") == ModelConfig()


def test_absent_native_values_are_transformers_class_defaults():
    from transformers import DeepseekOcr2Config

    text = {"num_experts_per_tok": 2, "mlp_layer_types": ["dense"] * 32}
    theirs = DeepseekOcr2Config(text_config=dict(text))
    ours = parse_config({"model_type": "deepseek_ocr2", "image_token_id": 5, "text_config": {
        **text, "hidden_size": 4096,
    }, "vision_config": {"sam_config": {"downsample_channels": [512, 4096]}}}, "config.json")
    t, e = theirs.text_config, theirs.vision_config.encoder_config
    s = theirs.vision_config.sam_config
    assert ours.decoder == DecoderConfig(
        vocab_size=t.vocab_size, hidden_size=t.hidden_size, num_layers=t.num_hidden_layers,
        num_heads=t.num_attention_heads, num_dense_layers=32,
        dense_intermediate=t.intermediate_size, num_experts=t.n_routed_experts,
        experts_per_token=2, num_shared_experts=t.n_shared_experts,
        expert_intermediate=t.moe_intermediate_size, norm_eps=t.rms_norm_eps,
        rope_theta=t.rope_parameters["rope_theta"], max_positions=t.max_position_embeddings,
    )
    assert (ours.bos_token_id, ours.eos_token_id) == (t.bos_token_id, t.eos_token_id)
    encoder = ours.query_encoder
    assert encoder is not None
    assert (encoder.hidden_size, encoder.intermediate_size, encoder.num_layers) == (
        e.hidden_size, e.intermediate_size, e.num_hidden_layers)
    assert (encoder.num_heads, encoder.num_kv_heads, encoder.norm_eps, encoder.rope_theta) == (
        e.num_attention_heads, e.num_key_value_heads, e.rms_norm_eps,
        e.rope_parameters["rope_theta"])
    assert replace(ours.sam, downsample_channels=(512, 896)) == SamConfig(
        hidden_size=s.hidden_size, num_layers=s.num_hidden_layers,
        num_heads=s.num_attention_heads, mlp_hidden=s.mlp_dim, window_size=s.window_size,
        global_blocks=tuple(s.global_attn_indexes), neck_channels=s.output_channels,
        downsample_channels=tuple(s.downsample_channels), norm_eps=s.layer_norm_eps,
    )


def test_a_config_that_transformers_saved_reads_back(tmp_path):
    from transformers import DeepseekOcr2Config

    data = {k: v for k, v in NATIVE.items() if k != "model_type"}
    DeepseekOcr2Config(**json.loads(json.dumps(data))).save_pretrained(tmp_path)
    assert read_config(tmp_path) == ModelConfig()


@pytest.mark.parametrize(("form", "text"), [
    (PUBLISHED_V2, "language_config"), (PUBLISHED_V1, "language_config"), (NATIVE, "text_config"),
])
@pytest.mark.parametrize(("keys", "theta"), [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
    ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 7e5}, 5e5),
    ({"rope_parameters": None, "rope_theta": 7e5, "rope_scaling": None}, 7e5),
    ({"rope_parameters": {}, "rope_theta": 7e5, "rope_scaling": {}}, 7e5),
    ({"rope_parameters": {}, "rope_theta": 7e5, "rope_scaling": {"type": "default"}}, 7e5),
    ({"rope_parameters": {}, "rope_scaling": {"rope_type": "default", "rope_theta": 3e5}}, 3e5),
    ({"rope_parameters": {}}, 1e4),
])
def test_the_rotary_base_is_read_from_the_keys_of_transformers_4_and_5(form, text, keys, theta):
    changed = edited(form, text, {**form[text], **keys})
    assert parse_config(changed, "config.json").decoder.rope_theta == theta


def test_the_rotary_base_that_transformers_5_puts_beside_language_config_is_read():
    """It saves the original form anew: text keys at the top, language_config as it was."""
    saved = {**PUBLISHED_V2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert parse_config(saved, "config.json").decoder.rope_theta == 5e5
    saved["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    with pytest.raises(ModelError, match=r"rope_parameters: rope_type is 'yarn'"):
        parse_config(saved, "config.json")


@pytest.mark.parametrize(("form", "path", "value", "word"), [
    (PUBLISHED_V2, "language_config/hidden_size", "1280", "hidden_size"),
    (PUBLISHED_V2, "language_config/hidden_size", -1, "hidden_size"),
    (PUBLISHED_V2, "language_config/hidden_size", 10**30, "hidden_size"),
    (PUBLISHED_V2, "language_config/num_hidden_layers", 10**6, "num_hidden_layers"),
    (PUBLISHED_V2, "language_config/num_hidden_layers", True, "num_hidden_layers"),
    (PUBLISHED_V2, "language_config/use_mla", True, "use_mla"),
    (PUBLISHED_V2, "language_config/topk_method", "noaux_tc", "topk_method"),
    (PUBLISHED_V2, "language_config/norm_topk_prob", True, "norm_topk_prob"),
    (PUBLISHED_V2, "language_config/num_key_value_heads", 2, "num_key_value_heads"),
    (PUBLISHED_V2, "language_config/num_attention_heads", 7, "heads"),
    (PUBLISHED_V2, "language_config", [1], "language_config"),
    (PUBLISHED_V2, "vision_config", {}, "vision_config"),
    (PUBLISHED_V2, "vision_config/width/sam_vit_b/global_attn_indexes", [99], "global attention"),
    (PUBLISHED_V2, "vision_config/width/sam_vit_b/downsample_channels", [1], "downsample"),
    (PUBLISHED_V1, "vision_config/width/sam_vit_b/downsample_channels", [512, 896], "CLIP"),
    (NATIVE, "text_config/mlp_layer_types", ["sparse", "dense"], "mlp_layer_types"),
    (NATIVE, "text_config/num_experts_per_tok", None, "num_experts_per_tok"),
    (NATIVE, "text_config/rope_parameters", {"rope_type": "yarn"}, "rope_parameters.*'yarn'"),
    (NATIVE, "text_config/rope_scaling", {"type": "linear"}, "rope_scaling.*'linear'"),
    (NATIVE, "text_config/rope_scaling", "linear", "rope_scaling is 'linear'"),
    (PUBLISHED_V2, "language_config/rope_parameters", {"rope_type": "linear", "factor": 4.0},
     "rope_parameters.*'linear'"),
    (PUBLISHED_V1, "language_config/rope_scaling", {"type": "yarn"}, "rope_scaling.*'yarn'"),
    (NATIVE, "image_token_id", 200_000, "image_token_id"),
    (NATIVE, "text_config/eos_token_id", 129_280, "eos_token_id is outside the vocabulary"),
    (PUBLISHED_V2, "language_config/eos_token_id", [200_000, 1], "eos_token_id is outside"),
    (PUBLISHED_V1, "language_config/bos_token_id", 200_000, "bos_token_id is outside"),
])
def test_a_value_that_cannot_be_run_is_named(form, path, value, word):
    with pytest.raises(ModelError, match=word) as caught:
        parse_config(edited(form, path, value), "some/config.json")
    assert "some/config.json" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "[" * 100_000, "\xff\xfe"])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_missing_config_says_what_a_model_folder_holds(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        read_config(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PATHS = [
    f"{top}/{key}" for form, top in ((V2_CONFIG, "language_config"), (V1_CONFIG, "vision_config"))
    for key in form[top]
] + ["vision_config/width/sam_vit_b", "vision_config/width/qwen2-0-5b", "language_config"]


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(PATHS), value=json_values)
def test_no_value_escapes_as_anything_but_a_model_error(path, value):
    copy = json.loads(json.dumps(V2_CONFIG))
    *parents, last = path.split("/")
    target = copy
    for key in parents:
        target = target[key]
    target[last] = value
    with contextlib.suppress(ModelError):
        assert isinstance(parse_config(copy, "config.json"), ModelConfig)
