"""One step: padding to buckets, a choice for each position, rules at their own position."""

from __future__ import annotations

import pytest
from toy_decoder import ToyDecoder, lowest_argmax

from ocr2cli.generate.logits import NgramRule, Rules
from ocr2cli.generate.step import Row, round_up
from ocr2cli.generate.step_runner import StepRunner


@pytest.mark.parametrize(
    ("size", "buckets", "rounded"),
    [(3, (), 3), (1, (1, 2, 4), 1), (3, (1, 2, 4), 4), (4, (1, 2, 4), 4), (5, (1, 2, 4), 5)],
)
def test_sizes_round_up_to_the_next_bucket(
    size: int, buckets: tuple[int, ...], rounded: int
) -> None:
    assert round_up(size, buckets) == rounded


def runner(toy: ToyDecoder, **buckets: tuple[int, ...]) -> tuple[StepRunner, object]:
    cache = toy.make_cache(4, 64)
    for slot in range(3):
        cache.write(slot, [5 + slot])
    return StepRunner(toy, cache, scratch_slot=3, **buckets), cache


def rows(rule: NgramRule | None = None) -> list[Row]:
    """Slot 0 tries two guesses, slot 2 none."""
    made = []
    for slot, written, guesses in [(0, [8, 2], [3, 4]), (2, [9], [])]:
        rules = Rules(rule, None)
        for token in written:
            rules.push(token)
        made.append(Row(slot, [written[-1], *guesses], written, rules))
    return made


def test_rows_get_a_choice_for_each_token_they_fed() -> None:
    toy = ToyDecoder()
    step, _ = runner(toy)
    first, second = step.run(rows())
    expected = [toy.logits(h) for h in ([5, 2], [5, 2, 3], [5, 2, 3, 4])]
    assert [c.token for c in first] == [lowest_argmax(logits) for logits in expected]
    assert [c.token for c in second] == [lowest_argmax(toy.logits([7, 9]))]


def test_padding_to_buckets_changes_shapes_and_nothing_else() -> None:
    plain, padded = ToyDecoder(), ToyDecoder()
    step, _ = runner(plain)
    wide, cache = runner(padded, batch_buckets=(4,), feed_buckets=(1, 8))
    assert wide.run(rows()) == step.run(rows())
    assert plain.shapes == [(2, 3)] and padded.shapes == [(4, 8)]
    assert cache.lengths[3] == 0, "the scratch slot is emptied after each step"


def test_bans_reach_their_own_position_and_leave_no_trace() -> None:
    """No token twice (n = 1), and a model that always prefers 8, then 2, 3, 4, 9."""
    toy = ToyDecoder(vocab_size=12)
    toy.table.zero_()
    for rank, token in enumerate([8, 2, 3, 4, 9]):
        toy.table[:, token] = 9.0 - rank
    step, _ = runner(toy, batch_buckets=(4,), feed_buckets=(8,))
    mine = rows(NgramRule(1))
    first, second = step.run(mine)
    assert [choice.token for choice in first] == [3, 4, 9]  # written: 8, 2; guessed: 3, 4
    assert [choice.token for choice in second] == [8]  # written: 9
    assert all(choice.overridden for choice in first) and not second[0].overridden
    assert mine[0].penalties() == rows(NgramRule(1))[0].penalties()


def test_a_step_of_single_tokens_takes_the_decode_path() -> None:
    toy = ToyDecoder()
    calls: list[str] = []
    toy.decode = lambda ids, cache, slots: (  # type: ignore[method-assign]
        calls.append("decode") or toy.verify(ids[:, None], cache, slots)[:, 0]
    )
    step, _ = runner(toy)
    step.run([rows()[1]])
    assert calls == ["decode"]
