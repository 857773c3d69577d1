"""Who runs: slots and a token budget, as a plain data structure with add, schedule, finish.

Knows nothing about tensors, logits or pages: it counts tokens.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from ocr2cli.generate.sequence import Sequence, State

# What waits for company keeps slots empty: one of so many is little beside a prompt's cost.
SLOTS_FOR_ONE_EMPTY = 32
# Steps until a budget that was cut for lack of memory is doubled: others may have needed it for a
# moment only. Each time that it lacks again they are twice as many.
GROW_AFTER, GROW_AFTER_AT_MOST = 64, 4096


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `start` (inclusive) to `stop` (exclusive) of a sequence, to prefill now."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == self.sequence.num_prompt

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.is_last


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's work. preempted: sent back to wait, already without a slot."""

    prefills: tuple[Chunk, ...]
    decodes: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]


class Scheduler:
    """First come, first served, within `num_slots` and `kv_tokens`.

    kv_tokens: budget of cached tokens, summed over running sequences. A sequence is admitted
    when its prompt and the new tokens it is expected to write (`expected_new`) fit beside what
    the others hold or are expected to hold. When running sequences outgrow the budget, the
    youngest goes back to wait. One sequence alone always runs: it may exceed the budget.
    prefill_tokens: prompt tokens fed in one step, so that decodes are not held up for long;
    at least one chunk a step is fed.
    prefill_chunk: largest piece of a prompt fed at once, 0 for the whole prompt. Pieces start at
    multiples of it whatever else runs: a sequence's arithmetic never depends on its companions.
    admit_together: while others run, sequences wait until that many can be admitted, or for
    `admit_patience` steps: for a device where a prompt alone costs as much as several together.
    With few slots, where an empty one is a large part of the step, less company will do.
    """

    def __init__(
        self,
        num_slots: int,
        kv_tokens: int,
        *,
        expected_new: int = 512,
        prefill_tokens: int = 2048,
        prefill_chunk: int = 0,
        admit_together: int = 1,
        admit_patience: int = 0,
    ) -> None:
        self.num_slots = num_slots
        self.kv_tokens = self._whole_budget = kv_tokens
        self._grow_after = self._steps_to_grow = 0
        self.expected_new = expected_new
        self.prefill_tokens = prefill_tokens
        self.prefill_chunk = prefill_chunk
        self.admit_together = admit_together
        self.admit_patience = admit_patience
        self._steps_held = 0
        self.running: list[Sequence] = []  # by arrival: nobody overtakes
        self._waiting: list[tuple[int, Sequence]] = []  # heap by arrival
        self._free_slots = list(range(num_slots))  # heap: lowest first

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def used_tokens(self, lookahead: int = 0) -> int:
        """Cached tokens when each running sequence grows by `lookahead` more."""
        return sum(sequence.num_tokens + lookahead for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence by its arrival number."""
        heapq.heappush(self._waiting, (sequence.arrival, sequence))

    def schedule(self, lookahead: int = 1) -> Plan:
        """Decide one step. lookahead: most tokens a decode step adds to a sequence."""
        self._grow()
        preempted = self._preempt(lookahead)
        self._admit(lookahead)
        decodes = tuple(s for s in self.running if s.state is State.DECODE)
        return Plan(self._cut_chunks(), decodes, preempted)

    def finish(self, sequence: Sequence) -> None:
        """Give the slot back: the sequence is done."""
        self.running.remove(sequence)
        heapq.heappush(self._free_slots, sequence.slot)

    def shrink(self) -> tuple[Sequence, ...]:
        """After out of memory: half of what is in use becomes the budget, for some steps.

        Returns the sequences sent back to wait: at least the youngest of several.
        """
        self.kv_tokens = max(1, min(self.kv_tokens, self.used_tokens()) // 2)
        self._grow_after = min(2 * self._grow_after or GROW_AFTER, GROW_AFTER_AT_MOST)
        self._steps_to_grow = self._grow_after
        return self._preempt(0)

    def _grow(self) -> None:
        if self.kv_tokens >= self._whole_budget:
            return
        self._steps_to_grow -= 1
        if self._steps_to_grow == 0:
            self.kv_tokens = min(2 * self.kv_tokens, self._whole_budget)
            self._steps_to_grow = self._grow_after

    def _preempt(self, lookahead: int) -> tuple[Sequence, ...]:
        preempted = []
        while len(self.running) > 1 and self.used_tokens(lookahead) > self.kv_tokens:
            youngest = self.running[-1]
            self.finish(youngest)
            youngest.restart()
            self.add(youngest)
            preempted.append(youngest)
        return tuple(preempted)

    def _admit(self, lookahead: int) -> None:
        if self._waits_for_company():
            return
        # No skipping: a long prompt at the head is not overtaken for ever by short ones.
        while self._waiting and self._free_slots and self._fits(self._waiting[0][1], lookahead):
            sequence = heapq.heappop(self._waiting)[1]
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.state = State.PREFILL
            self.running.append(sequence)

    def _waits_for_company(self) -> bool:
        ready = min(len(self._waiting), len(self._free_slots))
        enough = min(self.admit_together, self.num_slots // SLOTS_FOR_ONE_EMPTY)
        waits = 0 < ready < enough and bool(self.running)
        self._steps_held = self._steps_held + 1 if waits else 0
        if self._steps_held > self.admit_patience:
            self._steps_held, waits = 0, False
        return waits

    def _fits(self, sequence: Sequence, lookahead: int) -> bool:
        if not self.running:
            return True
        reserved = sum(self._reserved(other, lookahead) for other in self.running)
        return reserved + self._reserved(sequence, lookahead) <= self.kv_tokens

    def _reserved(self, sequence: Sequence, lookahead: int) -> int:
        """Tokens it holds or is expected to hold, whichever is more."""
        # One that was sent back had written most_new and was not done: expect as much again
        # and more, or it would be sent back in turn.
        expected = min(sequence.most_new + self.expected_new, sequence.max_new)
        return max(sequence.num_prompt + expected, sequence.num_tokens + lookahead)

    def _cut_chunks(self) -> tuple[Chunk, ...]:
        chunks: list[Chunk] = []
        left = self.prefill_tokens
        for sequence in self.running:
            start = sequence.num_cached
            while sequence.state is State.PREFILL and start < sequence.num_prompt:
                stop = min(start + (self.prefill_chunk or sequence.num_prompt), sequence.num_prompt)
                if chunks and stop - start > left:
                    return tuple(chunks)
                chunks.append(Chunk(sequence, start, stop))
                left -= stop - start
                start = stop
        return tuple(chunks)
