"""Prompts into the cache: whole ones of one length together, one by one where memory lacks.

Knows nothing about who is admitted and when, or what becomes of the tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import torch

from ocr2cli.generate.greedy import Choice, choose
from ocr2cli.generate.scheduler import Chunk
from ocr2cli.generate.step import Cache, Decoder
from ocr2cli.generate.track import Track
from ocr2cli.model.memory import empty_cache, is_out_of_memory

logger = logging.getLogger("ocr2")

# Steps until twice as many are tried again.
_GROW_AFTER = 1024

Work = tuple[Chunk, Track]


class PromptFeeder:
    """most_together: prompts of one length fed in one go, at most."""

    def __init__(self, decoder: Decoder, cache: Cache, most_together: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._most_together = self._whole = most_together
        self._steps_to_grow = 0

    def feed(self, work: Sequence[Work]) -> Iterator[tuple[Chunk, Track, Choice | None]]:
        """In order; each chunk with the first new token if it was its prompt's last.

        Raises: MemoryError or RuntimeError where a chunk alone does not fit in memory.
        """
        self._grow()
        for group in self._grouped(work):
            choices = self._feed_together(group)
            if choices is None:
                self._go_by_fewer(len(group))
                choices = [choice for one in group for choice in self._feed([one])]
            for (chunk, track), choice in zip(group, choices, strict=True):
                yield chunk, track, choice

    def _grow(self) -> None:
        """Memory that lacked for a moment narrows for a while only."""
        if self._steps_to_grow:
            self._steps_to_grow -= 1
            if not self._steps_to_grow:
                self._most_together = min(2 * self._most_together, self._whole)
                self._steps_to_grow = _GROW_AFTER

    def _grouped(self, work: Sequence[Work]) -> Iterator[list[Work]]:
        group: list[Work] = []
        for chunk, track in work:
            if group and not self._may_join(group, chunk):
                yield group
                group = []
            group.append((chunk, track))
        if group:
            yield group

    def _may_join(self, group: Sequence[Work], chunk: Chunk) -> bool:
        first = group[0][0]
        is_alike = first.is_whole and chunk.is_whole and chunk.stop == first.stop
        return is_alike and len(group) < self._most_together

    def _feed_together(self, group: Sequence[Work]) -> list[Choice | None] | None:
        """None when several do not fit in memory together. The error is dropped on the way out: its
        traceback would hold the memory that the next try needs."""
        try:
            return self._feed(group)
        except (MemoryError, RuntimeError) as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
            return None

    def _go_by_fewer(self, tried: int) -> None:
        """tried: two at least. Nobody is sent back for it: what lacked is room to compute in, which
        on a card no page that is being written has taken."""
        empty_cache()
        self._most_together = tried // 2
        self._steps_to_grow = _GROW_AFTER
        logger.warning(
            "no memory to feed %d pages to the decoder together: %d at most for a while",
            tried, self._most_together,
        )  # fmt: skip

    def _feed(self, group: Sequence[Work]) -> list[Choice | None]:
        """One chunk, or whole prompts of one length."""
        start = time.perf_counter()
        for chunk, track in group:
            if chunk.start == 0:
                track.started_at = track.started_at or start
                self._cache.free(chunk.sequence.slot)  # of who left it in this step
        x_BTD = torch.stack(
            [
                track.prompt_TD[chunk.start : chunk.stop].to(self._cache.device, non_blocking=True)
                for chunk, track in group
            ]
        )
        slots = [chunk.sequence.slot for chunk, _ in group]
        logits_BV = self._decoder.prefill_together(x_BTD, self._cache, slots)
        choices: list[Choice | None] = [None] * len(group)
        if group[0][0].is_last:
            penalties = {row: track.rules.penalties() for row, (_, track) in enumerate(group)}
            choices = [*choose(logits_BV, penalties)]
        seconds = (time.perf_counter() - start) / len(group)
        for _, track in group:
            track.prefill_s += seconds
        return choices
