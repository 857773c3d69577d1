"""A decoder without weights whose greedy output is known: the test double of this folder.

The logits after a history are a row of a fixed random table, picked by a hash of the last `order`
tokens (order 0: of all tokens, prompt included). They come from what the cache really holds, so a
wrong rollback, slot or position changes the text. Low orders loop and repeat; order 0 does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ocr2cli.config import DecodeConfig
from ocr2cli.generate.logits import NgramRule, banned_tokens, dry, no_repeat_ngram
from ocr2cli.generate.loops import LoopLimits, tail_period

NUM_ROWS = 4093


@dataclass(frozen=True)
class ToyConfig:
    max_positions: int = 512


class ToyCache:
    """Token ids where the real cache has keys and values. Full slots and bad slots raise."""

    def __init__(self, num_slots: int, max_tokens_per_slot: int, max_positions: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self.max_tokens_per_slot = max_tokens_per_slot
        self.max_positions = max_positions
        self.device = torch.device("cpu")

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]

    def free(self, slot: int) -> None:
        self.tokens[slot] = []

    def scrub(self, slot: int, start: int = 0) -> None:
        self.truncate(slot, start)

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= len(self.tokens[slot])
        del self.tokens[slot][length:]

    def reserve(self, slot: int, count: int) -> int:
        start = len(self.tokens[slot])
        self.write(slot, [-1] * count)
        return start

    def write(self, slot: int, ids: Sequence[int]) -> None:
        self.tokens[slot] += ids
        assert len(self.tokens[slot]) <= self.max_tokens_per_slot
        assert len(self.tokens[slot]) <= self.max_positions


@dataclass
class ToyDecoder:
    """poison: a history whose last token is in it gets NaN logits. fails: called before each
    forward with the number of rows; may raise to play out of memory; fails_late: the same, after
    the cache was written. calls: forwards so far.
    shapes: (B, K) of each. contexts: as `decode_fixed` was told."""

    vocab_size: int = 40
    order: int = 0
    seed: int = 0
    eos_id: int = 1
    eos_bias: float = 0.0
    max_positions: int = 512
    poison: frozenset[int] = frozenset()
    fails: Callable[[int], None] = lambda rows: None
    fails_late: Callable[[int], None] = lambda rows: None
    calls: int = 0
    shapes: list[tuple[int, int]] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        table = torch.randn(NUM_ROWS, self.vocab_size, generator=generator)
        # Coarse values make ties, which every path must break alike.
        self.table = (table * 4).round() / 4
        self.table[:, self.eos_id] += self.eos_bias
        self.config = ToyConfig(self.max_positions)

    def make_cache(self, num_slots: int, max_tokens: int) -> ToyCache:
        return ToyCache(num_slots, max_tokens, self.max_positions)

    def embed(self, ids: Tensor) -> Tensor:
        """[T] -> [T, 1]: the id itself."""
        return ids[:, None].float()

    def logits(self, history: Sequence[int]) -> Tensor:
        """float32 [V] after a whole history, prompt included."""
        if history[-1] in self.poison:
            return torch.full((self.vocab_size,), float("nan"))
        return self.table[hash(tuple(history[-self.order :])) % NUM_ROWS].clone()

    def prefill_together(self, x_BTD: Tensor, cache: Any, slots: list[int]) -> Tensor:
        return torch.stack(
            [self.prefill(x_TD, cache, slot) for x_TD, slot in zip(x_BTD, slots, strict=True)]
        )

    def prefill(self, x_TD: Tensor, cache: ToyCache, slot: int) -> Tensor:
        self._forward(1, x_TD.shape[0])
        cache.write(slot, x_TD[:, 0].long().tolist())
        return self.logits(cache.tokens[slot])

    def decode(self, ids_B: Tensor, cache: ToyCache, slots: Sequence[int]) -> Tensor:
        return self.verify(ids_B[:, None], cache, slots)[:, 0]

    def verify(self, ids_BK: Tensor, cache: ToyCache, slots: Sequence[int]) -> Tensor:
        self._forward(*ids_BK.shape)
        rows = []
        for slot, ids in zip(slots, ids_BK.tolist(), strict=True):
            for token in ids:
                cache.write(slot, [token])
                rows.append(self.logits(cache.tokens[slot]))
        self.fails_late(len(slots))
        return torch.stack(rows).unflatten(0, tuple(ids_BK.shape))

    def decode_fixed(
        self, ids_B: Tensor, cache: ToyCache, slots_B: Tensor, starts_B: Tensor, context: int
    ) -> Tensor:
        """As decode, the slots' new places reserved by the caller."""
        self._forward(len(ids_B), 1)
        self.contexts.append(context)
        rows = []
        for token, slot, start in zip(
            *(t.tolist() for t in (ids_B, slots_B, starts_B)), strict=True
        ):
            assert start < context
            history = [*cache.tokens[slot][:start], token]
            cache.tokens[slot][start : start + 1] = [token]
            rows.append(self.logits(history))
        self.fails_late(len(rows))
        return torch.stack(rows)

    def _forward(self, rows: int, tokens: int) -> None:
        self.calls += 1
        self.shapes.append((rows, tokens))
        self.fails(rows)


def plain_greedy(
    next_logits: Callable[[list[int]], Tensor],
    prompt: Sequence[int],
    config: DecodeConfig,
    *,
    eos_id: int,
    exempt_ids: Sequence[int] = (),
    max_new: int,
    limits: LoopLimits | None = None,
) -> tuple[list[int], str]:
    """The definition of the output: one sequence, no cache, each rule as its definition.

    next_logits: whole history -> float32 [V]. Returns (new ids without the end token, reason).
    """
    limits = limits or LoopLimits()
    rule = NgramRule.of(config, exempt_ids)
    new: list[int] = []
    overrides: list[int] = []
    while len(new) < max_new:
        logits = raw = next_logits([*prompt, *new])
        if not torch.isfinite(raw.logsumexp(0)):
            return new, "nan"
        history = [*prompt, *new] if config.ngram_over_prompt else new
        if config.dry:
            logits = dry(new, logits, config.dry)
        banned = banned_tokens(history, rule) if rule else set()
        if rule:
            logits = no_repeat_ngram(history, logits, rule)
        token = lowest_argmax(logits)
        if token == eos_id:
            return new, "stop"
        new.append(token)
        if any((-raw[ban], ban) < (-raw[token], token) for ban in banned):
            overrides.append(len(new))
        if config.detect_loops and is_loop(new, overrides, limits):
            return new, "loop"
    return new, "length"


def lowest_argmax(logits: Tensor) -> int:
    values = logits.tolist()
    return values.index(max(values))


def is_loop(new: list[int], overrides: list[int], limits: LoopLimits) -> bool:
    recent = overrides[-limits.max_overrides :]
    is_forced = (
        len(recent) == limits.max_overrides
        and recent[-1] == len(new)
        and len(new) - recent[0] < limits.override_span
    )
    return is_forced or (len(new) % limits.check_every == 0 and tail_period(new, limits) > 0)
