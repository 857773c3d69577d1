"""Checkpoint folders to models: values, parts, shards, and everything that must be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_checkpoint import V2_CONFIG, original_shapes, random_tensors, write_checkpoint

from ocr2cli.errors import ModelError
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.model import OcrModel
from ocr2cli.model.quantized import Int8Linear
from ocr2cli.model.vision import VisionEncoder
from ocr2cli.weights import load as load_module
from ocr2cli.weights.convert import convert
from ocr2cli.weights.digest import weights_digest
from ocr2cli.weights.load import load_decoder, load_model, load_vision


def rewrite(folder, change):
    """Load the folder's tensors, change them in place, save them again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_each_value_lands_in_its_place(toy, toy_folder, toy_tensors):
    state = load_model(toy_folder, dtype=torch.bfloat16).state_dict()
    t = toy_tensors
    q, k, v = (t[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    assert torch.equal(state["decoder.layers.1.attn.qkv.weight"], torch.cat((q, k, v)))
    experts = [
        torch.cat([t[f"model.layers.2.mlp.experts.{e}.{x}_proj.weight"] for x in ("gate", "up")])
        for e in range(4)
    ]
    assert torch.equal(state["decoder.layers.2.mlp.experts_gate_up"], torch.stack(experts))
    down = [t[f"model.layers.2.mlp.experts.{e}.down_proj.weight"] for e in range(4)]
    assert torch.equal(state["decoder.layers.2.mlp.experts_down"], torch.stack(down))
    assert torch.equal(state["vision.view_separator"], t["model.view_seperator"])
    assert torch.equal(state["vision.sam.down2.weight"], t["model.sam_model.net_3.weight"])
    used = sum(x.numel() for x in t.values())
    if toy is not V2_CONFIG:
        used -= t["model.vision_model.embeddings.patch_embedding.weight"].numel()
    assert sum(x.numel() for x in state.values()) == used


@pytest.mark.parametrize("quant", ["f32", "f16", "bf16", "q8_0"])
def test_int8_is_made_from_the_stored_values_and_not_from_bf16(v2_folder, tmp_path, quant):
    pair = tmp_path / "toy.gguf"
    convert(v2_folder, pair, quant=quant)
    whole = load_decoder(pair, dtype=torch.float32)
    small = load_decoder(pair, dtype=torch.bfloat16, int8=True)
    assert isinstance(small.lm_head, Int8Linear) and small.embed.weight.dtype == torch.bfloat16
    largest = whole.lm_head.weight.abs().amax(1)
    assert torch.equal(small.lm_head.int8.scales, largest / 127)
    if quant == "q8_0":  # a detour through bf16 would show
        assert not torch.equal(largest, largest.bfloat16().float())
    mixture, small_mixture = whole.layers[1].mlp, small.layers[1].mlp
    for expert, weight in enumerate(mixture.experts_down):
        assert torch.equal(small_mixture.down[expert].scales, weight.abs().amax(1) / 127)


def test_one_expert_stored_in_float32_among_others_in_bf16_keeps_its_values(v2_folder):
    name = "model.layers.1.mlp.experts.2.down_proj.weight"

    def widen(tensors):
        tensors[name] = tensors[name].float() * 1.0007

    rewrite(v2_folder, widen)
    stored = load_file(v2_folder / "model.safetensors")[name]
    assert stored.dtype == torch.float32
    small = load_decoder(v2_folder, int8=True)
    largest = stored.abs().amax(1)
    assert torch.equal(small.layers[1].mlp.down[2].scales, largest / 127)
    assert not torch.equal(largest, largest.bfloat16().float())


def test_matrices_can_be_kept_in_bf16_under_float32(v2_folder):
    whole = load_model(v2_folder, dtype=torch.float32).state_dict()
    model = load_model(v2_folder, dtype=torch.float32, matrices=torch.bfloat16)
    narrow = {n for n, value in model.state_dict().items() if value.dtype == torch.bfloat16}
    assert narrow == set(load_module.matrix_names(model))
    assert {"decoder.lm_head.weight", "decoder.layers.1.mlp.experts_down"} <= narrow
    assert "vision.query_encoder.layers.0.attn.qkv.weight" in narrow
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), whole[name]), name  # the file holds bf16


def test_matrices_kept_in_bf16_give_the_vision_encoder_the_same_tokens(v2_folder):
    whole = load_vision(v2_folder, dtype=torch.float32)
    narrow = load_vision(v2_folder, dtype=torch.float32, matrices=torch.bfloat16)
    views = torch.randint(0, 256, (1, 3, 1024, 1024), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = whole.encode_views(views), narrow.encode_views(views)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_int8_is_of_the_decoder_alone(v2_folder):
    model = load_model(v2_folder, dtype=torch.float32, int8_decoder=True)
    assert isinstance(model.decoder.lm_head, Int8Linear)
    assert not any(isinstance(part, Int8Linear) for part in model.vision.modules())
    vision = load_model(v2_folder, dtype=torch.float32, parts=("vision",), int8_decoder=True)
    assert not any(isinstance(part, Int8Linear) for part in vision.modules())


def test_int8_refuses_a_weight_that_is_not_finite(v2_folder):
    rewrite(v2_folder, lambda t: t["lm_head.weight"][3].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"lm_head\.weight holds NaN or infinity"):
        load_decoder(v2_folder, int8=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_arrive_in_the_dtype_asked_for(v2_folder, dtype):
    model = load_model(v2_folder, dtype=dtype)
    tensors = load_file(v2_folder / "model.safetensors")
    assert {p.dtype for p in model.parameters()} == {dtype}
    wanted = tensors["lm_head.weight"].to(dtype)
    assert torch.equal(model.state_dict()["decoder.lm_head.weight"], wanted)


def test_loading_does_not_import_torchs_compiler(v2_folder):
    code = (
        "import sys; from ocr2cli.weights.load import load_model; load_model(sys.argv[1]);"
        "assert 'torch._dynamo' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(v2_folder)], check=True, cwd=root)


def test_parts_give_the_part_and_read_only_its_tensors(v2_folder, monkeypatch):
    read = []
    real = load_module.read_into
    monkeypatch.setattr(
        load_module, "read_into", lambda f, s, out: (read.append(s.name), real(f, s, out))
    )
    assert isinstance(load_vision(v2_folder), VisionEncoder)
    assert read and not any(n.startswith(("model.layers", "lm_head", "model.emb")) for n in read)
    read.clear()
    assert isinstance(load_decoder(v2_folder), Decoder)
    assert read and not any("sam_model" in n or "qwen2" in n for n in read)
    assert isinstance(load_model(v2_folder), OcrModel)


def test_shards_with_an_index_give_the_same_model(tmp_path, v2_folder):
    tensors = load_file(v2_folder / "model.safetensors")
    names = sorted(tensors)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text((v2_folder / "config.json").read_text())
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, sharded / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    one, two = load_model(v2_folder).state_dict(), load_model(sharded).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_single_file_comes_before_an_index_as_in_transformers(tmp_path, v2_folder):
    """Hub folders hold both: the shards may be another model's by now, or not downloaded at all."""
    from transformers import DeepseekOcr2ForConditionalGeneration as Theirs

    both = tmp_path / "both"
    convert(v2_folder, both, naming="transformers")
    tensors = load_file(both / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(zeros, both / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (both / "model.safetensors.index.json").write_text(json.dumps(index))
    ours = load_model(both).state_dict()["decoder.lm_head.weight"]
    theirs = Theirs.from_pretrained(both, dtype=torch.bfloat16).lm_head.weight
    assert torch.equal(ours, theirs) and ours.any()
    (both / "model.safetensors").unlink()
    assert not load_model(both).state_dict()["decoder.lm_head.weight"].any()


def test_leftovers_of_training_are_tolerated(v2_folder):
    rewrite(v2_folder, lambda t: t.update(
        {f"model.qwen2_model.query_{n}.weight": torch.zeros(4, 32) for n in (512, 640, 1280)}
    ))
    load_model(v2_folder)


def test_every_wrong_tensor_is_listed_in_one_error(v2_folder):
    def spoil(t):
        del t["lm_head.weight"], t["model.sam_model.pos_embed"]
        t["model.norm.weight"] = torch.zeros(63)
        t["model.extra.weight"] = torch.zeros(2)

    rewrite(v2_folder, spoil)
    for part in ("vision", "decoder"):
        with pytest.raises(ModelError) as caught:
            load_model(v2_folder, parts=(part,))
        text = str(caught.value)
        assert "4 tensors" in text
        assert "missing: lm_head.weight [96, 64]" in text
        assert "missing: model.sam_model.pos_embed [1, 64, 64, 32]" in text
        assert "mis-shaped: model.norm.weight is [63], not [64], in model.safetensors" in text
        assert "unexpected: model.extra.weight in model.safetensors" in text


def test_a_transposed_matrix_is_mis_shaped(v2_folder):
    name = "model.layers.0.mlp.gate_proj.weight"
    rewrite(v2_folder, lambda t: t.update(
        {name: torch.zeros(7, 64), "model.layers.0.mlp.up_proj.weight": torch.zeros(64, 7)}
    ))
    with pytest.raises(ModelError, match=r"gate_proj.weight is \[7, 64\], not \[64, 64\]"):
        load_model(v2_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [
    "model.layers.2.mlp.experts.3.down_proj.weight", "model.sam_model.blocks.0.norm1.bias",
])
def test_a_weight_that_is_not_finite_is_refused_by_name(v2_folder, value, name):
    rewrite(v2_folder, lambda t: t[name].view(-1)[5:6].fill_(value))
    with pytest.raises(ModelError, match=name):
        load_model(v2_folder)
    load_model(v2_folder, check_finite=False)


def test_large_finite_weights_are_not_taken_for_infinite(v2_folder):
    rewrite(v2_folder, lambda t: t["lm_head.weight"].fill_(3e38))
    load_model(v2_folder)
    with pytest.raises(ModelError, match=r"lm_head\.weight holds values too large for float16"):
        load_model(v2_folder, dtype=torch.float16)


def test_pickled_weights_are_refused_and_never_opened(tmp_path):
    folder = write_checkpoint(tmp_path / "p", V2_CONFIG, {"x": torch.zeros(1)})
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "pytorch_model.bin")  # opening it would block for ever
    with pytest.raises(ModelError, match="never opened"):
        load_model(folder)


def test_a_pickle_given_as_the_model_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="never opened"):
        load_model(str(tmp_path / "model.pt"))


def test_weights_of_another_model_are_called_so(tmp_path):
    folder = write_checkpoint(tmp_path / "o", V2_CONFIG, {"bert.embeddings": torch.zeros(2)})
    with pytest.raises(ModelError, match="another model"):
        load_model(folder)


def test_integer_weights_are_refused_by_name(v2_folder):
    rewrite(v2_folder, lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is stored as I8"):
        load_model(v2_folder)


def test_a_transformers_checkpoint_loads_and_computes_the_same_logits(tmp_path):
    from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration

    torch.manual_seed(0)
    config = DeepseekOcr2Config(
        image_token_id=90,
        vision_config={
            "sam_config": {
                "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "output_channels": 8, "global_attn_indexes": [1], "window_size": 4,
                "downsample_channels": [12, 32],
            },
            "encoder_config": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2,
            },
        },
        text_config={
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 96,
            "intermediate_size": 64, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
            "n_routed_experts": 4, "mlp_layer_types": ["dense", "sparse", "sparse"],
            "bos_token_id": 0, "eos_token_id": 1,
        },
    )
    theirs = DeepseekOcr2ForConditionalGeneration(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "saved")  # original names
    save_file(theirs.state_dict(), tmp_path / "native.safetensors")
    native = tmp_path / "native"
    native.mkdir()
    (native / "config.json").write_text((tmp_path / "saved/config.json").read_text())
    (tmp_path / "native.safetensors").rename(native / "model.safetensors")
    ids = torch.tensor([[0, 5, 7, 9, 11]])
    with torch.inference_mode():
        wanted = theirs(input_ids=ids).logits[0]
        for folder in (tmp_path / "saved", native):
            decoder = load_decoder(folder, dtype=torch.float32)
            got = decoder(decoder.embed(ids))[0]
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_digest_names_the_weights_and_not_their_place(tmp_path, v2_folder):
    first = weights_digest(v2_folder)
    assert len(first) == 64
    moved = v2_folder.rename(tmp_path / "elsewhere")
    assert weights_digest(moved) == first
    rewrite(moved, lambda t: t["model.norm.weight"].add_(1))
    assert weights_digest(moved) != first


def test_the_digest_of_a_large_file_sees_its_header_its_data_and_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("ocr2cli.weights.digest.WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr("ocr2cli.weights.digest.BLOCK_BYTES", 1 << 10)
    tensors = random_tensors({**original_shapes(V2_CONFIG), "big": (2, 1 << 20)})
    folder = write_checkpoint(tmp_path / "big", V2_CONFIG, tensors)
    first = weights_digest(folder)
    rewrite(folder, lambda t: t["big"].add_(1))
    second = weights_digest(folder)
    rewrite(folder, lambda t: t.update({"cig": t.pop("big")}))
    assert len({first, second, weights_digest(folder)}) == 3
