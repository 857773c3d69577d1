"""What becomes of the pages that a dead worker held, without a process."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from toys import Recipe, jobs, stage

from ocr2cli.errors import EngineError
from ocr2cli.pages import PageError, Status
from ocr2cli.pipeline import local
from ocr2cli.pipeline.channel import Frame, Kind
from ocr2cli.pipeline.options import RunnerOptions
from ocr2cli.pipeline.process import Phase

FAULT = PageError("worker_died", "gone")
Make = Callable[..., tuple[local._Supervisor, Any]]


@pytest.fixture
def make() -> Iterator[Make]:
    """A supervisor of two stages, and a worker of the second with pages 1 to 4, of which it had
    taken `taken`; page 5 waits before the first."""
    made: list[local._Supervisor] = []

    def make(taken: tuple[int, ...] = (), num_held: int = 4, **facts: Any) -> Any:
        options = RunnerOptions(retries=facts.pop("retries", 1), stop=facts.pop("stop", lambda: 0))
        one = local._Supervisor([stage(Recipe("a")), stage(Recipe("b"))], iter(()), options)
        made.append(one)
        for job in jobs(5):
            one._admit_job(job)
        held = {}
        for _ in range(4):
            ticket = one._stages[0].waiting.popleft()
            ticket.stage = 1
            if len(held) < num_held:
                held[ticket.serial] = ticket
        worker = SimpleNamespace(
            stage=one._stages[1].stage, stage_index=1, slot=0, held=held, taken=set(taken),
            busy_since=0.0, quiet_since=0.0, up_fd=99_998, down_fd=99_999, bury=lambda: 3,
            has_exited=lambda: True, started=0.0,
            **{
                "phase": Phase.READY, "failure": None, "is_timed_out": False, "has_stalled": False,
                "read": lambda: ([], True), **facts,
            },
        )  # fmt: skip
        one._stages[1].workers[0] = worker  # type: ignore[call-overload]
        one._stages[1].was_ready = True
        return one, worker

    yield make
    for one in made:
        one._selector.close()


def test_pages_come_back_in_their_order_before_those_that_wait_and_only_taken_ones_are_suspected(
    make: Make,
) -> None:
    one, worker = make(taken=(1, 2))
    one._bury(worker)
    waiting = [*one._stages[0].waiting]
    assert [ticket.serial for ticket in waiting] == [1, 2, 3, 4, 5]
    assert [ticket.stage for ticket in waiting] == [0] * 5
    assert [ticket.job.attempt for ticket in waiting] == [1, 1, 0, 0, 0]
    assert [[*ticket.company] for ticket in waiting] == [[1], [1], [], [], []]
    assert [len(ticket.faults) for ticket in waiting] == [1, 1, 0, 0, 0]
    assert (one._stages[1].num_deaths, one._stages[1].live, one._fatal) == (1, [], None)


def test_what_a_worker_said_before_it_died_counts_though_its_child_keeps_the_pipe_open(
    make: Make,
) -> None:
    said = [([Frame(Kind.TAKEN, 0, bytearray(struct.pack("<Q", 3)))], False)]
    one, worker = make(read=lambda: said.pop() if said else ([], False))
    one._bury(worker)
    assert [len(ticket.faults) for ticket in one._stages[0].waiting] == [0, 0, 1, 0, 0]


def test_a_page_that_is_given_up_is_a_result_and_the_others_go_on(make: Make) -> None:
    one, worker = make(taken=(2,), retries=0, is_timed_out=True)
    one._bury(worker)
    (result,) = one._ready
    assert (result.key.page, result.status) == (1, Status.FAILED)
    assert result.error and result.error.code == "timeout"
    assert [ticket.serial for ticket in one._stages[0].waiting] == [1, 3, 4, 5]
    assert one._stages[1].num_deadly_pages == 1, "it is known which one it was"


def test_a_worker_that_was_killed_while_it_stood_still_is_told_so_though_it_was_ready_by_then(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one, worker = make(
        num_held=0, phase=Phase.LOADING, is_timed_out=True, has_stalled=True,
        read=lambda: ([Frame(Kind.READY, 0, bytearray())], True),
    )  # fmt: skip
    worker.stage = one._stages[1].stage = stage(Recipe("b"), timeout_s=600.0)
    one._stages[1].was_ready = False
    one._bury(worker)
    assert one._stages[1].was_ready and one._fatal is None
    assert caplog.messages == [
        "the b worker made no progress for 600 s while loading and was killed; it held no page"
    ]


def test_in_a_drain_pages_of_a_dead_worker_are_left_to_the_next_run(make: Make) -> None:
    one, worker = make(taken=(1, 2), retries=0, stop=lambda: 1)
    one._drain_until = 1e9
    one._bury(worker)
    assert (len(one._ledger), [*one._ready], one._fatal) == (1, [], None)


@pytest.mark.parametrize(("num_held", "num_deaths"), [(0, 0), (2, 1)])
def test_a_worker_that_was_to_leave_has_died_only_if_it_held_a_page(
    make: Make, num_held: int, num_deaths: int
) -> None:
    one, worker = make(num_held=num_held, phase=Phase.CLOSING)
    one._bury(worker)
    assert one._stages[1].num_deaths == num_deaths
    assert len(one._stages[0].waiting) == 1 + num_held


@pytest.mark.parametrize(("num_stops", "ends"), [(0, True), (1, False)])
def test_a_worker_that_a_signal_hit_while_it_was_loaded_is_no_error_of_the_run(
    make: Make, num_stops: int, ends: bool
) -> None:
    """The signal that stops us may hit workers too."""
    one, worker = make(num_held=0, phase=Phase.LOADING, stop=lambda: num_stops)
    one._stages[1].was_ready, one._stages[1].first_mute_death = False, 0.0
    one._bury(worker)
    assert isinstance(one._fatal, EngineError) is ends


def test_a_first_reason_for_the_end_of_a_run_is_not_replaced_by_a_later_one(make: Make) -> None:
    one, worker = make(num_held=0, phase=Phase.LOADING)
    first = one._fatal = EngineError("the device is lost")
    one._stages[1].was_ready, one._stages[1].first_mute_death = False, 0.0
    one._bury(worker)
    assert one._fatal is first


@pytest.mark.parametrize(
    ("phase", "num_held", "silence_s", "is_killed"),
    [
        (Phase.READY, 1, 9.0, True),
        (Phase.READY, 1, 4.0, False),
        (Phase.READY, 0, 9.0, False),
        (Phase.CLOSING, 1, 9.0, True),
        (Phase.CLOSING, 0, 2.1, True),
        (Phase.CLOSING, 0, 1.9, False),
    ],
)
def test_only_silence_with_a_page_in_hand_or_when_it_is_time_to_leave_is_too_long(
    make: Make, monkeypatch: pytest.MonkeyPatch, phase: Phase, num_held: int, silence_s: float,
    is_killed: bool,
) -> None:  # fmt: skip
    killed: list[bool] = []
    one, worker = make(num_held=num_held, phase=phase, kill=lambda: killed.append(True))
    worker.stage = stage(Recipe("b"), timeout_s=5.0)
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: silence_s))
    one._kill_if_silent(worker)
    assert killed == [True] * is_killed
    assert worker.is_timed_out is (is_killed and num_held > 0)


@pytest.mark.parametrize(
    ("timeout_s", "stalls_after_s", "is_killed"),
    [(5.0, 60.0, True), (5.0, 61.0, False), (90.0, 90.0, True), (0.0, 0.0, False)],
)
def test_a_worker_that_loads_is_killed_only_where_it_stands_still_for_its_limit(
    make: Make, timeout_s: float, stalls_after_s: float, is_killed: bool
) -> None:
    """However long it has been silent: it holds no page whose time could run."""
    killed: list[bool] = []
    one, worker = make(
        phase=Phase.LOADING, kill=lambda: killed.append(True),
        is_stalled=lambda limit_s: limit_s >= stalls_after_s,
    )  # fmt: skip
    worker.stage = one._stages[1].stage = stage(Recipe("b"), timeout_s=timeout_s)
    one._kill_if_silent(worker)
    assert killed == [True] * is_killed
    assert worker.is_timed_out is worker.has_stalled is is_killed
