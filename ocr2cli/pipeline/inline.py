"""Runner: everything in this process, one worker per stage, one at a time.

Each worker has a thread, but only one thread runs at any moment: a worker that takes or emits hands
the turn back, and the runner gives it to the last stage that can go on. A stage that asks for many
items gets them before it runs, so batching is the same on every run. Knows no processes: no
restarts after a crash of the interpreter, no watchdog, no memory limits, no recycling.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ocr2cli.errors import EngineError, Ocr2Error
from ocr2cli.pages import PageJob, PageKey, PageResult
from ocr2cli.pipeline.failure import MAX_UNBLAMED_DEATHS, describe, tell_death
from ocr2cli.pipeline.ledger import Ledger, Ticket, failed_result, not_a_result
from ocr2cli.pipeline.options import RunnerOptions, StageStatus
from ocr2cli.pipeline.stage import Stage, Worker

_IDLE_S = 0.01
# For a worker that swallows being abandoned; any other is waited for: a thread that frees tensors
# while Python ends aborts the process.
_JOIN_S = 30.0
# Turns a worker gets to notice that its inbox is closed.
_MAX_LAST_TURNS = 100


def run(
    stages: Sequence[Stage],
    jobs: Iterable[PageJob | None],
    *,
    options: RunnerOptions | None = None,
) -> Iterator[PageResult]:
    """Read every job; see `local.run`, whose results are the same.

    A worker that raises is replaced; its pages go back and run with nothing else under way.
    """
    runner = _Runner(stages, iter(jobs), options or RunnerOptions())
    try:
        yield from runner.results()
    finally:
        runner.close()


class _Abandoned(BaseException):
    """Unwinds a worker's thread when the run ends early."""


class _Turn:
    """Hands control to and fro between the runner and one worker's thread."""

    def __init__(self) -> None:
        self._to_worker = threading.Semaphore(0)
        self._to_runner = threading.Semaphore(0)
        self.is_abandoned = False

    def give(self) -> None:
        """Let the worker run until it takes, emits or ends."""
        self._to_worker.release()
        self._to_runner.acquire()

    def hand_back(self) -> None:
        """In the worker's thread: wait for the next turn."""
        self._to_runner.release()
        self.await_turn()

    def await_turn(self) -> None:
        self._to_worker.acquire()
        if self.is_abandoned:
            raise _Abandoned

    def end(self) -> None:
        self._to_runner.release()

    def abandon(self) -> None:
        self.is_abandoned = True
        self._to_worker.release()


class _Seat:
    """One stage's worker, its thread and its inbox (it is the worker's `Inbox`)."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.queue: deque[tuple[Ticket, Any]] = deque()
        self.held: dict[PageKey, Ticket] = {}
        self.emitted: deque[tuple[Ticket, Any]] = deque()
        # A worker not made yet wants one item; it is made when that comes.
        self.num_wanted, self.must_wait = 1, True
        self.is_source_closed = False
        self.is_done = False
        self.error: BaseException | None = None
        self.is_loaded = False
        self.num_emitted = 0
        self.num_deaths = 0
        self.num_unblamed_deaths = 0
        self.busy_s = 0.0
        self._turn = _Turn()
        self._thread: threading.Thread | None = None

    # -- called by the runner

    @property
    def wants_more(self) -> bool:
        """It stands in `take` (or is not made yet) and has less than it asked for."""
        room = max(0, self.stage.credit - len(self.held))
        return len(self.queue) < min(self.num_wanted, room)

    @property
    def can_go_on(self) -> bool:
        """False when it would only wait, or look into an empty inbox with nothing in hand."""
        may_look = bool(self.held) and not self.must_wait
        return bool(self.queue) or not self.num_wanted or may_look  # none wanted: between takes

    def resume(self) -> None:
        """Run the worker until it takes, emits or ends."""
        started = time.monotonic()
        if self._thread is None:
            thread = threading.Thread(
                target=self._main, name=f"ocr2-{self.stage.name}", daemon=True
            )
            thread.start()  # where there can be no further thread, none is to be joined
            self._thread = thread
        self._turn.give()
        self.busy_s += time.monotonic() - started

    def reset(self) -> None:
        """Forget a worker that died; the next `resume` makes a new one, for what is in the queue
        too."""
        self.num_unblamed_deaths += not self.held
        self.held.clear()
        self.error, self._thread, self._turn = None, None, _Turn()
        self.num_wanted, self.must_wait, self.is_loaded = 1, True, False
        self.num_deaths += 1

    def abandon(self) -> None:
        if self._thread is not None:
            self._turn.abandon()
            self._thread.join(_JOIN_S)

    # -- called in the worker's thread

    def take(self, max_items: int, *, wait: bool) -> list[Any]:
        """See `stage.Inbox.take`."""
        self.num_wanted, self.must_wait = max_items, wait
        self._turn.hand_back()
        self.num_wanted, self.must_wait = 0, False
        taken = [self.queue.popleft() for _ in range(min(max_items, len(self.queue)))]
        self.held.update((item.key, ticket) for ticket, item in taken)
        return [item for _, item in taken]

    def note_progress(self) -> None:
        """Nobody waits for it with a clock; but a run that Ctrl-C ended goes no further."""
        if self._turn.is_abandoned:
            raise _Abandoned

    @property
    def is_closed(self) -> bool:
        return self.is_source_closed and not self.queue

    def emit(self, item: Any) -> None:
        if item.key not in self.held:
            raise RuntimeError(f"the worker emitted {item.key}, which it does not hold")
        self.emitted.append((self.held.pop(item.key), item))
        self.num_emitted += 1
        self.num_unblamed_deaths = 0
        self._turn.hand_back()

    def _main(self) -> None:
        worker: Worker | None = None
        try:
            self._turn.await_turn()
            self.num_wanted, self.must_wait = 0, False
            worker = self.stage.make_worker()
            self.is_loaded = True
            worker.run(self, self.emit)
            if self.held or not self.is_closed:
                raise RuntimeError(f"the worker returned too early, holding {len(self.held)} pages")
            self.is_done = True
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        worker = None  # freed in its own turn
        self._turn.end()


class _Runner:
    """Decides whose turn it is."""

    def __init__(
        self, stages: Sequence[Stage], jobs: Iterator[PageJob | None], options: RunnerOptions
    ) -> None:
        if not stages:
            raise ValueError("a run needs at least one stage")
        self._options = options
        self._seats = [_Seat(stage) for stage in stages]
        self._jobs = jobs
        self._has_jobs = True
        self._is_source_idle = False
        self._ledger = Ledger(options.retries)
        self._suspects: deque[Ticket] = deque()
        self._ready: deque[PageResult] = deque()
        self._fatal: Ocr2Error | None = None
        self._drain_until: float | None = None
        options.status.probe = self._snapshot

    def results(self) -> Iterator[PageResult]:
        while not self._should_end():
            seat = self._choose(len(self._seats) - 1)
            if seat is not None:
                seat.resume()
                self._collect(seat)
            elif self._is_source_idle:
                time.sleep(_IDLE_S)
            elif self._ledger:
                self._fatal = EngineError("a worker holds pages and waits for more; nothing moves")
            while self._ready:
                yield self._ready.popleft()
            if self._fatal:
                raise self._fatal
        self._ledger.check()
        self._close_gently()

    def close(self) -> None:
        for seat in self._seats:
            seat.abandon()

    # -- whose turn

    def _choose(self, index: int) -> _Seat | None:
        """Who must run so that seat `index` gets on: itself, or one before it that feeds it."""
        seat = self._seats[index]
        while seat.wants_more:
            if index == 0:
                if self._pull():
                    continue
                break
            feeder = self._choose(index - 1)
            if feeder is not None:
                return feeder
            break
        return seat if seat.can_go_on else None

    def _pull(self) -> bool:
        """Put one page before the first stage; False when there is none for now.

        A suspect runs with nothing else under way.
        """
        num_started = len(self._ledger) - len(self._suspects)
        if self._suspects and not num_started:
            self._start(self._suspects.popleft())
            return True
        is_reserved = any(each.faults for each in self._ledger.tickets())
        return not is_reserved and self._pull_job()

    def _pull_job(self) -> bool:
        self._is_source_idle = False
        if not self._has_jobs:
            return False
        try:
            job = next(self._jobs)
        except StopIteration:
            self._has_jobs = False
            return False
        if job is None:
            self._is_source_idle = True
            return False
        ticket = self._ledger.admit(job)
        if job.error:
            self._ready.append(self._ledger.finish(ticket, failed_result(job, job.error)))
            return False
        self._start(ticket)
        return True

    def _start(self, ticket: Ticket) -> None:
        self._seats[0].queue.append((ticket, ticket.job))

    # -- what came of it

    def _collect(self, seat: _Seat) -> None:
        while seat.emitted:
            self._accept(*seat.emitted.popleft())
        if seat.error is not None:
            self._bury(seat, seat.error)

    def _accept(self, ticket: Ticket, item: Any) -> None:
        if isinstance(item, PageResult):
            self._ready.append(self._ledger.finish(ticket, item))
        elif ticket.stage + 1 == len(self._seats):
            error = not_a_result(self._seats[-1].stage.name)
            self._ready.append(self._ledger.finish(ticket, failed_result(ticket.job, error)))
        else:
            ticket.stage += 1
            self._seats[ticket.stage].queue.append((ticket, item))

    def _bury(self, seat: _Seat, error: BaseException) -> None:
        failure = describe(error, is_loading=not seat.is_loaded)
        self._fatal = failure.run_error(seat.stage.name)
        if self._fatal:
            return
        held = list(seat.held.values())
        fault = failure.page_error(seat.stage.name)
        seat.reset()
        num_again = 0
        for ticket in held:
            result = self._ledger.fault(ticket, fault)
            if result:
                self._ready.append(result)
            else:
                self._suspects.append(ticket)
                num_again += 1
        if seat.num_unblamed_deaths > MAX_UNBLAMED_DEATHS:
            self._fatal = EngineError(
                f"giving up: {seat.num_deaths} {seat.stage.name} workers have died; the last time "
                f"{fault.message}. If that was for want of memory, {seat.stage.remedy}"
            )
            return
        tell_death(fault, seat.num_deaths, num_held=len(held), num_again=num_again)

    # -- the end

    def _should_end(self) -> bool:
        if self._options.stop() and self._heed_stop():
            return True
        return not (self._has_jobs or self._ledger or self._ready)

    def _heed_stop(self) -> bool:
        """Begin or end the drain; True when the run must end now."""
        now = time.monotonic()
        self._options.status.is_interrupted = True
        if self._drain_until is None:
            self._drain_until = now + self._options.drain_s
            self._has_jobs = self._is_source_idle = False
            # A page waits before the first stage while that is loaded: the stop may come then.
            first = self._seats[0].queue
            for ticket in [*self._suspects, *(ticket for ticket, _ in first)]:
                self._ledger.drop(ticket)
            self._suspects.clear()
            first.clear()
        return self._options.stop() >= 2 or now >= self._drain_until

    def _close_gently(self) -> None:
        """Let each worker see the end of its inbox and return; one that still holds pages of a run
        that was stopped is abandoned."""
        for seat in self._seats:
            seat.is_source_closed = True
            for _ in range(_MAX_LAST_TURNS):
                if not seat.is_loaded or seat.is_done or seat.error or seat.held:
                    break
                seat.resume()

    def _snapshot(self) -> tuple[StageStatus, ...]:
        return tuple(
            StageStatus(
                seat.stage.name,
                1,
                num_ready=int(seat.is_loaded),
                num_waiting=len(seat.queue),
                num_held=len(seat.held),
                num_emitted=seat.num_emitted,
                num_restarts=seat.num_deaths,
                num_deaths=seat.num_deaths,
                busy_s=seat.busy_s,
                # A copy: another thread may ask, while a page is answered.
                oldest=next((str(key) for key in seat.held.copy()), ""),
            )
            for seat in self._seats
        )
