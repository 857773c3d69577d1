"""How far our tokens and logits are from a reference's, page by page.

Knows nothing about which reference it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ocr2cli.eval.reference import Logits, ReferenceOutput
from ocr2cli.pages import FinishReason, PageResult


@dataclass(frozen=True, slots=True)
class Parity:
    """is_exact: same tokens (or same text where tokens are not known).

    first_difference: number of equal tokens before the first differing one; None when exact.
    ours_there, reference_there: a few tokens from there on. logit_difference: largest absolute
    difference over the vocabulary at the first new token, over the reference's largest value.
    """

    is_exact: bool
    first_difference: int | None = None
    ours_there: tuple[int, ...] = ()
    reference_there: tuple[int, ...] = ()
    logit_difference: float | None = None

    def as_metrics(self) -> dict[str, float]:
        """The values the gates know by name; what does not apply is left out."""
        values = {"exact_share": 1.0 if self.is_exact else 0.0}
        if self.first_difference is not None:
            values["first_difference"] = float(self.first_difference)
        if self.logit_difference is not None:
            values["logit_difference"] = self.logit_difference
        return values


def compare(ours: PageResult, theirs: ReferenceOutput, logits: Logits | None) -> Parity | None:
    """None when the reference tells neither tokens nor logits: no parity to judge."""
    if not theirs.token_ids and theirs.first_logits is None:
        return None
    difference = logit_difference(logits, theirs.first_logits)
    if ours.error is not None:
        return Parity(False, 0, (), theirs.token_ids[:8], difference)
    if not ours.token_ids:
        return Parity(ours.raw == theirs.text, None, logit_difference=difference)
    expected = theirs.token_ids
    if ours.finish_reason is FinishReason.LOOP:
        # ours stops early in a loop, the reference writes it to the end: compare what both wrote
        expected = expected[: len(ours.token_ids)]
    at = first_difference(ours.token_ids, expected)
    if at is None:
        return Parity(True, None, logit_difference=difference)
    return Parity(False, at, ours.token_ids[at : at + 8], expected[at : at + 8], difference)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first place where two sequences differ, their lengths included; None: equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def logit_difference(ours: Logits | None, theirs: Logits | None) -> float | None:
    """Largest difference relative to the reference's largest absolute value."""
    if ours is None or theirs is None:
        return None
    if ours.shape != theirs.shape:
        return float("inf")
    scale = float(np.abs(theirs).max()) or 1.0
    return float(np.abs(ours.astype(np.float64) - theirs).max()) / scale
