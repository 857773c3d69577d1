"""A checkpoint of toy size with random weights, under the original names, with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file

from ocr2cli.text.tokenizer import BOS_TOKEN, EOS_TOKEN
from ocr2cli.weights.names import model_params
from ocr2cli.weights.params import Naming
from ocr2cli.weights.read_config import parse_config

SPECIALS = [
    BOS_TOKEN, EOS_TOKEN, "<pad>", "<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>",
    "<|grounding|>", "<td>", "</td>",
]  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_vl_v2",
    "image_token_id": 3,
    "language_config": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 48, "first_k_dense_replace": 1,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2,
        "moe_intermediate_size": 16, "vocab_size": 280, "max_position_embeddings": 2048,
        "bos_token_id": 0, "eos_token_id": 1,
    },
    "vision_config": {
        "image_size": 1024, "model_name": "deepencoderv2",
        "width": {
            "sam_vit_b": {
                "width": 16, "layers": 1, "heads": 2, "global_attn_indexes": [],
                "downsample_channels": [8, 1024], "window_size": 8, "neck_channels": 8,
                "mlp_dim": 32,
            },
            "qwen2-0-5b": {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp_dim": 48},
        },
    },
}  # fmt: skip


def write_checkpoint(
    folder: Path, *, seed: int = 0, changes: dict[str, float] | None = None
) -> Path:
    """changes: factor by stored tensor name, the way a test damages a model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    _write_tokenizer(folder / "tokenizer.json")
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for param in model_params(parse_config(CONFIG, "toy")):
        for piece in param.pieces(Naming.ORIGINAL):
            values = torch.randn(piece.shape, generator=generator)
            is_norm = len(piece.shape) == 1 and "norm" in piece.name
            values = 1 + 0.1 * values if is_norm else 0.25 * values
            tensors[piece.name] = values * (changes or {}).get(piece.name, 1.0)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _write_tokenizer(path: Path) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in SPECIALS])
    core.save(str(path))
