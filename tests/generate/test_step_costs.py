"""What a step costs is learned from the clock, and decides only which drafts are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr2cli.generate.draft import Guess, Lane, best_feed
from ocr2cli.generate.step_costs import MEMORY_STEPS, StepCosts, cost_of
from ocr2cli.generate.tuning import CPU_STEP_COSTS, GPU_TUNING, Tuning

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


def test_a_step_that_has_become_dearer_is_believed_after_a_few() -> None:
    costs = StepCosts(PRIOR)
    for seconds in (0.1, 0.1, 0.3, 0.3, 0.3, 0.3):
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


@given(st.lists(st.tuples(st.sampled_from((1, 4, 9, 30, 64, 66, 72, 200, 512)),
                          st.floats(0, 0.3)), max_size=60))  # fmt: skip
def test_noise_of_a_third_stays_a_third_up_to_the_most_that_a_step_is_fed(
    samples: list[tuple[int, float]],
) -> None:
    """The piece from 64 to 72 tokens went on up to 512: times 50, and now and then below 0."""
    costs = StepCosts(CPU_STEP_COSTS)
    for tokens, noise in samples:
        costs.report(tokens, 0.01 * cost_of(tokens, CPU_STEP_COSTS) * (1 + noise))
    table = costs.table()
    unit = 1.0 if table == CPU_STEP_COSTS else 0.01
    assert [cost for _, cost in table] == sorted(cost for _, cost in table)
    for tokens in (1, 9, 64, 72, 100, 300, 512):
        right = unit * cost_of(tokens, CPU_STEP_COSTS)
        assert 0.999 * right <= cost_of(tokens, table) <= 1.31 * right


def test_the_table_goes_up_to_the_most_that_a_step_with_drafts_is_fed() -> None:
    tuning = Tuning()
    most = tuning.draft_batch_limit * (1 + tuning.max_guess)
    assert tuning.step_costs[-1][0] == most == 512
    limit = GPU_TUNING.draft_batch_limit * GPU_TUNING.most_fed
    assert limit <= GPU_TUNING.step_costs[-1][0]


def test_a_step_of_more_tokens_is_never_held_to_be_cheaper() -> None:
    costs = StepCosts(PRIOR)
    for _ in range(2):
        costs.report(4, 9.0)  # another program ran
        costs.report(64, 6.0)
    assert [cost for _, cost in costs.table()] == pytest.approx([4.0, 6.0, 6.0, 6.0])


def test_what_was_timed_stands_against_what_is_only_reckoned() -> None:
    costs = StepCosts(((1, 1.0), (4, 1.5), (50, 3.0), (64, 6.0)))
    for _ in range(2):
        costs.report(4, 5.0)
        costs.report(64, 6.0)
    assert dict(costs.table()) == pytest.approx({1: 10 / 3, 4: 5.0, 50: 5.0, 64: 6.0})


def test_drafts_that_slow_this_machine_down_are_no_longer_tried() -> None:
    guesses = [Guess([1] * 8, lane := Lane(Endless(), 8)) for _ in range(4)]
    assert lane.rate > 0.5
    costs = StepCosts(PRIOR)
    assert best_feed(guesses, costs.table()) > 1
    for _ in range(3):
        costs.report(4, 0.01)
        costs.report(16, 0.05)
    assert best_feed(guesses, costs.table()) == 1
