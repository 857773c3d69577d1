"""Parity between our page and a reference's output."""

from __future__ import annotations

import numpy as np
import pytest

from ocr2cli.eval.parity import compare, first_difference, logit_difference
from ocr2cli.eval.reference import ReferenceOutput
from ocr2cli.pages import FinishReason, PageError, PageKey, PageResult, Status

KEY = PageKey("page", 0)


def ours(*tokens: int, finish: FinishReason = FinishReason.STOP, raw: str = "") -> PageResult:
    return PageResult(KEY, Status.OK, raw=raw, finish_reason=finish, token_ids=tokens)


@pytest.mark.parametrize(
    ("a", "b", "at"),
    [
        ((1, 2, 3), (1, 2, 3), None),
        ((1, 2, 3), (1, 5, 3), 1),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2, 3), (1, 2), 2),
        ((), (1,), 0),
        ((), (), None),
    ],
)
def test_the_first_difference_counts_lengths_too(
    a: tuple[int, ...], b: tuple[int, ...], at: int | None
) -> None:
    assert first_difference(a, b) == at


def test_equal_tokens_are_exact_and_other_tokens_are_shown_from_where_they_part() -> None:
    exact = compare(ours(4, 5, 6), ReferenceOutput("x", (4, 5, 6)), None)
    assert exact is not None and exact.is_exact and exact.as_metrics() == {"exact_share": 1.0}
    parted = compare(ours(4, 5, 6), ReferenceOutput("x", (4, 7, 8)), None)
    assert parted is not None and (parted.ours_there, parted.reference_there) == ((5, 6), (7, 8))
    assert parted.as_metrics() == {"exact_share": 0.0, "first_difference": 1.0}


def test_a_page_that_ends_early_is_not_exact_unless_a_loop_was_cut() -> None:
    reference = ReferenceOutput("x", (4, 5, 5, 5, 5, 5))
    early = compare(ours(4, 5, 5), reference, None)
    assert early is not None and early.first_difference == 3
    cut = compare(ours(4, 5, 5, finish=FinishReason.LOOP), reference, None)
    assert cut is not None and cut.is_exact


def test_a_failed_page_is_never_exact() -> None:
    failed = PageResult(KEY, Status.FAILED, error=PageError("timeout", "too slow"))
    parity = compare(failed, ReferenceOutput("", (), np.zeros(3, np.float32)), None)
    assert parity is not None and not parity.is_exact


def test_without_tokens_of_ours_the_texts_are_compared() -> None:
    reference = ReferenceOutput("some text", (1, 2))
    same = compare(ours(raw="some text"), reference, None)
    other = compare(ours(raw="some test"), reference, None)
    assert same is not None and same.is_exact
    assert other is not None and not other.is_exact and other.first_difference is None


def test_a_reference_that_tells_its_text_only_gives_no_parity() -> None:
    assert compare(ours(1), ReferenceOutput("x"), None) is None


def test_the_logit_difference_is_relative_to_the_references_largest() -> None:
    theirs = np.array([1.0, -8.0, 3.0], np.float32)
    assert logit_difference(theirs + np.float32(0.4), theirs) == pytest.approx(0.05)
    assert logit_difference(theirs[:2], theirs) == float("inf")
    assert logit_difference(None, theirs) is None
