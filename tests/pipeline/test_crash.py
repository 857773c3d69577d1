"""Worker processes that die, swell or never start."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from processes import children_of, is_running, wait_until_gone
from toys import Recipe, by_page, failed_pages, jobs, line, stage

from ocr2cli.errors import EngineError, ModelError
from ocr2cli.pages import Status
from ocr2cli.pipeline import local
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.stop import StopRequests


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("kill", "killed by SIGKILL"),
        ("exit", "exited with status 3"),
        ("segfault", "killed by SIGSEGV"),
    ],
)
def test_a_deadly_page_fails_by_name_and_takes_no_other_with_it(misdeed: str, words: str) -> None:
    stages = line(Recipe("a"), Recipe("b", misdeeds=((2, misdeed),)), Recipe("c", is_last=True))
    status = RunStatus()
    results = by_page(local.run(stages, jobs(6), options=RunnerOptions(status=status)))
    assert sorted(results) == list(range(6)) and failed_pages(results) == [2]
    error = results[2].error
    assert error and error.code == "worker_died" and words in error.message
    assert "b worker" in error.message
    assert status.stages()[1].num_restarts == 2


def test_every_replacement_is_counted_where_places_are_left_empty() -> None:
    """There is work for one of four, which dies three times."""
    stages = [stage(Recipe("a", misdeeds=((0, "exit"),), is_last=True), num_workers=4)]
    status = RunStatus()
    options = RunnerOptions(retries=2, status=status)
    assert failed_pages(by_page(local.run(stages, jobs(1), options=options))) == [0]
    assert status.stages()[0].num_restarts == 2


def test_pages_still_in_the_inbox_of_a_dead_worker_are_not_blamed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    bad = Recipe("a", misdeeds=((0, "kill"),), is_last=True, log=str(log))
    options = RunnerOptions(retries=0)
    results = by_page(local.run([stage(bad, credit=6)], jobs(6), options=options))
    assert failed_pages(results) == [0]


def test_what_a_dead_worker_leaves_behind_is_killed() -> None:
    before = set(os.listdir("/proc"))
    stages = [stage(Recipe("a", misdeeds=((1, "leave a child"),), is_last=True))]
    started = time.monotonic()
    results = by_page(local.run(stages, jobs(4)))
    assert failed_pages(results) == [1] and time.monotonic() - started < 30
    ours = [int(e) for e in set(os.listdir("/proc")) - before if e.isdigit()]
    mine = [pid for pid in ours if is_running(pid) and b"ocr2-a" in cmdline(pid)]
    assert wait_until_gone(mine, 2.0) == []


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_page_whose_worker_dies_in_the_drain_stays_undone() -> None:
    """It is neither failed nor retried: the next run reads it."""
    stop = StopRequests()
    stages = [stage(Recipe("a", misdeeds=((1, "exit late"),), is_last=True), credit=2)]
    got = []
    for result in local.run(stages, jobs(9), options=RunnerOptions(retries=0, stop=stop)):
        got.append((result.key.page, result.status))
        if not stop.count:
            stop.request()
    assert got == [(0, Status.OK)]


def test_memory_over_the_limit_is_a_page_error_and_the_batch_goes_on() -> None:
    stages = [
        stage(Recipe("a", misdeeds=((1, "allocate"),), is_last=True), memory_limit_bytes=1 << 30)
    ]
    results = by_page(local.run(stages, jobs(4)))
    assert failed_pages(results) == [1]
    error = results[1].error
    assert error and error.code == "out_of_memory" and "a worker" in error.message


@pytest.mark.parametrize("misdeed", ["allocate", "exit"])
def test_a_worker_that_cannot_be_loaded_in_its_memory_says_so(misdeed: str) -> None:
    limit = 600_000_000
    stages = [stage(Recipe("a", load_misdeed=misdeed, is_last=True), memory_limit_bytes=limit)]
    with pytest.raises(EngineError) as failure:
        list(local.run(stages, jobs(2)))
    told = str(failure.value)
    assert told.startswith("the a worker could not be loaded in 0.6 GB. ")
    assert "--worker-memory" in told
    assert ("exited with status 3" if misdeed == "exit" else "MemoryError") in told


def test_a_model_that_is_at_fault_is_not_put_down_to_the_memory() -> None:
    stages = [stage(Recipe("a", load_misdeed="model", is_last=True), memory_limit_bytes=1 << 30)]
    with pytest.raises(ModelError, match="cut short"):
        list(local.run(stages, jobs(2)))


@pytest.mark.parametrize("limit", [0, 2 << 30])
def test_a_worker_that_is_killed_once_while_loading_costs_nothing(
    tmp_path: Path, limit: int
) -> None:
    """The first of its stage: nothing shows yet that one can be loaded."""
    bad = Recipe("b", load_misdeed="once kill", log=str(tmp_path / "tries"), is_last=True)
    status = RunStatus()
    stages = line(Recipe("a"), bad, memory_limit_bytes=limit)
    results = by_page(local.run(stages, jobs(3), options=RunnerOptions(status=status)))
    assert sorted(results) == [0, 1, 2] and not failed_pages(results)
    assert [each.num_restarts for each in status.stages()] == [0, 1]


@pytest.mark.parametrize("misdeed", ["kill", "exit"])
def test_a_worker_that_dies_twice_in_a_row_while_loading_ends_the_run_and_tells_what_to_do(
    misdeed: str,
) -> None:
    bad = stage(Recipe("b", load_misdeed=misdeed, is_last=True), remedy="buy some")
    status = RunStatus()
    words = r"b worker .*\. It was loading, as was one that died before it"
    with pytest.raises(EngineError, match=words) as failure:
        list(local.run([*line(Recipe("a")), bad], jobs(3), options=RunnerOptions(status=status)))
    assert str(failure.value).endswith("If that was for want of memory, buy some")
    assert status.stages()[1].num_restarts == 1


def test_each_death_is_told_and_counted_and_a_worker_renewed_after_its_pages_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = Recipe("a", misdeeds=((1, "kill"),), is_last=True)
    status = RunStatus()
    stages = [stage(bad, credit=1, recycle_after=3)]
    results = by_page(local.run(stages, jobs(9), options=RunnerOptions(status=status)))
    assert failed_pages(results) == [1]
    died = "the a worker was killed by SIGKILL; the page it held"
    assert caplog.messages == [f"{died} is read again", f"{died} has failed"]
    (told,) = status.stages()
    assert told.num_deaths == 2 < told.num_restarts


def test_a_death_that_ends_the_run_is_told_by_its_end_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = Recipe("a", load_misdeed="kill", is_last=True)
    with pytest.raises(EngineError, match="none was ever ready"):
        list(local.run([stage(bad)], jobs(1)))
    assert caplog.messages == ["the a worker was killed by SIGKILL; it held no page"]


def test_a_replacement_that_cannot_load_ends_the_run(tmp_path: Path) -> None:
    """The weights were replaced during the run, say: what was finished is kept."""
    bad = Recipe("a", load_misdeed="flag", log=str(tmp_path / "flag"), is_last=True)
    got = []
    with pytest.raises(ModelError, match="cut short"):
        for result in local.run([stage(bad, recycle_after=2)], jobs(5)):
            got.append(result.key.page)
    assert got == [0, 1]


def test_killing_workers_at_random_changes_no_result() -> None:
    """A short soak: ten kills at random moments, of whichever worker is alive."""
    recipes = (
        Recipe("a", load_bytes=200_000, sleep_s=0.004),
        Recipe("b", load_bytes=20_000, batch=3, sleep_s=0.004),
        Recipe("c", is_last=True, sleep_s=0.004),
    )
    stages = [stage(recipe, num_workers=2, credit=3) for recipe in recipes]
    expected = by_page(local.run(line(*recipes), jobs(60)))
    dice = random.Random(7)
    # By results, not by the clock: a fast machine would be done before the tenth kill.
    num_kills, next_kill = 0, dice.randint(1, 5)
    results = {}
    # Each kill may hit the same page again: many retries, so that none fails.
    for result in local.run(stages, jobs(60), options=RunnerOptions(retries=50)):
        results[result.key.page] = result
        if num_kills < 10 and len(results) >= next_kill:
            victims = children_of(os.getpid())
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(victims), signal.SIGKILL)
            num_kills += 1
            next_kill += dice.randint(1, 5)
    assert num_kills == 10
    assert results == expected
