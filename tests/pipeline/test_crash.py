"""Worker processes that die, hang, swell or never start."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import children_of, is_running, wait_until_gone
from toys import PriorityWorker, Recipe, ReportingWorker, RollingMaker, jobs, line, stage

from ocr2cli.errors import EngineError, ModelError
from ocr2cli.pages import PageError, PageJob, PageResult, Status
from ocr2cli.pipeline import local, staff
from ocr2cli.pipeline.ledger import Company, Ledger, Ticket
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.process import Phase, WorkerProcess
from ocr2cli.pipeline.stage import Stage
from ocr2cli.pipeline.stop import StopRequests

HERE = Path(__file__).parent
REPO = HERE.parents[1]


def by_page(results: Iterator[PageResult]) -> dict[int, PageResult]:
    listed = list(results)
    found = {result.key.page: result for result in listed}
    assert len(found) == len(listed), "a page came out twice"
    return found


def failed_pages(results: dict[int, PageResult]) -> list[int]:
    return sorted(page for page, result in results.items() if result.status is Status.FAILED)


@pytest.mark.parametrize("workers", [(1, 1, 1), (3, 1, 2), (1, 3, 1)])
def test_results_do_not_depend_on_the_number_of_workers(workers: tuple[int, int, int]) -> None:
    recipes = (Recipe("a", load_bytes=999), Recipe("b", load_bytes=99), Recipe("c", is_last=True))
    stages = [stage(r, num_workers=n) for r, n in zip(recipes, workers, strict=True)]
    one = by_page(local.run(line(*recipes), jobs(12)))
    many = by_page(local.run(stages, jobs(12)))
    assert many == one


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


def test_a_suspect_does_not_wait_for_a_worker_that_is_never_idle() -> None:
    """Continuous batching never runs empty by itself; the worker must be run down for it."""
    slow_again = Recipe("a", retry_sleep_s=0.1)
    roll = RollingMaker(slots=4, steps=15, deadly=9)
    stages = [stage(slow_again, num_workers=2, credit=20), Stage("roll", roll, credit=6)]
    order = [result.key.page for result in local.run(stages, jobs(150))]
    assert sorted(order) == list(range(150))
    assert order.index(9) < 100


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


@pytest.mark.parametrize("misdeed", ["kill", "exit"])
def test_a_worker_that_dies_while_loading_is_not_tried_again(misdeed: str) -> None:
    stages = line(Recipe("a"), Recipe("b", load_misdeed=misdeed, is_last=True))
    with pytest.raises(EngineError, match=r"b worker .* while loading"):
        list(local.run(stages, jobs(3)))


def test_a_replacement_that_cannot_load_ends_the_run(tmp_path: Path) -> None:
    """The weights were replaced during the run, say: what was finished is kept."""
    bad = Recipe("a", load_misdeed="flag", log=str(tmp_path / "flag"), is_last=True)
    got = []
    with pytest.raises(ModelError, match="cut short"):
        for result in local.run([stage(bad, recycle_after=2)], jobs(5)):
            got.append(result.key.page)
    assert got == [0, 1]


def test_a_stage_whose_every_worker_dies_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "_MAX_DEADLY_PAGES", 2)
    bad = Recipe("a", misdeeds=tuple((page, "exit") for page in range(50)), is_last=True)
    got = []
    with pytest.raises(EngineError, match=r"giving up: 4 a workers have died"):
        for result in local.run([stage(bad)], jobs(50)):
            got.append(result)
    assert 1 <= len(got) <= 3 and {result.status for result in got} == {Status.FAILED}


def test_a_page_that_kills_every_worker_before_it_is_given_up_ends_the_run() -> None:
    bad = Recipe("a", misdeeds=((0, "exit"),), is_last=True)
    options = RunnerOptions(hopeless_after=4, retries=10)
    with pytest.raises(EngineError, match=r"giving up: 4 a workers have died"):
        list(local.run([stage(bad)], jobs(3), options=options))


def test_deadly_pages_at_the_start_fail_by_name_and_the_rest_is_read() -> None:
    """Ten of them were taken for a stage that cannot work, and ended the run."""
    bad = Recipe("a", misdeeds=tuple((page, "exit") for page in range(3)), is_last=True)
    options = RunnerOptions(hopeless_after=4)
    results = by_page(local.run([stage(bad)], jobs(5), options=options))
    assert sorted(results) == list(range(5)) and failed_pages(results) == [0, 1, 2]


def worker(num_held: int = 0, **facts: object) -> Any:
    """As a stage's staff sees a worker process."""
    held = dict.fromkeys(range(num_held))
    return SimpleNamespace(
        held=held, taken=set(held), is_open=True, failure=None, phase=Phase.READY, busy_since=0.0,
        **{"company": None, **facts},
    )  # fmt: skip


def test_an_item_goes_to_the_worker_that_holds_least_and_a_suspect_to_an_empty_one() -> None:
    several = staff.Staff(stage(Recipe("a"), num_workers=3))
    busy, busier, idle = worker(1), worker(2), worker(0)
    several.workers[:] = [busier, idle, busy]
    plain, suspect, other = (Ticket(n, job) for n, job in enumerate(jobs(3)))
    suspect.company[0] = Company()
    for ticket in (plain, suspect, other):
        several.enqueue(ticket)
    assert several.next_pair() == (suspect, idle)
    assert several.next_pair() == (plain, idle)
    several.enqueue(plain, is_first=True)
    idle.held = {9: None, 10: None, 11: None}
    assert several.next_pair() == (plain, busy)
    several.enqueue(suspect)
    assert several.next_pair() == (other, busier), "the least loaded one runs empty for the suspect"
    several.enqueue(plain)
    assert several.unqueue() == [plain, suspect] and several.num_waiting == 0


def test_suspects_of_one_company_share_a_worker_and_nobody_else_gets_it() -> None:
    several = staff.Staff(stage(Recipe("a"), num_workers=2))
    ours, theirs = Company(), Company()
    taken, idle = worker(1, company=ours), worker(0)
    several.workers[:] = [taken, idle]
    first, second, stranger, plain = (Ticket(n, job) for n, job in enumerate(jobs(4)))
    first.company[0], second.company[0], stranger.company[0] = theirs, ours, theirs
    for ticket in (first, second, stranger, plain):
        several.enqueue(ticket)
    assert several.next_pair() == (second, taken), "it joins its own, past others that wait"
    assert several.next_pair() == (first, idle)
    idle.held, idle.company = {0: None}, theirs
    assert several.next_pair() == (stranger, idle)
    assert several.next_pair() is None and several.num_waiting == 1, "nobody else"
    taken.held, taken.company = {}, None
    assert several.next_pair() == (plain, taken)


def test_pages_that_died_together_come_back_in_ever_smaller_companies() -> None:
    ledger = Ledger(1)
    tickets = [ledger.admit(job) for job in jobs(64)]
    error = PageError("worker_died", "one")
    sizes = []
    while len(tickets) > 1:
        for ticket in tickets:
            ticket.stage = 2
        assert ledger.suspect(tickets, error) == []
        assert all((each.stage, len(each.faults)) == (0, 1) for each in tickets)
        companies = [each.company[2] for each in tickets]
        assert companies == sorted(companies, key=companies.index), "neighbours"
        tickets = [each for each in tickets if each.company[2] is companies[-1]]
        sizes.append((len(set(companies)), len(tickets)))
    assert sizes == [(4, 16), (4, 4), (4, 1)]
    (result,) = ledger.suspect(tickets, PageError("timeout", "two"))
    assert result.error == PageError("timeout", "two") and result.key.page == 63
    assert [each.note for each in result.attempts] == ["one", "two"]
    assert len(ledger) == 63


@pytest.mark.parametrize("count", [2, 3, 5, 17])
def test_no_page_is_left_out_of_the_companies(count: int) -> None:
    ledger = Ledger(1)
    tickets = [ledger.admit(job) for job in jobs(count)]
    assert ledger.suspect(tickets, PageError("worker_died", "one")) == []
    assert len({each.company[0] for each in tickets}) == min(count, -(-count // -(-count // 4)))
    none = Ledger(0)
    given_up = none.suspect([none.admit(job) for job in jobs(count)], PageError("internal", "x"))
    assert [each.key.page for each in given_up] == list(range(count))


def test_a_deadly_page_among_many_is_found_without_reading_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder of 64 pages died: each was read again with nobody beside it, at a fifth of the
    speed."""
    suspected, plain = [], Ledger.suspect

    def suspect(self: Ledger, tickets: list[Ticket], error: PageError) -> list[PageResult]:
        suspected.append([ticket.job.key.page for ticket in tickets])
        return plain(self, tickets, error)

    monkeypatch.setattr(Ledger, "suspect", suspect)
    log = tmp_path / "log"
    bad = Recipe(
        "b", batch=64, misdeeds=((37, "exit"),), is_last=True, log=str(log), sleep_s=0.02
    )
    stages = [stage(Recipe("a")), stage(bad, credit=64)]
    results = by_page(local.run(stages, jobs(64)))
    assert sorted(results) == list(range(64)) and failed_pages(results) == [37]
    takes = [
        [*map(int, words.split()[-1].split(","))] for words in log.read_text().splitlines()
    ]
    assert [take for take in takes if 37 in take] == suspected, "all it had taken, and no others"
    sizes = list(map(len, suspected))
    assert sizes[-1] == 1 and len(sizes) <= 4
    assert all(later <= -(-size // 4) for size, later in pairwise(sizes))


def test_a_worker_is_its_companys_until_it_has_answered_for_all_of_them() -> None:
    one, ours = object.__new__(WorkerProcess), Company()
    one.held, one.taken, one.company = {1: "first", 2: "second"}, {1, 2}, ours
    assert (one.release(1), one.company) == ("first", ours)
    assert (one.release(2), one.company) == ("second", None)


def test_a_stage_is_given_up_after_as_many_deaths_as_was_said_if_it_read_nothing() -> None:
    for num_emitted, is_hopeless in ((0, True), (1, False)):
        one = staff.Staff(stage(Recipe("a")))
        one.was_ready, one.num_emitted = True, num_emitted
        for _ in range(4):
            assert one.run_error(worker(1), 9, hopeless_after=4) is None
            one.note_death(worker(1))
        assert (one.run_error(worker(1), 9, hopeless_after=4) is not None) is is_hopeless


def test_only_a_worker_that_had_taken_one_page_tells_which_one_is_deadly() -> None:
    one = staff.Staff(stage(Recipe("a")))
    one.note_death(worker(2))
    one.note_failure(worker(2))
    assert (one.num_deadly_pages, one.num_unsettled_deaths) == (0, 1)
    one.note_failure(worker(1))
    assert (one.num_deadly_pages, one.num_unsettled_deaths) == (1, 0)


def test_workers_that_die_without_a_page_are_replaced_ten_times_in_a_row() -> None:
    one = staff.Staff(stage(Recipe("a")))
    one.was_ready, one.num_emitted = True, 1
    for _ in range(10):
        one.note_death(worker())
    assert one.run_error(worker(), 9, hopeless_after=99) is None
    one.note_death(worker())
    assert isinstance(one.run_error(worker(), 9, hopeless_after=99), EngineError)
    one.release(worker(1, release=lambda serial: None), 0)
    one.note_death(worker())
    assert one.run_error(worker(), 9, hopeless_after=99) is None


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
