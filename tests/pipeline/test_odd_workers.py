"""Workers that do not keep to their part, sources that come and go: no runner loses a page."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from toys import OddMaker, Recipe, RollingMaker, ToyWorker, broken_job, jobs, stage

from ocr2cli.errors import EngineError
from ocr2cli.pages import PageJob, PageResult, Status
from ocr2cli.pipeline import inline, local
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.process import WorkerProcess
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.pipeline.stop import StopRequests

Run = Callable[..., Iterator[PageResult]]


@pytest.fixture(params=["inline", "local"])
def run(request: pytest.FixtureRequest) -> Run:
    return {"inline": inline.run, "local": local.run}[request.param]


@pytest.mark.parametrize("way", ["leaves early", "answers twice", "fails at the end"])
def test_a_worker_that_ends_without_a_page_in_hand_costs_none(run: Run, way: str) -> None:
    results = list(run([Stage("odd", OddMaker(way), credit=1)], jobs(3)))
    assert sorted(result.key.page for result in results) == [0, 1, 2]
    assert all((result.status, result.markdown) == (Status.OK, "") for result in results)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("keeps its page", "returned too early, holding 1 pages"),
        ("answers for another", "emitted another page 8, which it does not hold"),
    ],
)
def test_a_page_that_is_never_answered_fails_and_tells_why(run: Run, way: str, words: str) -> None:
    (result,) = run([Stage("odd", OddMaker(way), credit=1)], jobs(1))
    assert (result.key.page, result.status) == (0, Status.FAILED)
    assert result.error and result.error.code == "worker_died" and words in result.error.message


def test_workers_that_fail_before_they_have_taken_a_page_end_the_run(run: Run) -> None:
    """No page is to blame, and none is lost."""
    words = "^giving up: 11 odd workers have died; the last time the odd worker stopped: ZeroDiv"
    with pytest.raises(EngineError, match=words):
        list(run([Stage("odd", OddMaker("fails at the start"))], jobs(3)))


@pytest.mark.parametrize("is_late", [False, True])
def test_a_worker_that_waits_for_more_than_there_will_ever_be_ends_the_run(is_late: bool) -> None:
    """Where nobody watches with a clock, it would be waited for until it is killed."""
    source = [None] * is_late + [*jobs(1)]
    with pytest.raises(EngineError, match="holds pages and waits for more"):
        list(inline.run([Stage("odd", OddMaker("waits for more"))], source))


def test_a_run_without_stages_is_the_callers_mistake(run: Run) -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        list(run([], jobs(1)))


def test_nobody_gets_more_than_his_credit_however_much_he_asks_for(run: Run) -> None:
    num_pulled = num_done = most = 0

    def source() -> Iterator[PageJob]:
        nonlocal num_pulled
        for job in jobs(12):
            num_pulled += 1
            yield job

    largest = []
    for result in run([Stage("roll", RollingMaker(slots=50, steps=2), credit=4)], source()):
        most = max(most, num_pulled - num_done)
        num_done += 1
        largest.append(result.new_tokens)
    assert num_done == 12 and max(largest) <= 4 and most <= 4


def test_pages_that_cannot_be_read_are_told_before_all_of_them_are_listed(run: Run) -> None:
    pulled = []

    def source() -> Iterator[PageJob]:
        for page in range(30):
            pulled.append(page)
            yield broken_job(page)

    results = run([stage(Recipe("a", is_last=True))], source())
    assert next(results).key.page == 0 and len(pulled) <= 8
    assert len(list(results)) == 29


def test_a_worker_that_tells_of_its_steps_reads_on(run: Run) -> None:
    results = list(run([Stage("roll", RollingMaker(slots=2, steps=2, tells=True))], jobs(4)))
    assert sorted(result.key.page for result in results) == [0, 1, 2, 3]


def test_a_worker_is_kept_while_the_source_has_nothing(run: Run) -> None:
    """Making it again is loading a model again."""
    results: list[PageResult] = []

    def source() -> Iterator[PageJob | None]:
        for job in jobs(3):
            yield job
            while len(results) <= job.key.page:
                yield None
            yield from (None,) * 3

    status = RunStatus()
    stages = [stage(Recipe("a")), stage(Recipe("b", is_last=True))]
    for result in run(stages, source(), options=RunnerOptions(status=status)):
        results.append(result)
    assert len(results) == 3
    assert [each.num_restarts for each in status.stages()] == [0, 0]


@pytest.mark.parametrize(
    ("misdeeds", "num_restarts", "busy_s"), [(((1, "raise"),), 2, 0.06), ((), 0, 0.08)]
)
def test_a_run_tells_how_often_a_worker_was_replaced_and_how_long_it_worked(
    run: Run, misdeeds: tuple[tuple[int, str], ...], num_restarts: int, busy_s: float,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    status = RunStatus()
    recipe = Recipe("a", misdeeds=misdeeds, is_last=True, sleep_s=0.02)
    started = time.monotonic()
    options = RunnerOptions(status=status)
    assert len(list(run([stage(recipe, credit=1)], jobs(4), options=options))) == 4
    elapsed = time.monotonic() - started
    (told,) = status.stages()
    assert told.num_restarts == told.num_deaths == len(caplog.messages) == num_restarts
    assert busy_s <= told.busy_s <= elapsed
    assert (told.num_workers, told.num_held, told.num_waiting) == (1, 0, 0)


def test_a_replacement_that_cannot_be_loaded_ends_the_run_whatever_hinders_it(
    run: Run, tmp_path: Path
) -> None:
    """It was loading that failed, not the page."""
    bad = Recipe(
        "a", misdeeds=((0, "raise"),), load_misdeed="flag raise", log=str(tmp_path / "flag"),
        is_last=True,
    )  # fmt: skip
    with pytest.raises(EngineError, match="a worker could not be loaded: ZeroDivisionError"):
        list(run([stage(bad)], jobs(2), options=RunnerOptions(retries=5)))


def test_in_one_process_a_page_is_handed_out_before_the_next_is_begun() -> None:
    told: list[str] = []

    class Batch:
        def run(self, inbox: Inbox, emit: Emit) -> None:
            while items := inbox.take(3, wait=True):
                for item in items:
                    told.append(f"begun {item.key.page}")
                    emit(PageResult(item.key, Status.OK))

    for result in inline.run([Stage("batch", Batch, credit=3)], jobs(4)):
        told.append(f"out {result.key.page}")
    assert told == [f"{word} {page}" for page in range(4) for word in ("begun", "out")]


def test_in_one_process_the_first_stage_gets_its_batch_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    batches = stage(Recipe("a", batch=4, is_last=True, log=str(log)), credit=4)
    assert len(list(inline.run([batches], jobs(10)))) == 10
    takes = [words.split()[-1] for words in log.read_text().splitlines()]
    assert takes == ["0,1,2,3", "4,5,6,7", "8,9"]


def test_after_a_stop_no_page_is_asked_for_while_those_under_way_are_finished(run: Run) -> None:
    stop, pulled = StopRequests(), []

    def source() -> Iterator[PageJob]:
        for job in jobs(50):
            pulled.append(job)
            yield job

    stages = [stage(Recipe("a")), stage(Recipe("b", batch=2, is_last=True))]
    num_done, num_pulled = 0, 0
    for _ in run(stages, source(), options=RunnerOptions(stop=stop)):
        num_done += 1
        if not stop.count:
            stop.request()
            num_pulled = len(pulled)
    assert 1 < num_done <= num_pulled == len(pulled)


def test_in_one_process_nobody_goes_on_after_a_second_stop() -> None:
    stop, begun = StopRequests(), []

    class Batch:
        def run(self, inbox: Inbox, emit: Emit) -> None:
            while items := inbox.take(3, wait=True):
                for item in items:
                    begun.append(item.key.page)
                    emit(PageResult(item.key, Status.OK))

    options = RunnerOptions(stop=stop)
    for _ in inline.run([Stage("batch", Batch, credit=3)], jobs(9), options=options):
        stop.request()
        stop.request()
    assert begun == [0]


def test_in_one_process_a_stage_that_no_page_comes_to_is_never_loaded(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    later = Recipe("b", load_misdeed="flag", log=str(flag), is_last=True)
    stages = [stage(Recipe("a", early=frozenset({0, 1}))), stage(later)]
    assert len(list(inline.run(stages, jobs(2)))) == 2 and not flag.exists()


def test_in_one_process_a_stop_while_the_first_stage_is_loaded_begins_no_page() -> None:
    """Its page has waited meanwhile; reading it would load the other stages too."""
    stop, made = StopRequests(), []

    def make(name: str) -> ToyWorker:
        made.append(name)
        stop.request()
        return ToyWorker(Recipe(name, is_last=name == "b"))

    status = RunStatus()
    options = RunnerOptions(stop=stop, drain_s=1000.0, status=status)
    stages = [Stage(name, partial(make, name)) for name in "ab"]
    assert list(inline.run(stages, jobs(3), options=options)) == []
    assert made == ["a"] and status.is_interrupted


def test_in_one_process_a_thread_that_cannot_be_started_is_what_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(inline.run([stage(Recipe("a", is_last=True))], jobs(1)))


@pytest.mark.parametrize(
    ("drain_s", "num_requests", "expected"), [(1000.0, 1, 4), (0.0, 1, 1), (1000.0, 2, 1)]
)
def test_in_one_process_pages_under_way_are_finished_unless_time_or_patience_is_over(
    drain_s: float, num_requests: int, expected: int
) -> None:
    stop, status = StopRequests(), RunStatus()
    options = RunnerOptions(stop=stop, drain_s=drain_s, status=status)
    stages = [stage(Recipe("a")), Stage("roll", RollingMaker(slots=4, steps=2), credit=4)]
    num_done = 0
    for _ in inline.run(stages, jobs(50), options=options):
        num_done += 1
        while stop.count < num_requests:
            stop.request()
    assert num_done == expected and status.is_interrupted


def test_a_stop_leaves_pages_that_were_to_be_tried_again_to_the_next_run(
    run: Run, tmp_path: Path
) -> None:
    log, stop = tmp_path / "log", StopRequests()
    bad = Recipe("a", batch=3, misdeeds=((2, "raise"),), is_last=True, log=str(log))
    got = []
    for result in run([stage(bad, credit=3)], jobs(3), options=RunnerOptions(stop=stop)):
        got.append((result.key.page, result.status))
        stop.request()
    assert got in ([(0, Status.OK)], [(0, Status.OK), (1, Status.OK)])
    takes = [words.split()[-1] for words in log.read_text().splitlines()]
    assert "2" not in takes, "nobody tried it alone"


def test_a_worker_comes_to_its_own_end_before_the_run_does(run: Run, tmp_path: Path) -> None:
    """So that devices are given back in order."""
    written = tmp_path / "written"
    assert len(list(run([Stage("tidy", OddMaker(f"writes {written}"))], jobs(2)))) == 2
    assert written.exists()


def test_all_stages_are_loaded_at_once_by_as_many_workers_as_there_are_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    class Noted(WorkerProcess):
        def __init__(self, stage: Stage, stage_index: int, slot: int) -> None:
            started.append((stage.name, slot))
            super().__init__(stage, stage_index, slot)

    monkeypatch.setattr(local, "WorkerProcess", Noted)
    stages = [stage(Recipe(name, early=frozenset({0})), num_workers=3) for name in "ab"]
    assert len(list(local.run(stages, jobs(1)))) == 1
    assert started == [("a", 0), ("b", 0)]


def test_a_worker_that_the_system_does_not_start_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(local, "WorkerProcess", refused)
    words = "the a worker could not be started: Resource temporarily unavailable; free some"
    with pytest.raises(EngineError, match=words):
        list(local.run([stage(Recipe("a", is_last=True))], jobs(1)))


def test_a_parent_whose_pipes_have_taken_all_sleeps_until_something_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would turn on a core that the workers need."""
    num_flushed, plain = 0, local._Supervisor._flush

    def counted(self: local._Supervisor, worker: WorkerProcess) -> None:
        nonlocal num_flushed
        num_flushed += 1
        plain(self, worker)

    monkeypatch.setattr(local._Supervisor, "_flush", counted)
    stages = [
        stage(Recipe("a", load_bytes=4 << 20)), stage(Recipe("b", is_last=True, sleep_s=0.15))
    ]  # fmt: skip
    assert len(list(local.run(stages, jobs(1)))) == 1
    assert 3 <= num_flushed < 300


def test_a_run_leaves_nothing_open(run: Run) -> None:
    """A server starts many."""
    num_open = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert len(list(run([stage(Recipe("a", is_last=True))], jobs(1)))) == 1
        assert len(os.listdir("/proc/self/fd")) == num_open


def test_in_one_process_a_worker_comes_to_its_own_end_before_the_run_does() -> None:
    told: list[str] = []

    class Tidy:
        def run(self, inbox: Inbox, emit: Emit) -> None:
            while items := inbox.take(1, wait=True):
                emit(PageResult(items[0].key, Status.OK))
            told.append(f"closed {inbox.is_closed}")

    for _ in inline.run([Stage("tidy", Tidy)], jobs(2)):
        assert told == []
    assert told == ["closed True"]
