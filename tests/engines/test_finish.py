"""A result's confidence is that of the page's text: boxes are guesses, however well it was read."""

from __future__ import annotations

import math
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest

from ocr2cli.engines.finish import (
    PageFacts,
    failed,
    low_confidence,
    read_before,
    to_generation,
    to_result,
    with_witness,
)
from ocr2cli.engines.recovery import NOTHING, TURNED
from ocr2cli.pages import (
    Attempt,
    FinishReason,
    Generation,
    PageError,
    PageKey,
    PageResult,
    Status,
)

BOXED = [
    ("<|ref|>", 0.5), ("text", 0.2), ("<|/ref|>", 1.0),
    ("<|det|>", 1.0), ("[[1", 0.1), (", 2, 3", 0.1), (", 4]]", 0.1), ("<|/det|>", 1.0),
]  # fmt: skip


def read(*tokens: tuple[str, float], end: float | None = 0.9, is_known: bool = True) -> PageResult:
    """A page of such tokens, each with its probability; end: the end token's."""
    chances = [chance for _, chance in tokens] + ([] if end is None else [end])
    text = "".join(piece for piece, _ in tokens)
    written = Generation(
        PageKey("a", 0), (), text, FinishReason.STOP, 10, 5,
        logprobs=tuple(map(math.log, chances)),
        pieces=tuple(piece.encode() for piece, _ in tokens) if is_known else (),
    )  # fmt: skip
    return to_result([written], PageFacts())


def test_the_numbers_of_boxes_do_not_count() -> None:
    page = read(*BOXED, ("A fé", 0.9), ("rry", 0.9))
    assert page.confidence == page.confidence_p5 == pytest.approx(0.9)
    assert page.markdown == "A férry" and len(page.boxes) == 1


def test_a_token_that_is_half_text_counts() -> None:
    page = read(*BOXED[:-1], ("<|/det|>A", 0.3), end=None)
    assert page.confidence == pytest.approx(0.3)


def test_a_page_of_boxes_alone_has_the_confidence_of_all_its_tokens() -> None:
    chances = [chance for _, chance in BOXED] + [0.9]
    expected = math.exp(sum(map(math.log, chances)) / len(chances))
    assert read(*BOXED).confidence == pytest.approx(expected, abs=1e-6)
    assert read(*BOXED, end=None).confidence is not None


def test_where_tokens_are_unknown_all_of_them_count() -> None:
    one, other = read(*BOXED, ("A", 0.9), is_known=False), read(*BOXED, ("A", 0.9))
    assert one.confidence is not None and other.confidence is not None
    assert one.confidence < other.confidence
    assert read(end=None).confidence is None


def test_the_end_token_counts_beside_the_text() -> None:
    assert read(*BOXED, ("A", 0.9), end=0.1).confidence == pytest.approx(0.3)


def test_boxes_between_two_texts_count_as_little_as_one_before_them() -> None:
    page = read(*BOXED, ("A", 0.9), *BOXED, ("B", 0.9), *BOXED)
    assert page.confidence == page.confidence_p5 == pytest.approx(0.9)
    assert page.markdown == "A\n\nB" and page.warnings == ()


def test_of_twenty_tokens_the_worst_is_the_low_one_and_of_more_the_second() -> None:
    chances = [number / 100 for number in (60, *range(50, 60), *range(61, 71))]
    assert low_confidence([math.log(chance) for chance in chances[:20]]) == 0.5
    assert low_confidence([math.log(chance) for chance in chances]) == 0.51


def written(text: str, reason: FinishReason, step: str = "first") -> Generation:
    return Generation(PageKey("a", 0), (), text, reason, 10, 5, step=step, seconds={"decode": 2.0})


def test_a_good_last_try_counts_and_of_bad_ones_the_first() -> None:
    first, again = (written(step, FinishReason.LOOP, step) for step in ("first", "wider-ngram"))
    result = to_result([first, again], PageFacts())
    assert (result.markdown, result.status) == ("first", Status.LOOP)
    result = to_result([first, written("good", FinishReason.STOP)], PageFacts())
    assert (result.markdown, result.status) == ("good", Status.RECOVERED)
    result = to_result([first, written(" \n", FinishReason.STOP, "wider-ngram")], PageFacts())
    assert (result.markdown, result.status, result.warnings) == ("first", Status.LOOP, ())
    assert [a.note for a in result.attempts] == ["", NOTHING]
    broken = (Attempt("first", None, 3), Attempt("wider-ngram", FinishReason.LOOP, 4))
    assert to_result([again], PageFacts(), broken).attempts == broken


def test_only_a_try_that_came_to_its_end_without_a_word_wrote_nothing() -> None:
    """One that was cut, or broke off in a loop of blanks, has its reason already."""
    for text, reason, note in (
        ("", FinishReason.STOP, NOTHING), ("a", FinishReason.STOP, ""),
        ("", FinishReason.LENGTH, ""), (" ", FinishReason.LOOP, ""),
    ):  # fmt: skip
        (attempt,) = to_result([written(text, reason)], PageFacts()).attempts
        assert attempt.note == note


def test_a_page_of_which_nothing_was_written_says_so_beside_its_other_warnings() -> None:
    facts = PageFacts(warnings=("dark",), seconds={"raster": 1.0})
    result = to_result([written(" \n", FinishReason.STOP)], facts)
    assert result.warnings == ("dark", NOTHING)
    assert result.seconds == {"raster": 1.0, "decode": 2.0}
    assert to_result([written("", FinishReason.LENGTH)], facts).warnings == ("dark",)
    assert failed(PageKey("a", 0), "timeout", "slow", facts).seconds == {"raster": 1.0}


def test_a_letter_that_is_cut_into_tokens_moves_no_box() -> None:
    halves = ["é".encode()[:1], "é".encode()[1:]]
    pieces = (*halves, *(piece.encode() for piece, _ in BOXED), b"A")
    assert list(accumulate(map(len, pieces)))[1] == 2
    text = b"".join(pieces).decode()
    chances = [0.5, 0.5, *(0.1 for _ in BOXED), 0.5]
    written = Generation(
        PageKey("a", 0), (), text, FinishReason.LENGTH, 10, 5,
        logprobs=tuple(map(math.log, chances)), pieces=pieces,
    )  # fmt: skip
    assert to_result([written], PageFacts()).confidence == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (PageError("out_of_memory", "no room"), FinishReason.STOP, "out_of_memory"),
        (PageError("out_of_memory", "no room"), None, "out_of_memory"),
        (None, None, "internal"),
    ],
)
def test_a_page_that_broke_off_is_no_generation(
    error: PageError | None, reason: FinishReason | None, code: str
) -> None:
    finished: Any = SimpleNamespace(error=error, finish_reason=reason)
    none: Any = None
    found = to_generation(PageKey("a", 0), finished, none, 5)
    assert isinstance(found, PageError) and found.code == code


@pytest.mark.parametrize(
    ("steps", "known", "expected"),
    [
        ((), ("old",), ("new",)),
        (("first", "upright"), ("old",), ("new", TURNED)),
        (("upright", "halves"), ("old", NOTHING), ("new", NOTHING)),
        (("upright",), (NOTHING,), ("new", TURNED, NOTHING)),
    ],
)
def test_a_page_that_was_read_before_has_its_own_warnings_and_those_of_the_reading(
    steps: tuple[str, ...], known: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    attempts = tuple(Attempt(step, FinishReason.STOP) for step in steps)
    result = PageResult(PageKey("a", 0), Status.OK, warnings=known, attempts=attempts)
    assert read_before(result, ("new",), "").warnings == expected


def test_what_was_found_of_a_text_is_of_this_pages_own_text_and_of_no_other() -> None:
    words = "the boat came in late on monday and the nets were still wet " * 4
    earlier = {"own_text_found": 0.25, "kept": 1}
    page = PageResult(PageKey("a", 0), Status.OK, markdown=words, extra=earlier)
    assert with_witness(page, words).extra == {"own_text_found": 1.0, "kept": 1}
    assert with_witness(page, "").extra == {"kept": 1}
