"""Toy models and checkpoints under the original names, made without the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SAM = {
    "width": 32, "layers": 3, "heads": 2, "global_attn_indexes": [1],
    "downsample_channels": [12, 1024], "window_size": 4, "neck_channels": 8, "mlp_dim": 128,
}
TEXT = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32,
    "vocab_size": 96, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1,
}
V2_CONFIG: dict[str, Any] = {
    "model_type": "deepseek_vl_v2",
    "image_token_id": 90,
    "language_config": TEXT,
    "vision_config": {
        "image_size": 1024,
        "model_name": "deepencoderv2",
        "width": {
            "sam_vit_b": SAM,
            "qwen2-0-5b": {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 64},
        },
    },
}
V1_CONFIG: dict[str, Any] = {
    "model_type": "deepseek_vl_v2",
    "image_token_id": 90,
    "language_config": TEXT,
    "vision_config": {
        "image_size": 1024,
        "model_name": "deeplip_b_l",
        "width": {
            "sam_vit_b": {**SAM, "downsample_channels": [12, 32]},
            "clip-l-14-224": {
                "width": 32, "layers": 2, "heads": 4, "image_size": 224, "patch_size": 14,
                "mlp_dim": 128,
            },
        },
    },
}

Shapes = dict[str, tuple[int, ...]]


def original_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes of the published checkpoint's form, written down a second time."""
    width = config["vision_config"]["width"]
    text = config["language_config"]
    is_v2 = "qwen2-0-5b" in width
    last = width["qwen2-0-5b"]["dim"] if is_v2 else width["clip-l-14-224"]["width"]
    shapes = sam_shapes(width["sam_vit_b"], last)
    shapes |= qwen_shapes(width["qwen2-0-5b"]) if is_v2 else clip_shapes(width["clip-l-14-224"])
    out = text["hidden_size"]
    shapes["model.projector.layers.weight"] = (out, last if is_v2 else 2 * last)
    shapes["model.projector.layers.bias"] = (out,)
    shapes["model.view_seperator"] = (out,)
    if not is_v2:
        shapes["model.image_newline"] = (out,)
    return shapes | text_shapes(text)


def sam_shapes(sam: dict[str, Any], last: int) -> Shapes:
    p, w, neck = "model.sam_model.", sam["width"], sam["neck_channels"]
    shapes: Shapes = {
        p + "pos_embed": (1, 64, 64, w),
        p + "patch_embed.proj.weight": (w, 3, 16, 16),
        p + "patch_embed.proj.bias": (w,),
        p + "neck.0.weight": (neck, w, 1, 1),
        p + "neck.2.weight": (neck, neck, 3, 3),
        p + "net_2.weight": (sam["downsample_channels"][0], neck, 3, 3),
        p + "net_3.weight": (last, sam["downsample_channels"][0], 3, 3),
    }
    for norm in ("neck.1", "neck.3"):
        shapes |= {f"{p}{norm}.weight": (neck,), f"{p}{norm}.bias": (neck,)}
    for i in range(sam["layers"]):
        b = f"{p}blocks.{i}."
        side = 64 if i in sam["global_attn_indexes"] else sam["window_size"]
        for axis in "hw":
            shapes[f"{b}attn.rel_pos_{axis}"] = (2 * side - 1, w // sam["heads"])
        for leaf, rows, columns in (
            ("attn.qkv", 3 * w, w), ("attn.proj", w, w), ("mlp.lin1", sam["mlp_dim"], w),
            ("mlp.lin2", w, sam["mlp_dim"]),
        ):
            shapes |= {f"{b}{leaf}.weight": (rows, columns), f"{b}{leaf}.bias": (rows,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{b}{norm}.weight": (w,), f"{b}{norm}.bias": (w,)}
    return shapes


def qwen_shapes(qwen: dict[str, Any]) -> Shapes:
    p, w, hidden = "model.qwen2_model.", qwen["dim"], qwen["mlp_dim"]
    kv = w // qwen["heads"] * qwen["kv_heads"]
    shapes: Shapes = {
        p + "query_768.weight": (144, w),
        p + "query_1024.weight": (256, w),
        p + "model.model.norm.weight": (w,),
    }
    for i in range(qwen["layers"]):
        b = f"{p}model.model.layers.{i}."
        for letter, rows in (("q", w), ("k", kv), ("v", kv)):
            shapes[f"{b}self_attn.{letter}_proj.weight"] = (rows, w)
            shapes[f"{b}self_attn.{letter}_proj.bias"] = (rows,)
        shapes |= {
            b + "self_attn.o_proj.weight": (w, w),
            b + "input_layernorm.weight": (w,),
            b + "post_attention_layernorm.weight": (w,),
        } | gated_shapes(b + "mlp.", w, hidden)
    return shapes


def clip_shapes(clip: dict[str, Any]) -> Shapes:
    p, w, hidden = "model.vision_model.", clip["width"], clip["mlp_dim"]
    shapes: Shapes = {
        p + "embeddings.class_embedding": (w,),
        p + "embeddings.patch_embedding.weight": (w, 3, 14, 14),
        p + "embeddings.position_embedding.weight": (257, w),
        p + "pre_layrnorm.weight": (w,),
        p + "pre_layrnorm.bias": (w,),
    }
    for i in range(clip["layers"]):
        b = f"{p}transformer.layers.{i}."
        for leaf, rows, columns in (
            ("self_attn.qkv_proj", 3 * w, w), ("self_attn.out_proj", w, w),
            ("mlp.fc1", hidden, w), ("mlp.fc2", w, hidden),
        ):
            shapes |= {f"{b}{leaf}.weight": (rows, columns), f"{b}{leaf}.bias": (rows,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{b}{norm}.weight": (w,), f"{b}{norm}.bias": (w,)}
    return shapes


def gated_shapes(prefix: str, width: int, hidden: int) -> Shapes:
    return {
        prefix + "gate_proj.weight": (hidden, width),
        prefix + "up_proj.weight": (hidden, width),
        prefix + "down_proj.weight": (width, hidden),
    }


def text_shapes(text: dict[str, Any]) -> Shapes:
    w = text["hidden_size"]
    shapes: Shapes = {
        "model.embed_tokens.weight": (text["vocab_size"], w),
        "lm_head.weight": (text["vocab_size"], w),
        "model.norm.weight": (w,),
    }
    for i in range(text["num_hidden_layers"]):
        b = f"model.layers.{i}."
        for letter in "qkvo":
            shapes[f"{b}self_attn.{letter}_proj.weight"] = (w, w)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{b}{norm}.weight"] = (w,)
        if i < text["first_k_dense_replace"]:
            shapes |= gated_shapes(b + "mlp.", w, text["intermediate_size"])
            continue
        inner = text["moe_intermediate_size"]
        shapes[b + "mlp.gate.weight"] = (text["n_routed_experts"], w)
        for expert in range(text["n_routed_experts"]):
            shapes |= gated_shapes(f"{b}mlp.experts.{expert}.", w, inner)
        shapes |= gated_shapes(b + "mlp.shared_experts.", w, inner * text["n_shared_experts"])
    return shapes


def random_tensors(shapes: Shapes, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        for name, shape in shapes.items()
    }


def write_checkpoint(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
