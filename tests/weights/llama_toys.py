"""Two toy checkpoints and their pages, the same on every machine: what llama.cpp and we both read.

Numbers come from numpy's seeded generator, never from the code under test. Only printable
characters have rows in lm_head, so every token written is one character. The model sees the page:
other pages give other texts.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from toy_checkpoint import V1_CONFIG, V2_CONFIG, original_shapes, write_checkpoint

SPECIALS = [
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>", "<image>", "<|grounding|>",
]  # fmt: skip
VOCAB = 288
# (width, height): one view; v2 one view and v1 tiles; tiles for both.
PAGES = {"wide": (640, 480), "square": (768, 768), "tiled": (900, 600)}


def toy_config(version: str) -> dict[str, Any]:
    """The tests' toy sizes, with the blocks that llama.cpp takes for global ones: 2, 5, 8, 11."""
    config = copy.deepcopy(V1_CONFIG if version == "v1" else V2_CONFIG)
    config["image_token_id"] = 3
    config["language_config"]["vocab_size"] = VOCAB
    config["vision_config"]["width"]["sam_vit_b"]["global_attn_indexes"] = [2]
    return config


def write_toy(folder: Path, version: str) -> Path:
    """A checkpoint folder, bf16, with a tokenizer of single bytes."""
    config = toy_config(version)
    tensors = toy_tensors(original_shapes(config))
    write_checkpoint(folder, config, tensors)
    (folder / "tokenizer.json").write_text(_tokenizer().to_str(), encoding="utf-8")
    return folder


def toy_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Seeded, sized so that activations stay near one and attention is neither flat nor hard."""
    source = np.random.default_rng(5)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        values = torch.from_numpy(source.standard_normal(shape, dtype=np.float32))
        tensors[name] = (values * _scale(name, shape) + _centre(name)).to(torch.bfloat16)
    tensors["lm_head.weight"][_unprintable()] = 0
    return tensors


def draw_pages(folder: Path) -> dict[str, Path]:
    """Black bars on white, seeded by the size; no font, no smoothing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, (width, height) in PAGES.items():
        source = np.random.default_rng(width * height)
        pixels = np.full((height, width, 3), 255, np.uint8)
        for _ in range(60):
            x, y = source.integers(0, width - 80), source.integers(0, height - 40)
            wide, high = source.integers(5, 80), source.integers(3, 40)
            pixels[y : y + high, x : x + wide] = source.integers(0, 256, 3)
        paths[name] = folder / f"{name}.png"
        Image.fromarray(pixels).save(paths[name])
    return paths


def inputs_digest(folder: Path, pages: dict[str, Path]) -> str:
    """sha256 of the weights and the pages' pixels: other inputs void a golden."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes())
    for name in sorted(pages):
        digest.update(np.asarray(Image.open(pages[name])).tobytes())
    return digest.hexdigest()


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) == 1 or "norm" in name or name.endswith(("neck.1.weight", "neck.3.weight")):
        return 0.2
    if "embed" in name or "rel_pos" in name or "query_" in name:
        return 0.5
    fan_in = float(np.prod(shape[1:]))
    return 1.5 / fan_in**0.5


def _centre(name: str) -> float:
    is_norm = "norm" in name or ".neck.1." in name or ".neck.3." in name or "layrnorm" in name
    return 1.0 if is_norm and name.endswith("weight") else 0.0


def _unprintable() -> list[int]:
    ids = {chr(code): len(SPECIALS) + n for n, code in enumerate(_byte_codes())}
    return sorted(set(range(VOCAB)) - {ids[chr(code)] for code in range(0x21, 0x7F)})


def _byte_codes() -> list[int]:
    return [ord(letter) for letter in sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]


def _tokenizer() -> tokenizers.Tokenizer:
    letters = [chr(code) for code in _byte_codes()]
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *letters])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in SPECIALS])
    return core
