"""Both runners keep the same promise: one job in, one result out, whatever the workers do."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import Maker, Recipe, RollingMaker, broken_job, by_page, jobs, line, stage

from ocr2cli.errors import EngineError, ModelError, Ocr2Error
from ocr2cli.pages import PageError, PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline import inline, local
from ocr2cli.pipeline.ledger import Ledger, Ticket
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.process import Phase
from ocr2cli.pipeline.staff import Staff
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.pipeline.stop import StopRequests

Run = Callable[..., Iterator[PageResult]]


@pytest.fixture(params=["inline", "local"])
def run(request: pytest.FixtureRequest) -> Run:
    return {"inline": inline.run, "local": local.run}[request.param]


def test_every_page_passes_all_stages_once(run: Run) -> None:
    results = by_page(list(run(line(), jobs(20))))
    assert sorted(results) == list(range(20))
    assert {result.markdown for result in results.values()} == {"a/b/c"}
    assert {result.input_sha256 for result in results.values()} == {"ab" * 32}


def test_no_jobs_make_no_workers(run: Run, tmp_path: Path) -> None:
    stages = [stage(Recipe("a", load_misdeed="model", is_last=True))]
    assert list(run(stages, [])) == []


def test_an_early_result_skips_the_later_stages(run: Run) -> None:
    stages = line(Recipe("a", early=frozenset({1, 3})), Recipe("b"), Recipe("c", is_last=True))
    results = by_page(list(run(stages, jobs(5))))
    assert [results[page].markdown for page in range(5)] == ["a/b/c", "a", "a/b/c", "a", "a/b/c"]


def test_a_job_with_an_error_never_enters_a_stage(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    mixed = [*jobs(3), broken_job(7), PageJob(PageKey("e", 0), "/in/e.pdf", "cd" * 32, 1)]
    results = list(run([stage(Recipe("a", is_last=True, log=str(log)))], mixed))
    assert len(results) == 5
    (failed,) = (result for result in results if result.key.page == 7)
    assert failed.status is Status.FAILED and failed.error and failed.error.code == "unreadable"
    taken = ",".join(words.split()[-1] for words in log.read_text().splitlines())
    assert set(taken.split(",")) == {"0", "1", "2"}


def test_only_broken_jobs_load_no_model(run: Run) -> None:
    stages = [stage(Recipe("a", load_misdeed="model", is_last=True))]
    assert len(list(run(stages, [broken_job(page) for page in range(30)]))) == 30


def test_arrays_reach_the_next_stage_unharmed(run: Run) -> None:
    stages = line(Recipe("a", load_bytes=100_000), Recipe("b", is_last=True))
    results = by_page(list(run(stages, jobs(8))))
    assert [results[page].new_tokens for page in range(8)] == [p % 7 * 100_000 for p in range(8)]


def test_a_rolling_worker_is_fed_while_it_runs(run: Run) -> None:
    stages = [stage(Recipe("a")), Stage("roll", RollingMaker(slots=4), credit=8)]
    results = by_page(list(run(stages, jobs(30))))
    assert len(results) == 30
    assert 2 <= max(result.new_tokens for result in results.values()) <= 4


def test_inline_fills_a_batch_before_it_runs_and_does_so_every_time(tmp_path: Path) -> None:
    takes = []
    for name in ("one", "two"):
        log = tmp_path / name
        stages = line(Recipe("a"), Recipe("b", batch=4, is_last=True, log=str(log)), credit=4)
        assert len(list(inline.run(stages, jobs(10)))) == 10
        takes.append([words.split()[-1] for words in log.read_text().splitlines()])
    # The first take comes before the stage could say how much it wants.
    assert takes[0] == takes[1] == ["0,1,2,3", "4,5,6,7", "8,9"]


def test_a_worker_that_raises_costs_its_page_and_no_other(run: Run) -> None:
    stages = line(Recipe("a"), Recipe("b", misdeeds=((3, "raise"),)), Recipe("c", is_last=True))
    results = by_page(list(run(stages, jobs(8))))
    assert [page for page, result in results.items() if result.status is Status.FAILED] == [3]
    error = results[3].error
    assert error and error.code == "worker_died"
    assert "b worker" in error.message and "ZeroDivisionError: no such luck" in error.message
    assert "\n" not in error.message
    assert [attempt.step for attempt in results[3].attempts] == ["first", "retry"]


def test_a_page_that_kills_once_is_read_on_the_second_try(run: Run) -> None:
    stages = [stage(Recipe("a", misdeeds=((2, "raise"),), first_try_only=True, is_last=True))]
    results = by_page(list(run(stages, jobs(5))))
    assert {result.status for result in results.values()} == {Status.OK}
    assert results[2].attempts == (), "a recovered page must not differ from an undisturbed run"


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_counted(run: Run, retries: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    stages = [stage(Recipe("a", misdeeds=((0, "raise"),), is_last=True, log=str(log)))]
    (result,) = run(stages, jobs(1), options=RunnerOptions(retries=retries))
    assert result.status is Status.FAILED
    assert len(log.read_text().splitlines()) == 1 + retries


def test_a_page_that_failed_tells_of_each_try_in_its_order() -> None:
    ledger, (job,) = Ledger(1), jobs(1)
    ticket = ledger.admit(job)
    ticket.stage = 2
    assert ledger.fault(ticket, PageError("worker_died", "one")) is None
    assert (ticket.stage, [*ticket.company], ticket.job.attempt) == (0, [2], 1)
    result = ledger.fault(ticket, PageError("timeout", "two"))
    assert result is not None and result.error == PageError("timeout", "two")
    assert [(each.step, each.note) for each in result.attempts] == [
        ("first", "one"), ("retry", "two")
    ]  # fmt: skip
    assert result.input_sha256 == job.sha256 and len(ledger) == 0


def test_suspects_run_alone(run: Run, tmp_path: Path) -> None:
    """Of a batch that dies with its worker, each page is tried with nobody beside it."""
    log = tmp_path / "log"
    bad = Recipe("b", batch=4, misdeeds=((2, "raise"),), is_last=True, log=str(log), sleep_s=0.02)
    results = by_page(list(run(line(Recipe("a"), bad, credit=8), jobs(12))))
    assert [page for page, result in results.items() if result.status is Status.FAILED] == [2]
    takes = [words.split()[-1].split(",") for words in log.read_text().splitlines()]
    fatal = next(take for take in takes if "2" in take)
    after = takes[takes.index(fatal) + 1 :]
    for page in fatal:
        assert [page] in after, f"page {page} was not tried alone"


@pytest.mark.parametrize(("misdeed", "kind"), [("model", ModelError), ("raise", EngineError)])
def test_a_worker_that_cannot_load_ends_the_run_with_its_reason(
    run: Run, misdeed: str, kind: type[Ocr2Error]
) -> None:
    stages = line(Recipe("a"), Recipe("b", load_misdeed=misdeed, is_last=True))
    started = time.monotonic()
    with pytest.raises(kind, match=r"cut short|b worker could not be loaded: ZeroDivisionError"):
        list(run(stages, jobs(3)))
    assert time.monotonic() - started < 30


def test_an_engine_error_ends_the_run_but_keeps_what_was_done(run: Run) -> None:
    stages = [stage(Recipe("a", misdeeds=((2, "engine"),), is_last=True), credit=1)]
    got = []
    with pytest.raises(EngineError, match="the device is lost"):
        for result in run(stages, jobs(9)):
            got.append(result)
    assert sorted(result.key.page for result in got) == [0, 1]


def test_the_same_key_twice_is_refused(run: Run) -> None:
    stages = [stage(Recipe("a", batch=4, is_last=True), credit=4)]
    with pytest.raises(ValueError, match="submitted twice"):
        list(run(stages, [*jobs(1), *jobs(1)]))


def test_a_last_stage_without_results_is_named(run: Run) -> None:
    (result,) = run([stage(Recipe("a"))], jobs(1))
    assert result.error and result.error.code == "internal" and "a stage" in result.error.message


def test_jobs_are_pulled_only_as_there_is_room(run: Run) -> None:
    pulled = 0

    def source() -> Iterator[PageJob]:
        nonlocal pulled
        for job in jobs(200):
            pulled += 1
            yield job

    stages = line(credit=2)
    seen = 0
    for _ in run(stages, source()):
        seen += 1
        assert pulled - seen <= 2 * 3 + 8, "more pages under way than the credits allow"
    assert seen == 200


def test_an_idle_source_is_asked_again_and_finished_pages_do_not_wait_for_it(run: Run) -> None:
    """Serving: the next request may come long after the last one is answered."""
    done = threading.Event()

    def source() -> Iterator[PageJob | None]:
        first, second = jobs(2)
        yield first
        while not done.is_set():
            yield None
        yield second

    results = []
    for result in run(line(), source()):
        results.append(result.key.page)
        done.set()
    assert results == [0, 1]


def test_an_idle_source_is_not_asked_without_pause(run: Run) -> None:
    results: list[PageResult] = []
    num_asked = 0

    def source() -> Iterator[PageJob | None]:
        nonlocal num_asked
        yield from jobs(1)
        while not results:
            yield None
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            num_asked += 1
            yield None

    for result in run([stage(Recipe("a", is_last=True))], source()):
        results.append(result)
    assert 1 <= num_asked <= 31


def test_a_first_stop_finishes_what_is_under_way(run: Run) -> None:
    stop = StopRequests()
    status = RunStatus()
    options = RunnerOptions(stop=stop, status=status)
    got = []
    for result in run(line(Recipe("a", is_last=True), credit=1), jobs(50), options=options):
        got.append(result.key.page)
        if len(got) == 3:
            stop.request()
    assert 3 <= len(got) < 10
    assert status.is_interrupted


def test_a_run_to_the_end_is_not_interrupted(run: Run) -> None:
    status = RunStatus()
    assert len(list(run(line(), jobs(3), options=RunnerOptions(status=status)))) == 3
    assert not status.is_interrupted


def test_a_second_stop_ends_at_once(run: Run) -> None:
    stop = StopRequests()
    slow = stage(Recipe("a", is_last=True, sleep_s=0.3), credit=4)
    started, num_done = time.monotonic(), 0
    for _ in run([slow], jobs(50), options=RunnerOptions(stop=stop)):
        num_done += 1
        stop.request()
        stop.request()
    assert num_done == 1 and time.monotonic() - started < 9


def test_the_drain_has_an_end(run: Run) -> None:
    stop = StopRequests()
    stages = [stage(Recipe("a", is_last=True, sleep_s=0.25), credit=8)]
    options = RunnerOptions(stop=stop, drain_s=0.1)
    num_done = 0
    for _ in run(stages, jobs(50), options=options):
        num_done += 1
        stop.request()
    assert num_done <= 3


def test_closing_the_iterator_early_leaves_nothing_running(run: Run) -> None:
    status = RunStatus()
    results = run(line(), jobs(50), options=RunnerOptions(status=status))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("ocr2-")]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


class SlowToGo:
    """A worker whose memory takes its time to be freed, as a model's tensors do."""

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while taken := inbox.take(1, wait=True):
            emit(PageResult(taken[0].key, Status.OK))

    def __del__(self) -> None:
        time.sleep(1.2)


@pytest.mark.parametrize("num_wanted", [1, 3])
def test_a_worker_in_this_process_is_freed_before_the_run_is_over(num_wanted: int) -> None:
    """Its thread freed tensors while Python ended, and the process aborted, its work done."""
    results = inline.run([Stage("slow", SlowToGo, num_workers=1, credit=1)], jobs(3))
    assert len(list(itertools.islice(results, num_wanted))) == num_wanted
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("ocr2-")]


class Endless:
    """A worker in the middle of a page that never ends, and says that it gets on."""

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while inbox.take(1, wait=True):
            while True:
                time.sleep(0.01)
                inbox.note_progress()


def test_a_worker_in_this_process_stops_at_ctrl_c_in_the_middle_of_a_page() -> None:
    me = threading.get_ident()
    threading.Timer(0.5, signal.pthread_kill, (me, signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(inline.run([Stage("endless", Endless, num_workers=1, credit=1)], jobs(1)))
    assert time.monotonic() - started < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("ocr2-")]


def test_an_error_of_the_job_source_is_the_callers(run: Run) -> None:
    def source() -> Iterator[PageJob]:
        yield from jobs(2)
        raise LookupError("the list is gone")

    with pytest.raises(LookupError, match="the list is gone"):
        list(run(line(), source()))


def test_status_names_the_stages_and_counts(run: Run) -> None:
    status = RunStatus()
    assert status.stages() == ()
    results = run(line(credit=1), jobs(10), options=RunnerOptions(status=status))
    next(results)
    assert [each.name for each in status.stages()] == ["a", "b", "c"]
    assert len(list(results)) == 9
    assert [each.num_emitted for each in status.stages()] == [10, 10, 10]
    assert all(each.num_held == each.num_waiting == 0 for each in status.stages())


class Answered(dict[int, Ticket]):
    """Holds a page when it is looked at, which is answered before it is looked at again."""

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        found = super().__iter__()
        self.clear()
        return found


def test_a_page_answered_while_another_thread_asks_for_the_status_costs_nothing() -> None:
    """A server's metrics are asked for by threads of their own."""
    held = Answered({1: Ticket(1, next(jobs(1)))})
    staff = Staff(Stage("a", object))
    staff.workers[0] = SimpleNamespace(
        held=Answered(), phase=Phase.READY, quiet_since=0.0, busy_since=0.0
    )  # type: ignore[call-overload]
    assert staff.status().oldest == ""
    runner = inline._Runner([Stage("a", object)], iter(()), RunnerOptions())
    runner._seats[0].held = held  # type: ignore[assignment]
    assert runner._snapshot()[0].oldest == "1"


def test_makers_are_picklable_by_name() -> None:
    import pickle

    assert pickle.loads(pickle.dumps(Maker(Recipe("x")))) == Maker(Recipe("x"))
