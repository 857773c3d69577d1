"""Endless repetition: when to give a page up as a loop.

Knows nothing about logits, text or what happens to the page afterwards.

Two signs, both exact and both functions of the tokens alone, so drafts and companions cannot
move the verdict:

1. Periodic tail. The last tokens are one unit repeated. What a page may really hold decides the
   limits (counted with the published tokenizer's granularity):
   - a dotted leader or ruled line: one token over and over, at most some 130 on a line;
   - a row of empty cells `<td></td>`: 2 tokens a cell, 120 for a table 60 columns wide; a whole
     empty table repeats its row: 40 rows of 12 columns are 1,040 tokens of period 26;
   - a sheet of equal labels: 65 of 12 tokens are 780; eight equal coupons of 150 are 1,200.
   So a short unit (up to 8 tokens, no row of a real table) must fill 512 tokens, and a longer one
   1,536, the tokens of a full page of prose, in at least 6 periods. Loops of the model run to the
   context's end (7,000 tokens), so waiting this long still saves most of them.
   Nearly periodic tails are not judged: tables of numbers are nearly periodic.
2. Forced words. With the n-gram rule on, a short loop never becomes periodic: each time it would,
   the rule overrides the model's choice and the model starts over. A loop is overridden about
   every 20 tokens (the rule's n). 64 overrides in 2,048 tokens is one in 32 kept up for more
   than a full page; a healthy page has none, and an empty table that long is being damaged
   by the rule already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """See the module's text for why these numbers. Lengths in tokens.

    check_every: the tail is looked at when the length is a multiple of this.
    """

    short_period: int = 8
    short_total: int = 512
    long_total: int = 1536
    min_periods: int = 6
    max_period: int = 512
    max_overrides: int = 64
    override_span: int = 2048
    check_every: int = 64

    def total_for(self, period: int) -> int:
        """Length of a periodic tail from which a period counts as a loop."""
        total = self.short_total if period <= self.short_period else self.long_total
        return max(total, period * self.min_periods)


def tail_period(token_ids: Sequence[int], limits: LoopLimits) -> int:
    """The smallest period whose repeats fill enough of the tail, 0 for none."""
    if len(token_ids) < limits.total_for(1):
        return 0
    longest = limits.total_for(limits.max_period)
    tail = np.asarray(token_ids[-longest:], dtype=np.int64)[::-1]  # newest first
    # A period must bring the newest token back; that alone rules nearly all candidates out.
    candidates = np.flatnonzero(tail[1 : limits.max_period + 1] == tail[0]) + 1
    for period in candidates.tolist():
        total = limits.total_for(period)
        if total <= len(tail) and np.array_equal(tail[period:total], tail[: total - period]):
            return int(period)
    return 0


class LoopDetector:
    """Watches one sequence grow."""

    def __init__(self, limits: LoopLimits) -> None:
        self._limits = limits
        self._overrides: deque[int] = deque(maxlen=limits.max_overrides)

    def is_loop(self, token_ids: Sequence[int], *, overridden: bool) -> bool:
        """Call after each new token. overridden: a ban took the model's own choice away."""
        count = len(token_ids)
        if overridden:
            self._overrides.append(count)
            if self._is_forced(count):
                return True
        if count % self._limits.check_every:
            return False
        return tail_period(token_ids, self._limits) > 0

    def _is_forced(self, count: int) -> bool:
        is_full = len(self._overrides) == self._limits.max_overrides
        return is_full and count - self._overrides[0] < self._limits.override_span
