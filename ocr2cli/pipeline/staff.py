"""The workers of one stage and the items that wait for them, as the local runner's parent sees it.

Knows which worker an item goes to and what a death means; `local.py` does the reading and writing.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from ocr2cli.errors import EngineError, Ocr2Error
from ocr2cli.pages import PageError
from ocr2cli.pipeline.failure import MAX_UNBLAMED_DEATHS
from ocr2cli.pipeline.ledger import Ticket
from ocr2cli.pipeline.options import StageStatus
from ocr2cli.pipeline.process import Phase, WorkerProcess, describe_exit
from ocr2cli.pipeline.stage import Stage

logger = logging.getLogger("ocr2")

# A worker that loads may stand still for so long at least, however short --page-timeout is: it
# waits for a disk, not for a page.
LOADING_SILENCE_S = 60.0
# After which somebody who waits is told what for.
_SLOW_LOADING_S = 60.0
# A stage that has read nothing while its workers died of so many pages is at fault, not the pages.
_MAX_DEADLY_PAGES = 25


class Staff:
    """One stage's workers by slot, its queue, and the totals of the run."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.workers: list[WorkerProcess | None] = [None] * stage.num_workers
        self.waiting: deque[Ticket] = deque()
        self.waiting_apart: deque[Ticket] = deque()
        self.num_spawned = 0
        self.slots_used: set[int] = set()
        self.num_emitted = 0
        self.num_moves = 0
        self.num_deaths = 0
        self.num_unblamed_deaths = 0
        self.num_unsettled_deaths = 0
        self.num_deadly_pages = 0
        self.first_mute_death: float | None = None  # by the clock
        self.was_ready = False
        self.is_slow_loading_told = False
        self.busy_s = 0.0

    @property
    def total_credit(self) -> int:
        return self.stage.credit * self.stage.num_workers

    @property
    def loading_limit_s(self) -> float:
        """How long a worker that loads may make no progress; 0: without end."""
        return max(self.stage.timeout_s, LOADING_SILENCE_S) if self.stage.timeout_s else 0.0

    @property
    def live(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker is not None]

    @property
    def num_held(self) -> int:
        return sum(len(worker.held) for worker in self.live)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.waiting_apart)

    def enqueue(self, ticket: Ticket, *, is_first: bool = False) -> None:
        queue = self.waiting_apart if ticket.stage in ticket.company else self.waiting
        if is_first:
            queue.appendleft(ticket)
        else:
            queue.append(ticket)

    def next_pair(self) -> tuple[Ticket, WorkerProcess] | None:
        """The next item and its worker. A suspect goes first, to a worker that holds its company or
        nothing."""
        workers = [worker for worker in self.live if worker.is_open]
        for ticket in self.waiting_apart:
            for worker in workers:
                if worker.company is ticket.company[ticket.stage]:
                    self.waiting_apart.remove(ticket)
                    return ticket, worker
        free = [worker for worker in workers if worker.company is None]
        free.sort(key=lambda worker: len(worker.held))
        if self.waiting_apart and free:
            if not free[0].held:
                return self.waiting_apart.popleft(), free[0]
            # Let the least loaded one run empty for the suspect.
            del free[0]
        if self.waiting and free:
            return self.waiting.popleft(), free[0]
        return None

    def unqueue(self) -> list[Ticket]:
        """Empty the queue; returns what was in it."""
        tickets = [*self.waiting, *self.waiting_apart]
        self.waiting.clear()
        self.waiting_apart.clear()
        return tickets

    def release(self, worker: WorkerProcess, serial: int) -> Ticket:
        """Book an answer; returns the page it answers."""
        ticket = worker.release(serial)
        self.num_emitted += 1
        self.num_unblamed_deaths = 0
        if not worker.held:
            self.busy_s += time.monotonic() - worker.busy_since
        return ticket

    def note_progress(self, worker: WorkerProcess) -> None:
        """What it holds has moved on: it is not silent."""
        worker.quiet_since = time.monotonic()
        self.num_moves += 1

    def tell_slow_loading(self, worker: WorkerProcess) -> None:
        """Once for all workers of the stage."""
        loading_s = time.monotonic() - worker.started
        if self.is_slow_loading_told or loading_s < _SLOW_LOADING_S:
            return
        self.is_slow_loading_told = True
        logger.warning("the %s worker has been loading for %.0f s", self.stage.name, loading_s)

    def note_failure(self, worker: WorkerProcess) -> None:
        """A page failed because of this worker's death. Where the worker had taken no other, it is
        known which one is deadly, and the next one may be read: all is not lost."""
        if len(worker.taken) == 1:
            self.num_deadly_pages += 1
            self.num_unsettled_deaths = 0

    def note_death(self, worker: WorkerProcess) -> None:
        self.num_deaths += 1
        if self._is_mute(worker):
            if self.first_mute_death is None:
                self.first_mute_death = time.monotonic()
        else:
            self.num_unsettled_deaths += 1
            self.num_unblamed_deaths += not worker.taken
        if worker.held:
            self.busy_s += time.monotonic() - worker.busy_since

    def _is_mute(self, worker: WorkerProcess) -> bool:
        """It died without a word while it was loading, and none of the stage was ever ready."""
        return not worker.failure and not self.was_ready

    def _has_died_again(self, worker: WorkerProcess) -> bool:
        """One that is killed while it loads may be so by chance, and others with it: one lack of
        memory hits all that load at once. Not by chance, one that was started after that."""
        first = self.first_mute_death
        return self._is_mute(worker) and first is not None and worker.started >= first

    def page_error(self, worker: WorkerProcess, exit_status: int) -> PageError:
        """Why the pages of a dead worker have to go back, for people."""
        name = self.stage.name
        if worker.has_stalled:
            return PageError(
                "timeout",
                f"the {name} worker made no progress for {self.loading_limit_s:g} s while loading "
                "and was killed",
            )
        if worker.is_timed_out:
            limit_s = self.stage.timeout_s
            return PageError(
                "timeout", f"the {name} worker was silent for {limit_s:g} s and was killed"
            )
        if worker.failure:
            return worker.failure.page_error(name)
        return PageError("worker_died", f"the {name} worker {describe_exit(exit_status)}")

    def run_error(
        self, worker: WorkerProcess, exit_status: int, hopeless_after: int
    ) -> Ocr2Error | None:
        """The end of the run, where another try cannot help."""
        name, failure = self.stage.name, worker.failure
        limit = self.stage.memory_limit_bytes
        is_mute = self._has_died_again(worker)
        is_foreign = failure is not None and failure.is_loading and not failure.is_ours
        # Libraries that want memory say so in many ways: an import error, a signal.
        if limit and (is_mute or is_foreign) and not worker.is_timed_out:
            why = failure.message if failure else f"it {describe_exit(exit_status)}"
            return EngineError(
                f"the {name} worker could not be loaded in {limit / 1e9:g} GB. Give it more with "
                f"--worker-memory, or leave that out ({why})"
            )
        if failure and (error := failure.run_error(name)):
            return error
        if is_mute:
            why = self.page_error(worker, exit_status).message
            return EngineError(
                f"{why}. It was loading, as was one that died before it, and none was ever ready. "
                f"{self._advice(worker)}"
            )
        is_useless = not self.num_emitted and (
            self.num_unsettled_deaths >= hopeless_after
            or self.num_deadly_pages >= _MAX_DEADLY_PAGES
        )
        if is_useless or self.num_unblamed_deaths > MAX_UNBLAMED_DEATHS:
            last = self.page_error(worker, exit_status)
            return EngineError(
                f"giving up: {self.num_deaths} {name} workers have died; the last time "
                f"{last.message}. {self._advice(worker)}"
            )
        return None

    def _advice(self, worker: WorkerProcess) -> str:
        """Nothing of going on: whether there is a journal only the caller knows."""
        if worker.has_stalled:
            return "See whether the disk that its files are on still answers"
        if worker.is_timed_out:
            return (
                "`ocr2 run` gives pages more time with --page-timeout (now "
                f"{self.stage.timeout_s:g}), and reads those that failed with --retry-failed"
            )
        return f"If that was for want of memory, {self.stage.remedy}"

    def status(self) -> StageStatus:
        """Also from another thread: what is held may be answered between two lines here."""
        now = time.monotonic()
        busy = [worker for worker in self.live if worker.held]
        slowest = min(busy, key=lambda worker: worker.quiet_since, default=None)
        held = slowest.held.copy() if slowest else {}
        return StageStatus(
            self.stage.name,
            self.stage.num_workers,
            num_ready=sum(worker.phase is Phase.READY for worker in self.live),
            num_waiting=self.num_waiting,
            num_held=self.num_held,
            num_emitted=self.num_emitted,
            num_moves=self.num_moves,
            num_restarts=self.num_spawned - len(self.slots_used),
            num_deaths=self.num_deaths,
            busy_s=self.busy_s + sum(now - worker.busy_since for worker in busy),
            silence_s=now - slowest.quiet_since if slowest else 0.0,
            oldest=next((str(ticket.job.key) for ticket in held.values()), ""),
        )
