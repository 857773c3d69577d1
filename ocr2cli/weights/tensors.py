"""Bytes of a weight file to torch tensors, straight into the place and dtype wanted.

Knows dtypes and block formats; knows nothing about names or models.
"""

from __future__ import annotations

import math
import warnings

import torch

from ocr2cli.errors import ModelError
from ocr2cli.weights.quants import BLOCKS, dequantise
from ocr2cli.weights.weight_file import StoredTensor, WeightFile

# Temporary memory of a cast or dequantisation.
CHUNK_BYTES = 32 << 20

TORCH_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}


def read_tensor(file: WeightFile, stored: StoredTensor) -> torch.Tensor:
    """The tensor on the CPU, in its own dtype; quantised ones as float32."""
    dtype = TORCH_DTYPES.get(stored.dtype, torch.float32)
    out = torch.empty(stored.shape, dtype=dtype)
    read_into(file, stored, out)
    return out


def read_into(file: WeightFile, stored: StoredTensor, out: torch.Tensor) -> None:
    """Fill `out` (same number of elements, any float dtype, device and strides).

    Raises: ModelError when the file ends early or holds a type that is not a weight's.
    """
    if stored.numel == 0:
        return
    dtype = TORCH_DTYPES.get(stored.dtype)
    if dtype is None and stored.dtype not in BLOCKS:
        raise ModelError(
            f"{file.path}: {stored.name} is stored as {stored.dtype}, which cannot be read. "
            "Use a file in BF16, F16, F32, Q8_0, Q4_0, Q5_0, Q4_K, Q5_K or Q6_K."
        )
    if out.dtype == dtype and out.device.type == "cpu" and out.is_contiguous():
        file.read_into(_bytes_of(out), stored.begin, stored.name)
    elif out.is_contiguous():
        _read_in_chunks(file, stored, out.view(-1), dtype)
    else:
        whole = torch.empty(stored.numel, dtype=dtype or torch.float32)
        read_into(file, stored, whole)
        out.copy_(whole.view(out.shape))


def is_finite(tensor: torch.Tensor) -> bool:
    """False when an element is NaN or infinite: both show in the extremes, at memory speed."""
    if tensor.numel() == 0:
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def _read_in_chunks(
    file: WeightFile, stored: StoredTensor, flat: torch.Tensor, dtype: torch.dtype | None
) -> None:
    size, num_items = (dtype.itemsize, 1) if dtype else BLOCKS[stored.dtype]
    step = max(1, CHUNK_BYTES // size)
    for first in range(0, stored.numel // num_items, step):
        count = min(step, stored.numel // num_items - first)
        data = bytearray(count * size)
        file.read_into(memoryview(data), stored.begin + first * size, stored.name)
        if dtype is None:
            values = torch.from_numpy(dequantise(stored.dtype, data))
        else:
            values = torch.frombuffer(data, dtype=dtype)
        flat[first * num_items : (first + count) * num_items].copy_(values)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = tensor.detach().reshape(math.prod(tensor.shape)).view(torch.uint8).numpy()
    return flat.data
