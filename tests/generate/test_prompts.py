"""Prompts on their way into the cache: who goes together, which slot is cleared, whose time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocr2cli.generate import prompts
from ocr2cli.generate.prompts import PromptFeeder
from ocr2cli.generate.scheduler import Chunk


class Log:
    """Decoder and cache in one: what was freed and what was fed, in order. Its best token is the
    last number of a prompt; `room` prompts fit together."""

    device = torch.device("cpu")

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.events: list[Any] = []

    def free(self, slot: int) -> None:
        self.events.append(f"free {slot}")

    def prefill_together(self, x_BTD: Tensor, cache: Any, slots: list[int]) -> Tensor:
        self.events.append((slots, x_BTD[:, :, 0].int().tolist()))
        if len(slots) > self.room:
            raise MemoryError
        return torch.nn.functional.one_hot(x_BTD[:, -1, 0].long(), 32).float()


def work(slot: int, length: int, start: int = 0, stop: int = 0, **facts: Any) -> tuple[Any, Any]:
    """A piece of a prompt of the numbers from 1 on; all of it where no `stop` is given."""
    sequence: Any = SimpleNamespace(slot=slot, num_prompt=length)
    prompt_TD = torch.arange(1.0, length + 1)[:, None]
    rules = SimpleNamespace(penalties=lambda: facts.get("penalties", {}))
    track = SimpleNamespace(prompt_TD=prompt_TD, rules=rules, started_at=0.0, prefill_s=0.0)
    return Chunk(sequence, start, stop or length), track


def feed(feeder: PromptFeeder, *pieces: tuple[Any, Any]) -> list[tuple[int, int | None]]:
    """(slot, the first new token if the piece was a prompt's last) of each, in order."""
    return [
        (chunk.sequence.slot, choice and choice.token) for chunk, _, choice in feeder.feed(pieces)
    ]


def test_whole_prompts_of_one_length_go_together_and_everything_else_by_itself() -> None:
    log = Log()
    pieces = [
        work(0, 2), work(1, 2), work(2, 2), work(3, 3), work(4, 5, 0, 3), work(5, 3),
        work(6, 5, 3, 5), work(7, 5),
    ]  # fmt: skip
    found = feed(PromptFeeder(log, log, 2), *pieces)
    assert found == [(0, 2), (1, 2), (2, 2), (3, 3), (4, None), (5, 3), (6, 5), (7, 5)]
    fed = [event for event in log.events if not isinstance(event, str)]
    assert fed == [
        ([0, 1], [[1, 2], [1, 2]]), ([2], [[1, 2]]), ([3], [[1, 2, 3]]), ([4], [[1, 2, 3]]),
        ([5], [[1, 2, 3]]), ([6], [[4, 5]]), ([7], [[1, 2, 3, 4, 5]]),
    ]  # fmt: skip


def test_a_slot_is_cleared_before_a_prompts_first_piece_and_at_no_other() -> None:
    log = Log()
    feed(PromptFeeder(log, log, 2), work(0, 4, 0, 2), work(1, 3), work(2, 3), work(0, 4, 2, 4))
    words = [event if isinstance(event, str) else event[0] for event in log.events]
    assert words == ["free 0", [0], "free 1", "free 2", [1, 2], [0]]


def test_each_of_several_has_its_own_penalties() -> None:
    pieces = [work(0, 3), work(1, 3, penalties={3: 9.0, 0: 9.0}), work(2, 3)]
    log = Log()
    assert feed(PromptFeeder(log, log, 3), *pieces) == [(0, 3), (1, 1), (2, 3)]


def test_a_pages_prefill_is_its_share_of_all_its_pieces_and_begins_with_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([10.0, 16.0, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr(prompts, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    log = Log()
    one, other = work(0, 3), work(1, 3)
    feed(PromptFeeder(log, log, 2), one, other)
    assert [(track.started_at, track.prefill_s) for _, track in (one, other)] == [(10.0, 3.0)] * 2
    first, rest = work(2, 4, 0, 2), work(2, 4, 2, 4)
    feed(PromptFeeder(log, log, 2), first, (rest[0], first[1]))
    assert (first[1].started_at, first[1].prefill_s) == (20.0, 5.0)


def test_a_page_that_was_sent_back_began_when_it_first_began() -> None:
    log = Log()
    chunk, track = work(0, 3)
    track.started_at = 7.0
    feed(PromptFeeder(log, log, 2), (chunk, track))
    assert track.started_at == 7.0


def test_after_memory_lacked_groups_grow_by_doubling_and_no_further_than_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompts, "_GROW_AFTER", 2)
    log = Log(room=3)
    feeder = PromptFeeder(log, log, 7)
    largest = []
    for step in range(8):
        log.events.clear()
        found = feed(feeder, *(work(slot, 2) for slot in range(9)))
        assert found == [(slot, 2) for slot in range(9)]
        largest.append(max(len(event[0]) for event in log.events if not isinstance(event, str)))
        if step == 0:
            log.room = 99
    assert largest == [7, 3, 6, 6, 7, 7, 7, 7]


@pytest.mark.parametrize(
    ("num_prompts", "error"),
    [(1, MemoryError()), (1, RuntimeError("shapes differ")), (2, RuntimeError("shapes differ"))],
)
def test_what_fewer_prompts_would_not_mend_is_not_tried_again(
    num_prompts: int, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    log, tried = Log(), []

    def fails(x_BTD: Tensor, cache: Any, slots: list[int]) -> Tensor:
        tried.append(slots)
        raise error

    log.prefill_together = fails  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        feed(PromptFeeder(log, log, 4), *(work(slot, 2) for slot in range(num_prompts)))
    assert tried == [[*range(num_prompts)]] and caplog.records == []
