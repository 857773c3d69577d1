"""A decode step of fixed shape that stays on the device: rule, choice and all, one copy back.

On a CUDA device each shape is captured as a graph once and replayed; elsewhere the same code runs
eagerly, which is how the tests see it. What a step chose stays on the device too, so the next one
can start before the host has read it. Knows nothing about scheduling or drafts.

Letters: B sequences (padded to a bucket), S slots, W window of an n-gram rule, R places of the
ring, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ocr2cli.generate.greedy import Choice, first_argmax, pack, unpack
from ocr2cli.generate.logits import NgramRule, ban_repeats
from ocr2cli.generate.step import PAD_ID, UNREAD, Cache, Row, round_up
from ocr2cli.model.memory import empty_cache, is_out_of_memory

logger = logging.getLogger("ocr2")

# Tokens that the ring holds at least: the window of a page that is tried again under another rule.
LEAST_RING = 1_000

# Steps without graphs after there was no memory for one: others may have needed it for a moment.
RETRY_GRAPHS_AFTER = 2048

# Lengths that attention looks at, all of them at the memory's full rate; the cache's own length is
# the last. A graph each, captured when it is first needed.
CONTEXTS = (*range(256, 4096, 256), *range(4096, 8192, 512))


# Batch, context, and the second rule if there is one: each has a graph of its own.
_Shape = tuple[int, int, NgramRule | None]


class FixedDecoder(Protocol):
    """A decoder that can decode without asking the host anything."""

    def decode_fixed(
        self, ids_B: Tensor, cache: Any, slots_B: Tensor, starts_B: Tensor, context: int
    ) -> Tensor:
        """One more token in each slot, at position `starts`. int64 [B] each. `context`: at least
        the largest start + 1; attention may look at that many positions and masks the rest.
        The cache's host-side lengths are the caller's. Returns logits float32 [B, V]."""


class HistoryRing:
    """The last `size` tokens of each slot's sequence, on the device: token t lies at t % size.

    A slot's leftovers from an earlier sequence need no clearing: `last` goes by the count.
    """

    def __init__(self, num_slots: int, size: int, device: torch.device) -> None:
        self.size = size
        self._ring_SR = torch.zeros(num_slots, size, dtype=torch.int64, device=device)
        self._offsets_R = torch.arange(size, device=device) - size

    def upload(self, slot: int, token_ids: Sequence[int], window: int) -> None:
        """Set a slot from the host, as far back as `window`; token_ids: the whole history."""
        first = max(0, len(token_ids) - window)
        places = [number % self.size for number in range(first, len(token_ids))]
        row_R = torch.zeros(self.size, dtype=torch.int64)
        row_R[places] = torch.tensor(token_ids[first:], dtype=torch.int64)
        self._ring_SR[slot] = row_R.to(self._ring_SR.device)

    def write(self, slots_B: Tensor, numbers_B: Tensor, ids_B: Tensor) -> None:
        """Token number `numbers` (0-based) of each slot's history."""
        self._ring_SR[slots_B, numbers_B % self.size] = ids_B

    def last(self, slots_B: Tensor, counts_B: Tensor, window: int) -> Tensor:
        """int64 [B, W] of a window no larger than the ring, newest last, -1 before the first of
        `counts` tokens."""
        numbers_BW = counts_B[:, None] + self._offsets_R[-window:]
        history_BW = self._ring_SR[slots_B].gather(1, numbers_BW % self.size)
        return history_BW.where(numbers_BW >= 0, -1)


class FixedStep:
    """Decode steps without drafts under one windowed n-gram rule (or none). Rows of pages that are
    tried again may be under a second one: the device bans by both, and each row takes its own.

    max_context: tokens a slot of the cache can hold. batch_buckets: batch sizes, ascending.
    use_graphs: capture and replay (CUDA only).
    """

    def __init__(
        self,
        decoder: FixedDecoder,
        cache: Cache,
        rule: NgramRule | None,
        *,
        scratch_slot: int,
        max_context: int,
        batch_buckets: Sequence[int],
        use_graphs: bool,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rule = rule
        self._scratch_slot = scratch_slot
        self._contexts = (*(length for length in CONTEXTS if length < max_context), max_context)
        self._batch_buckets = tuple(batch_buckets)
        self._use_graphs = use_graphs
        self._steps_without_graphs = self._steps_without_other = 0
        self._has_warned = False
        size = max(rule.window if rule else 0, LEAST_RING)
        self._ring = HistoryRing(scratch_slot + 1, size, cache.device)
        # What the last step of each slot chose.
        self._chosen_S = torch.zeros(scratch_slot + 1, dtype=torch.int64, device=cache.device)
        # What the ring holds of each slot: whose tokens, and how many.
        self._held: dict[int, tuple[Sequence[int], int]] = {}
        self._graphs: dict[_Shape, _Graph] = {}
        self._stream: Any = None  # what all graphs are captured on

    @staticmethod
    def supports(rule: NgramRule | None) -> bool:
        """The ring holds new tokens, nothing else."""
        return rule is None or (rule.window > 0 and not rule.over_prompt)

    def fits(self, rows: Sequence[Row]) -> list[bool]:
        """Which rows, of one token each, it can run together. None of more than the largest bucket:
        every number of them would be a shape."""
        rules = (self._rule, self._other_rule(rows) or self._rule)
        fit = [row.rules.dry is None and row.rules.ngram in rules for row in rows]
        if self._batch_buckets and sum(fit) > self._batch_buckets[-1]:
            return [False] * len(rows)
        return fit

    def start(self, rows: Sequence[Row]) -> Started:
        """Begin a step and do not wait for the device; the cache has grown by a token in each
        row's slot. A row may be UNREAD when the slot's last step was one of these."""
        for row in rows:
            self._bring_up_to_date(row)
        starts = [self._cache.reserve(row.slot, 1) for row in rows]
        batch = round_up(len(rows), self._batch_buckets)
        context = round_up(max(starts) + 1, self._contexts)
        padding = [(PAD_ID, self._scratch_slot, 0, 1, False)] * (batch - len(rows))
        columns = [
            (row.ids[0], row.slot, start, row.num_written, row.rules.ngram != self._rule)
            for row, start in zip(rows, starts, strict=True)
        ]
        inputs_5B = torch.tensor([*columns, *padding]).T.contiguous()
        packed_3B = self._launch(inputs_5B, context, self._other_rule(rows))
        self._held.update((row.slot, (row.written, row.num_written)) for row in rows)
        return Started(packed_3B, len(rows))

    def _other_rule(self, rows: Sequence[Row]) -> NgramRule | None:
        """The first that is not the run's and that the ring is long enough for."""
        if self._steps_without_other:
            return None
        rules = (row.rules.ngram for row in rows if not row.rules.dry)
        return next((rule for rule in rules if rule != self._rule and self._has_room(rule)), None)

    def _has_room(self, rule: NgramRule | None) -> bool:
        return rule is not None and self.supports(rule) and rule.window <= self._ring.size

    def _bring_up_to_date(self, row: Row) -> None:
        """Other paths and other sequences pass by the ring: copy what it missed."""
        before = row.num_written - 1
        owner, held = self._held.get(row.slot, ((), -1))
        # Before its first token there is nothing to copy: a sequence counts from there.
        if row.rules.ngram and before and (owner is not row.written or held != before):
            self._ring.upload(row.slot, row.written[:before], row.rules.ngram.window)

    def _launch(self, inputs_5B: Tensor, context: int, other: NgramRule | None) -> Tensor:
        self._steps_without_other = max(0, self._steps_without_other - 1)
        if not self._use_graphs or self._steps_without_graphs:
            self._steps_without_graphs = max(0, self._steps_without_graphs - 1)
            return self._compute(inputs_5B.to(self._cache.device), context, other)
        shape = (inputs_5B.shape[1], context, other)
        if shape in self._graphs or self._try_to_capture(*shape):
            return self._graphs[shape].replay(inputs_5B)
        return self._compute(inputs_5B.to(self._cache.device), context, other)

    def _try_to_capture(self, batch: int, context: int, other: NgramRule | None) -> bool:
        """A graph's memory stays its own pool's, and all graphs share one: the longest context of
        a batch size goes first, and the others find room in what it took. As pages grow it would
        come last, and every length before it would have taken a block too small for the next.

        False where there is no memory for it: graphs are a matter of speed, so what they hold is
        given back and for a while steps run without. With a second rule only the graphs for it:
        its rows then go by plain steps.
        """
        try:
            for length in (self._contexts[-1], context):
                shape = (batch, length, other)
                if shape not in self._graphs:
                    self._graphs[shape] = self._capture(*shape)
        except (MemoryError, RuntimeError) as error:
            # The end of a capture that failed has an error of its own, raised while handling it.
            if not (is_out_of_memory(error) or is_out_of_memory(error.__context__)):
                raise
            logger.log(
                logging.DEBUG if self._has_warned else logging.WARNING,
                "no memory for CUDA graphs with %d pages: decoding goes on without, slower, and "
                "tries again later; a lower --batch-size leaves room for them",
                batch,
            )
            self._has_warned = True
        else:
            return True
        if other:
            self._steps_without_other = RETRY_GRAPHS_AFTER
            self._graphs = {shape: kept for shape, kept in self._graphs.items() if not shape[2]}
        else:
            self._steps_without_graphs = RETRY_GRAPHS_AFTER
            self._graphs.clear()
        empty_cache()
        return False

    def _compute(self, inputs_5B: Tensor, context: int, other: NgramRule | None) -> Tensor:
        """inputs: id, slot, start, count of new tokens, and whether the row is under `other`, int64
        [5, B]. Returns `pack`ed."""
        given_B, slots_B, starts_B, counts_B, is_other_B = inputs_5B
        ids_B = given_B.where(given_B != UNREAD, self._chosen_S[slots_B])
        logits_BV = self._decoder.decode_fixed(ids_B, self._cache, slots_B, starts_B, context)
        own_B = chosen_B = first_argmax(logits_BV)
        if self._rule or other:
            self._ring.write(slots_B, counts_B - 1, ids_B)
        if self._rule:
            history_BW = self._ring.last(slots_B, counts_B, self._rule.window)
            chosen_B = first_argmax(ban_repeats(logits_BV, history_BW, self._rule))
        if other:
            history_BW = self._ring.last(slots_B, counts_B, other.window)
            others_B = first_argmax(ban_repeats(logits_BV, history_BW, other))
            chosen_B = others_B.where(is_other_B > 0, chosen_B)
        self._chosen_S[slots_B] = chosen_B
        return pack(logits_BV, chosen_B, chosen_B != own_B)

    def _capture(self, batch: int, context: int, other: NgramRule | None) -> _Graph:
        # Streams are made on, and waits are for, the current device: on another one the graph
        # would be empty, and its answer the same for ever.
        with torch.cuda.device(self._cache.device):
            # One stream for all: a library keeps a workspace, 32 MB on an H100, for each it met.
            self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            return self._capture_on(self._stream, batch, context, other)

    def _capture_on(
        self, side: Any, batch: int, context: int, other: NgramRule | None
    ) -> _Graph:
        # The scratch slot takes the writes of warm-up and capture.
        column = torch.tensor([PAD_ID, self._scratch_slot, 0, 1, 0], device=self._cache.device)
        inputs_5B = column[:, None].repeat(1, batch)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries allocate on first use, which a graph must not
            self._compute(inputs_5B, context, other)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).graph.pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=side):
            packed_3B = self._compute(inputs_5B, context, other)
        return _Graph(graph, inputs_5B, packed_3B)


class Started:
    """A step under way. packed: `pack`ed choices on the device, of which the first `count` rows
    count; the next step may overwrite them, so their copy to the host is asked for at once."""

    def __init__(self, packed_3B: Tensor, count: int) -> None:
        self._count = count
        self._copied: torch.cuda.Event | None = None
        self._packed_3B = packed_3B
        if packed_3B.is_cuda:
            self._packed_3B = torch.empty_like(packed_3B, device="cpu", pin_memory=True)
            with torch.cuda.device(packed_3B.device):
                self._packed_3B.copy_(packed_3B, non_blocking=True)
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()

    def choices(self) -> list[Choice]:
        """Waits for the step, not for what was started after it."""
        if self._copied:
            self._copied.synchronize()
        return unpack(self._packed_3B)[: self._count]


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs_5B: Tensor
    packed_3B: Tensor

    def replay(self, inputs_5B: Tensor) -> Tensor:
        # From plain memory the copy would wait for the step before.
        self.inputs_5B.copy_(inputs_5B.pin_memory(), non_blocking=True)
        self.graph.replay()
        return self.packed_3B
