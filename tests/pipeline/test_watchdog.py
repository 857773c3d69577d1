"""Silence: a worker that hangs is killed and its page named; one that is only slow is not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toys import Recipe, RollingMaker, by_page, failed_pages, jobs, stage

from ocr2cli.errors import EngineError
from ocr2cli.pages import PageJob, PageResult, Status
from ocr2cli.pipeline import local, process, staff
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.process import WorkerProcess
from ocr2cli.pipeline.staff import Staff
from ocr2cli.pipeline.stage import Stage


def test_a_worker_that_keeps_answering_is_not_silent() -> None:
    stages = [stage(Recipe("a", is_last=True, sleep_s=0.25), credit=4, timeout_s=2.0)]
    results = by_page(local.run(stages, jobs(12), options=RunnerOptions(retries=0)))
    assert len(results) == 12 and not failed_pages(results)


def test_a_hanging_page_is_killed_in_time_and_the_next_page_runs() -> None:
    stages = [stage(Recipe("a", misdeeds=((1, "hang"),), is_last=True), timeout_s=0.4)]
    started = time.monotonic()
    results = by_page(local.run(stages, jobs(4)))
    assert time.monotonic() - started < 30
    assert failed_pages(results) == [1]
    error = results[1].error
    assert error and error.code == "timeout" and "a worker was silent for 0.4 s" in error.message


def test_a_batch_that_takes_long_is_not_taken_for_a_hang_while_its_worker_tells_of_steps() -> None:
    """A slow processor needs minutes until the first of 32 long pages is done."""
    slow = RollingMaker(steps=25, step_s=0.1, tells=True)
    status = RunStatus()
    options = RunnerOptions(retries=0, status=status)
    stages = [Stage("roll", slow, credit=4, timeout_s=1.0)]
    results = by_page(local.run(stages, jobs(4), options=options))
    assert failed_pages(results) == []
    assert status.stages()[0].num_moves > 3


def test_a_worker_that_stops_telling_of_steps_is_killed() -> None:
    hangs = RollingMaker(steps=25, step_s=0.1, tells=True, hangs_at=5)
    stages = [Stage("roll", hangs, credit=1, timeout_s=1.0)]
    results = by_page(local.run(stages, jobs(1), options=RunnerOptions(retries=0)))
    assert failed_pages(results) == [0]
    assert results[0].error and results[0].error.code == "timeout"


def test_a_stuck_stage_is_named_while_it_is_stuck() -> None:
    stages = [stage(Recipe("a", misdeeds=((0, "hang"),), is_last=True), timeout_s=0.8)]
    status = RunStatus()
    seen = []

    def watch() -> None:
        while not seen or not results:
            seen.extend(each for each in status.stages() if each.silence_s > 0.3)
            time.sleep(0.05)

    results: list[PageResult] = []
    watcher = threading.Thread(target=watch)
    watcher.start()
    options = RunnerOptions(status=status, retries=0)
    results.extend(local.run(stages, jobs(1), options=options))
    watcher.join()
    assert seen[0].name == "a" and seen[0].oldest == "doc page 1"


def test_a_slow_consumer_does_not_look_like_a_hanging_worker() -> None:
    """While the parent is busy writing, workers block on full pipes and cannot be heard."""
    recipes = (Recipe("a", load_bytes=24 << 20), Recipe("b", is_last=True))
    stages = [stage(recipe, credit=2, timeout_s=2.0) for recipe in recipes]
    num_done = 0
    for result in local.run(stages, jobs(5), options=RunnerOptions(retries=0)):
        assert result.status is Status.OK, result.error
        num_done += 1
        if num_done == 1:
            time.sleep(2.6)
    assert num_done == 5


def test_a_slow_source_does_not_look_like_a_hanging_worker() -> None:
    def source() -> Iterator[PageJob]:
        for job in jobs(7):
            yield job
            time.sleep(2.6 if job.key.page == 4 else 0)

    recipes = (Recipe("a", load_bytes=24 << 20), Recipe("b", is_last=True))
    stages = [stage(recipe, credit=3, timeout_s=2.0) for recipe in recipes]
    results = by_page(local.run(stages, source(), options=RunnerOptions(retries=0)))
    assert len(results) == 7 and not failed_pages(results)


linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of progress")


@linux
def test_a_worker_that_stands_still_while_loading_is_killed_and_another_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staff, "LOADING_SILENCE_S", 1.0)
    bad = Recipe("a", load_misdeed="once stop", log=str(tmp_path / "flag"), is_last=True)
    status = RunStatus()
    stages = [stage(bad, timeout_s=0.5)]
    results = by_page(local.run(stages, jobs(2), options=RunnerOptions(status=status)))
    assert len(results) == 2 and not failed_pages(results)
    assert status.stages()[0].num_restarts == 1


@linux
@pytest.mark.parametrize("limit", [0, 2 << 30])
def test_a_worker_that_stands_still_while_loading_twice_ends_the_run_and_says_why(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(staff, "LOADING_SILENCE_S", 0.3)
    bad = Recipe("a", load_misdeed="stop", is_last=True)
    words = (
        r"^the a worker made no progress for 0\.3 s while loading and was killed\. It was loading, "
        r"as was one that died before it, and none was ever ready\. See whether the disk that its "
        r"files are on still answers$"
    )
    with pytest.raises(EngineError, match=words):
        list(local.run([stage(bad, timeout_s=0.1, memory_limit_bytes=limit)], jobs(2)))


def loading(monkeypatch: pytest.MonkeyPatch, *pulses: str | None) -> Any:
    """A worker at 0 s of a clock that moves by 2 s with each look, which finds these."""
    clock, found = iter(range(0, 1000, 2)), iter(pulses)
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(process, "pulse", lambda pid: next(found))
    worker: Any = WorkerProcess.__new__(WorkerProcess)
    worker._process = SimpleNamespace(pid=1)
    worker._felt_at, worker._felt, worker.quiet_since = -9.0, "", 0.0
    return worker


@pytest.mark.parametrize(
    ("pulses", "expected"),
    [
        ("aaaaa", [False, False, False, False, True]),
        ("abcde", [False] * 5),
        ("aaabb", [False] * 5),  # slow, as a network disk may be
        ((None,) * 5, [False] * 5),  # where the system does not tell
        (("a", "a", "a", None, "a"), [False] * 5),
    ],
)
def test_a_worker_is_stalled_only_when_nothing_of_it_has_moved_for_all_of_the_time(
    monkeypatch: pytest.MonkeyPatch, pulses: tuple[str | None, ...], expected: list[bool]
) -> None:
    worker = loading(monkeypatch, *pulses)
    assert [worker.is_stalled(7.0) for _ in pulses] == expected


def test_a_worker_that_loads_is_not_looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = loading(monkeypatch, "a")
    worker._felt_at = -0.5
    assert not worker.is_stalled(7.0) and worker._felt == ""


@pytest.mark.parametrize("excused_s", [0.0, 998.0])
def test_time_in_which_all_of_us_were_frozen_is_not_a_stall(
    monkeypatch: pytest.MonkeyPatch, excused_s: float
) -> None:
    """As a container is that somebody pauses: nothing of the worker moves at the first look."""
    worker = loading(monkeypatch, *"aaaaaaa")
    clock = iter([0.0, 2.0, 1000.0, 1002.0, 1004.0, 1006.0, 1008.0])
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = [worker.is_stalled(7.0), worker.is_stalled(7.0)]
    worker.excuse(excused_s)
    found += [worker.is_stalled(7.0) for _ in range(5)]
    assert found[:4] == [False] * 4 and found[-1], "it stands still after that too"


def test_time_in_which_nobody_listened_is_not_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = loading(monkeypatch, *"aaaaa")
    assert not worker.is_stalled(3.0) and not worker.is_stalled(3.0)
    worker.excuse(60.0)
    assert not any(worker.is_stalled(3.0) for _ in range(3))


@pytest.mark.parametrize(("timeout_s", "expected"), [(0.0, 0.0), (5.0, 60.0), (600.0, 600.0)])
def test_a_worker_that_loads_may_stand_still_for_a_minute_at_least(
    timeout_s: float, expected: float
) -> None:
    assert Staff(stage(Recipe("a"), timeout_s=timeout_s)).loading_limit_s == expected


def test_a_stage_that_loads_for_long_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(staff, "time", SimpleNamespace(monotonic=lambda: 160.0))
    one = Staff(stage(Recipe("decode"), num_workers=2))
    for started in (101.0, 85.0, 80.0):
        one.tell_slow_loading(SimpleNamespace(started=started))  # type: ignore[arg-type]
    assert caplog.messages == ["the decode worker has been loading for 75 s"]
