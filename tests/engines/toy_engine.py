"""A model folder with random weights at toy size that the whole engine runs on, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from ocr2cli.weights.names import model_params
from ocr2cli.weights.params import Naming
from ocr2cli.weights.read_config import parse_config

SPECIALS = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<image>",  # noqa: RUF001
    "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>", "</td>",
]  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_vl_v2",
    "image_token_id": 3,
    "language_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 32, "first_k_dense_replace": 1,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 16, "vocab_size": 320, "max_position_embeddings": 2048,
        "bos_token_id": 0, "eos_token_id": 1,
    },
    "vision_config": {
        "image_size": 1024, "model_name": "deepencoderv2",
        "width": {
            "sam_vit_b": {
                "width": 16, "layers": 1, "heads": 2, "global_attn_indexes": [],
                "downsample_channels": [8, 1024], "window_size": 8, "neck_channels": 8,
                "mlp_dim": 16,
            },
            "qwen2-0-5b": {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 1, "mlp_dim": 16},
        },
    },
}  # fmt: skip


V1_CONFIG = {
    **CONFIG,
    "vision_config": {
        "image_size": 1024, "model_name": "deeplip_b_l",
        "width": {
            "sam_vit_b": {
                **CONFIG["vision_config"]["width"]["sam_vit_b"], "downsample_channels": [8, 16],
            },
            "clip-l-14-224": {
                "width": 16, "layers": 1, "heads": 2, "image_size": 224, "patch_size": 14,
                "mlp_dim": 32,
            },
        },
    },
}  # fmt: skip


def write_toy_model(
    folder: Path, *, seed: int = 0, scale: float = 0.2, is_v1: bool = False
) -> Path:
    """Config, tokenizer and random weights under the original names."""
    config = V1_CONFIG if is_v1 else CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder / "tokenizer.json")
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for param in model_params(parse_config(config, "toy")):
        for piece in param.pieces(Naming.ORIGINAL):
            values = torch.randn(piece.shape, generator=generator) * scale
            tensors[piece.name] = values.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def draw_pages(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """One PNG for each, with its name in large print at the upper left."""
    for name, size in sizes.items():
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).text((20, 20), f"Page {name}", fill="black", font_size=40)
        image.save(folder / f"{name}.png")


def _write_tokenizer(path: Path) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in SPECIALS])
    core.save(str(path))
