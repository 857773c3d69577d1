"""What a step costs is learned from the clock, and decides only which drafts are tried."""

from __future__ import annotations

import pytest

from ocr2cli.generate.draft import Guess, Lane, best_feed
from ocr2cli.generate.step_costs import MEMORY_STEPS, StepCosts, cost_of

PRIOR = ((1, 1.0), (4, 1.5), (16, 3.0), (64, 6.0))


class Endless:
    def push(self, token: int) -> None: ...

    def guess(self, count: int) -> list[int]:
        return [1] * count


def test_a_cost_lies_on_the_line_between_two_known_ones() -> None:
    assert cost_of(1, PRIOR) == 1.0
    assert cost_of(10, PRIOR) == pytest.approx(2.25)
    assert cost_of(128, PRIOR) == pytest.approx(10.0)  # beyond: by the last piece


def test_the_prior_stands_until_a_step_was_timed_twice() -> None:
    costs = StepCosts(PRIOR)
    assert costs.table() == PRIOR
    costs.report(4, 9.0)  # a kernel was made
    assert costs.table() == PRIOR
    costs.report(4, 0.3)
    assert dict(costs.table())[4] == pytest.approx(0.3)


def test_counts_that_were_never_timed_follow_the_nearest_that_was() -> None:
    costs = StepCosts(PRIOR)
    for _ in range(3):
        costs.report(4, 0.3)
        costs.report(64, 6.0)
    assert [cost for _, cost in costs.table()] == pytest.approx([0.2, 0.3, 0.6, 6.0])


def test_a_count_between_two_of_the_table_corrects_the_nearer() -> None:
    costs = StepCosts(PRIOR)
    for _ in range(2):
        costs.report(6, 2 * cost_of(6, PRIOR))
    assert dict(costs.table())[4] == pytest.approx(3.0)


def test_one_slow_step_is_not_believed() -> None:
    costs = StepCosts(PRIOR)
    for seconds in (0.3, 0.3, 8.0):
        costs.report(4, seconds)
    assert dict(costs.table())[4] == pytest.approx(0.3)


def test_what_was_dear_long_ago_is_tried_again() -> None:
    costs = StepCosts(PRIOR)
    for _ in range(2):
        costs.report(16, 100.0)
    assert dict(costs.table())[16] == pytest.approx(100.0)
    for _ in range(MEMORY_STEPS):
        costs.report(1, 1.0)
    assert dict(costs.table())[16] == pytest.approx(3.0)


def test_drafts_that_slow_this_machine_down_are_no_longer_tried() -> None:
    guesses = [Guess([1] * 8, lane := Lane(Endless(), 8)) for _ in range(4)]
    assert lane.rate > 0.5
    costs = StepCosts(PRIOR)
    assert best_feed(guesses, costs.table()) > 1
    for _ in range(3):
        costs.report(4, 0.01)
        costs.report(16, 0.05)
    assert best_feed(guesses, costs.table()) == 1
