"""A toy model of both kinds: transformers' deepseek_ocr2 and ours, with the same random weights.

The toy keeps what matters of the shapes: 64 patches a side, a 48 grid for tiles (so positions are
resized), windows of 14 with filling, grouped key heads, a dense layer before the expert layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocr2cli.model.config import (
    ClipConfig,
    DecoderConfig,
    ModelConfig,
    QueryEncoderConfig,
    SamConfig,
)

TOY = ModelConfig(
    sam=SamConfig(
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        mlp_hidden=32,
        global_blocks=(1,),
        neck_channels=12,
        downsample_channels=(20, 24),
    ),
    query_encoder=QueryEncoderConfig(
        hidden_size=24, intermediate_size=40, num_layers=2, num_heads=6, num_kv_heads=2
    ),
    decoder=DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        dense_intermediate=48,
        num_experts=8,
        experts_per_token=3,
        expert_intermediate=20,
    ),
    image_token_id=60,
)
TOY_V1 = replace(
    TOY,
    query_encoder=None,
    clip=ClipConfig(hidden_size=24, intermediate_size=40, num_layers=2, num_heads=3),
)


def random_views(count: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def normalise(views: Tensor) -> Tensor:
    return (views.float() / 255 - 0.5) / 0.5


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every path matters: norms near one, the rest at fan-in scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            if is_scale:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            elif "embed" in name or "quer" in name or "rel_pos" in name:
                parameter.copy_(0.7 * noise)
            else:
                is_experts = parameter.ndim == 3
                fan_in = parameter.shape[-1] if is_experts else parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)


def build_reference() -> Any:
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as modeling

    sam, encoder, text = TOY.sam, TOY.query_encoder, TOY.decoder
    assert encoder is not None
    config = transformers.DeepseekOcr2Config(
        vision_config={
            "sam_config": {
                "hidden_size": sam.hidden_size,
                "num_hidden_layers": sam.num_layers,
                "num_attention_heads": sam.num_heads,
                "mlp_dim": sam.mlp_hidden,
                "output_channels": sam.neck_channels,
                "global_attn_indexes": list(sam.global_blocks),
                "downsample_channels": list(sam.downsample_channels),
            },
            "encoder_config": {
                "vocab_size": 8,
                "hidden_size": encoder.hidden_size,
                "intermediate_size": encoder.intermediate_size,
                "num_hidden_layers": encoder.num_layers,
                "num_attention_heads": encoder.num_heads,
                "num_key_value_heads": encoder.num_kv_heads,
                "rope_parameters": {"rope_type": "default", "rope_theta": encoder.rope_theta},
            },
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.dense_intermediate,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "n_routed_experts": text.num_experts,
            "num_experts_per_tok": text.experts_per_token,
            "n_shared_experts": text.num_shared_experts,
            "moe_intermediate_size": text.expert_intermediate,
            "mlp_layer_types": ["dense"] + ["sparse"] * (text.num_layers - 1),
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
            "max_position_embeddings": text.max_positions,
            "bos_token_id": TOY.bos_token_id,
            "eos_token_id": TOY.eos_token_id,
        },
        image_token_id=TOY.image_token_id,
        attn_implementation="eager",
    )
    model = modeling.DeepseekOcr2ForConditionalGeneration(config).eval()
    randomise(model, seed=0)
    return model


RENAMED = (
    ("model.language_model.", "decoder."),
    ("model.vision_tower.sam_encoder.", "vision.sam."),
    ("model.vision_tower.vision_encoder.", "vision.query_encoder."),
    ("model.vision_tower.query_768_resolution.weight", "vision.query_encoder.tile_queries"),
    ("model.vision_tower.query_1024_resolution.weight", "vision.query_encoder.global_queries"),
    ("model.multi_modal_projector.", "vision.projector."),
    ("model.view_separator", "vision.view_separator"),
    ("embed_tokens.", "embed."),
    ("sam.layers.", "sam.blocks."),
    ("patch_embed.projection.", "patch_embed."),
    (".layer_norm", ".norm"),
    ("sam.proj.conv1.", "sam.down1."),
    ("sam.proj.conv2.", "sam.down2."),
    ("self_attn.o_proj.", "attn.out."),
    ("mlp.gate.", "mlp.router."),
    ("shared_experts.", "shared."),
    ("down_proj.weight", "down.weight"),
    ("experts.gate_up_proj", "experts_gate_up"),
    ("experts.down_proj", "experts_down"),
)
FUSED = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "attn.qkv"),
    "gate_proj": ("gate_proj", "up_proj", "gate_up"),
}


def convert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's state_dict under our names; our loader is tested elsewhere."""
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if any(part in name for part in ("k_proj", "v_proj", ".up_proj")):
            continue
        for first, (*parts, fused) in FUSED.items():
            if first in name:
                tensor = torch.cat([theirs[name.replace(first, part)] for part in parts])
                name = name.replace(first, fused)
        for old, new in RENAMED:
            name = name.replace(old, new)
        if name == "lm_head.weight":
            name = "decoder.lm_head.weight"
        norms = ("attn_norm", "ffn_norm") if "decoder" in name else ("input_norm", "post_norm")
        name = name.replace("input_layernorm", norms[0])
        name = name.replace("post_attention_layernorm", norms[1])
        ours[name] = tensor.clone()
    return ours


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())
