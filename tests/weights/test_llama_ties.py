"""Following a text: nothing to say of our own, and the true lead where one token was turned."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_reading import read
from llama_ties import NEAR_TIE, Turn, follow
from llama_toys import draw_pages, write_toy

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toys") / "v2", "v2")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pages(tmp_path_factory.mktemp("pages"))["wide"]


@pytest.fixture(scope="module")
def text(toy: Path, page: Path) -> str:
    return read(toy, [page], num_tokens=NUM_TOKENS, dry=False)[0]


def test_our_own_text_has_no_turns(toy, page, text) -> None:
    assert follow(toy, page, text, num_tokens=NUM_TOKENS, dry=False) == []
    (penalised,) = read(toy, [page], num_tokens=NUM_TOKENS, dry=True)
    assert penalised != text
    assert follow(toy, page, penalised, num_tokens=NUM_TOKENS, dry=True) == []


def test_a_turned_token_is_named_with_its_lead_and_followed(toy, page, text) -> None:
    other = "x" if text[5] != "x" else "y"
    turns = follow(toy, page, text[:5] + other + text[6:], num_tokens=NUM_TOKENS, dry=False)
    first = turns[0]
    assert (first.after, first.ours, first.theirs) == (text[:5], text[5], other)
    assert first.lead > NEAR_TIE and not first.is_near_tie
    assert len(turns) > 1  # after another token we would not have written our own text


def test_an_early_end_is_a_turn(toy, page, text) -> None:
    (turn,) = follow(toy, page, text[:7], num_tokens=NUM_TOKENS, dry=False)
    assert (turn.after, turn.ours, turn.theirs) == (text[:7], text[7], "(end)")


def test_bytes_that_the_model_would_never_write_are_no_near_tie(toy, page, text) -> None:
    turns = follow(toy, page, text[:3] + "\N{SNOWMAN}", num_tokens=NUM_TOKENS, dry=False)
    # the toy gives every byte that cannot be printed a logit of zero
    assert turns and not any(turn.is_near_tie for turn in turns)


def test_a_near_tie_is_under_a_fiftieth_of_a_logit() -> None:
    assert Turn("", "a", "b", 0.0199).is_near_tie and not Turn("", "a", "b", 0.02).is_near_tie
    assert str(Turn("ab", "c", "d", 0.00123)) == "after 2 characters 'c' leads 'd' by 0.0012"
