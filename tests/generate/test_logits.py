"""The rules for the next token, against their definitions, transformers and hand-made cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.generate.logits import (
    BAN,
    NgramIndex,
    NgramRule,
    Rules,
    ban_repeats,
    banned_tokens,
    dry,
    dry_penalties,
    no_repeat_ngram,
)

VOCAB = 6
few_tokens = st.lists(st.integers(0, 3), max_size=60)
rules = st.builds(
    NgramRule,
    n=st.integers(1, 5),
    window=st.integers(0, 30),
    exempt=st.frozensets(st.integers(0, 3), max_size=2),
)

# T = 0..18, 99, 0..18: the 19 tokens before 99 have just been written again.
GOLDEN = [*range(19), 99, *range(19)]


@pytest.mark.parametrize(
    ("history", "rule", "banned"),
    [
        (GOLDEN, NgramRule(20, 39), {99}),
        (GOLDEN, NgramRule(20, 90), {99}),
        (GOLDEN, NgramRule(20), {99}),
        (GOLDEN, NgramRule(20, 38), set()),  # the match starts 39 tokens back
        (GOLDEN, NgramRule(21, 90), set()),
        (GOLDEN, NgramRule(20, 90, frozenset({99})), set()),
        (GOLDEN[:-1], NgramRule(20, 90), set()),
        ([], NgramRule(1), set()),
        ([5, 6], NgramRule(1), {5, 6}),
        ([5, 6, 7], NgramRule(1, 2), {6, 7}),
        ([5], NgramRule(2), set()),
        ([5, 5], NgramRule(2), {5}),
        ([5, 6, 5], NgramRule(2), {6}),
        ([5, 6, 5, 7, 5], NgramRule(2), {6, 7}),
        ([5, 6, 5, 7, 5], NgramRule(2, 3), {7}),
        ([5, 6, 5, 7, 5], NgramRule(2, 0, frozenset({7})), {6}),
        ([1, 2, 3, 1, 2], NgramRule(3), {3}),
        ([1, 2, 3], NgramRule(3, 2), set()),  # a window narrower than n holds no n-gram
    ],
)
def test_the_ngram_rule_bans_these(history: list[int], rule: NgramRule, banned: set[int]) -> None:
    assert banned_tokens(history, rule) == banned
    assert NgramIndex(rule, history).banned() == banned


def official_bans(history: Sequence[int], rule: NgramRule) -> set[int]:
    """Model-spec 9.1 word for word, with indices instead of slices."""
    count, n = len(history), rule.n
    window = rule.window or count
    found = set()
    if count >= n:
        for start in range(max(0, count - window), count - n + 1):
            if all(history[start + i] == history[count - n + 1 + i] for i in range(n - 1)):
                found.add(history[start + n - 1])
    return found - rule.exempt


@given(few_tokens, rules)
@settings(max_examples=300)
def test_definition_index_and_device_rule_ban_the_same(history: list[int], rule: NgramRule) -> None:
    banned = official_bans(history, rule)
    assert banned_tokens(history, rule) == banned
    assert NgramIndex(rule, history).banned() == banned
    if rule.window:
        logits = torch.randn(1, VOCAB)
        on_device = ban_repeats(logits, right_aligned([history], rule.window), rule)
        assert torch.equal(on_device[0], no_repeat_ngram(history, logits[0], rule))


def right_aligned(histories: list[list[int]], window: int) -> Tensor:
    padded = [([-1] * window + history)[-window:] for history in histories]
    return torch.tensor(padded)


@given(st.lists(few_tokens, min_size=1, max_size=5), rules)
def test_the_device_rule_treats_each_row_of_a_batch_alone(
    histories: list[list[int]], rule: NgramRule
) -> None:
    rule = NgramRule(rule.n, rule.window + 1, rule.exempt)
    logits = torch.randn(len(histories), VOCAB)
    on_device = ban_repeats(logits, right_aligned(histories, rule.window), rule)
    for row, history in enumerate(histories):
        assert torch.equal(on_device[row], no_repeat_ngram(history, logits[row], rule))


@given(few_tokens, few_tokens, st.integers(0, 9), rules)
def test_popping_pushed_tokens_leaves_no_trace(
    history: list[int], tried: list[int], asked: int, rule: NgramRule
) -> None:
    """Also where it was asked on the way, and of tokens that it was never asked about."""
    index, fresh = NgramIndex(rule, history), NgramIndex(rule, history)
    for number, token in enumerate(tried):
        index.push(token)
        if number < asked:
            index.banned()
    index.pop(len(tried))
    assert index.banned() == fresh.banned()
    assert vars(index) == vars(fresh)
    with pytest.raises(IndexError):
        index.pop(len(history) + 1)


@given(few_tokens, st.integers(1, 5))
@settings(max_examples=200)
def test_without_window_and_exempt_ids_the_rule_is_transformers_rule(
    history: list[int], n: int
) -> None:
    if not history:
        return  # transformers never asks before a prompt token
    logits = torch.randn(1, VOCAB)
    theirs = NoRepeatNGramLogitsProcessor(n)(torch.tensor([history]), logits.clone())
    assert torch.equal(no_repeat_ngram(history, logits[0], NgramRule(n)), theirs[0])


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (DecodeConfig(), NgramRule(20, 90, frozenset({3, 4}))),
        (DecodeConfig(no_repeat_ngram=0), None),
        (
            DecodeConfig(no_repeat_ngram=35, ngram_window=0, ngram_over_prompt=True),
            NgramRule(35, 0, frozenset(), True),
        ),
        (
            DecodeConfig(ngram_window=50, ngram_over_prompt=True),
            NgramRule(20, 50, frozenset({3, 4}), True),
        ),
    ],
)
def test_settings_choose_the_rule(config: DecodeConfig, rule: NgramRule | None) -> None:
    assert NgramRule.of(config, [3, 4]) == rule


def test_processors_leave_their_input_alone() -> None:
    logits = torch.zeros(8)
    no_repeat_ngram([1, 2, 1], logits, NgramRule(2))
    dry([1, 2, 3, 1, 2], logits, DryConfig())
    assert torch.equal(logits, torch.zeros(8))


# ---- DRY


def repeats_by_definition(history: Sequence[int], config: DryConfig) -> dict[int, int]:
    """Model-spec 9.3: the longest common suffix of every earlier place and the end."""
    recent = list(history)[-config.last_n :]
    longest: dict[int, int] = {}
    if len(recent) <= config.allowed_length:
        return longest
    for place in range(len(recent) - 1):
        same = 0
        while same <= place and recent[place - same] == recent[len(recent) - 1 - same]:
            same += 1
        if same >= config.allowed_length:
            token = recent[place + 1]
            longest[token] = max(longest.get(token, 0), same)
    return longest


@given(few_tokens, st.integers(1, 4), st.integers(1, 70))
@settings(max_examples=300)
def test_dry_finds_the_repeats_of_the_definition(
    history: list[int], allowed: int, last_n: int
) -> None:
    config = DryConfig(allowed_length=allowed, last_n=last_n)
    expected = {
        token: float(np.float32(float(np.float32(0.8)) * 1.75 ** (same - allowed)))
        for token, same in repeats_by_definition(history, config).items()
    }
    assert dry_penalties(history, config) == expected


@pytest.mark.parametrize(
    ("history", "penalties"),
    [
        ([], {}),
        ([7, 7], {}),  # no longer than the allowed length
        ([7, 7, 7], {7: 0.8}),  # the run overlaps itself: 2 tokens repeated
        ([7, 8, 9, 7, 8], {9: 0.8}),
        ([5, 7, 8, 9, 5, 7, 8], {9: 1.4}),
        ([7, 8, 1, 7, 8, 2, 7, 8], {1: 0.8, 2: 0.8}),
        ([6, 7, 8, 1, 7, 8, 1, 6, 7, 8], {1: 1.4}),  # the longer match counts
        # Figures of model-spec 9.3: m = 5 costs 4.29, m = 10 costs 70.4.
        ([*range(5), 99, *range(5)], {99: 4.2875}),
        ([*range(10), 99, *range(10)], {99: 70.3711}),
    ],
)
def test_dry_penalises_these(history: list[int], penalties: dict[int, float]) -> None:
    assert dry_penalties(history, DryConfig()) == pytest.approx(penalties, rel=1e-5)


def test_dry_rounds_as_llama_cpp_does() -> None:
    """0.8 is a float32 there, the power and the product are doubles, the result is a float32."""
    exact = 0.800000011920928955078125 * 1.75**5
    (penalty,) = dry_penalties([*range(7), 99, *range(7)], DryConfig()).values()
    assert penalty == np.float32(exact) != np.float32(0.8 * 1.75**5)


def test_dry_with_a_base_of_one_costs_a_long_repeat_what_a_short_one_does() -> None:
    for length in (2, 9):
        (penalty,) = dry_penalties([*range(length), 99, *range(length)], DryConfig(base=1)).values()
        assert penalty == pytest.approx(0.8)


def test_dry_looks_at_the_last_tokens_only() -> None:
    history = [1, 2, 3, *range(100, 161), 1, 2]
    assert dry_penalties(history, DryConfig()) == {}
    assert dry_penalties(history, DryConfig(last_n=66)) == pytest.approx({3: 0.8})
    assert dry_penalties(history, DryConfig(last_n=-1)) == pytest.approx({3: 0.8})


def test_dry_never_overflows_float32() -> None:
    penalties = dry_penalties([7] * 400, DryConfig(last_n=-1))
    assert penalties == pytest.approx({7: 0.8 * 1.75**158})
    assert math.isfinite(float(np.float32(penalties[7])))


@pytest.mark.parametrize("config", [DryConfig(multiplier=0), DryConfig(last_n=0)])
def test_dry_is_off_without_multiplier_or_tokens(config: DryConfig) -> None:
    assert dry_penalties([7] * 20, config) == {}


def test_dry_subtracts_in_float32() -> None:
    logits = torch.full((10,), 0.1)
    result = dry([7, 8, 9, 7, 8], logits, DryConfig())
    assert result[9] == torch.tensor(0.1) - torch.tensor(0.8)
    assert torch.equal(result[:9], logits[:9])


# ---- both together


def test_the_rules_of_a_sequence_count_new_tokens_only() -> None:
    ours = Rules(NgramRule(2, 90), None, prompt_ids=[1, 2, 1])
    assert ours.penalties() == {}
    for token in (1, 2, 1):
        ours.push(token)
    assert ours.penalties() == {2: BAN}


def test_the_plain_rule_counts_the_prompt_too() -> None:
    ours = Rules(NgramRule(2, over_prompt=True), None, prompt_ids=[1, 2, 1])
    assert ours.penalties() == {2: BAN}
    ours.push(2)
    assert ours.penalties() == {1: BAN}


@given(few_tokens, few_tokens)
def test_a_ban_beats_a_penalty_and_pop_undoes_both(history: list[int], tried: list[int]) -> None:
    ngram, config = NgramRule(3, 20), DryConfig(last_n=16)
    ours = Rules(ngram, config)
    for token in history:
        ours.push(token)
    for token in tried:
        ours.push(token)
    ours.pop(len(tried))
    expected = dry_penalties(history, config)
    expected |= dict.fromkeys(banned_tokens(history, ngram), BAN)
    assert ours.penalties() == expected
