"""A worker as a process: how it settles, steps back, is heard, and is replaced."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from processes import children_of
from toys import PriorityWorker, Recipe, ReportingWorker, by_page, failed_pages, jobs, stage

from ocr2cli.pipeline import local
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.stage import Stage


def test_a_worker_is_replaced_after_its_quota(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stages = [stage(Recipe("a", is_last=True, log=str(log)), recycle_after=3)]
    status = RunStatus()
    results = by_page(local.run(stages, jobs(10), options=RunnerOptions(status=status)))
    assert len(results) == 10 and not failed_pages(results)
    per_process = Counter(words.split()[2] for words in log.read_text().splitlines())
    assert sorted(per_process.values()) == [1, 3, 3, 3]
    assert status.stages()[0].num_restarts == 3


def test_a_worker_that_does_not_leave_is_shown_the_door() -> None:
    stages = [stage(Recipe("a", is_last=True, lingers=True), recycle_after=2)]
    results = by_page(local.run(stages, jobs(3)))
    assert len(results) == 3 and not failed_pages(results)


def test_a_librarys_slip_in_a_log_line_costs_no_page(capfd: pytest.CaptureFixture[str]) -> None:
    stages = [stage(Recipe("a", misdeeds=((0, "log badly"),), is_last=True))]
    assert not failed_pages(by_page(local.run(stages, jobs(2))))
    assert "Logging error" in capfd.readouterr().err


def test_what_workers_log_is_logged_by_the_parent(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [stage(Recipe("a", misdeeds=((0, "log"),), is_last=True))]
    with caplog.at_level("INFO", "ocr2"):
        assert len(list(local.run(stages, jobs(1)))) == 1
    said = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("ocr2", "INFO", "a word from the worker"),
        ("other", "WARNING", "a library's word"),
    ]
    assert capfd.readouterr().err == ""


def test_a_stage_that_cannot_be_pickled_is_the_callers_mistake() -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        list(local.run([Stage("a", lambda: ReportingWorker())], jobs(1)))
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize("niceness", [0, 7])
def test_a_stage_steps_back_for_the_others_once_its_first_page_is_out(niceness: int) -> None:
    """With all its threads: to Linux a priority is a thread's own. The first page of a run is not
    held up."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    polite = Stage("polite", PriorityWorker, niceness=niceness)
    first, *later = [result.extra["nice"] for result in local.run([polite], jobs(4))]
    assert first == [own] * len(first) and len(first) >= 3
    assert later == [[min(19, own + niceness)] * len(first)] * 3


def test_workers_have_settled_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(variable, raising=False)
    reporting = Stage("report", ReportingWorker, num_workers=2, num_threads=3)
    for result in local.run([reporting], jobs(4)):
        facts = dict(result.extra)
        assert facts.pop("out of the collector") > 1000
        assert facts.pop("fds") <= 7
        assert facts == {
            "omp": "3",
            "spins": "1000",
            "stdin": "/dev/null",
            "stdout": "/dev/null",
            "sigint": True,
            "sigterm": True,
            "sighup": True,
            "group": True,
            "torch": False,
        }


@pytest.mark.parametrize(
    ("variable", "value", "spins"),
    [("GOMP_SPINCOUNT", "77", "77"), ("OMP_WAIT_POLICY", "ACTIVE", "")],
)
def test_how_threads_wait_is_the_users_to_say(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, spins: str
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    (result,) = local.run([Stage("report", ReportingWorker, num_threads=3)], jobs(1))
    assert result.extra["spins"] == spins
