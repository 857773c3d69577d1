"""The inputs of the DRY golden file: what a case is, and its logits by integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Case:
    """One history with its settings."""

    multiplier: float
    base: float
    allowed_length: int
    last_n: int
    vocab: int
    seed: int
    history: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        fields = ("multiplier", "base", "allowed_length", "last_n", "vocab", "seed", "history")
        return {name: getattr(self, name) for name in fields}


def logits_of(case: Case) -> np.ndarray:
    """float32 [V] in [-20, 20), the same on every machine and with every numpy."""
    mixed = np.arange(case.vocab, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(case.seed)
    mixed = (mixed ^ (mixed >> np.uint64(13))) & np.uint64(0xFFFFFF)
    return (mixed.astype(np.float64) / (1 << 24) * 40 - 20).astype(np.float32)
