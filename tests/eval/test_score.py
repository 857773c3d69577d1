"""A page's text against a truth in plain text: what only looks like markup is text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocr2cli.eval.cases import Case, NamedFact
from ocr2cli.eval.facts import Absent, Order, Present
from ocr2cli.eval.metrics import Scores
from ocr2cli.eval.score import score_markdown, score_result
from ocr2cli.pages import FinishReason, PageKey, PageResult, Status


def scores(truth: str, markdown: str, *, covers_page: bool = True) -> Scores:
    case = Case("a", "toy", Path("a.png"), truth=truth, covers_page=covers_page)
    return score_markdown(case, markdown).scores


@pytest.mark.parametrize(
    "text",
    [
        "- milk\n- eggs\n", "# 5 Elm Street", "> 90 %", "* a footnote", "2*3*4 = 24",
        "def __init__(self)", "| a | b |", "[1](2)", "Fig. [3](see p. 4)", "---\nx", "&amp; co",
        "C:\\_new\\*.txt", "`ls`", "x <b> y", "~~ a ~~", "<!-- x -->", "\\(x\\)", "$$5", "_sic_",
        "![]()", "<br>", "+ 5 degrees\n- 3 degrees",
    ],
)  # fmt: skip
@pytest.mark.parametrize("covers_page", [True, False])
def test_a_plain_truth_that_is_read_letter_by_letter_is_read_perfectly(
    text: str, covers_page: bool
) -> None:
    assert scores(text, text, covers_page=covers_page).cer == 0.0
    if covers_page:
        assert scores(text, text).whole_cer == 0.0
    if any(map(str.isalnum, text)):
        assert scores(text, "").word_recall == 0.0


@pytest.mark.parametrize(
    ("truth", "markdown"),
    [
        ("Shopping\n- milk\n- eggs", "# Shopping\n\n- milk\n- eggs"),
        ("Shopping\nmilk\neggs", "# Shopping\n\n- milk\n- eggs"),
        ("Sum\n2*3*4 = 24", "# **Sum**\n\n2*3*4 = 24"),
        ("* a footnote", "\\* a footnote"),
        ("5 < 6", "5 &lt; 6"),
        ("Day 31", "<table><tr><td>Day</td><td>31</td></tr></table>"),
    ],
)
def test_markup_around_a_plain_truth_costs_nothing(truth: str, markdown: str) -> None:
    assert scores(truth, markdown).whole_cer == 0.0


def test_what_was_compared_is_what_the_report_shows() -> None:
    case = Case("a", "toy", Path("a.png"), truth="- milk")
    scored = score_markdown(case, "- milk")
    assert (scored.truth, scored.output) == ("- milk", "- milk")


@pytest.mark.parametrize(
    ("fact", "markdown", "holds"),
    [
        (Present("- milk"), "Shopping\n\n- milk\n- eggs", True),
        (Present("- milk"), "Shopping\n\nmilk", False),
        (Absent("- milk"), "Shopping\n\n- milk", False),
        (Present("2*3*4"), "so 2*3*4 = 24", True),
        (Order("# 5", "# 6"), "# 5 Elm Street\n\n# 6 Elm Street", True),
        (Order("# 6", "# 5"), "# 5 Elm Street\n\n# 6 Elm Street", False),
        # not a word of markup in the fact: links and tags are no text of the page
        (Absent("page 1"), "![page 1](page 1.png)", True),
    ],
)
def test_a_fact_that_looks_like_markup_is_looked_for_in_what_was_written(
    fact: Present | Absent | Order, markdown: str, holds: bool
) -> None:
    case = Case("a", "toy", Path("a.png"), has_truth=False, facts=(NamedFact("1", fact),))
    assert score_markdown(case, markdown).facts[0].holds is holds


@pytest.mark.parametrize(
    ("truth", "output"),
    [("---", ""), ("***\n- - -", ""), ("[1](2)", "1"), ("C:\\_new\\*", "C:new")],
)
def test_what_a_plain_truth_loses_as_markup_is_not_forgiven(truth: str, output: str) -> None:
    """Of a truth of marks alone nothing is left, which a page that read nothing has read."""
    whole = scores(truth, output).whole_cer
    assert whole is not None and whole > 0


TABLE = "| Day | Fish |\n|---|---|\n| Monday | 42 |\n"


def test_a_truth_with_markup_is_compared_by_its_text_and_its_tables_apart() -> None:
    case = Case("a", "toy", Path("a.png"), truth_markdown=f"# Catch\n\n{TABLE}")
    same = score_markdown(case, f"Catch\n\n{TABLE}")
    assert (same.scores.cer, same.scores.whole_cer, same.scores.teds) == (0.0, 0.0, 1.0)
    assert same.truth == same.output and "Monday" in same.truth and "#" not in same.truth
    flat = score_markdown(case, "Catch\n\nDay Fish Monday 42").scores
    assert (flat.whole_cer, flat.teds) == (0.0, 0.0)
    assert scores("Day Fish", TABLE).teds is None, "no table in the truth, nothing to compare"


def test_blocks_are_scored_where_the_truth_has_them() -> None:
    case = Case("a", "toy", Path("a.png"), truth="one two", blocks=("first block", "second block"))
    found = score_markdown(case, "second block\n\nfirst block").scores
    assert (found.block_distance, found.order) == (0.0, 1.0)
    plain = scores("one two", "one two")
    assert (plain.block_distance, plain.order) == (None, None)


def test_the_score_of_facts_is_the_share_that_holds() -> None:
    facts = tuple(NamedFact(text, Present(text)) for text in ("milk", "eggs", "bread", "salt"))
    case = Case("a", "toy", Path("a.png"), has_truth=False, facts=facts)
    assert score_markdown(case, "milk, eggs and salt").scores.facts == 0.75
    assert score_markdown(case, "").scores.facts == 0.0


@pytest.mark.parametrize(
    ("status", "reason", "stopped"),
    [
        (Status.OK, FinishReason.STOP, 1.0),
        (Status.BLANK, None, 1.0),
        (Status.TRUNCATED, FinishReason.LENGTH, 0.0),
        (Status.LOOP, FinishReason.LOOP, 0.0),
        (Status.FAILED, FinishReason.STOP, 0.0),
    ],
)
def test_a_page_has_stopped_where_it_came_to_its_end_by_itself(
    status: Status, reason: FinishReason | None, stopped: float
) -> None:
    case = Case("a", "toy", Path("a.png"), truth="milk")
    result = PageResult(PageKey("a", 0), status, markdown="milk", finish_reason=reason)
    scored = score_result(case, result).scores
    assert scored.stopped == stopped
    assert scored.cer == (1.0 if status is Status.FAILED else 0.0), "a failed page has read nothing"


def test_a_page_that_is_missing_has_read_nothing_and_did_not_stop() -> None:
    scored = score_result(Case("a", "toy", Path("a.png"), truth="milk"), None)
    assert (scored.scores.cer, scored.scores.stopped, scored.output) == (1.0, 0.0, "")
