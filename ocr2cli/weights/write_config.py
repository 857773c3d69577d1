"""ModelConfig to the three forms others read: original, transformers' native, GGUF metadata.

The other direction of `read_config.py` and `gguf_config.py`; what these write, those read back.
Knows keys; knows nothing about tensors.
Source: the published config.json; transformers 5.23 `configuration_deepseek_ocr2.py`; model-spec
7.3 and 7.4.
"""

from __future__ import annotations

import json
from typing import Any

from ocr2cli.errors import ModelError
from ocr2cli.model.config import (
    ClipConfig,
    DecoderConfig,
    ModelConfig,
    QueryEncoderConfig,
    SamConfig,
)
from ocr2cli.weights.gguf_config import (
    ARCHITECTURE,
    IMAGE_KEY,
    PROJECTOR_V1,
    PROJECTOR_V2,
    THETA_KEY,
)
from ocr2cli.weights.read_gguf import Value

# general.file_type of llama.cpp.
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_PAD_TOKEN = "<\uff5c\u2581pad\u2581\uff5c>"
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

Json = dict[str, Any]


def original_config(config: ModelConfig) -> Json:
    """deepseek-ai's form. Sizes it has no key for are added only where they differ."""
    sam, text = config.sam, _original_text(config)
    section: Json = {
        # v2's published file says 1024 here whatever the weights have; we say what is true.
        "downsample_channels": list(sam.downsample_channels),
        "global_attn_indexes": list(sam.global_blocks),
        "heads": sam.num_heads, "layers": sam.num_layers, "width": sam.hidden_size,
    }
    usual = SamConfig()
    section |= _added({
        "mlp_dim": (sam.mlp_hidden, 4 * sam.hidden_size),
        "neck_channels": (sam.neck_channels, usual.neck_channels),
        "patch_size": (sam.patch_size, usual.patch_size),
        "window_size": (sam.window_size, usual.window_size),
    })
    tower, projector_in = _original_tower(config)
    data: Json = {
        "architectures": [f"DeepseekOCR{'' if config.is_v1 else '2'}ForCausalLM"],
        "candidate_resolutions": [[1024, 1024]],
        "global_view_pos": "head",
        "language_config": {"architectures": ["DeepseekV2ForCausalLM"], **text},
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": projector_in, "model_type": "mlp_projector",
            "n_embed": config.decoder.hidden_size, "projector_type": "linear",
        },
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "vision_config": {
            "image_size": sam.image_size,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l" if config.is_v1 else "deepencoderv2",
            "model_type": "vision",
            "width": {**tower, "sam_vit_b": section},
        },
        **text,
    }
    usual_id = ModelConfig().image_token_id
    return data | _added({"image_token_id": (config.image_token_id, usual_id)})


def native_config(config: ModelConfig) -> Json:
    """transformers' `deepseek_ocr2`. Raises: ModelError for v1, which it does not have."""
    encoder, sam, decoder = config.query_encoder, config.sam, config.decoder
    if encoder is None:
        raise ModelError(
            "transformers has no DeepSeek-OCR v1 model, so there is no such form. Use the "
            "original naming or .gguf."
        )
    num_sparse = decoder.num_layers - decoder.num_dense_layers
    return {
        "architectures": ["DeepseekOcr2ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": config.image_token_id,
        "model_type": "deepseek_ocr2",
        "text_config": {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "hidden_act": "silu",
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.dense_intermediate,
            "max_position_embeddings": decoder.max_positions,
            "mlp_layer_types": ["dense"] * decoder.num_dense_layers + ["sparse"] * num_sparse,
            "model_type": "deepseek_ocr2_text",
            "moe_intermediate_size": decoder.expert_intermediate,
            "n_group": 1,
            "n_routed_experts": decoder.num_experts,
            "n_shared_experts": decoder.num_shared_experts,
            "num_attention_heads": decoder.num_heads,
            "num_experts_per_tok": decoder.experts_per_token,
            "num_hidden_layers": decoder.num_layers,
            "num_key_value_heads": decoder.num_heads,
            "rms_norm_eps": decoder.norm_eps,
            "rope_parameters": {"rope_theta": decoder.rope_theta, "rope_type": "default"},
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "topk_method": "greedy",
            "vocab_size": decoder.vocab_size,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "encoder_config": {
                "hidden_act": "silu",
                "hidden_size": encoder.hidden_size,
                "intermediate_size": encoder.intermediate_size,
                "model_type": "deepseek_ocr2_encoder",
                "num_attention_heads": encoder.num_heads,
                "num_hidden_layers": encoder.num_layers,
                "num_key_value_heads": encoder.num_kv_heads,
                "rms_norm_eps": encoder.norm_eps,
                "rope_parameters": {"rope_theta": encoder.rope_theta, "rope_type": "default"},
            },
            "model_type": "deepseek_ocr2_vision",
            "sam_config": {
                "downsample_channels": list(sam.downsample_channels),
                "global_attn_indexes": list(sam.global_blocks),
                "hidden_size": sam.hidden_size,
                "image_size": sam.image_size,
                "layer_norm_eps": sam.norm_eps,
                "mlp_dim": sam.mlp_hidden,
                "model_type": "deepseek_ocr2_sam_vision_model",
                "num_attention_heads": sam.num_heads,
                "num_hidden_layers": sam.num_layers,
                "output_channels": sam.neck_channels,
                "patch_size": sam.patch_size,
                "window_size": sam.window_size,
            },
        },
    }


def text_metadata(config: ModelConfig, name: str, quant: str) -> dict[str, Value]:
    """Keys of the text file, without the vocabulary."""
    decoder, p = config.decoder, f"{ARCHITECTURE}."
    usual_id = ModelConfig().image_token_id
    return _added({IMAGE_KEY: (config.image_token_id, usual_id)}) | {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[quant],
        "general.quantization_version": 2,
        f"{p}block_count": decoder.num_layers,
        f"{p}context_length": decoder.max_positions,
        f"{p}embedding_length": decoder.hidden_size,
        f"{p}feed_forward_length": decoder.dense_intermediate,
        f"{p}attention.head_count": decoder.num_heads,
        f"{p}attention.head_count_kv": decoder.num_heads,
        f"{p}attention.layer_norm_rms_epsilon": decoder.norm_eps,
        f"{p}leading_dense_block_count": decoder.num_dense_layers,
        f"{p}expert_count": decoder.num_experts,
        f"{p}expert_used_count": decoder.experts_per_token,
        f"{p}expert_feed_forward_length": decoder.expert_intermediate,
        f"{p}expert_shared_count": decoder.num_shared_experts,
        f"{p}expert_group_count": 1,
        f"{p}expert_group_used_count": 1,
        f"{p}rope.dimension_count": decoder.head_dim,
        f"{p}rope.freq_base": float(decoder.rope_theta),
        f"{p}vocab_size": decoder.vocab_size,
    }


def vision_metadata(config: ModelConfig, name: str, quant: str) -> dict[str, Value]:
    """Keys of the mmproj file."""
    sam, p = config.sam, "clip.vision."
    if config.query_encoder is not None:
        tower, tiles = _query_metadata(config.query_encoder), (2, 6)
    else:
        assert config.clip is not None
        tower, tiles = _clip_metadata(config.clip), (2, 9)
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "general.file_type": FILE_TYPES[quant],
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.projector_type": PROJECTOR_V1 if config.is_v1 else PROJECTOR_V2,
        # Without it llama.cpp runs SAM's MLP with quick-GELU.
        "clip.use_gelu": True,
        f"{p}projection_dim": config.decoder.hidden_size,
        f"{p}image_mean": [0.5, 0.5, 0.5],
        f"{p}image_std": [0.5, 0.5, 0.5],
        f"{p}window_size": sam.window_size,
        f"{p}sam.block_count": sam.num_layers,
        f"{p}sam.embedding_length": sam.hidden_size,
        f"{p}sam.head_count": sam.num_heads,
        f"{p}preproc_min_tiles": tiles[0],
        f"{p}preproc_max_tiles": tiles[1],
        **tower,
    }


def vocabulary_metadata(tokenizer_json: str, config: ModelConfig, where: str) -> dict[str, Value]:
    """`tokenizer.ggml.*` of a tokenizer.json's text. Raises: ModelError."""
    try:
        data = json.loads(tokenizer_json)
        model, added = data["model"], data["added_tokens"]
        kinds = {int(token_id): _NORMAL for token_id in model["vocab"].values()}
        names = {int(token_id): str(token) for token, token_id in model["vocab"].items()}
        for token in added:
            kinds[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
            names[token["id"]] = token["content"]
        merges = [
            merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{where} is not the byte-level BPE vocabulary of this family ({error!r:.80}). Use the "
            "tokenizer.json that came with the weights."
        ) from error
    size = config.decoder.vocab_size
    if max(names, default=0) >= size:
        raise ModelError(f"{where} has the id {max(names)}, but the model only {size} rows.")
    pad = next((number for number, token in names.items() if token == _PAD_TOKEN), None)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.tokens": [names.get(number, f"[PAD{number}]") for number in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(number, _UNUSED) for number in range(size)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
        "tokenizer.ggml.padding_token_id": config.eos_token_id if pad is None else pad,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": _TEMPLATE,
    }


def _original_text(config: ModelConfig) -> Json:
    decoder = config.decoder
    text: Json = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "first_k_dense_replace": decoder.num_dense_layers,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.dense_intermediate,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": decoder.max_positions,
        "moe_intermediate_size": decoder.expert_intermediate,
        "n_group": 1,
        "n_routed_experts": decoder.num_experts,
        "n_shared_experts": decoder.num_shared_experts,
        "num_attention_heads": decoder.num_heads,
        "num_experts_per_tok": decoder.experts_per_token,
        "num_hidden_layers": decoder.num_layers,
        "num_key_value_heads": decoder.num_heads,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": decoder.vocab_size,
    }
    usual = DecoderConfig()
    return text | _added({
        "rms_norm_eps": (decoder.norm_eps, usual.norm_eps),
        "rope_theta": (decoder.rope_theta, usual.rope_theta),
    })


def _original_tower(config: ModelConfig) -> tuple[Json, int]:
    """The section of the second tower, and the projector's input width."""
    encoder, clip = config.query_encoder, config.clip
    if encoder is not None:
        usual = QueryEncoderConfig()
        section = {"dim": encoder.hidden_size} | _added({
            "heads": (encoder.num_heads, usual.num_heads),
            "kv_heads": (encoder.num_kv_heads, usual.num_kv_heads),
            "layers": (encoder.num_layers, usual.num_layers),
            "mlp_dim": (encoder.intermediate_size, usual.intermediate_size),
            "norm_eps": (encoder.norm_eps, usual.norm_eps),
            "rope_theta": (encoder.rope_theta, usual.rope_theta),
        })
        return {"qwen2-0-5b": section}, encoder.hidden_size
    assert clip is not None
    section = {
        "heads": clip.num_heads, "image_size": 224, "layers": clip.num_layers, "patch_size": 14,
        "width": clip.hidden_size,
    } | _added({"mlp_dim": (clip.intermediate_size, 4 * clip.hidden_size)})
    return {"clip-l-14-224": section}, clip.hidden_size + config.sam.downsample_channels[1]


def _query_metadata(encoder: QueryEncoderConfig) -> dict[str, Value]:
    p = "clip.vision."
    data: dict[str, Value] = {
        f"{p}image_size": 1024,
        f"{p}patch_size": 16,
        f"{p}embedding_length": encoder.hidden_size,
        f"{p}feed_forward_length": encoder.intermediate_size,
        f"{p}block_count": encoder.num_layers,
        f"{p}attention.head_count": encoder.num_heads,
        f"{p}attention.head_count_kv": encoder.num_kv_heads,
        f"{p}attention.layer_norm_epsilon": encoder.norm_eps,
    }
    if encoder.rope_theta != QueryEncoderConfig().rope_theta:
        data[THETA_KEY] = float(encoder.rope_theta)
    return data


def _clip_metadata(clip: ClipConfig) -> dict[str, Value]:
    p = "clip.vision."
    return {
        f"{p}image_size": 224,
        f"{p}patch_size": 14,
        f"{p}embedding_length": clip.hidden_size,
        f"{p}feed_forward_length": clip.intermediate_size,
        f"{p}block_count": clip.num_layers,
        f"{p}attention.head_count": clip.num_heads,
        f"{p}attention.layer_norm_epsilon": 1e-6,
        f"{p}projector.scale_factor": 1,
    }


def _added(values: dict[str, tuple[Any, Any]]) -> Json:
    """Keys of our own, only where (value, usual value) differ."""
    return {key: value for key, (value, usual) in values.items() if value != usual}
