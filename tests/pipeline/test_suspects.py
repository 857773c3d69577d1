"""After a death: who is suspected, in whose company they are read, and when a stage is given up."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toys import Recipe, RollingMaker, by_page, failed_pages, jobs, stage

from ocr2cli.errors import EngineError
from ocr2cli.pages import PageError, PageResult, Status
from ocr2cli.pipeline import local, staff
from ocr2cli.pipeline.ledger import Company, Ledger, Ticket
from ocr2cli.pipeline.options import RunnerOptions
from ocr2cli.pipeline.process import Phase, WorkerProcess
from ocr2cli.pipeline.stage import Stage


def test_a_suspect_does_not_wait_for_a_worker_that_is_never_idle() -> None:
    """Continuous batching never runs empty by itself; the worker must be run down for it."""
    slow_again = Recipe("a", retry_sleep_s=0.1)
    roll = RollingMaker(slots=4, steps=15, deadly=9)
    stages = [stage(slow_again, num_workers=2, credit=20), Stage("roll", roll, credit=6)]
    order = [result.key.page for result in local.run(stages, jobs(150))]
    assert sorted(order) == list(range(150))
    assert order.index(9) < 100


def test_a_stage_whose_every_worker_dies_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "_MAX_DEADLY_PAGES", 2)
    bad = Recipe("a", misdeeds=tuple((page, "exit") for page in range(50)), is_last=True)
    got = []
    with pytest.raises(EngineError, match=r"giving up: 4 a workers have died") as failure:
        for result in local.run([stage(bad)], jobs(50)):
            got.append(result)
    assert 1 <= len(got) <= 3 and {result.status for result in got} == {Status.FAILED}
    told = "; the last time the a worker exited with status 3. If that was for want"
    assert told in str(failure.value)


def test_a_stage_that_is_given_up_for_its_silence_tells_which_limit_was_too_short() -> None:
    one = staff.Staff(stage(Recipe("raster"), timeout_s=0.001))
    one.was_ready = True
    for _ in range(3):
        one.note_death(dead := worker(is_timed_out=True))
    error = one.run_error(dead, -9, hopeless_after=3)
    assert str(error) == (
        "giving up: 3 raster workers have died; the last time the raster worker was silent for "
        "0.001 s and was killed. `ocr2 run` gives pages more time with --page-timeout (now 0.001), "
        "and reads those that failed with --retry-failed"
    )


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
        **{"company": None, "is_timed_out": False, "has_stalled": False, **facts},
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
    one.was_ready = True
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
