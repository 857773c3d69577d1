"""Guesses at the next tokens, for one sequence: from a given text or from its own n-grams.

A guess costs time when wrong and never changes what is written: the generator keeps only the
prefix that the model writes itself. Knows nothing about the model, logits or batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from ocr2cli.generate.step_costs import Table, cost_of

# Longest n-gram first: a longer match is a better guess.
GRAM_SIZES = (4, 2)
# How far ahead (tokens of the text) a match of the shortest n-gram is believed: two tokens recur
# all over a page, and a jump to the wrong one loses the place.
NEAR = 48
# Tokens of the text that may be left out without losing the place, such as a line break.
SKIP = 2
# What is believed of a source that has not been tried lately, and how fast trust moves: by a try,
# and back with each token written without one.
PRIOR_RATE = 0.6
LEARNING, FORGETTING = 0.2, 0.01


class Source(Protocol):
    """Where guesses come from."""

    def push(self, token: int) -> None:
        """A token was written."""

    def guess(self, count: int) -> list[int]:
        """Up to `count` next tokens, none when it has no idea."""


class TextSource:
    """A text that is likely to be written, such as a PDF's text layer, in its own order.

    Keeps a place in the text. A token that differs (markup, a line broken elsewhere) leaves the
    place standing; the last tokens written then find it again by their n-grams, ahead first.
    """

    def __init__(self, text_ids: Sequence[int]) -> None:
        self._text = list(text_ids)
        self._places = {size: _index(self._text, size) for size in GRAM_SIZES}
        self._recent: list[int] = []
        self._place = 0  # index of the token expected next
        self._is_synced = bool(self._text)

    def push(self, token: int) -> None:
        self._recent = [*self._recent[-max(GRAM_SIZES) + 1 :], token]
        # One equal token while lost may be chance: then the n-grams decide.
        if not (self._is_synced and self._step_over(token)):
            self._is_synced = self._resync()

    def guess(self, count: int) -> list[int]:
        return self._text[self._place : self._place + count] if self._is_synced else []

    def _step_over(self, token: int) -> bool:
        """Go on past `token`, leaving out up to SKIP tokens that were not written."""
        upcoming = self._text[self._place : self._place + 1 + SKIP]
        if token not in upcoming:
            return False
        self._place += upcoming.index(token) + 1
        return True

    def _resync(self) -> bool:
        for size in GRAM_SIZES:
            ends = self._places[size].get(tuple(self._recent[-size:]), ())
            found = self._nearest(ends, only_near=size == GRAM_SIZES[-1])
            if found is not None:
                self._place = found
                return True
        return False

    def _nearest(self, ends: Sequence[int], *, only_near: bool) -> int | None:
        ahead = [end for end in ends if end > self._place]
        if ahead and (not only_near or ahead[0] - self._place <= NEAR):
            return ahead[0]
        return ends[-1] if ends and not only_near else None


class RepeatSource:
    """The sequence's own past: what followed the last n-gram when it was written before."""

    def __init__(self) -> None:
        self._written: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        self._match = 0  # index in _written of the token that followed the match, 0 for none

    def push(self, token: int) -> None:
        self._written.append(token)
        self._match = 0
        for size in GRAM_SIZES:
            if len(self._written) >= size:
                gram = tuple(self._written[-size:])
                self._match = self._match or self._next_of.get(gram, 0)
                self._next_of[gram] = len(self._written)

    def guess(self, count: int) -> list[int]:
        if not self._match:
            return []
        period = len(self._written) - self._match
        # Reading past the end continues the guess itself: a run goes on.
        return [self._written[self._match + i % period] for i in range(count)]


@dataclass(slots=True)
class Guess:
    """Tokens to try, and who guessed them."""

    token_ids: list[int]
    lane: Lane | None = None

    def chances(self) -> Iterator[float]:
        """For each token in turn, the probability that it and all before it are right."""
        chance = 1.0
        for _ in self.token_ids:
            chance *= self.lane.rate if self.lane else 0.0
            yield chance

    def cut(self, count: int) -> Guess:
        """The first `count` tokens only."""
        return Guess(self.token_ids[:count], self.lane) if count else Guess([])


class Lane:
    """One source and how far it is trusted: guesses grow with success, rest after failure.

    rate: estimated probability that a guessed token is right, given that those before it are.
    """

    def __init__(self, source: Source, max_guess: int) -> None:
        self.source = source
        self.rate = PRIOR_RATE
        self._max = max_guess
        self._size = min(4, max_guess)
        self._rest = 0
        self._failures = 0

    def push(self, token: int) -> None:
        self.source.push(token)
        self._rest = max(0, self._rest - 1)
        self.rate += FORGETTING * (PRIOR_RATE - self.rate)

    def guess(self, limit: int) -> list[int]:
        return [] if self._rest else self.source.guess(min(self._size, limit))

    def report(self, proposed: int, accepted: int) -> None:
        """accepted: tokens of the last guess that the model wrote itself."""
        trials = min(accepted + 1, proposed)
        self.rate += LEARNING * (accepted / trials - self.rate)
        if accepted == proposed:
            self._size = min(2 * self._size, self._max)
        elif accepted:
            self._size = max(2, min(self._size, accepted + 1))
        else:
            self._size = max(2, self._size // 2)
        self._failures = 0 if accepted else min(self._failures + 1, 5)
        self._rest = 0 if accepted else 2**self._failures - 1


class Drafter:
    """The sources of one sequence in order of trust: the given text, then its own past.

    mode: off | text-layer | ngram | auto (both).
    """

    def __init__(self, mode: str, text_ids: Sequence[int] | None, max_guess: int) -> None:
        self._lanes: list[Lane] = []
        if mode in ("text-layer", "auto") and text_ids:
            self._lanes.append(Lane(TextSource(text_ids), max_guess))
        if mode in ("ngram", "auto"):
            self._lanes.append(Lane(RepeatSource(), max_guess))

    def push(self, token: int) -> None:
        for lane in self._lanes:
            lane.push(token)

    def guess(self, limit: int) -> Guess:
        """At most `limit` tokens from the first source that has any."""
        if limit > 0:
            for lane in self._lanes:
                if token_ids := lane.guess(limit):
                    return Guess(token_ids, lane)
        return Guess([])


def best_feed(guesses: Sequence[Guess], costs: Table) -> int:
    """Tokens to feed each sequence in the next step (1: no guesses) for the most tokens a second.

    costs: what a step costs by the tokens it is fed over all sequences, ascending, any unit.
    All sequences are fed alike, so a guess of one makes the others pay for padding.
    """
    right = [0.0] * max(len(guess.token_ids) for guess in guesses)
    for guess in guesses:
        for place, chance in enumerate(guess.chances()):
            right[place] += chance
    written = list(accumulate(right, initial=float(len(guesses))))
    speeds = [
        tokens / cost_of(len(guesses) * feed, costs) for feed, tokens in enumerate(written, start=1)
    ]
    return 1 + speeds.index(max(speeds))


def _index(text: Sequence[int], size: int) -> dict[tuple[int, ...], list[int]]:
    """n-gram -> indices of the token after each occurrence, ascending."""
    places: dict[tuple[int, ...], list[int]] = {}
    for end in range(size, len(text) + 1):
        places.setdefault(tuple(text[end - size : end]), []).append(end)
    return places
