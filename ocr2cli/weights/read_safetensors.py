"""The header of a .safetensors file, and the shards of a folder.

Every number is checked before it is used: header length, shapes, offsets, overlaps, holes.
Knows nothing about which tensors a model needs, nor about torch.
Source: the format description of the safetensors project.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ocr2cli.errors import ModelError
from ocr2cli.weights.weight_file import StoredTensor, WeightFile

# The published checkpoint's header is 0.35 MB; the format allows 100 MB.
MAX_HEADER_BYTES = 25_000_000
MAX_INDEX_BYTES = 25_000_000
MAX_DIMENSIONS = 8
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}


def read_table(file: WeightFile) -> dict[str, StoredTensor]:
    """Name to place of every tensor in one file.

    Raises: ModelError naming the file and, where there is one, the tensor.
    """
    header, start = _header(file)
    table = {
        name: _entry(file, name, value, start)
        for name, value in header.items()
        if name != "__metadata__"
    }
    _check_layout(file, table, start)
    return table


def read_metadata(file: WeightFile) -> dict[str, Any]:
    """What stands beside the tensors. Raises: ModelError as `read_table` does."""
    metadata = _header(file)[0].get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _header(file: WeightFile) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    if file.size < 8:
        raise _damaged(file, "it is shorter than a header")
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, file.size - 8):
        raise _damaged(file, f"its header claims {header_bytes:,} bytes")
    return _parse(file, file.read(8, header_bytes, "header")), 8 + header_bytes


def shard_paths(folder: Path) -> list[Path]:
    """The .safetensors files of a model folder. Beside an index, model.safetensors alone if it is
    there, as in transformers; else those that the index names; without an index all.

    Raises: ModelError when there are none, or when the index names one that is not there.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.exists():
        return [single] if single.is_file() else _indexed_shards(index)
    shards = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if shards:
        return shards
    pickles = sorted(
        path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
        for path in folder.glob(kind)
    )
    if pickles:
        raise ModelError(
            f"{folder} holds only pickled weights ({', '.join(pickles[:3])}), which can run code "
            "and are never opened. Download the .safetensors files instead."
        )
    raise ModelError(f"{folder} holds no .safetensors file. Download the model's weights into it.")


def _indexed_shards(index: Path) -> list[Path]:
    with WeightFile(index) as file:
        if file.size > MAX_INDEX_BYTES:
            raise _damaged(file, "it is too large for an index")
        data = _parse(file, file.read(0, file.size))
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map. Download it again.")
    shards = []
    for name in sorted({str(value) for value in weight_map.values()}):
        # A plain name only: an index must not reach outside its folder.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name[:80]!r}, which is not a .safetensors file here.")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name} is missing; {index.name} names it. "
                             "Download it.")
        shards.append(index.parent / name)
    return shards


def _parse(file: WeightFile, data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _damaged(file, f"{name[:80]!r} stands in it twice")
            found[name] = value
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise _damaged(file, "its header is not a JSON object")
    return value


def _entry(file: WeightFile, name: str, value: object, start: int) -> StoredTensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"{name[:80]} has no dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _damaged(file, f"{name[:80]} has the unknown dtype {str(dtype)[:20]!r}")
    is_shape = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    if not is_shape or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise _damaged(file, f"{name[:80]} has the shape {str(shape)[:60]}")
    is_pair = isinstance(offsets, list) and len(offsets) == 2
    if not is_pair or not all(type(value) is int and value >= 0 for value in offsets):
        raise _damaged(file, f"{name[:80]} has the offsets {str(offsets)[:60]}")
    begin, end = offsets
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != num_bytes:
        raise _damaged(file, f"{name[:80]} needs {num_bytes:,} bytes and has {end - begin:,}")
    if start + end > file.size:
        raise _damaged(file, f"{name[:80]} ends at byte {start + end:,} of {file.size:,}")
    return StoredTensor(name, tuple(shape), dtype, start + begin, num_bytes)


def _check_layout(file: WeightFile, table: dict[str, StoredTensor], start: int) -> None:
    """Data must follow the header without overlap, hole or tail, as the format demands."""
    end = start
    for tensor in sorted(table.values(), key=lambda tensor: (tensor.begin, tensor.num_bytes)):
        if tensor.begin != end:
            kind = "overlaps another tensor" if tensor.begin < end else "follows a hole"
            raise _damaged(file, f"{tensor.name[:80]} {kind}")
        end = tensor.begin + tensor.num_bytes
    if end != file.size:
        raise _damaged(file, f"{file.size - end:,} bytes follow its last tensor")


def _damaged(file: WeightFile, why: str) -> ModelError:
    return ModelError(f"{file.path} is damaged: {why}. Download it again.")
