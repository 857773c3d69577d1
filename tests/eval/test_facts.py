"""Facts that hold and facts that do not, each with the page that shows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from ocr2cli.eval.facts import (
    Absent,
    CellIs,
    Fact,
    Formula,
    Order,
    Present,
    Sound,
    canonical_latex,
    check_fact,
    end_repeats,
    match_starts,
)

PAGE = (
    "# The River\n\nThe **water** fell by a hand.\n\nFish gather \u201cbelow\u201d the weir.\n\n14"
)
TABLE = (
    "<table><tr><th>Day</th><th>Sacks</th></tr><tr><td>Monday</td><td>31</td></tr>"
    "<tr><td>Friday</td><td>40</td></tr></table>"
)


@pytest.mark.parametrize(
    ("fact", "holds"),
    [
        (Present("The water fell"), True),
        (Present('gather "below" the'), True),
        (Present("the water fell"), False),
        (Present("the water fell", is_case_sensitive=False), True),
        (Present("The watar fell"), False),
        (Present("The watar fell", max_edits=1), True),
        (Present("The vvatar fell", max_edits=1), False),
        (Present("14", last_n=5), True),
        (Present("14", first_n=20), False),
        (Present("The River", first_n=20), True),
        (Present("zz", max_edits=5), False),
        (Absent("14"), False),
        (Absent("15"), True),
        (Absent("14", first_n=20), True),
        (Order("water", "Fish"), True),
        (Order("Fish", "water"), False),
        (Order("water", "whale"), False),
        (Order("The", "The"), True),
        (Order("River", "River"), False),
    ],
)
def test_facts_about_text(fact: Fact, holds: bool) -> None:
    assert (check_fact(fact, PAGE) == "") is holds


@pytest.mark.parametrize("kind", [Present, Absent])
def test_an_empty_page_holds_no_text_however_generous_the_fact(kind: type) -> None:
    assert (check_fact(kind("a long phrase here", max_edits=3), " \n") == "") is (kind is Absent)


@pytest.mark.parametrize(
    ("fact", "holds"),
    [
        (CellIs("Monday", right="31"), True),
        (CellIs("31", left="Monday", up="Sacks", down="40"), True),
        (CellIs("Monday", right="40"), False),
        (CellIs("31", right="Monday"), False),
        (CellIs("40", top_heading="Sacks", left_heading="Friday"), True),
        (CellIs("40", top_heading="Day"), False),
        (CellIs("Mondoy", right="31"), False),
        (CellIs("Mondoy", right="31", max_edits=1), True),
        (CellIs("Sunday"), False),
    ],
)
def test_facts_about_cells(fact: CellIs, holds: bool) -> None:
    assert (check_fact(fact, TABLE) == "") is holds
    markdown = "| Day | Sacks |\n|---|---|\n| Monday | 31 |\n| Friday | 40 |"
    assert (check_fact(fact, markdown) == "") is holds


def test_a_cell_fact_fails_on_a_page_without_a_table() -> None:
    assert check_fact(CellIs("Monday"), "Monday 31") == "there is no table on the page"


def test_the_neighbour_of_a_spanning_cell_lies_beyond_its_copies() -> None:
    html = "<table><tr><td colspan=2>Total</td><td>71</td></tr></table>"
    assert check_fact(CellIs("Total", right="71"), html) == ""


@pytest.mark.parametrize(
    ("latex", "page", "holds"),
    [
        ("x^2 + y^2 = r^2", "so \\( x^{2}+y^{2}=r^{2} \\) holds", True),
        ("\\frac{a}{b}", "$$\\dfrac {a} {b}$$", True),
        ("a \\leq b", "\\[ a \\le b \\]", True),
        ("3x^2", "$\\int_a^b 3x ^ 2 dx$", True),
        ("x^2 + y^3", "\\(x^2 + y^2\\)", False),
        ("x^2", "x^2 outside of any formula", False),
    ],
)
def test_formulas_are_compared_as_source_without_spaces_and_style(
    latex: str, page: str, holds: bool
) -> None:
    assert (check_fact(Formula(latex), page) == "") is holds


def test_commands_that_only_begin_like_a_style_are_kept() -> None:
    assert canonical_latex("\\leftarrow \\textbf{x}") == "\\leftarrow\\textbfx"


@pytest.mark.parametrize(
    ("page", "fact", "holds"),
    [
        ("Some text.", Sound(), True),
        (" - * - ", Sound(), False),
        ("Some text " + "na " * 40, Sound(), False),
        ("Some text " + "." * 40, Sound(), False),
        ("Wait...", Sound(), True),
        ("Text \u6f22 text", Sound(), False),
        ("Text \u6f22 text", Sound(allows_cjk=True), True),
        ("", Sound(max_length=0), True),
        ("invented", Sound(max_length=3), False),
    ],
)
def test_a_sound_page_has_text_no_loop_and_no_foreign_script(
    page: str, fact: Sound, holds: bool
) -> None:
    assert (check_fact(fact, page) == "") is holds


def test_repeats_at_the_end_are_counted_for_every_short_period() -> None:
    assert end_repeats("xabababab") == 4
    assert end_repeats("abc") == 1
    assert end_repeats("") == 0


@given(st.text("ab", min_size=1, max_size=5), st.text("ab", max_size=14), st.integers(0, 2))
def test_matches_are_found_exactly_where_a_slow_search_finds_them(
    query: str, text: str, edits: int
) -> None:
    slow = {
        start
        for start in range(len(text))
        for end in range(start + 1, len(text) + 1)
        if Levenshtein.distance(query, text[start:end]) <= edits
    }
    assert set(match_starts(query, text, edits)) == slow
