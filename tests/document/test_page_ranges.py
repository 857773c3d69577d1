"""`--pages 1-3,7,10-`: strict, helpful, lazy."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr2cli.document.page_ranges import parse_pages
from ocr2cli.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "num_pages", "people_count"),
    [
        ("", 3, [1, 2, 3]),
        ("  ", 2, [1, 2]),
        ("2", 5, [2]),
        ("1-3,7,10-", 12, [1, 2, 3, 7, 10, 11, 12]),
        (" 1 - 2 , 4 ", 5, [1, 2, 4]),
        ("3-,1", 4, [1, 3, 4]),
        ("2,2,1-3,3-4", 9, [1, 2, 3, 4]),
        ("5-", 4, []),
        ("1-999999999", 2, [1, 2]),
        ("007", 9, [7]),
    ],
)
def test_ranges_select_pages_in_order_and_once(
    spec: str, num_pages: int, people_count: list[int]
) -> None:
    selection = parse_pages(spec)
    assert [page + 1 for page in selection.select(num_pages)] == people_count
    assert selection.count(num_pages) == len(people_count)
    assert parse_pages(str(selection)) == selection


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("0", "count from 1"),
        ("0-3", "count from 1"),
        ("3-1", "ends before it begins"),
        ("-3", "no page range"),
        ("1--3", "no page range"),
        ("1,,2", "a part is empty"),
        (",", "a part is empty"),
        ("a", "no page range"),
        ("1.5", "no page range"),
        ("1-3-5", "no page range"),
        ("\u0663", "no page range"),
        ("1e9", "no page range"),
        ("9999999999", "no page range"),
        ("1\n2", "no page range"),
    ],
)
def test_a_bad_range_says_why_and_what_to_write(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parse_pages(spec)
    assert "--pages 1-3,7,10-" in str(caught.value)


def test_a_long_bad_range_is_not_repeated_whole() -> None:
    with pytest.raises(UsageError) as caught:
        parse_pages("x" * 5000)
    assert len(str(caught.value)) < 6000 and "..." in str(caught.value)


def test_a_range_over_a_billion_pages_holds_none_of_them() -> None:
    assert list(itertools.islice(parse_pages("3-").select(10**9), 2)) == [2, 3]


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="0123456789-, x", max_size=12), st.integers(0, 40))
def test_any_text_is_read_or_refused(spec: str, num_pages: int) -> None:
    try:
        selection = parse_pages(spec)
    except UsageError:
        return
    pages = list(selection.select(num_pages))
    assert pages == sorted(set(pages)) and len(pages) == selection.count(num_pages)
    assert all(0 <= page < num_pages for page in pages)


@given(st.sets(st.integers(1, 60), min_size=1))
def test_any_set_of_pages_can_be_written_down(pages: set[int]) -> None:
    selection = parse_pages(",".join(map(str, pages)))
    assert {page + 1 for page in selection.select(60)} == pages
