"""GGUF's quantised blocks: a table of layouts, blocks to float32, float32 to Q8_0.

Knows arithmetic on bytes (numpy); knows nothing about files or tensors' names.
Source: ggml `ggml-common.h` (layouts) and `ggml-quants.c` (`dequantize_row_*`,
`quantize_row_q8_0_ref`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Type: (bytes of a block, items in it).
BLOCKS: dict[str, tuple[int, int]] = {
    "Q8_0": (34, 32), "Q4_0": (18, 32), "Q4_1": (20, 32), "Q5_0": (22, 32), "Q5_1": (24, 32),
    "Q4_K": (144, 256), "Q5_K": (176, 256), "Q6_K": (210, 256),
}


def dequantise(kind: str, data: bytes | bytearray | memoryview) -> Floats:
    """data: whole blocks of type `kind`. Returns float32 [items]."""
    size, items = BLOCKS[kind]
    blocks = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    out = _READERS[kind](blocks)
    return np.ascontiguousarray(out, dtype=np.float32).reshape(blocks.shape[0] * items)


def quantise_q8_0(values: npt.NDArray[Any]) -> Bytes:
    """values: float32, a multiple of 32 of them. Returns uint8 [blocks, 34].

    A block is the scale max|x| / 127 as float16, then 32 int8 rounded half away from zero.
    """
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    out = np.empty((blocks.shape[0], 34), np.uint8)
    out[:, :2] = scale.astype(np.float16).view(np.uint8)
    out[:, 2:] = rounded.view(np.uint8)
    return out


def _half(columns: Bytes) -> Floats:
    """Two bytes a block to float32 [blocks, 1]."""
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _nibbles(quants: Bytes) -> Bytes:
    """[blocks, n] bytes to [blocks, 2n]: all low halves, then all high halves."""
    return np.concatenate((quants & 15, quants >> 4), axis=1)


def _fifth_bits(columns: Bytes) -> Bytes:
    """Four bytes a block to 32 values of 0 or 16, bit j for item j."""
    return np.unpackbits(columns, axis=1, bitorder="little") * np.uint8(16)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(
        blocks[:, 2:4]
    )


def _q5_0(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks[:, :2]) * (quants.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks[:, :2]) * quants.astype(np.float32) + _half(blocks[:, 2:4])


def _scales_and_mins(packed: Bytes) -> tuple[Floats, Floats]:
    """12 bytes a block to eight 6-bit scales and eight 6-bit minima: [blocks, 8, 1] each.

    The first four of each fill bytes 0-3 and 4-7; bytes 8-11 hold the low halves of the last
    four, whose upper two bits sit on top of bytes 0-7.
    """
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (rest & 15) | (low >> 6 << 4)), axis=1)
    mins = np.concatenate((high & 63, (rest >> 4) | (high >> 6 << 4)), axis=1)
    return scales.astype(np.float32)[:, :, None], mins.astype(np.float32)[:, :, None]


def _k_affine(blocks: Bytes, quants: Bytes) -> Floats:
    """Q4_K and Q5_K share scale and minimum; quants: [blocks, 8, 32]."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    step = _half(blocks[:, 0:2])[:, :, None] * scales
    floor = _half(blocks[:, 2:4])[:, :, None] * mins
    return step * quants.astype(np.float32) - floor


def _k_nibbles(quants: Bytes) -> Bytes:
    """128 bytes to eight groups of 32: each 32 bytes give a group of low and one of high halves."""
    groups = quants.reshape(-1, 4, 1, 32)
    return np.concatenate((groups & 15, groups >> 4), axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Floats:
    return _k_affine(blocks, _k_nibbles(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    # Bit g of byte l is the fifth bit of item l in group g.
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth: Bytes = ((blocks[:, None, 16:48] >> shifts & 1) << 4).astype(np.uint8)
    return _k_affine(blocks, _k_nibbles(blocks[:, 48:]) | fifth)


def _q6_k(blocks: Bytes) -> Floats:
    """Halves of 128 items: 64 bytes of low nibbles, 32 bytes of four 2-bit tops, 8 scales."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    top = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    quants = (low | top << 4).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    step = (_half(blocks[:, 208:]) * scales)[:, :, None]
    return step * quants.reshape(-1, 16, 16)


_READERS: dict[str, Callable[[Bytes], Floats]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}
