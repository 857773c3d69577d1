"""Attention of each sequence's newest tokens over the keys and values in their cache, compiled.

torch has no such kernel for a CPU without matrix tiles: it re-orders or widens all bf16 keys and
values for each call, and a decode step of many pages spent half its time so; in float32 it is
called for each sequence. This one turns the new queries and keys by their positions, stores keys
and values, and reads what is cached once. Compiled by numba when it is first asked for; without
numba `attention.py` has torch's ways.

Knows nothing about layers, projections or scheduling.

Letters: B sequences, T new tokens of each, S slots, L tokens a slot holds, H heads, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocr2cli.model.compiled.exponential import LOG2_E, make_power_of_two
from ocr2cli.model.compiled.kernel import compile_kernel
from ocr2cli.model.compiled.threads import made_by_numba, numba_threads


class TokenAttention:
    """The compiled kernel for one dtype. The same bits for a sequence in any company and for any
    number of threads: one head of one sequence is one piece of work, summed in a fixed order."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._extend = _compiled(dtype)

    def __call__(
        self,
        qkv_BT3HC: Tensor,
        cos_BTC: Tensor,
        sin_BTC: Tensor,
        keys_SHLC: Tensor,
        values_SHLC: Tensor,
        slots: Sequence[int],
        starts: Sequence[int],
    ) -> Tensor:
        """Row b's new tokens go to slot slots[b] from position starts[b] on, and each looks at all
        up to itself.

        qkv, keys, values: the kernel's dtype, contiguous. cos, sin: float32, as `Rotary` has them.
        Queries and keys are turned in float32 and rounded, as `layers.rotate` does; scores, softmax
        and sums are float32, rounded once. Returns [B, T, H, C].
        """
        batch, tokens, _, heads, channels = qkv_BT3HC.shape
        assert cos_BTC.shape == sin_BTC.shape == (batch, tokens, channels)
        assert {part.dtype for part in (qkv_BT3HC, keys_SHLC, values_SHLC)} == {self._dtype}
        assert max(starts) + tokens <= keys_SHLC.shape[2] and max(slots) < keys_SHLC.shape[0]
        out_BTHC = qkv_BT3HC.new_empty(batch, tokens, *qkv_BT3HC.shape[3:])
        scores = np.empty((batch * heads, max(starts) + tokens), np.float32)
        with numba_threads():
            self._extend(
                _items(qkv_BT3HC), cos_BTC.contiguous().numpy(), sin_BTC.contiguous().numpy(),
                _items(keys_SHLC), _items(values_SHLC), np.array(slots), np.array(starts), scores,
                _items(out_BTHC),
            )  # fmt: skip
        return out_BTHC


@cache
def token_attention(dtype: torch.dtype) -> TokenAttention | None:
    """The kernel for bf16 or float32, compiled by the first call in about 2 s; None where numba is
    not installed or told not to compile."""
    return made_by_numba(lambda: TokenAttention(dtype))


def _items(stored: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor; bf16 as uint16, since numpy has none."""
    return (stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored).numpy()


def _compiled(dtype: torch.dtype) -> Callable[..., None]:
    """Raises: ImportError."""
    from numba import njit, prange, types

    power_of_two = make_power_of_two()

    @njit(inline="always")
    def bf16_to_float(half):  # type: ignore[no-untyped-def]
        return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)

    @njit(inline="always")
    def float_to_bf16(value):  # type: ignore[no-untyped-def]
        """To the nearest, ties to even; a nan stays one."""
        bits = np.float32(value).view(np.uint32)
        high = np.uint32(bits >> np.uint32(16))
        rounded = np.uint32(bits + np.uint32(0x7FFF) + (high & np.uint32(1))) >> np.uint32(16)
        return np.uint16(rounded if value == value else high | np.uint32(0x40))

    @njit(inline="always")
    def as_it_is(value):  # type: ignore[no-untyped-def]
        return np.float32(value)

    is_narrow = dtype == torch.bfloat16
    wide, narrow = (bf16_to_float, float_to_bf16) if is_narrow else (as_it_is, as_it_is)
    item = types.uint16 if is_narrow else types.float32
    # Sums of products may be regrouped to fill vectors: in a fixed way, chosen when it is compiled.
    fast = {"reassoc", "contract", "nsz"}

    @njit
    def turn(x_C, cos_C, sin_C, out_C):  # type: ignore[no-untyped-def]
        """Element i pairs with i + C / 2; rounded to the dtype. Not fast: torch's bits."""
        half = len(x_C) // 2
        for c in range(half):
            first, second = wide(x_C[c]), wide(x_C[c + half])
            out_C[c] = narrow(first * cos_C[c] + second * sin_C[c])
            out_C[c + half] = narrow(second * cos_C[c + half] + first * sin_C[c + half])

    @njit(fastmath=fast, error_model="numpy")
    def score(keys_LC, q_C, scores_L):  # type: ignore[no-untyped-def]
        """Each key's score as a power of two's; returns the largest."""
        length, channels = len(scores_L), len(q_C)
        scale = np.float32(LOG2_E / np.sqrt(channels))
        top = np.float32(-np.inf)
        for at in range(length):
            total = np.float32(0)
            for c in range(channels):
                total += q_C[c] * wide(keys_LC[at, c])
            total *= scale
            scores_L[at] = total
            if total > top:  # a nan, which fails the page, comes through the sum of shares
                top = total
        return top

    @njit
    def soften(scores_L, top):  # type: ignore[no-untyped-def]
        for at in range(len(scores_L)):
            scores_L[at] = power_of_two(scores_L[at] - top)

    @njit(fastmath=fast, error_model="numpy")
    def gather(values_LC, shares_L, out_C):  # type: ignore[no-untyped-def]
        out_C[:] = np.float32(0)
        total = np.float32(0)
        for at in range(len(shares_L)):
            total += shares_L[at]
        for at in range(len(shares_L)):
            share = shares_L[at]
            for c in range(len(out_C)):
                out_C[c] += share * wide(values_LC[at, c])
        for c in range(len(out_C)):
            out_C[c] /= total

    items, floats = types.Array(item, 4, "C"), types.float32[:, :, ::1]
    numbers = types.int64[::1]

    @compile_kernel(
        types.void(
            types.Array(item, 5, "C"), floats, floats, items, items, numbers, numbers,
            types.float32[:, ::1], items,
        ),
        str(dtype), parallel=True, nogil=True,
    )  # fmt: skip
    def extend(  # type: ignore[no-untyped-def]
        qkv_BT3HC, cos_BTC, sin_BTC, keys_SHLC, values_SHLC, slots, starts, scores, out_BTHC
    ):
        batch, tokens, _, heads, channels = qkv_BT3HC.shape
        for piece in prange(batch * heads):
            row, head = piece // heads, piece % heads
            start = starts[row]
            keys_LC, values_LC = keys_SHLC[slots[row], head], values_SHLC[slots[row], head]
            for token in range(tokens):
                k_C, v_C = qkv_BT3HC[row, token, 1, head], qkv_BT3HC[row, token, 2, head]
                turn(k_C, cos_BTC[row, token], sin_BTC[row, token], keys_LC[start + token])
                values_LC[start + token, :] = v_C
            q_C, y_C = np.empty(channels, np.float32), np.empty(channels, np.float32)
            for token in range(tokens):
                out_C = out_BTHC[row, token, head]
                q_as_stored = qkv_BT3HC[row, token, 0, head]
                turn(q_as_stored, cos_BTC[row, token], sin_BTC[row, token], out_C)
                for c in range(channels):
                    q_C[c] = wide(out_C[c])
                scores_L = scores[piece, : start + token + 1]
                soften(scores_L, score(keys_LC, q_C, scores_L))
                gather(values_LC, scores_L, y_C)
                for c in range(channels):
                    out_C[c] = narrow(y_C[c])

    return extend
