"""What a decode step costs by the tokens it is fed: a table to start with, corrected by the clock.

Only ever changes which drafts are worth a try, never a token. Knows nothing about sequences.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise

# A first sample may hold the making of a kernel; the least of a few is what a step costs.
LEAST_SAMPLES, KEPT_SAMPLES = 2, 4
# Steps after which a sample is forgotten: what was once too dear is tried again.
MEMORY_STEPS = 256

Table = Sequence[tuple[int, float]]


class StepCosts:
    """Costs at the table's token counts, in seconds once steps were timed.

    prior: (tokens, cost) ascending, any unit: its shape holds where no step was timed yet.
    """

    def __init__(self, prior: Table) -> None:
        self._prior = prior
        self._samples: dict[int, deque[tuple[int, float]]] = {}
        self._num_steps = 0

    def report(self, tokens: int, seconds: float) -> None:
        """A step that was fed `tokens` over all sequences took `seconds`."""
        self._num_steps += 1
        # Scaled to the nearest count of the table, along the table's own shape.
        at = min((count for count, _ in self._prior), key=lambda count: abs(count - tokens))
        scaled = seconds * cost_of(at, self._prior) / cost_of(tokens, self._prior)
        kept = self._samples.setdefault(at, deque(maxlen=KEPT_SAMPLES))
        kept.append((self._num_steps, scaled))

    def table(self) -> Table:
        """(tokens, cost) ascending: timed where there are samples, else the prior, scaled as at
        the nearest count that was timed. More tokens never cost less: noise only adds, so what was
        timed is held to be no more than what a larger count took."""
        known = [count for count, _ in self._prior if self._is_known(count)]
        if not known:
            return self._prior
        timed = {count: min(map(self._timed, known[i:])) for i, count in enumerate(known)}
        factors = {count: timed[count] / cost for count, cost in self._prior if count in timed}
        counts, costs = [], []
        for count, cost in self._prior:
            nearest = min(factors, key=lambda other: abs(other - count))
            most = next((timed[other] for other in known if other >= count), math.inf)
            counts.append(count)
            costs.append(min(cost * factors[nearest], most))
        return list(zip(counts, accumulate(costs, max), strict=True))

    def _is_known(self, count: int) -> bool:
        kept = self._samples.get(count, deque())
        while kept and kept[0][0] <= self._num_steps - MEMORY_STEPS:
            kept.popleft()
        return len(kept) >= LEAST_SAMPLES

    def _timed(self, count: int) -> float:
        return min(seconds for _, seconds in self._samples[count])


def cost_of(tokens: int, table: Table) -> float:
    """Linear between the known points and, by the last piece, beyond them."""
    pairs = list(pairwise(table))
    (left, low), (right, high) = next((p for p in pairs if tokens <= p[1][0]), pairs[-1])
    return low + (high - low) * (tokens - left) / (right - left)
