"""Tables read from model text, and TEDS between them."""

from __future__ import annotations

import time

import pytest

from ocr2cli.eval.tables import find_tables, page_teds, teds

SIMPLE = "<table><tr><td>Day</td><td>Sacks</td></tr><tr><td>Mon</td><td>31</td></tr></table>"


def test_an_html_table_becomes_a_grid() -> None:
    (table,) = find_tables(SIMPLE)
    assert table.grid() == [["Day", "Sacks"], ["Mon", "31"]]


def test_a_markdown_table_becomes_the_same_grid() -> None:
    (table,) = find_tables("text\n\n| Day | Sacks |\n|:--|--:|\n| Mon | 31 |\n\nmore | text")
    assert table.grid() == [["Day", "Sacks"], ["Mon", "31"]]


def test_spans_fill_the_places_they_cover() -> None:
    html = (
        "<table><tr><th rowspan=2>Name</th><th colspan=2>Mass</th></tr>"
        "<tr><th>kg</th><th>lb</th></tr><tr><td>Ox</td><td>700</td><td>1543</td></tr></table>"
    )
    (table,) = find_tables(html)
    assert table.grid() == [
        ["Name", "Mass", "Mass"],
        ["Name", "kg", "lb"],
        ["Ox", "700", "1543"],
    ]


@pytest.mark.parametrize(
    "html",
    [
        "<table><tr><td>Day<td>Sacks<tr><td>Mon<td>31",
        "<table><td>Day</td><td>Sacks</td><tr><td>Mon</td><td>31</td></table>",
        SIMPLE.removesuffix("</table>"),
    ],
)
def test_unclosed_html_is_read_as_far_as_it_goes(html: str) -> None:
    (table,) = find_tables(html)
    assert table.grid() == [["Day", "Sacks"], ["Mon", "31"]]


def test_a_span_that_lies_does_not_fill_the_memory() -> None:
    (table,) = find_tables('<table><tr><td colspan="999999999" rowspan="-4">x</td></tr></table>')
    assert len(table.grid()[0]) == 100


def test_equal_tables_have_teds_one() -> None:
    a, b = find_tables(SIMPLE + SIMPLE)
    assert teds(a, b) == 1.0


def test_heading_cells_and_data_cells_are_equal_to_teds() -> None:
    a, b = find_tables(SIMPLE + SIMPLE.replace("<td>Day</td>", "<th>Day</th>"))
    assert teds(a, b) == 1.0


def test_teds_equals_hand_counted_values() -> None:
    # 7 nodes: table, 2 rows, 4 cells. One cell of two letters half wrong costs 0.5.
    truth, wrong = find_tables(SIMPLE + SIMPLE.replace("31", "37"))
    assert teds(truth, wrong) == pytest.approx(1 - 0.5 / 7)
    # A lost row costs its three nodes.
    short = SIMPLE.replace("<tr><td>Mon</td><td>31</td></tr>", "")
    truth, lost = find_tables(SIMPLE + short)
    assert teds(truth, lost) == pytest.approx(1 - 3 / 7)


def test_a_changed_span_is_a_changed_cell() -> None:
    a, b = find_tables(SIMPLE + SIMPLE.replace("<td>Day", "<td colspan=2>Day"))
    assert teds(a, b) == pytest.approx(1 - 1 / 7)


def test_a_table_that_loops_for_ever_is_scored_in_seconds_and_badly() -> None:
    endless = SIMPLE.replace("</table>", "<tr><td>Mon</td><td>31</td></tr>" * 3000 + "</table>")
    truth, output = find_tables(SIMPLE + endless)
    start = time.process_time()
    assert teds(truth, output) < 0.01
    assert time.process_time() - start < 5


def test_each_truth_table_takes_its_best_match_and_a_missing_one_scores_zero() -> None:
    other = SIMPLE.replace("Sacks", "Barrels of oil").replace("Mon", "December")
    truth = find_tables(SIMPLE + other)
    assert page_teds(truth, find_tables(other + SIMPLE)) == 1.0
    assert page_teds(truth, find_tables(SIMPLE)) == 0.5
    assert page_teds(truth, []) == 0.0
    assert page_teds([], find_tables(SIMPLE)) is None
