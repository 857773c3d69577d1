"""One decode step for many sequences: pad to a fixed shape, run the decoder, choose the tokens.

Knows nothing about scheduling, stopping or drafts' sources.

Letters: B sequences, K tokens fed of each (the last written one, then guesses), N = B * K rows
of logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ocr2cli.generate.logits import BAN

# What a padded place is fed. Any id does: nothing looks at its logits.
PAD_ID = 0
# The published vocabulary has 1,010 of these.
PIECE = 128


class Cache(Protocol):
    """What this folder needs of `model.kv_cache.KVCache`."""

    @property
    def lengths(self) -> list[int]:
        """Tokens each slot holds."""

    @property
    def device(self) -> torch.device: ...

    def free(self, slot: int) -> None: ...

    def truncate(self, slot: int, length: int) -> None: ...


class Config(Protocol):
    @property
    def max_positions(self) -> int: ...


class Decoder(Protocol):
    """What this folder needs of `model.decoder.Decoder`; `cache` is the one made for it."""

    @property
    def config(self) -> Config: ...

    def prefill(self, x_TD: Tensor, cache: Any, slot: int) -> Tensor: ...

    def decode(self, ids_B: Tensor, cache: Any, slots: Sequence[int]) -> Tensor: ...

    def verify(self, ids_BK: Tensor, cache: Any, slots: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step.

    ids: the last written token, then guesses. penalties: for each position, what the rules
    subtract from the logits there, given that the guesses before it are right.
    """

    slot: int
    ids: Sequence[int]
    penalties: Sequence[dict[int, float]]


@dataclass(frozen=True, slots=True)
class Choice:
    """The greedy token at one position.

    logprob: natural log of the model's own probability of the token, before bans and penalties,
    so that it says what the model saw; nan when the logits are not finite.
    overridden: a ban took away a token the model preferred.
    """

    token: int
    logprob: float
    overridden: bool

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.logprob)


class StepRunner:
    """Runs steps whose shapes come from a short list.

    batch_buckets: batch sizes a step is padded up to, ascending; empty: no padding (a CPU gains
    nothing from fixed shapes). length_buckets: the same for K. Padding rows decode into
    `scratch_slot`, which no sequence ever holds.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        *,
        scratch_slot: int,
        batch_buckets: Sequence[int] = (),
        length_buckets: Sequence[int] = (),
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._scratch_slot = scratch_slot
        self._batch_buckets = tuple(batch_buckets)
        self._length_buckets = tuple(length_buckets)

    def run(self, rows: Sequence[Row]) -> list[list[Choice]]:
        """One step. Returns a choice for each fed token of each row.

        The cache has grown by K tokens in each row's slot: the caller truncates.
        """
        batch = round_up(len(rows), self._batch_buckets)
        length = round_up(max(len(row.ids) for row in rows), self._length_buckets)
        ids = [[*row.ids, *[PAD_ID] * (length - len(row.ids))] for row in rows]
        ids += [[PAD_ID] * length] * (batch - len(rows))
        slots = [row.slot for row in rows] + [self._scratch_slot] * (batch - len(rows))
        logits_NV = self._forward(ids, slots).flatten(0, 1)
        penalties: dict[int, dict[int, float]] = {
            r * length + k: penalty
            for r, row in enumerate(rows)
            for k, penalty in enumerate(row.penalties)
            if penalty
        }
        chosen = choose(logits_NV, penalties)
        return [chosen[r * length : r * length + len(row.ids)] for r, row in enumerate(rows)]

    def _forward(self, ids: list[list[int]], slots: list[int]) -> Tensor:
        """Logits [B, K, V]."""
        ids_BK = torch.tensor(ids, device=self._cache.device)
        try:
            if ids_BK.shape[1] == 1:
                return self._decoder.decode(ids_BK[:, 0], self._cache, slots)[:, None]
            return self._decoder.verify(ids_BK, self._cache, slots)
        finally:
            self._cache.free(self._scratch_slot)


def round_up(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `size`; `size` itself when none does."""
    return next((bucket for bucket in buckets if bucket >= size), size)


def choose(logits_NV: Tensor, penalties: dict[int, dict[int, float]]) -> list[Choice]:
    """Greedy: the highest logit after penalties, the lowest id among equals.

    logits: float32 [N, V], left as they were. penalties: row -> token -> amount to subtract.
    """
    triples = [(row, token, cost) for row, of in penalties.items() for token, cost in of.items()]
    if triples:
        ids_N, is_overridden_N = _choose_penalised(logits_NV, triples)
    else:
        ids_N = first_argmax(logits_NV)
        is_overridden_N = torch.zeros_like(ids_N)
    # The fused kernel is four times faster here than logsumexp; a row with a logit that is not
    # finite becomes nan.
    logprobs_N = logits_NV.log_softmax(-1).gather(1, ids_N[:, None])[:, 0]
    # One copy to the host; float64 holds ids and float32 exactly.
    packed = torch.stack((ids_N.double(), logprobs_N.double(), is_overridden_N.double())).tolist()
    return [
        Choice(int(token), logprob, bool(is_overridden))
        for token, logprob, is_overridden in zip(*packed, strict=True)
    ]


def first_argmax(logits_NV: Tensor) -> Tensor:
    """Index of the highest logit of each row, the lowest of equals: int64 [N].

    torch's argmax gives the first of equals too, but a CPU takes ten times longer for it than
    for amax: find the piece that holds the maximum, then the place in it.
    """
    rows, vocab = logits_NV.shape
    if vocab % PIECE or logits_NV.device.type != "cpu":
        return logits_NV.argmax(-1)
    pieces = logits_NV.view(rows, vocab // PIECE, PIECE)
    piece_N = pieces.amax(-1).argmax(-1)
    inside_N = pieces[torch.arange(rows), piece_N].argmax(-1)
    return piece_N * PIECE + inside_N


def _choose_penalised(
    logits_NV: Tensor, triples: Sequence[tuple[int, int, float]]
) -> tuple[Tensor, Tensor]:
    """triples: (row, token, cost), no pair twice. Returns ids, and 1 where a banned token stood
    before the chosen one."""
    device = logits_NV.device
    rows = torch.tensor([row for row, _, _ in triples], device=device)
    tokens = torch.tensor([token for _, token, _ in triples], device=device)
    costs = torch.tensor([cost for _, _, cost in triples], device=device)
    # Write, choose, write back: exact, and no copy of [N, V].
    own = logits_NV[rows, tokens]
    logits_NV[rows, tokens] = own - costs
    ids_N = first_argmax(logits_NV)
    logits_NV[rows, tokens] = own
    chosen = logits_NV[rows, ids_N[rows]]
    is_preferred = (own > chosen) | ((own == chosen) & (tokens < ids_N[rows]))
    is_overridden_N = torch.zeros_like(ids_N)
    is_overridden_N[rows[is_preferred & (costs == BAN)]] = 1
    return ids_N, is_overridden_N
