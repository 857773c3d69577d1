"""The greedy choice: ties, bans, log-probabilities, logits that are not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_decoder import lowest_argmax

from ocr2cli.generate.greedy import Choice, choose, first_argmax
from ocr2cli.generate.logits import BAN


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(
        st.integers(0, 3),
        st.dictionaries(st.integers(0, 4), st.sampled_from([0.5, 1.0, BAN])),
    ),
)
def test_the_choice_is_the_lowest_id_of_the_highest_logit_after_penalties(
    rows: list[list[float]], penalties: dict[int, dict[int, float]]
) -> None:
    penalties = {row: costs for row, costs in penalties.items() if row < len(rows)}
    logits = torch.tensor(rows)
    before = logits.clone()
    choices = choose(logits, penalties)
    assert torch.equal(logits, before)
    for row, choice in enumerate(choices):
        costs = penalties.get(row, {})
        after = torch.tensor([value - costs.get(t, 0.0) for t, value in enumerate(rows[row])])
        assert choice.token == lowest_argmax(after)
        assert choice.logprob == pytest.approx(float(before[row].log_softmax(0)[choice.token]))
        preferred = min(range(5), key=lambda t: (-rows[row][t], t))
        banned = {token for token, cost in costs.items() if cost == BAN}
        ahead = {t for t in banned if (-rows[row][t], t) < (-rows[row][choice.token], choice.token)}
        assert choice.overridden == bool(ahead)
        if not costs:
            assert choice.token == preferred and not choice.overridden


def test_ties_in_a_wide_vocabulary_go_to_the_lowest_id() -> None:
    logits = torch.zeros(3, 129_280)
    logits[0, [77, 100_000]] = 3.0
    logits[1, [129_279, 128_000]] = 3.0
    assert [choice.token for choice in choose(logits, {})] == [77, 128_000, 0]
    assert choose(logits, {0: {77: BAN}})[0].token == 100_000


@given(st.integers(1, 3), st.sampled_from([128, 384, 100, 129]), st.integers(0, 10_000))
def test_the_fast_argmax_is_the_first_highest(rows: int, vocab: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 3, (rows, vocab), generator=source).float()
    logits[:, : seed % vocab] = -torch.inf
    assert first_argmax(logits).tolist() == [lowest_argmax(row) for row in logits]


def test_the_log_probability_is_the_models_own_before_bans() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    choice = choose(logits, {0: {0: BAN}})[0]
    assert choice == Choice(1, pytest.approx(float(logits[0].log_softmax(0)[1])), True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_show_in_their_row_only(bad: float) -> None:
    logits = torch.zeros(3, 8)
    logits[1, 5] = bad
    assert [choice.is_finite for choice in choose(logits, {2: {0: BAN}})] == [True, False, True]
    assert not choose(torch.full((1, 8), -torch.inf), {})[0].is_finite
