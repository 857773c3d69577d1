"""What a stage's staff tells of itself, and what the death of a worker means to it."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from toys import Recipe, jobs, stage

from ocr2cli.pipeline import staff
from ocr2cli.pipeline.failure import Failure
from ocr2cli.pipeline.ledger import Company, Ticket
from ocr2cli.pipeline.process import Phase
from ocr2cli.pipeline.staff import Staff

LIMIT = 1_000_000_000


@pytest.fixture
def at_100_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "time", SimpleNamespace(monotonic=lambda: 100.0))


def worker(*tickets: Ticket, phase: Phase = Phase.READY, since: float = 0.0, **facts: Any) -> Any:
    """As its staff sees it; since: when it was given something, or has told of something."""
    held = {ticket.serial: ticket for ticket in tickets}
    return SimpleNamespace(
        held=held, taken=set(held), phase=phase, failure=None, is_timed_out=False,
        has_stalled=False, busy_since=since, quiet_since=since, release=held.pop, **facts,
    )  # fmt: skip


def test_a_stage_tells_of_all_its_workers_and_of_all_that_waits(at_100_s: None) -> None:
    one = Staff(stage(Recipe("a"), num_workers=4))
    plain, suspect, first, second, third = (Ticket(n, job) for n, job in enumerate(jobs(5)))
    suspect.company[0] = Company()
    one.enqueue(plain)
    one.enqueue(suspect)
    one.workers[:3] = [
        worker(phase=Phase.LOADING), worker(first, since=98.0), worker(second, third, since=95.0)
    ]  # fmt: skip
    one.busy_s, one.num_spawned, one.slots_used = 30.0, 5, {0, 1, 2}
    told = one.status()
    assert (told.num_workers, told.num_ready, told.num_restarts) == (4, 2, 2)
    assert (told.num_waiting, told.num_held) == (2, 3)
    assert (told.busy_s, told.silence_s, told.oldest) == (37.0, 5.0, "doc page 4")


def test_the_time_of_a_worker_counts_until_its_last_page_or_its_death(at_100_s: None) -> None:
    one = Staff(stage(Recipe("a")))
    first, second = (Ticket(n, job) for n, job in enumerate(jobs(2)))
    both = worker(first, second, since=90.0)
    one.was_ready = True
    assert one.release(both, 0) is first and one.busy_s == 0.0
    assert one.release(both, 1) is second and one.busy_s == 10.0
    one.note_death(both)
    assert one.busy_s == 10.0, "it held nothing"
    one.note_death(worker(first, since=95.0))
    assert (one.busy_s, one.num_deaths, one.num_emitted) == (15.0, 2, 2)


def test_a_worker_that_tells_of_progress_is_not_silent(at_100_s: None) -> None:
    one, busy = Staff(stage(Recipe("a"))), worker(since=3.0)
    one.note_progress(busy)
    assert (busy.quiet_since, one.num_moves) == (100.0, 1)


@pytest.mark.parametrize(
    ("failure", "limit", "was_ready", "words"),
    [
        (None, 0, False, r"exited with status 3\. It was loading, as"),
        (None, 0, True, ""),  # a replacement, by bad luck: the next one may be loaded
        (None, LIMIT, True, ""),
        (None, LIMIT, False, "could not be loaded in 1 GB"),
        (Failure("OSError", "cannot map", is_loading=True), LIMIT, True, "in 1 GB.*cannot map"),
        (Failure("OSError", "cannot map", is_loading=True), 0, True, "be loaded: cannot map"),
        (Failure("MemoryError", "no room"), LIMIT, True, ""),  # of a page
        (Failure("ModelError", "cut short", is_loading=True, is_ours=True), LIMIT, True, "^cut sh"),
    ],
)
def test_a_worker_that_is_not_loaded_ends_the_run_where_the_next_would_not_be_either(
    failure: Failure | None, limit: int, was_ready: bool, words: str
) -> None:
    one = Staff(stage(Recipe("a"), memory_limit_bytes=limit))
    one.was_ready, one.num_emitted = was_ready, 1
    dead = worker(phase=Phase.LOADING)
    dead.failure = failure
    dead.started = 0.0
    if not failure:  # it may have been killed by chance
        one.note_death(dead)
        assert one.run_error(dead, 3, hopeless_after=9) is None
    dead.started = time.monotonic()
    one.note_death(dead)
    error = one.run_error(dead, 3, hopeless_after=9)
    assert (error is not None) is bool(words)
    assert re.search(words, str(error))


def test_workers_that_are_killed_at_once_while_loading_leave_their_replacements_a_chance() -> None:
    """One event: a lack of memory, say."""
    one = Staff(stage(Recipe("a"), num_workers=30))
    for started in range(30):
        one.note_death(dead := worker(phase=Phase.LOADING, started=-float(started)))
        assert one.run_error(dead, -9, hopeless_after=20) is None
    one.note_death(dead := worker(phase=Phase.LOADING, started=time.monotonic()))
    assert re.search("and none was ever ready", str(one.run_error(dead, -9, hopeless_after=20)))
    assert one.num_deaths == 31


def test_a_page_is_told_what_its_worker_died_of() -> None:
    one = Staff(stage(Recipe("a"), timeout_s=2.5))
    dead = worker()
    assert one.page_error(dead, -9).message == "the a worker was killed by SIGKILL"
    dead.failure = Failure("MemoryError", "no room")
    assert one.page_error(dead, -9).code == "out_of_memory"
    dead.is_timed_out = True
    silent = one.page_error(dead, -9)
    assert (silent.code, "silent for 2.5 s" in silent.message) == ("timeout", True)
