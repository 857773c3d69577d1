"""Pages on their way through the stages: as many as the credits, in flat memory, whoever reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import Recipe, by_page, failed_pages, jobs, line, stage

from ocr2cli.errors import ModelError
from ocr2cli.pages import PageJob
from ocr2cli.pipeline import local
from ocr2cli.pipeline.options import RunnerOptions
from ocr2cli.pipeline.stop import StopRequests


@pytest.mark.parametrize("workers", [(1, 1, 1), (3, 1, 2), (1, 3, 1)])
def test_results_do_not_depend_on_the_number_of_workers(workers: tuple[int, int, int]) -> None:
    recipes = (Recipe("a", load_bytes=999), Recipe("b", load_bytes=99), Recipe("c", is_last=True))
    stages = [stage(r, num_workers=n) for r, n in zip(recipes, workers, strict=True)]
    one = by_page(local.run(line(*recipes), jobs(12)))
    many = by_page(local.run(stages, jobs(12)))
    assert many == one


def test_a_stop_admits_nothing_that_only_waits() -> None:
    stop = StopRequests()
    recipes = (Recipe("a"), Recipe("b", is_last=True, sleep_s=0.05))
    stages = [stage(recipes[0], credit=4), stage(recipes[1], credit=1)]
    num_done = 0
    for _ in local.run(stages, jobs(50), options=RunnerOptions(stop=stop)):
        num_done += 1
        if num_done == 5:
            stop.request()
    assert 6 <= num_done <= 10, "only what the two stages hold"


def test_memory_and_descriptors_stay_flat_over_two_thousand_pages() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    recipes = (Recipe("a", load_bytes=50_000), Recipe("b", is_last=True))
    num_done, early, late = 0, (0, 0), (0, 0)
    for _ in local.run(line(*recipes, credit=4), jobs(2000)):
        num_done += 1
        if num_done == 100:
            early = (resident_bytes(), len(os.listdir("/proc/self/fd")))
        if num_done == 1900:
            late = (resident_bytes(), len(os.listdir("/proc/self/fd")))
    assert num_done == 2000
    assert late[0] - early[0] < 10_000_000 and late[1] == early[1]


def test_items_in_flight_stay_within_the_credits(tmp_path: Path) -> None:
    """The last stage is slow, the first is fast: the first must wait, not pile up."""
    log = tmp_path / "log"
    recipes = (Recipe("a", log=str(log)), Recipe("b", is_last=True, sleep_s=0.01))
    num_done, worst = 0, 0
    for _ in local.run([stage(r, credit=3) for r in recipes], jobs(60)):
        num_done += 1
        num_started = len(log.read_text().splitlines())
        worst = max(worst, num_started - num_done)
    assert num_done == 60
    assert 3 <= worst <= 6


def test_jobs_are_kept_by_the_parent_so_that_a_retry_starts_afresh(tmp_path: Path) -> None:
    log = tmp_path / "log"
    recipes = (
        Recipe("a", log=str(log)),
        Recipe("b", misdeeds=((1, "kill"),), first_try_only=True, is_last=True, log=str(log)),
    )
    results = by_page(local.run(line(*recipes), jobs(3)))
    assert not failed_pages(results)
    takes = Counter(tuple(words.split()[1::2]) for words in log.read_text().splitlines())
    assert takes[("a", "1")] == 2 and takes[("b", "1")] == 2


def test_the_source_is_not_read_ahead_of_a_broken_load() -> None:
    pulled = []

    def source() -> Iterator[PageJob]:
        for job in jobs(1000):
            pulled.append(job)
            yield job

    with pytest.raises(ModelError):
        list(local.run([stage(Recipe("a", load_misdeed="model", is_last=True))], source()))
    assert len(pulled) <= 2
