"""Silence: a worker that hangs is killed and its page named; one that is only slow is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from toys import Recipe, RollingMaker, by_page, failed_pages, jobs, stage

from ocr2cli.pages import PageJob, PageResult, Status
from ocr2cli.pipeline import local
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
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
