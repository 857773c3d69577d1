"""Attention over a square map with decomposed relative positions, compiled for bf16 on a CPU.

Of the SAM encoder's time half was attention: its scores written out, biased, softened and
multiplied in passes over memory. Here some rows of one head go through all of it while they lie in
the cache, and products take the processor's dot products. Compiled by numba when it is first asked
for; `sam.py` has torch's ways for where there is none.

Knows nothing about windows or projections.

Letters: B maps, N = G * G tokens, M of them filled up to whole vectors, H heads, C channels,
W = C / 2 words of 32 bits, K blocks of c keys, L = 2G - 1 relative positions, R rows.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocr2cli.model.compiled.dot_columns import FEATURES, LANES, ROWS, WIDTH, make_dot_columns
from ocr2cli.model.compiled.exponential import LOG2_E, make_power_of_two
from ocr2cli.model.compiled.kernel import compile_kernel
from ocr2cli.model.compiled.threads import made_by_numba
from ocr2cli.model.processor import can_run, has_amx, host_features

# Rows that share a reading of keys and values, and keys at a time: their scores and shares (36 KB)
# stay in the first cache. Whole pairs and vectors of keys.
_ROWS, _KEYS = 24, 256


class MapAttention:
    """The compiled attention. A map's bits are its own, for any number of threads."""

    def __init__(self) -> None:
        self._attend = _compiled()
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="attend")

    def takes(self, channels: int) -> bool:
        """True for heads of that many channels."""
        return channels > 0 and channels % WIDTH == 0

    def __call__(self, qkv_BN3HC: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """softmax(q.k / sqrt(C) + q.Rh + q.Rw) v, with tables as `pack_positions` gives them.

        qkv: bf16, contiguous. Scores, softmax and sums in float32; shares are rounded to bf16
        before they meet v. Returns bf16 [B, N, H, C].
        """
        batch, tokens, _, heads, channels = qkv_BN3HC.shape
        side = round(tokens**0.5)
        assert qkv_BN3HC.is_contiguous() and qkv_BN3HC.dtype == torch.bfloat16
        assert side * side == tokens and self.takes(channels)
        assert by_row.shape == by_column.shape == (channels // 2, 2 * side - 1 + _empty(side))
        out_BNHC = qkv_BN3HC.new_empty(batch, tokens, heads, channels)
        threads = torch.get_num_threads()
        # Parts of a head: enough for all threads, but keys are packed anew for each.
        parts = max(1, min(-(-4 * threads // (batch * heads)), -(-tokens // (4 * _ROWS))))
        operands = (
            qkv_BN3HC.view(torch.uint16).numpy(), qkv_BN3HC.view(torch.int32).numpy(),
            by_row.numpy(), by_column.numpy(), side, parts, out_BNHC.view(torch.uint16).numpy(),
        )  # fmt: skip
        pieces = itertools.count()  # each thread takes the next one: next() is one step for all
        others = [self._threads.submit(self._take, pieces, operands) for _ in range(threads - 1)]
        self._take(pieces, operands)
        for other in others:
            other.result()
        return out_BNHC

    def _take(self, pieces: Iterator[int], operands: tuple[Any, ...]) -> None:
        """Work through heads and parts until there are none; the compiled code holds no lock."""
        while self._attend(next(pieces), *operands):
            pass


def pack_positions(table_LC: Tensor) -> Tensor:
    """A bf16 table of relative positions as the kernel reads it: int32 words [C / 2, L, filled up
    to whole vectors], the last position first, so that one query's keys lie in order."""
    reversed_LC = F.pad(table_LC.flip(0), (0, 0, 0, _empty((len(table_LC) + 1) // 2)))
    return reversed_LC.contiguous().view(torch.int32).T.contiguous()


def _empty(side: int) -> int:
    return -(2 * side - 1) % WIDTH


@cache
def map_attention() -> MapAttention | None:
    """The kernel, compiled by the first call in about 4 s; None on a processor with matrix tiles,
    which torch makes good use of, or without the instructions, and without numba."""

    def make() -> MapAttention | None:
        takes_it = not has_amx() and can_run(FEATURES, host_features())
        return MapAttention() if takes_it else None

    return made_by_numba(make)


def _compiled() -> Callable[..., bool]:
    """The kernel's piece of work. Raises: ImportError."""
    from numba import njit, types

    dot_values = make_dot_columns(is_score=False)
    dot_scores = make_dot_columns(is_score=True)
    power_of_two = make_power_of_two()

    @njit(inline="always")
    def to_bf16(value):  # type: ignore[no-untyped-def]
        """To the nearest, ties to even; a nan stays one (the processor's own has room above)."""
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    @njit
    def multiply(  # type: ignore[no-untyped-def]
        is_score, rows, inputs, input_pitch, count, matrix, pitch, outputs, output_pitch, scale,
        tops,
    ):  # fmt: skip
        """dot_columns for any number of rows."""
        low = 0
        while low < rows:
            left = rows - low
            some = ROWS[3] if left >= ROWS[3] else left if left < 3 else 4 if left > 3 else 2
            into, above = outputs + low * output_pitch, tops + 4 * LANES * low
            if is_score:
                dot_scores(
                    some, inputs + low * input_pitch, input_pitch, count, matrix, pitch, into,
                    output_pitch, scale, above,
                )  # fmt: skip
            else:
                dot_values(
                    some, inputs + low * input_pitch, input_pitch, count, matrix, pitch, into,
                    output_pitch, scale, above,
                )  # fmt: skip
            low += some

    @njit(error_model="numpy")
    def soften(  # type: ignore[no-untyped-def]
        scores_Rc, tops_RV, top_R, totals_R, sums_RC, shares_Rc, rows, keys
    ):
        """2^(score - the row's largest so far) in each score's place, and rounded as its share. If
        these keys have a larger one, what was summed up before them is scaled to it."""
        for row in range(rows):
            top = tops_RV[row, 0]
            for lane in range(1, LANES):
                top = max(top, tops_RV[row, lane])
            if top > top_R[row]:
                factor = power_of_two(top_R[row] - top)
                totals_R[row] *= factor
                for channel in range(sums_RC.shape[1]):
                    sums_RC[row, channel] *= factor
                top_R[row] = top
            scores_c, shares_c = scores_Rc[row, :keys], shares_Rc[row, :keys]
            for key in range(keys):
                share = power_of_two(scores_c[key] - top)
                scores_c[key] = share
                shares_c[key] = to_bf16(share)

    @njit(fastmath={"reassoc"}, error_model="numpy")  # sums fill vectors, in a fixed way
    def add_up(scores_Rc, totals_R, rows, keys):  # type: ignore[no-untyped-def]
        for row in range(rows):
            total = np.float32(0)
            for key in range(keys):
                total += scores_Rc[row, key]
            totals_R[row] += total

    @njit(error_model="numpy")
    def give_out(sums_RC, totals_R, out_NHC, start, rows, head):  # type: ignore[no-untyped-def]
        """Each row's sum of values by the sum of its shares, rounded."""
        for row in range(rows):
            total = totals_R[row]
            for channel in range(sums_RC.shape[1]):
                out_NHC[start + row, head, channel] = to_bf16(sums_RC[row, channel] / total)

    @njit
    def pack(items_N3HC, words_N3HW, head, keys_KWc, values_PC):  # type: ignore[no-untyped-def]
        """Keys: a token is a column, its words lie below each other; beyond the last they are 0.
        Values: a channel is a column, its words hold two tokens."""
        tokens, _, _, channels = items_N3HC.shape
        keys_KWc[:] = 0
        # Transposed, 16 tokens at a time: reads jump from token to token, writes lie in order.
        for first in range(0, tokens, 16):
            block, column = first // WIDTH, first % WIDTH
            for word in range(channels // 2):
                for token in range(min(16, tokens - first)):
                    key = words_N3HW[first + token, 1, head, word]
                    keys_KWc[block, word, column + token] = key
        for place in range(len(values_PC)):
            for channel in range(channels):
                values_PC[place, channel] = np.uint32(items_N3HC[2 * place, 2, head, channel])
            if 2 * place + 1 < tokens:
                for channel in range(channels):
                    odd = np.uint32(items_N3HC[2 * place + 1, 2, head, channel])
                    values_PC[place, channel] |= odd << np.uint32(16)

    @njit
    def place_terms(  # type: ignore[no-untyped-def]
        by_row_RL, by_column_RL, start, rows, side, first, last, scores_Rc
    ):
        """For keys first to last each score's terms of its key's row and column; beyond the map's
        last key nothing counts."""
        end = min(last, side * side)
        for row in range(rows):
            up = side - 1 - (start + row) // side
            left = side - 1 - (start + row) % side
            key = first
            while key < end:
                line, place = key // side, key % side
                count = min(side - place, end - key)
                # Slices: of an index that might be negative numba makes no vectors.
                into = scores_Rc[row, key - first : key - first + count]
                terms = by_column_RL[row, left + place : left + place + count]
                by_row = by_row_RL[row, up + line]
                for each in range(count):
                    into[each] = by_row + terms[each]
                key += count
            scores_Rc[row, end - first : last - first] = -np.inf

    @njit
    def attend_part(  # type: ignore[no-untyped-def]
        items_N3HC, words_N3HW, by_row_WL, by_column_WL, side, head, first, last, out_NHC
    ):
        tokens, _, heads, channels = items_N3HC.shape
        words, length = by_row_WL.shape
        padded = -(-tokens // WIDTH) * WIDTH
        places = -(-tokens // 2)
        # Block by block: lines of 4,096 keys would fall upon each other in the cache.
        keys_KWc = np.empty((padded // WIDTH, words, WIDTH), np.int32)
        values_PC = np.empty((places, channels), np.uint32)
        pack(items_N3HC, words_N3HW, head, keys_KWc, values_PC)
        scores_Rc = np.empty((_ROWS, _KEYS), np.float32)
        shares_Rc = np.empty((_ROWS, _KEYS), np.uint16)
        terms_2RL = np.empty((2, _ROWS, length), np.float32)
        tops_RV = np.empty((_ROWS, LANES), np.float32)
        top_R, totals_R = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
        sums_RC = np.empty((_ROWS, channels), np.float32)
        # Of what a loop still names as an array the memory stays; numba frees what is only a number
        # in it. So keys and values are named below, and the others anyway.
        scores, shares = scores_Rc.ctypes.data, shares_Rc.ctypes.data
        terms, tops, sums = terms_2RL.ctypes.data, tops_RV.ctypes.data, sums_RC.ctypes.data
        tables = (by_row_WL.ctypes.data, by_column_WL.ctypes.data)
        pitch = 3 * heads * channels * 2
        # Scores are powers of two's; the terms see q as it is, before it is scaled.
        scale, one = np.float32(LOG2_E / np.sqrt(channels)), np.float32(LOG2_E)

        for start in range(first, last, _ROWS):
            rows = min(_ROWS, last - start)
            queries = items_N3HC.ctypes.data + start * pitch + head * channels * 2
            terms_2RL[:] = 0
            for axis in range(2):
                for column in range(0, length, WIDTH):
                    multiply(
                        True, rows, queries, pitch, words, tables[axis] + 4 * column, 4 * length,
                        terms + 4 * (axis * _ROWS * length + column), 4 * length, one, tops,
                    )  # fmt: skip
            tops_RV[:] = -np.inf
            top_R[:] = -np.inf
            totals_R[:] = 0
            sums_RC[:] = 0
            for block in range(0, padded, _KEYS):
                some = min(_KEYS, padded - block)
                place_terms(
                    terms_2RL[0], terms_2RL[1], start, rows, side, block, block + some, scores_Rc
                )
                for column in range(0, some, WIDTH):
                    multiply(
                        True, rows, queries, pitch, words,
                        keys_KWc.ctypes.data + 4 * (block + column) * words, 4 * WIDTH,
                        scores + 4 * column, 4 * _KEYS, scale, tops,
                    )  # fmt: skip
                soften(scores_Rc, tops_RV, top_R, totals_R, sums_RC, shares_Rc, rows, some)
                add_up(scores_Rc, totals_R, rows, some)
                count = min(some // 2, places - block // 2)
                for column in range(0, channels, WIDTH):
                    multiply(
                        False, rows, shares, 2 * _KEYS, count,
                        values_PC.ctypes.data + 4 * (block // 2 * channels + column), 4 * channels,
                        sums + 4 * column, 4 * channels, one, tops,
                    )  # fmt: skip
            give_out(sums_RC, totals_R, out_NHC, start, rows, head)

    items, words = types.Array(types.uint16, 5, "C"), types.Array(types.int32, 5, "C")
    table, out = types.int32[:, ::1], types.Array(types.uint16, 4, "C")
    number = types.int64

    @compile_kernel(
        types.boolean(number, items, words, table, table, number, number, out), "", nogil=True
    )
    def attend(  # type: ignore[no-untyped-def]
        piece, items_BN3HC, words_BN3HW, by_row_WL, by_column_WL, side, parts, out_BNHC
    ):
        """One part of one head of one map; False if there is no such piece."""
        batch, tokens, _, heads, _ = items_BN3HC.shape
        one, head, part = piece // (heads * parts), piece // parts % heads, piece % parts
        if one >= batch:
            return False
        rows = -(-tokens // parts)
        attend_part(
            items_BN3HC[one], words_BN3HW[one], by_row_WL, by_column_WL, side, head,
            min(tokens, part * rows), min(tokens, part * rows + rows), out_BNHC[one],
        )  # fmt: skip
        return True

    return attend
