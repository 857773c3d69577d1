"""Guesses: where they come from, how far they are trusted. Right or wrong never matters here."""

from __future__ import annotations

import random

import pytest

from ocr2cli.generate.draft import (
    Drafter,
    Guess,
    Lane,
    RepeatSource,
    Source,
    TextSource,
    best_feed,
)

TEXT = list(range(100, 200))


def after(source: Source, token_ids: list[int], count: int = 4) -> list[int]:
    for token in token_ids:
        source.push(token)
    return source.guess(count)


@pytest.mark.parametrize(
    ("name", "written", "guess"),
    [
        ("nothing is written yet", [], [100, 101, 102, 103]),
        ("the text is followed", [100, 101], [102, 103, 104, 105]),
        ("markup comes first", [1, 2], []),
        ("one equal token is chance", [1, 2, 100], []),
        ("two find the place", [1, 2, 100, 101], [102, 103, 104, 105]),
        ("markup in the middle", [100, 101, 7, 8, 102, 103], [104, 105, 106, 107]),
        ("two tokens left out", [100, 101, 104], [105, 106, 107, 108]),
        ("three tokens left out", [100, 101, 105], []),
        ("a skipped stretch", [100, 101, 120, 121], [122, 123, 124, 125]),
        ("two tokens as far ahead as NEAR", [100, 101, 148, 149], [150, 151, 152, 153]),
        ("two tokens a little farther", [100, 101, 149, 150], []),
        ("two tokens far ahead are not believed", [100, 101, 160, 161], []),
        ("four tokens far ahead are", [100, 101, 160, 161, 162, 163], [164, 165, 166, 167]),
        ("four tokens behind too", [*range(100, 150), 110, 111, 112, 113], [114, 115, 116, 117]),
        ("the end of the text", list(range(100, 198)), [198, 199]),
        ("past the end", list(range(100, 200)), []),
    ],
)
def test_a_text_is_guessed_from_where_writing_stands(
    name: str, written: list[int], guess: list[int]
) -> None:
    assert after(TextSource(TEXT), written) == guess, name


def test_of_equal_places_the_next_ahead_is_taken() -> None:
    text = [1, 2, 3, 50, 51, 4, 5, 6, 50, 51, 7, 8, 9, 50, 51, 10]
    assert after(TextSource(text), [1, 2, 3, 50, 51, 99, 5, 6]) == [50, 51, 7, 8]
    assert after(TextSource(text), [1, 2, 3, 50, 51, 99, 50, 51]) == [7, 8, 9, 50]


def test_an_empty_text_guesses_nothing() -> None:
    assert after(TextSource([]), [1, 2, 3]) == []


@pytest.mark.parametrize(
    ("name", "written", "guess"),
    [
        ("nothing is written yet", [], []),
        ("nothing recurs", [1, 2, 3, 4], []),
        ("one token is not enough", [1, 2, 1], []),
        ("two tokens recur", [1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1]),
        ("the longer match wins", [9, 8, 1, 2, 3, 1, 2, 4, 9, 8, 1, 2], [3, 1, 2, 4]),
        ("else the newest", [1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),
        ("a run goes on past the end", [5, 6, 5, 6, 5], [6, 5, 6, 5]),
        ("a run of one", [5, 5, 5], [5, 5, 5, 5]),
    ],
)
def test_the_past_is_guessed_to_recur(name: str, written: list[int], guess: list[int]) -> None:
    assert after(RepeatSource(), written) == guess, name


def written_steps(written: list[int], drafter: Drafter) -> int:
    """Decode steps that `written` takes when the model is sure to write it."""
    place = steps = 0
    while place < len(written):
        guess = drafter.guess(min(15, len(written) - place - 1))
        right = 0
        while right < len(guess.token_ids) and guess.token_ids[right] == written[place + right]:
            right += 1
        if guess.lane:
            guess.lane.report(len(guess.token_ids), right)
        for token in written[place : place + right + 1]:
            drafter.push(token)
        place += right + 1
        steps += 1
    return steps


def test_a_text_layer_saves_most_steps_of_a_page_with_boxes_and_broken_lines() -> None:
    """The layer has line breaks that the markdown lacks; the markdown has boxes and blank lines."""
    source = random.Random(4)
    layer: list[int] = []
    page: list[int] = []
    for _ in range(20):
        words = [100 + int(source.paretovariate(0.7)) % 3000 for _ in range(60)]
        page += [1, 50, 2, 3, *[60 + source.randrange(30) for _ in range(7)], 4, *words, 9, 9]
        for line in range(0, 60, 12):
            layer += [*words[line : line + 12], 9]
    assert written_steps(page, Drafter("text-layer", layer, 15)) < len(page) * 0.45
    assert written_steps(page, Drafter("auto", layer, 15)) < len(page) * 0.40
    assert written_steps(page, Drafter("off", layer, 15)) == len(page)


class Endless:
    """Always has a guess."""

    def push(self, token: int) -> None:
        pass

    def guess(self, count: int) -> list[int]:
        return [0] * count


def test_guesses_grow_while_they_are_right_up_to_the_limit() -> None:
    lane = Lane(Endless(), 16)
    sizes = []
    for _ in range(4):
        guess = lane.guess(100)
        sizes.append(len(guess))
        lane.report(len(guess), len(guess))
    assert sizes == [4, 8, 16, 16]


def test_guesses_shrink_to_what_was_right() -> None:
    lane = Lane(Endless(), 16)
    lane.report(4, 4)
    lane.report(8, 2)
    assert len(lane.guess(100)) == 3


def test_a_source_that_fails_rests_longer_each_time_and_recovers() -> None:
    lane = Lane(Endless(), 8)
    rests = []
    for _ in range(7):
        lane.report(len(lane.guess(8)), 0)
        rest = 0
        while not lane.guess(8):
            lane.push(1)
            rest += 1
        rests.append(rest)
    assert rests == [1, 3, 7, 15, 31, 31, 31]
    lane.report(2, 1)
    assert lane.guess(8)


def test_no_more_is_guessed_than_there_is_room_for() -> None:
    drafter = Drafter("ngram", None, 8)
    for _ in range(9):
        drafter.push(5)
    assert [len(drafter.guess(limit).token_ids) for limit in (-1, 0, 1, 3)] == [0, 0, 1, 3]


@pytest.mark.parametrize(
    ("mode", "guess"),
    [("off", []), ("text-layer", [7, 8]), ("ngram", [5, 5, 5, 5]), ("auto", [7, 8])],
)
def test_the_mode_picks_the_sources_and_the_text_comes_first(mode: str, guess: list[int]) -> None:
    drafter = Drafter(mode, [5, 5, 5, 7, 8], 8)
    for _ in range(3):
        drafter.push(5)
    assert drafter.guess(8).token_ids == guess


def test_without_a_text_auto_guesses_from_the_past() -> None:
    drafter = Drafter("auto", None, 8)
    for _ in range(3):
        drafter.push(5)
    assert drafter.guess(8).token_ids == [5, 5, 5, 5]
    assert Drafter("text-layer", None, 8).guess(8) == Guess([])


# ---- how much to feed


def guess_of(length: int, rate: float) -> Guess:
    lane = Lane(Endless(), 16)
    lane.rate = rate
    return Guess([0] * length, lane)


def test_a_guess_is_right_only_while_all_before_it_were() -> None:
    assert list(guess_of(3, 0.5).chances()) == [0.5, 0.25, 0.125]
    assert list(Guess([]).chances()) == []


FREE, PROPORTIONAL = ((1, 1.0), (2, 1.0)), ((1, 1.0), (2, 2.0))
HALF = ((1, 1.0), (9, 5.0))  # a further token costs half of the first


@pytest.mark.parametrize(
    ("name", "guesses", "costs", "feed"),
    [
        ("further tokens are free", [guess_of(8, 0.5)], FREE, 9),
        ("a right guess at full price gains nothing", [guess_of(8, 1.0)], PROPORTIONAL, 1),
        ("a sure guess at half price", [guess_of(8, 1.0)], HALF, 9),
        ("a doubtful guess at half price", [guess_of(8, 0.4)], HALF, 1),
        ("a likely guess is cut short", [guess_of(8, 0.8)], HALF, 3),
        ("no guess at all", [Guess([])], FREE, 1),
        ("one sure guess is worth a little padding", [guess_of(8, 1.0), Guess([])], FREE, 9),
        ("but not much of it", [guess_of(8, 1.0), *[Guess([])] * 7], HALF, 1),
    ],
)
def test_guesses_are_tried_as_far_as_they_pay(
    name: str, guesses: list[Guess], costs: tuple[tuple[int, float], ...], feed: int
) -> None:
    assert best_feed(guesses, costs) == feed, name


def test_trust_follows_success_and_returns_to_doubt() -> None:
    lane = Lane(Endless(), 8)
    start = lane.rate
    for _ in range(20):
        lane.report(4, 4)
    assert lane.rate > 0.95
    for _ in range(20):
        lane.report(4, 0)
    assert lane.rate < 0.05
    for _ in range(300):
        lane.push(1)
    assert lane.rate == pytest.approx(start, abs=0.05)


def test_a_cut_guess_still_reports_to_its_source() -> None:
    guess = guess_of(8, 0.5)
    assert guess.cut(3) == Guess([0, 0, 0], guess.lane)
    assert guess.cut(0) == Guess([])
