"""Products of a decoder's rows with weights where they lie, alone or by expert.

oneDNN's products of a few rows wait for memory (20 to 27 GB/s where 31 to 34 can be had), and a
step of 32 pages calls them 1,400 times. These read each weight once, ask for the next ones
meanwhile and take all of a layer's experts in one call; with many rows, as in a prompt, they are as
fast as oneDNN's, 7 % slower at most. The weight is a plain row-major tensor in bf16, float32 or
int8; numba compiles the product when it is first asked for. `linear.py`, `moe.py` and
`quantized.py` have oneDNN's ways for where there is none.

Knows nothing about layers or routing.

Letters: M rows, N output and K input channels, E experts, R rows that are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocr2cli.model.compiled.dot_rows import (
    BF16,
    CHANNELS,
    FLOAT,
    INT8,
    SHORT_FLOAT,
    SHORT_INT8,
    SHORT_SIGNED,
    SHORT_WIDENED,
    WIDENED,
    Numbers,
    make_dot_rows,
)
from ocr2cli.model.compiled.kernel import compile_kernel
from ocr2cli.model.compiled.threads import made_by_numba, numba_threads
from ocr2cli.model.processor import can_run, has_amx, host_features

# Channels that a thread takes at a time, at most, and rows that stay in its second cache meanwhile.
_BLOCK, _ROWS = 64, 96
# How many groups of four channels ahead weights are asked for.
_AHEAD = 4


class TokenProducts:
    """The compiled product of one kind of numbers. The same bits for a row in any company and for
    any number of threads: each of its sums is added up in one order, by one thread."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._run = _compiled(numbers)

    def takes(self, channels: int, width: int) -> bool:
        """True for weights of that many output and input channels."""
        return channels % CHANNELS == 0 and width % self._numbers.step == 0 and width > 0

    def product(self, x: Tensor, weight_NK: Tensor) -> Tensor:
        """x: [..., K]; weight: contiguous. Returns [..., N] in x's dtype: products and sums in
        float32, rounded once."""
        x_MK = x.reshape(-1, x.shape[-1])
        y_MN = self.grouped(x_MK, weight_NK[None], np.zeros(len(x_MK), np.int64))
        return y_MN.view(*x.shape[:-1], -1)

    def grouped(
        self, x_MK: Tensor, weight_ENK: Tensor, experts_R: np.ndarray[Any, Any], uses: int = 1
    ) -> Tensor:
        """Row r of the result is row r // uses of x times the weight of expert experts_R[r].

        x: [R / uses, K]. weight: contiguous. experts: int64. Returns [R, N] in x's dtype.
        """
        y_RN = torch.empty(len(experts_R), weight_ENK.shape[1], dtype=x_MK.dtype)
        self._multiply(x_MK, weight_ENK, experts_R, uses, y_RN, _NONE, _NONE, _NO_SCALES)
        return y_RN

    def scaled(
        self,
        x_M2K: Tensor,
        row_scales_M: Tensor,
        weight_ENK: Tensor,
        scales_EN: Tensor,
        shifts_EN: Tensor,
        experts_R: np.ndarray[Any, Any],
        uses: int = 1,
    ) -> Tensor:
        """`grouped` in int8: exact sums, times the channel's scale, times the row's.

        x: int8 [R / uses, 2, K], high bytes and low ones, both signed: 256 of a low one's steps are
        one of a high one's. weight: int8. shifts: int32, 128 times the sum of each channel.
        Returns float32 [R, N].
        """
        y_RN = torch.empty(len(experts_R), weight_ENK.shape[1])
        row_scales = row_scales_M.reshape(-1).numpy()
        self._multiply(x_M2K, weight_ENK, experts_R, uses, y_RN, scales_EN, shifts_EN, row_scales)
        return y_RN

    def _multiply(
        self,
        x: Tensor,
        weight_ENK: Tensor,
        experts_R: np.ndarray[Any, Any],
        uses: int,
        y_RN: Tensor,
        scales_EN: Tensor,
        shifts_EN: Tensor,
        row_scales_M: np.ndarray[Any, Any],
    ) -> None:
        experts, channels, width = weight_ENK.shape
        x = x.contiguous()
        # Addresses, not arrays, go in: what lies there is checked here.
        assert weight_ENK.is_contiguous() and self.takes(channels, width)
        parts = self._numbers.parts
        assert x.shape == (len(experts_R) // uses, *((parts,) if parts > 1 else ()), width)
        assert weight_ENK.element_size() == self._numbers.weight
        assert x.element_size() * parts == self._numbers.input
        with numba_threads() as threads:
            self._run(
                weight_ENK.data_ptr(), experts, channels, width,
                x.data_ptr(), uses, y_RN.data_ptr(), y_RN.element_size(), experts_R,
                scales_EN.data_ptr(), shifts_EN.data_ptr(), row_scales_M, threads,
            )  # fmt: skip


_NONE = torch.empty(0)
_NO_SCALES = np.zeros(1, np.float32)


@cache
def token_products(rows: torch.dtype, weights: torch.dtype) -> TokenProducts | None:
    """The product of rows and weights of these dtypes, compiled by the first call in about 2 s.

    None where oneDNN is the faster one (bf16 and int8 with matrix tiles), where this processor has
    no instruction for it, for other dtypes, and without numba.
    """

    def make() -> TokenProducts | None:
        numbers = _numbers_here(rows, weights)
        return TokenProducts(numbers) if numbers else None

    return made_by_numba(make)


def _numbers_here(rows: torch.dtype, weights: torch.dtype) -> Numbers | None:
    """Raises: ImportError."""
    if has_amx() and rows != torch.float32:
        return None
    features = host_features()
    ways = _WAYS.get((rows, weights), ())
    return next((numbers for numbers in ways if can_run(numbers.features, features)), None)


# By the dtypes of rows and weights, the fastest first.
_WAYS = {
    (torch.bfloat16, torch.bfloat16): (BF16,),
    (torch.int8, torch.int8): (INT8, SHORT_INT8, SHORT_SIGNED),
    (torch.float32, torch.float32): (FLOAT, SHORT_FLOAT),
    (torch.float32, torch.bfloat16): (WIDENED, SHORT_WIDENED),
}


def _compiled(numbers: Numbers) -> Callable[..., None]:
    """Raises: ImportError."""
    from numba import njit, prange, types

    dot_rows = make_dot_rows(numbers)
    item, input_item, whole = numbers.weight, numbers.input, numbers.is_whole
    most_rows = numbers.rows
    variant = numbers.variant
    int64 = types.int64

    @njit(inline="always")
    def multiply_block(  # type: ignore[no-untyped-def]
        weight, following, width, first, last, inputs, outputs, column, y_item, size,
        scales, shifts, row_scales,
    ):  # fmt: skip
        """`size` channels of one expert for its rows first to last. following: what this thread
        multiplies next. column: bytes of a row of the result before these channels."""
        group = CHANNELS * width * item
        for lowest in range(first, last, _ROWS):
            highest = min(last, lowest + _ROWS)
            for channel in range(0, size, CHANNELS):
                here = weight + channel * width * item
                ahead = here + _AHEAD * group
                if channel + _AHEAD * CHANNELS >= size:
                    ahead = following + ahead - (weight + size * width * item)
                # What comes next is asked for evenly while this group's rows are multiplied.
                turns = -(-(highest - lowest) // most_rows)
                for turn in range(turns):
                    row = lowest + turn * most_rows
                    dot_rows(
                        min(most_rows, highest - row), here, ahead,
                        -(-CHANNELS * turn // turns), -(-CHANNELS * (turn + 1) // turns),
                        width, inputs + 8 * row, outputs + 8 * row, column + channel * y_item,
                        scales + 4 * channel, shifts + 4 * channel, row_scales + 4 * row,
                    )  # fmt: skip

    @njit
    def sort_rows(num_experts, experts_R):  # type: ignore[no-untyped-def]
        """(Where each expert's rows start, experts that have rows, rows by expert)."""
        starts_E = np.zeros(num_experts + 1, np.int64)
        for expert in experts_R:
            starts_E[expert + 1] += 1
        used = np.empty(num_experts, np.int64)
        num_used = 0
        for expert in range(num_experts):
            if starts_E[expert + 1]:
                used[num_used] = expert
                num_used += 1
            starts_E[expert + 1] += starts_E[expert]
        filled_E, sorted_R = starts_E.copy(), np.empty(len(experts_R), np.int64)
        for row, expert in enumerate(experts_R):
            sorted_R[filled_E[expert]] = row
            filled_E[expert] += 1
        return starts_E, used[:num_used], sorted_R

    @njit
    def multiply_pieces(  # type: ignore[no-untyped-def]
        thread, threads, block, channels, width, weight, starts_E, used, inputs_R, outputs_R,
        y_item, scales, shifts, row_scales_R,
    ):  # fmt: skip
        """Every `threads`th block of channels of the experts that have rows."""
        blocks = -(-channels // block)
        pieces = len(used) * blocks
        for piece in range(thread, pieces, threads):
            expert, low = used[piece // blocks], piece % blocks * block
            soon = min(piece + threads, pieces - 1)
            following = used[soon // blocks] * channels + soon % blocks * block
            line = expert * channels + low
            multiply_block(
                weight + line * width * item, weight + following * width * item, width,
                starts_E[expert], starts_E[expert + 1], inputs_R.ctypes.data,
                outputs_R.ctypes.data, low * y_item, y_item, min(block, channels - low),
                scales + 4 * line, shifts + 4 * line, row_scales_R.ctypes.data,
            )  # fmt: skip

    numbers_R, floats_R = types.int64[::1], types.float32[::1]

    @compile_kernel(
        types.void(*[int64] * 5, *[numbers_R] * 4, *[int64] * 3, floats_R),
        variant, parallel=True, nogil=True,
    )  # fmt: skip
    def in_threads(  # type: ignore[no-untyped-def]
        threads, block, channels, width, weight, starts_E, used, inputs_R, outputs_R, y_item,
        scales, shifts, row_scales_R,
    ):  # fmt: skip
        for thread in prange(threads):
            multiply_pieces(
                thread, threads, block, channels, width, weight, starts_E, used, inputs_R,
                outputs_R, y_item, scales, shifts, row_scales_R,
            )  # fmt: skip

    @compile_kernel(
        types.void(*[int64] * 8, numbers_R, int64, int64, floats_R, int64), variant, nogil=True
    )
    def run(  # type: ignore[no-untyped-def]
        weight, num_experts, channels, width, x, uses, y, y_item, experts_R, scales, shifts,
        row_scales_M, threads,
    ):  # fmt: skip
        starts_E, used, sorted_R = sort_rows(num_experts, experts_R)
        inputs_R, outputs_R = np.empty_like(sorted_R), np.empty_like(sorted_R)
        row_scales_R = np.empty(len(sorted_R), np.float32)
        for at, row in enumerate(sorted_R):
            inputs_R[at] = x + row // uses * width * input_item
            outputs_R[at] = y + row * channels * y_item
            if whole:
                row_scales_R[at] = row_scales_M[row // uses]
        # Threads take blocks in turns, so an expert of many rows is everybody's work.
        block = _BLOCK
        while block > 4 * CHANNELS and len(used) * channels < 8 * threads * block:
            block //= 2
        in_threads(
            threads, block, channels, width, weight, starts_E, used, inputs_R, outputs_R, y_item,
            scales, shifts, row_scales_R,
        )  # fmt: skip

    return run
