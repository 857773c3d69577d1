"""Attention of each sequence's newest tokens over bf16 keys and values where they lie in the cache.

torch has no such kernel for a CPU without matrix tiles: it re-orders or widens all keys and values
for each call, and a decode step of many pages spends half its time so. This one reads them once,
widens them in registers and is compiled by numba when it is first asked for; without numba the
plain products of `attention.py` take its place.

Knows nothing about layers, projections or scheduling.

Letters: B sequences, T new tokens of each, S slots, L tokens a slot holds, H heads, C channels.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from math import exp
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("ocr2")

# numba's own pool of threads may take one caller at a time.
one_caller = threading.Lock()


class TokenAttention:
    """The compiled kernel. The same bits for a sequence in any company and for any number of
    threads: one head of one sequence is one piece of work, summed in a fixed order."""

    def __init__(self) -> None:
        self._attend, self._set_threads, self._most_threads = _compiled()

    def __call__(
        self,
        q_BHTC: Tensor,
        keys_SHLC: Tensor,
        values_SHLC: Tensor,
        slots: Sequence[int],
        starts: Sequence[int],
    ) -> Tensor:
        """q: bf16. keys, values: bf16, contiguous; row b's new tokens stand in slot slots[b] from
        position starts[b] on, and each looks at all up to itself. Scores, softmax and sums in
        float32, rounded once. Returns bf16 [B, T, H, C].
        """
        q_BTHC = q_BHTC.transpose(1, 2).float().contiguous()
        out_BTHC = torch.empty_like(q_BTHC)
        batch, tokens, heads, _ = q_BTHC.shape
        scores = np.empty((batch * heads, max(starts) + tokens), np.float32)
        with one_caller:
            self._set_threads(min(torch.get_num_threads(), self._most_threads))
            self._attend(
                _bits(keys_SHLC),
                _bits(values_SHLC),
                q_BTHC.numpy(),
                np.array(slots),
                np.array(starts),
                scores,
                out_BTHC.numpy(),
            )
        return out_BTHC.to(q_BHTC.dtype)


@cache
def token_attention() -> TokenAttention | None:
    """The kernel, compiled by the first call in about 2 s; None where numba is not installed."""
    try:
        return TokenAttention()
    except ImportError:
        logger.info("decoding in bf16 on this processor is faster with numba: pip install numba")
        return None


def _bits(stored: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a bf16 tensor as uint16: numpy has no bf16."""
    return stored.view(torch.uint16).numpy()


def _compiled() -> tuple[Callable[..., None], Callable[[int], None], int]:
    """(Kernel, its thread count's setter, the most threads it can have). Raises: ImportError."""
    from numba import config, njit, prange, set_num_threads, types

    halves = types.Array(types.uint16, 4, "C", readonly=True)
    floats = types.Array(types.float32, 4, "C")
    # Sums of products may be regrouped to fill vectors: in a fixed way, chosen when it is compiled.
    fast = {"reassoc", "contract", "nsz"}

    @njit(inline="always")
    def wide(half):  # type: ignore[no-untyped-def]
        return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)

    @njit(fastmath=fast, error_model="numpy")
    def attend_head(keys_LC, values_LC, q_C, scores_L, out_C):  # type: ignore[no-untyped-def]
        length, channels = len(scores_L), len(q_C)
        scale = np.float32(1 / np.sqrt(channels))
        top = np.float32(-np.inf)
        for at in range(length):
            score = np.float32(0)
            for c in range(channels):
                score += q_C[c] * wide(keys_LC[at, c])
            score *= scale
            scores_L[at] = score
            # Not max(): a nan has to come through, it fails the page.
            if not score <= top:
                top = score
        total = np.float32(0)
        for at in range(length):
            share = np.float32(exp(scores_L[at] - top))
            scores_L[at] = share
            total += share
        out_C[:] = np.float32(0)
        for at in range(length):
            share = scores_L[at]
            for c in range(channels):
                out_C[c] += share * wide(values_LC[at, c])
        for c in range(channels):
            out_C[c] /= total

    signature = types.void(
        halves, halves, floats, types.int64[::1], types.int64[::1], types.float32[:, ::1], floats
    )

    @njit(signature, parallel=True, nogil=True)
    def attend(keys_SHLC, values_SHLC, q_BTHC, slots, starts, scores, out_BTHC):  # type: ignore[no-untyped-def]
        batch, tokens, heads, _ = q_BTHC.shape
        for piece in prange(batch * heads):
            row, head = piece // heads, piece % heads
            keys_LC, values_LC = keys_SHLC[slots[row], head], values_SHLC[slots[row], head]
            for token in range(tokens):
                attend_head(
                    keys_LC,
                    values_LC,
                    q_BTHC[row, token, head],
                    scores[piece, : starts[row] + token + 1],
                    out_BTHC[row, token, head],
                )

    return attend, set_num_threads, int(config.NUMBA_NUM_THREADS)
