"""A model's digest: the same weights give the same 64 hex digits, other weights do not.

It names the weights in journals, caches and sidecars. It is not a proof against forgery: of a
large file it reads the header and 64 blocks of a megabyte spread over the data, which any other
training, conversion or cut changes, and which takes 0.1 s where 6.8 GB would take many.
`ocr2 models pull` checks every byte against the hub's own sha256.
Knows bytes; knows nothing about formats.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ocr2cli.weights.hub import ModelFiles, resolve_model
from ocr2cli.weights.read_safetensors import shard_paths
from ocr2cli.weights.weight_file import WeightFile

# Files up to this size are read whole.
WHOLE_BYTES = 128 << 20
NUM_BLOCKS = 64
BLOCK_BYTES = 1 << 20


def weights_digest(model: ModelFiles | Path | str) -> str:
    """sha256, in hex, over the model's config, tokenizer and weights. Raises: ModelError."""
    if isinstance(model, Path):
        model = str(model.absolute())
    files = resolve_model(model) if isinstance(model, str) else model
    digest = hashlib.sha256()
    for path in digested_paths(files):
        with WeightFile(path) as file:
            digest.update(f"{file.size}\n".encode())
            for begin, count in _blocks(file.size):
                digest.update(file.read(begin, count))
    return digest.hexdigest()


def digested_paths(files: ModelFiles) -> list[Path]:
    """Every file whose bytes decide the text, in a fixed order."""
    if files.mmproj is not None:
        return [files.path, files.mmproj]
    return small_paths(files.path) + shard_paths(files.path)


def small_paths(folder: Path) -> list[Path]:
    """What decides the text beside a folder's weights: sizes and vocabulary."""
    small = (folder / name for name in ("config.json", "tokenizer.json"))
    return [path for path in small if path.is_file()]


def _blocks(size: int) -> list[tuple[int, int]]:
    """(begin, count) of what is read of a file of `size` bytes."""
    if size <= WHOLE_BYTES:
        return [
            (begin, min(BLOCK_BYTES, size - begin)) for begin in range(0, size, BLOCK_BYTES)
        ]
    last = size - BLOCK_BYTES
    return [(last * number // (NUM_BLOCKS - 1), BLOCK_BYTES) for number in range(NUM_BLOCKS)]
