"""Runner: worker processes on this machine, fed through pipes, watched and replaced.

The parent sees headers, deaths and silence; it opens no item but results. Memory is bounded: a
stage is given an item only while what it holds, and what the next stage has not yet taken from it,
is less than its credit. Knows nothing about what the items are.
"""

from __future__ import annotations

import json
import logging
import selectors
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ocr2cli.errors import EngineError, Ocr2Error
from ocr2cli.pages import PageError, PageJob, PageResult
from ocr2cli.pipeline.channel import Frame, Kind, decode_item
from ocr2cli.pipeline.ledger import Ledger, Ticket, failed_result, not_a_result
from ocr2cli.pipeline.options import RunnerOptions, StageStatus
from ocr2cli.pipeline.process import Phase, WorkerProcess, describe_exit
from ocr2cli.pipeline.stage import Stage

# How long the loop sleeps at most: it bounds how late a stop request or a timeout is seen.
_TICK_S = 0.1
# How often an idle job source is asked again.
_IDLE_S = 0.01
_CLOSE_S = 2.0
# Results handed out before the workers are looked after again.
_MAX_READY_RESULTS = 8
# A worker that dies with no page to blame is replaced this often in a row.
_MAX_UNBLAMED_DEATHS = 10


def run(
    stages: Sequence[Stage],
    jobs: Iterable[PageJob | None],
    *,
    options: RunnerOptions | None = None,
) -> Iterator[PageResult]:
    """Read every job; yields one result per job, in the order they are finished.

    jobs: pulled lazily, in this thread, only when the first stage has room; None means "nothing
    now, ask again" (for a source that never ends). No worker is started before the first job.
    Closing the iterator early kills the workers.
    Raises: ModelError, EngineError or whatever a worker raised of ours while loading; EngineError
    when a stage keeps dying. Results finished before that have been yielded.
    """
    supervisor = _Supervisor(stages, iter(jobs), options or RunnerOptions())
    try:
        yield from supervisor.results()
    finally:
        supervisor.close()


class _StageState:
    """What the supervisor knows of one stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.workers: list[WorkerProcess | None] = [None] * stage.num_workers
        self.waiting: deque[Ticket] = deque()
        self.waiting_alone: deque[Ticket] = deque()
        self.num_spawned = 0
        self.num_emitted = 0
        self.num_deaths = 0
        self.num_unblamed_deaths = 0
        self.was_ready = False
        self.busy_s = 0.0

    @property
    def total_credit(self) -> int:
        return self.stage.credit * self.stage.num_workers

    @property
    def live(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker is not None]

    @property
    def num_held(self) -> int:
        return sum(len(worker.held) for worker in self.live)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.waiting_alone)


class _Supervisor:
    """The loop: admit jobs, hand out items, read answers, bury the dead."""

    def __init__(
        self, stages: Sequence[Stage], jobs: Iterator[PageJob | None], options: RunnerOptions
    ) -> None:
        if not stages:
            raise ValueError("a run needs at least one stage")
        self._options = options
        self._stages = [_StageState(stage) for stage in stages]
        self._ledger = Ledger(options.retries)
        self._jobs = jobs
        self._has_jobs = True
        self._is_source_idle = False
        self._drain_until: float | None = None
        self._fatal: Ocr2Error | None = None
        self._ready: deque[PageResult] = deque()
        self._selector = selectors.DefaultSelector()
        options.status.probe = self._snapshot

    def results(self) -> Iterator[PageResult]:
        while not self._should_end():
            self._admit()
            self._staff()
            for index in reversed(range(len(self._stages))):
                self._dispatch(index)
            self._poll()
            self._watch()
            handed_over = time.monotonic()
            while self._ready:
                yield self._ready.popleft()
            self._excuse(time.monotonic() - handed_over)
            if self._fatal:
                raise self._fatal
        self._ledger.check()
        self._close_gently()

    def close(self) -> None:
        """Kill and reap what is left. Safe at any moment."""
        workers = [worker for state in self._stages for worker in state.live]
        for worker in workers:
            worker.kill()
        for worker in workers:
            self._remove(worker)
        self._selector.close()

    def _excuse(self, seconds: float) -> None:
        """The caller was busy: workers may have been blocked on full pipes or starved of items."""
        for state in self._stages:
            for worker in state.live:
                worker.excuse(seconds)

    # -- what ends a run

    def _should_end(self) -> bool:
        if self._heed_stop():
            return True
        return not (self._has_jobs or self._ledger or self._ready)

    def _heed_stop(self) -> bool:
        """Begin or end the drain; True when the run must end now."""
        num_requests = self._options.stop()
        if not num_requests:
            return False
        now = time.monotonic()
        self._options.status.is_interrupted = True
        if self._drain_until is None:
            self._drain_until = now + self._options.drain_s
            self._has_jobs = self._is_source_idle = False
            for ticket in self._drop_unstarted():
                self._ledger.drop(ticket)
        if num_requests >= 2 or now >= self._drain_until:
            for ticket in self._ledger.tickets():
                self._ledger.drop(ticket)
            return True
        return False

    def _drop_unstarted(self) -> list[Ticket]:
        first = self._stages[0]
        unstarted = [*first.waiting, *first.waiting_alone]
        first.waiting.clear()
        first.waiting_alone.clear()
        return unstarted

    # -- jobs in

    def _admit(self) -> None:
        first = self._stages[0]
        self._is_source_idle = False
        while self._has_jobs and len(self._ready) < _MAX_READY_RESULTS:
            if first.num_held + first.num_waiting >= first.total_credit:
                return
            try:
                job = next(self._jobs)
            except StopIteration:
                self._has_jobs = False
                return
            if job is None:
                self._is_source_idle = True
                return
            self._admit_job(job)

    def _admit_job(self, job: PageJob) -> None:
        ticket = self._ledger.admit(job)
        if job.error:
            self._ready.append(self._ledger.finish(ticket, failed_result(job, job.error)))
        else:
            self._enqueue(ticket)

    # -- items down

    def _staff(self) -> None:
        """Start the workers there is work for; an idle slot costs no weights."""
        stage_of = [ticket.stage for ticket in self._ledger.tickets()]
        for index, state in enumerate(self._stages):
            num_coming = sum(stage <= index for stage in stage_of)
            for slot in range(min(num_coming, len(state.workers))):
                if state.workers[slot] is None:
                    self._start(index, slot)

    def _start(self, index: int, slot: int) -> None:
        state = self._stages[index]
        try:
            worker = WorkerProcess(state.stage, index, slot, self._options.heartbeat_s)
        except OSError as error:
            raise EngineError(
                f"the {state.stage.name} worker could not be started: {error.strerror}; use fewer "
                "workers or free some memory"
            ) from error
        state.workers[slot] = worker
        state.num_spawned += 1
        self._selector.register(worker.up_fd, selectors.EVENT_READ, worker)
        self._flush(worker)

    def _dispatch(self, index: int) -> None:
        state = self._stages[index]
        while state.num_waiting and self._has_room_after(index):
            ticket, worker = self._match(state)
            if ticket is None or worker is None:
                return
            worker.send(ticket)
            worker.is_exclusive = index in ticket.alone_in
            self._flush(worker)

    def _has_room_after(self, index: int) -> bool:
        state = self._stages[index]
        parked = self._stages[index + 1].num_waiting if index + 1 < len(self._stages) else 0
        return state.num_held + parked < state.total_credit

    def _match(self, state: _StageState) -> tuple[Ticket | None, WorkerProcess | None]:
        """The next item and its worker. A suspect goes first, to a worker that holds nothing."""
        workers = [worker for worker in state.live if worker.is_open]
        workers.sort(key=lambda worker: len(worker.held))
        if state.waiting_alone and workers:
            if not workers[0].held:
                return state.waiting_alone.popleft(), workers[0]
            # Let the least loaded one run empty for the suspect.
            del workers[0]
        if state.waiting and workers:
            return state.waiting.popleft(), workers[0]
        return None, None

    def _enqueue(self, ticket: Ticket, *, is_first: bool = False) -> None:
        state = self._stages[ticket.stage]
        queue = state.waiting_alone if ticket.stage in ticket.alone_in else state.waiting
        if is_first:
            queue.appendleft(ticket)
        else:
            queue.append(ticket)

    # -- answers up

    def _poll(self) -> None:
        if self._ready or not (self._ledger or self._is_source_idle):
            timeout_s = 0.0
        else:
            timeout_s = _IDLE_S if self._is_source_idle else _TICK_S
        for key, events in self._selector.select(timeout_s):
            worker: WorkerProcess = key.data
            if worker is not self._stages[worker.stage_index].workers[worker.slot]:
                continue  # buried by an earlier event of this round
            if events & selectors.EVENT_WRITE:
                self._flush(worker)
            elif events & selectors.EVENT_READ:
                self._receive(worker)

    def _flush(self, worker: WorkerProcess) -> None:
        """Write what fits; ask to be woken for the rest."""
        was_pending = worker.down_fd in self._selector.get_map()
        worker.flush()
        if worker.has_pending and not was_pending:
            self._selector.register(worker.down_fd, selectors.EVENT_WRITE, worker)
        elif was_pending and not worker.has_pending:
            self._selector.unregister(worker.down_fd)

    def _receive(self, worker: WorkerProcess) -> None:
        frames, is_ended = worker.read()
        for frame in frames:
            self._handle(worker, frame)
        if is_ended:
            self._bury(worker)

    def _handle(self, worker: WorkerProcess, frame: Frame) -> None:
        state = self._stages[worker.stage_index]
        if frame.kind is Kind.READY:
            worker.phase = Phase.READY
            state.was_ready = True
        elif frame.kind is Kind.TAKEN:
            worker.taken.update(serial for (serial,) in struct.iter_unpack("<Q", frame.body))
        elif frame.kind is Kind.LOG:
            facts = json.loads(frame.body)
            logging.getLogger(facts["name"]).log(facts["level"], "%s", facts["message"])
        elif frame.kind in (Kind.ITEM, Kind.RESULT):
            self._accept(worker, frame)

    def _accept(self, worker: WorkerProcess, frame: Frame) -> None:
        state = self._stages[worker.stage_index]
        ticket = worker.release(frame.serial)
        state.num_emitted += 1
        state.num_unblamed_deaths = 0
        if not worker.held:
            state.busy_s += time.monotonic() - worker.busy_since
        if frame.kind is Kind.RESULT:
            self._ready.append(self._ledger.finish(ticket, decode_item(frame.body)))
        elif ticket.stage + 1 == len(self._stages):
            error = not_a_result(state.stage.name)
            self._ready.append(self._ledger.finish(ticket, failed_result(ticket.job, error)))
        else:
            ticket.stage += 1
            ticket.body = frame.body
            self._enqueue(ticket)

    # -- deaths

    def _watch(self) -> None:
        for state in self._stages:
            for worker in state.live:
                self._kill_if_silent(worker)
                if worker.has_exited():
                    self._bury(worker)

    def _kill_if_silent(self, worker: WorkerProcess) -> None:
        silence_s = time.monotonic() - worker.quiet_since
        timeout_s = worker.stage.timeout_s
        if worker.held and worker.phase is not Phase.LOADING:
            if timeout_s and silence_s > timeout_s:
                worker.is_timed_out = True
                worker.kill()
        elif worker.phase is Phase.CLOSING and silence_s > _CLOSE_S:
            worker.kill()

    def _bury(self, worker: WorkerProcess) -> None:
        """Take leave of a process that has ended, by our wish or not."""
        self._read_rest(worker)
        state = self._stages[worker.stage_index]
        phase, status = worker.phase, self._remove(worker)
        if phase is Phase.CLOSING and not worker.held and not worker.failure:
            return
        state.num_deaths += 1
        if worker.held:
            state.busy_s += time.monotonic() - worker.busy_since
        if not worker.taken:
            state.num_unblamed_deaths += 1
        self._send_back(worker, _fault(state.stage, worker, status))
        if not self._fatal and not self._is_stopping_with(worker):
            self._fatal = _run_error(state, worker, status) or self._despair(state)

    def _is_stopping_with(self, worker: WorkerProcess) -> bool:
        """The signal that stops us may hit workers too, before they are up and ignore it."""
        return self._options.stop() > 0 and worker.failure is None

    def _despair(self, state: _StageState) -> EngineError | None:
        """Stop replacing a stage's workers when that leads nowhere."""
        is_useless = not state.num_emitted and state.num_deaths >= self._options.hopeless_after
        if not is_useless and state.num_unblamed_deaths <= _MAX_UNBLAMED_DEATHS:
            return None
        return EngineError(f"giving up: {state.num_deaths} {state.stage.name} workers have died")

    def _read_rest(self, worker: WorkerProcess) -> None:
        """What a dead worker wrote before it died still counts."""
        is_ended = False
        while not is_ended:
            frames, is_ended = worker.read()
            for frame in frames:
                self._handle(worker, frame)
            if not frames and not is_ended:
                # A process it left behind keeps the pipe open; nothing more will come.
                return

    def _remove(self, worker: WorkerProcess) -> int:
        for fd in (worker.up_fd, worker.down_fd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        self._stages[worker.stage_index].workers[worker.slot] = None
        return worker.bury()

    def _send_back(self, worker: WorkerProcess, fault: PageError) -> None:
        """Pages it had taken are suspects; those still in its inbox only start again."""
        for serial, ticket in reversed(worker.held.items()):
            if self._drain_until is not None:
                self._ledger.drop(ticket)
            elif serial not in worker.taken:
                self._ledger.rewind(ticket)
                self._enqueue(ticket, is_first=True)
            elif result := self._ledger.fault(ticket, fault):
                self._ready.append(result)
            else:
                self._enqueue(ticket, is_first=True)

    # -- the end

    def _close_gently(self) -> None:
        """Let workers leave by themselves, so that devices are given back in order."""
        if self._options.status.is_interrupted:
            return
        workers = [worker for state in self._stages for worker in state.live]
        for worker in workers:
            worker.close_inbox()
            worker.flush()
        deadline = time.monotonic() + _CLOSE_S
        while time.monotonic() < deadline and not all(each.has_exited() for each in workers):
            time.sleep(0.002)

    def _snapshot(self) -> tuple[StageStatus, ...]:
        return tuple(_stage_status(state) for state in self._stages)


def _stage_status(state: _StageState) -> StageStatus:
    now = time.monotonic()
    busy = [worker for worker in state.live if worker.held]
    slowest = min(busy, key=lambda worker: worker.quiet_since, default=None)
    ages = [now - worker.last_sign for worker in state.live]
    return StageStatus(
        state.stage.name,
        state.stage.num_workers,
        num_ready=sum(worker.phase is Phase.READY for worker in state.live),
        num_waiting=state.num_waiting,
        num_held=state.num_held,
        num_emitted=state.num_emitted,
        num_restarts=max(0, state.num_spawned - state.stage.num_workers),
        busy_s=state.busy_s + sum(now - worker.busy_since for worker in busy),
        silence_s=now - slowest.quiet_since if slowest else 0.0,
        oldest=str(next(iter(slowest.held.values())).job.key) if slowest else "",
        heartbeat_age_s=max(ages, default=0.0),
    )


def _fault(stage: Stage, worker: WorkerProcess, status: int) -> PageError:
    """Why the pages of a dead worker have to go back, for people."""
    if worker.is_timed_out:
        message = f"the {stage.name} worker was silent for {stage.timeout_s:g} s and was killed"
        return PageError("timeout", message)
    if worker.failure:
        return worker.failure.page_error(stage.name)
    return PageError("worker_died", f"the {stage.name} worker {describe_exit(status)}")


def _run_error(state: _StageState, worker: WorkerProcess, status: int) -> Ocr2Error | None:
    """The end of the run, where another try cannot help."""
    if worker.failure:
        return worker.failure.run_error(state.stage.name)
    if worker.phase is Phase.LOADING and not state.was_ready:
        return EngineError(
            f"the {state.stage.name} worker {describe_exit(status)} while loading; "
            "if that was for want of memory, use fewer workers or a smaller --dtype"
        )
    return None
