"""When repetition is a loop and when a page really looks like that."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr2cli.generate.loops import LoopDetector, LoopLimits, tail_period

LIMITS = LoopLimits()
TD, END_TD, TR, END_TR, NEWLINE = 10, 11, 12, 13, 14


def prose(count: int, seed: int = 0) -> list[int]:
    """Tokens drawn as words are: a few common, many rare."""
    source = random.Random(seed)
    return [100 + int(source.paretovariate(0.6)) % 5000 for _ in range(count)]


def unit(period: int) -> list[int]:
    """Tokens without a shorter period."""
    return [1000 + i for i in range(period)]


def repeated(period: int, total: int) -> list[int]:
    return (unit(period) * (total // period + 1))[:total]


def table(rows: int, columns: int) -> list[int]:
    return ([TR] + [TD, END_TD] * columns + [END_TR]) * rows


@pytest.mark.parametrize(
    ("name", "token_ids"),
    [
        ("prose", prose(6000)),
        ("a line of dots", [*prose(500), *[7] * 130]),
        ("a contents page", [t for i in range(40) for t in (*prose(6, i), *[7] * 40, 200 + i)]),
        ("the widest empty row", [TR, *[TD, END_TD] * 60]),
        ("an empty form of 30 rows and 10 columns", table(30, 10)),
        ("an empty form of 40 rows and 12 columns", table(40, 12)),
        ("65 equal labels", repeated(12, 780)),
        ("8 equal coupons", repeated(150, 1200)),
        ("4 equal tickets of half a page", [*repeated(500, 2000)]),
        ("a table of zeros with row numbers",
         [t for i in range(300) for t in (TR, TD, 500 + i, END_TD, TD, 48, END_TD, END_TR)]),
        ("ruled lines", ([7] * 7 + [NEWLINE]) * 40),
    ],
)  # fmt: skip
def test_what_pages_really_hold_is_no_loop(name: str, token_ids: list[int]) -> None:
    assert first_alarm(token_ids) is None, name


@pytest.mark.parametrize(
    ("period", "expected"),
    [(1, 512), (2, 512), (8, 512), (9, 1536), (40, 1536), (256, 1536), (300, 1800), (512, 3072)],
)
def test_an_endless_unit_is_a_loop_once_it_fills_a_page(period: int, expected: int) -> None:
    start = prose(333)
    alarm = first_alarm([*start, *repeated(period, 4000)])
    assert alarm is not None
    assert 0 <= alarm - len(start) - expected < LIMITS.check_every


def test_endless_empty_cells_are_a_loop() -> None:
    assert first_alarm([*prose(100), *[TD, END_TD] * 2000]) == 640


def test_longer_units_and_disturbed_tails_are_not_judged() -> None:
    assert first_alarm(repeated(513, 7000)) is None
    disturbed = repeated(20, 7000)
    for i in range(60):
        disturbed[100 * i + i * i % 97] = 1  # no rhythm of their own
    assert first_alarm(disturbed) is None


def first_alarm(token_ids: list[int]) -> int | None:
    """Length at which a sequence that grows to `token_ids` is stopped."""
    detector = LoopDetector(LIMITS)
    for count in range(1, len(token_ids) + 1):
        if count % LIMITS.check_every == 0 and detector.is_loop(
            token_ids[:count], overridden=False
        ):
            return count
    return None


SMALL = LoopLimits(
    short_period=2, short_total=6, long_total=12, min_periods=3, max_period=6, check_every=1
)


def period_by_definition(token_ids: list[int]) -> int:
    for period in range(1, SMALL.max_period + 1):
        total = SMALL.total_for(period)
        tail = token_ids[-total:]
        if len(tail) == total and all(tail[i] == tail[i - period] for i in range(period, total)):
            return period
    return 0


@given(st.lists(st.integers(0, 2), max_size=8), st.integers(1, 7), st.integers(0, 30))
def test_the_period_is_the_one_of_the_definition(start: list[int], period: int, count: int) -> None:
    token_ids = start + [i % period % 3 for i in range(count)]
    assert tail_period(token_ids, SMALL) == period_by_definition(token_ids)


def overridden_at(places: set[int], count: int) -> int | None:
    detector = LoopDetector(LIMITS)
    ids = prose(count)
    for n in range(1, count + 1):
        if detector.is_loop(ids[:n] if n % 64 == 0 else Length(n), overridden=n in places):
            return n
    return None


class Length(list[int]):
    """A history of which only the length matters."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __len__(self) -> int:
        return self._count


def test_a_model_that_the_ban_keeps_overriding_is_in_a_loop() -> None:
    assert overridden_at(set(range(20, 4000, 20)), 4000) == 20 * 64


@pytest.mark.parametrize(("last", "alarm"), [(2148, None), (2147, 2147)])
def test_only_overrides_within_the_span_count(last: int, alarm: int | None) -> None:
    assert overridden_at({100, *range(200, 262), last}, 3000) == alarm


def test_overrides_now_and_then_are_no_loop() -> None:
    assert overridden_at(set(range(33, 8000, 33)), 8000) is None
    assert overridden_at(set(range(1, 64)), 4000) is None


def test_a_check_costs_little() -> None:
    ids = prose(8000)
    start = time.perf_counter()
    for _ in range(100):
        tail_period(ids, LIMITS)
    assert time.perf_counter() - start < 1.0  # 10 ms each would still be 0.2 ms a token
