"""Rows of float32 as whole numbers of two bytes, each row by its own largest magnitude.

torch needs a dozen operations for it, some 20 us for a row of 1,280 where this takes 5.
`quantized.py` has torch's way, with the same bits, for where this one is not.

Knows nothing about what the rows are for.

Letters: M rows, K numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ocr2cli.model.compiled.exponential import ROUNDING
from ocr2cli.model.compiled.kernel import compile_kernel
from ocr2cli.model.compiled.threads import made_by_numba, numba_threads

# Numbers from which on threads share the rows.
_SHARED = 1 << 16


class RowBytes:
    """The compiled way. levels: what a row's largest magnitude becomes, 32,639 at most."""

    def __init__(self, levels: int) -> None:
        self._run = _compiled(levels)

    def __call__(self, x_MK: Tensor) -> tuple[Tensor, Tensor]:
        """x: float32. Returns (int8 [M, 2, K]: high bytes, then low ones, both signed; scales
        float32 [M, 1]). A scale is not finite where its row is not."""
        rows, width = x_MK.shape
        values_M2K = torch.empty(rows, 2, width, dtype=torch.int8)
        scales_M1 = torch.empty(rows, 1)
        with numba_threads():
            self._run(x_MK.contiguous().numpy(), values_M2K.numpy(), scales_M1.numpy())
        return values_M2K, scales_M1


@cache
def row_bytes(levels: int) -> RowBytes | None:
    """Compiled by the first call in about a second; None where numba is not installed or told not
    to compile."""
    return made_by_numba(lambda: RowBytes(levels))


def _compiled(levels: int) -> Callable[..., None]:
    """Raises: ImportError."""
    from numba import njit, prange, types

    least = np.float32(torch.finfo(torch.float32).tiny)
    most = np.float32(levels)
    shift = ROUNDING
    size_of = np.int32(0x7FFFFFFF)

    @njit(error_model="numpy")
    def quantise(x_K, high_K, low_K):  # type: ignore[no-untyped-def]
        """Returns the row's scale."""
        # Without its sign a float's bits are in the order of its size, and a nan's are the largest:
        # whole numbers fill vectors where a maximum of floats does not.
        largest = np.int32(0)
        for k in range(len(x_K)):
            largest = max(largest, np.int32(np.float32(x_K[k]).view(np.int32) & size_of))
        scale = np.int32(largest).view(np.float32) / most
        if scale < least:  # a row of zeros stays zeros
            scale = least
        for k in range(len(x_K)):
            both = np.float32(x_K[k] / scale + shift).view(np.int32)
            low_K[k] = np.int8(both)
            high_K[k] = np.int8((both + np.int32(128)) >> np.int32(8))
        return scale

    @compile_kernel(
        types.void(types.float32[:, ::1], types.int8[:, :, ::1], types.float32[:, ::1]),
        str(levels), parallel=True, nogil=True,
    )  # fmt: skip
    def run(x_MK, values_M2K, scales_M1):  # type: ignore[no-untyped-def]
        if x_MK.size < _SHARED:
            for m in range(len(x_MK)):
                scales_M1[m, 0] = quantise(x_MK[m], values_M2K[m, 0], values_M2K[m, 1])
        else:
            for m in prange(len(x_MK)):
                scales_M1[m, 0] = quantise(x_MK[m], values_M2K[m, 0], values_M2K[m, 1])

    return run
