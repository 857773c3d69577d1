"""One decode step for many sequences: pad to a shape, run the decoder, choose the tokens.

Knows nothing about scheduling, stopping or drafts' sources.

Letters: B sequences, K tokens fed of each (the last written one, then guesses), N = B * K rows
of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import not_

import torch
from torch import Tensor

from ocr2cli.generate.fixed_step import FixedStep, Started
from ocr2cli.generate.greedy import Choice, choose
from ocr2cli.generate.step import PAD_ID, Cache, Decoder, Row, round_up


class StepRunner:
    """Runs steps whose shapes come from a short list.

    batch_buckets: batch sizes a step is padded up to, ascending; empty: no padding (a CPU gains
    nothing from fixed shapes). feed_buckets: the same for K. Padding rows decode into
    `scratch_slot`, which no sequence ever holds. fixed: takes over the steps it can do, None for
    a decoder or device that gains nothing from it.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        *,
        scratch_slot: int,
        batch_buckets: Sequence[int] = (),
        feed_buckets: Sequence[int] = (),
        fixed: FixedStep | None = None,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._scratch_slot = scratch_slot
        self._batch_buckets = tuple(batch_buckets)
        self._feed_buckets = tuple(feed_buckets)
        self._fixed = fixed

    def run(self, rows: Sequence[Row]) -> list[list[Choice]]:
        """One step. Returns a choice for each fed token of each row.

        The cache has grown by K tokens in each row's slot: the caller truncates.
        """
        # Rows under other rules (a page that is tried again) do not cost the others their graph.
        is_fixed = self._fixed_rows(rows)
        by_graph = list(compress(rows, is_fixed))
        others = list(compress(rows, map(not_, is_fixed)))
        started = self._fixed.start(by_graph) if self._fixed and by_graph else None
        # Given to the device while it is busy with those that go by graph.
        plain = iter(self._run_any(others) if others else ())
        fixed = iter(started.choices() if started else ())
        return [[next(fixed)] if is_its else next(plain) for is_its in is_fixed]

    def start(self, rows: Sequence[Row]) -> Started | None:
        """Begin a step on the device and do not wait for it; None, and nothing done, when it is
        not one for the fixed step as a whole."""
        if not self._fixed or not all(self._fixed_rows(rows)):
            return None
        return self._fixed.start(rows)

    def _fixed_rows(self, rows: Sequence[Row]) -> list[bool]:
        """Which rows the fixed step takes; none where one has guesses, which all rows pay for."""
        if self._fixed and all(len(row.ids) == 1 for row in rows):
            return self._fixed.fits(rows)
        return [False] * len(rows)

    def _run_any(self, rows: Sequence[Row]) -> list[list[Choice]]:
        batch = round_up(len(rows), self._batch_buckets)
        fed = round_up(max(len(row.ids) for row in rows), self._feed_buckets)
        ids = [[*row.ids, *[PAD_ID] * (fed - len(row.ids))] for row in rows]
        ids += [[PAD_ID] * fed] * (batch - len(rows))
        slots = [row.slot for row in rows] + [self._scratch_slot] * (batch - len(rows))
        logits_NV = self._forward(ids, slots).flatten(0, 1)
        penalties = {
            r * fed + k: penalty
            for r, row in enumerate(rows)
            for k, penalty in enumerate(row.penalties())
        }
        chosen = choose(logits_NV, penalties)
        return [chosen[r * fed : r * fed + len(row.ids)] for r, row in enumerate(rows)]

    def _forward(self, ids: list[list[int]], slots: list[int]) -> Tensor:
        """Logits [B, K, V]."""
        ids_BK = torch.tensor(ids, device=self._cache.device)
        try:
            if ids_BK.shape[1] == 1:
                return self._decoder.decode(ids_BK[:, 0], self._cache, slots)[:, None]
            return self._decoder.verify(ids_BK, self._cache, slots)
        finally:
            if self._cache.lengths[self._scratch_slot]:
                self._cache.free(self._scratch_slot)
