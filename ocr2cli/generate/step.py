"""What a decode step needs, however it is run: a decoder, a cache, rows, sizes in buckets.

Knows nothing about how a step is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ocr2cli.generate.logits import Rules

# What a padded place is fed. Any id does: nothing looks at its logits.
PAD_ID = 0
# In place of a token that the step before chose and the host has not read yet.
UNREAD = -1


class Cache(Protocol):
    """What this folder needs of `model.kv_cache.KVCache`."""

    @property
    def lengths(self) -> list[int]:
        """Tokens each slot holds."""

    @property
    def device(self) -> torch.device: ...

    def free(self, slot: int) -> None: ...

    def scrub(self, slot: int, start: int = 0) -> None: ...

    def truncate(self, slot: int, length: int) -> None: ...

    def reserve(self, slot: int, count: int) -> int: ...


class Config(Protocol):
    @property
    def max_positions(self) -> int: ...


class Decoder(Protocol):
    """What this folder needs of `model.decoder.Decoder`; `cache` is the one made for it."""

    @property
    def config(self) -> Config: ...

    def prefill_together(self, x_BTD: Tensor, cache: Any, slots: Sequence[int]) -> Tensor: ...

    def decode(self, ids_B: Tensor, cache: Any, slots: Sequence[int]) -> Tensor: ...

    def verify(self, ids_BK: Tensor, cache: Any, slots: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step.

    ids: the last written token, then guesses. written: all new tokens that the host has read, the
    last of them is ids[0] unless that is UNREAD. rules: the sequence's own, fed with `written`.
    """

    slot: int
    ids: Sequence[int]
    written: Sequence[int]
    rules: Rules

    @property
    def num_written(self) -> int:
        """New tokens, one that is not read yet included."""
        return len(self.written) + (self.ids[0] == UNREAD)

    def penalties(self) -> list[dict[int, float]]:
        """What the rules subtract at each position, given that the guesses before it are right."""
        found = [self.rules.penalties()]
        for token in self.ids[1:]:
            self.rules.push(token)
            found.append(self.rules.penalties())
        self.rules.pop(len(self.ids) - 1)
        return found


def round_up(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `size`; `size` itself when none does."""
    return next((bucket for bucket in buckets if bucket >= size), size)
