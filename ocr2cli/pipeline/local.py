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
from ocr2cli.pipeline.failure import tell_death
from ocr2cli.pipeline.ledger import Ledger, failed_result, not_a_result
from ocr2cli.pipeline.options import RunnerOptions, StageStatus
from ocr2cli.pipeline.process import Phase, WorkerProcess
from ocr2cli.pipeline.staff import Staff
from ocr2cli.pipeline.stage import Stage

# How long the loop sleeps at most: it bounds how late a stop request or a timeout is seen.
_TICK_S = 0.1
# How often an idle job source is asked again.
_IDLE_S = 0.01
_CLOSE_S = 2.0
# Results handed out before the workers are looked after again.
_MAX_READY_RESULTS = 8


def run(
    stages: Sequence[Stage],
    jobs: Iterable[PageJob | None],
    *,
    options: RunnerOptions | None = None,
) -> Iterator[PageResult]:
    """Read every job; yields one result per job, in the order they are finished.

    jobs: pulled lazily, in this thread, only when the first stage has room; None means "nothing
    now, ask again" (for a source that never ends). No worker is started before the first job.
    Closing the iterator early kills the workers. Iterate in a thread that lives as long as the
    run: Linux ends workers with the thread that started them.
    Raises: ModelError, EngineError or whatever a worker raised of ours while loading; EngineError
    when a stage keeps dying. Results finished before that have been yielded.
    """
    supervisor = _Supervisor(stages, iter(jobs), options or RunnerOptions())
    try:
        yield from supervisor.results()
    finally:
        supervisor.close()


class _Supervisor:
    """The loop: admit jobs, hand out items, read answers, bury the dead."""

    def __init__(
        self, stages: Sequence[Stage], jobs: Iterator[PageJob | None], options: RunnerOptions
    ) -> None:
        if not stages:
            raise ValueError("a run needs at least one stage")
        self._options = options
        self._stages = [Staff(stage) for stage in stages]
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
            for ticket in self._stages[0].unqueue():
                self._ledger.drop(ticket)
        return num_requests >= 2 or now >= self._drain_until

    # -- jobs in

    def _admit(self) -> None:
        first = self._stages[0]
        self._is_source_idle = False
        while self._has_jobs and len(self._ready) < _MAX_READY_RESULTS:
            if first.num_held + first.num_waiting >= first.total_credit:
                return
            asked = time.monotonic()
            try:
                job = next(self._jobs)
            except StopIteration:
                self._has_jobs = False
                return
            if job is None:  # asked again soon: a page that hangs meanwhile has no excuse
                self._is_source_idle = True
                return
            # The source may have taken over many pages of an earlier run first.
            self._excuse(time.monotonic() - asked)
            self._admit_job(job)

    def _admit_job(self, job: PageJob) -> None:
        ticket = self._ledger.admit(job)
        if job.error:
            self._ready.append(self._ledger.finish(ticket, failed_result(job, job.error)))
        else:
            self._stages[ticket.stage].enqueue(ticket)

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
            worker = WorkerProcess(state.stage, index, slot)
        except OSError as error:
            raise EngineError(
                f"the {state.stage.name} worker could not be started: {error.strerror}; "
                f"{state.stage.remedy}"
            ) from error
        state.workers[slot] = worker
        state.num_spawned += 1
        state.slots_used.add(slot)
        self._selector.register(worker.up_fd, selectors.EVENT_READ, worker)
        self._flush(worker)

    def _dispatch(self, index: int) -> None:
        state = self._stages[index]
        while state.num_waiting and self._has_room_after(index):
            pair = state.next_pair()
            if pair is None:
                return
            ticket, worker = pair
            worker.send(ticket)
            worker.company = ticket.company.get(index)
            self._flush(worker)

    def _has_room_after(self, index: int) -> bool:
        state = self._stages[index]
        parked = self._stages[index + 1].num_waiting if index + 1 < len(self._stages) else 0
        return state.num_held + parked < state.total_credit

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
        elif frame.kind is Kind.PROGRESS:
            state.note_progress(worker)
        elif frame.kind is Kind.LOG:
            facts = json.loads(frame.body)
            logging.getLogger(facts["name"]).log(facts["level"], "%s", facts["message"])
        elif frame.kind in (Kind.ITEM, Kind.RESULT):
            self._accept(worker, frame)

    def _accept(self, worker: WorkerProcess, frame: Frame) -> None:
        state = self._stages[worker.stage_index]
        ticket = state.release(worker, frame.serial)
        if frame.kind is Kind.RESULT:
            self._ready.append(self._ledger.finish(ticket, decode_item(frame.body)))
        elif ticket.stage + 1 == len(self._stages):
            error = not_a_result(state.stage.name)
            self._ready.append(self._ledger.finish(ticket, failed_result(ticket.job, error)))
        else:
            ticket.stage += 1
            ticket.body = frame.body
            self._stages[ticket.stage].enqueue(ticket)

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
        if worker.phase is Phase.LOADING:
            self._watch_loading(worker)
        elif worker.held:
            if timeout_s and silence_s > timeout_s:
                worker.is_timed_out = True
                worker.kill()
        elif worker.phase is Phase.CLOSING and silence_s > _CLOSE_S:
            worker.kill()

    def _watch_loading(self, worker: WorkerProcess) -> None:
        """It holds no page whose time could run. Large weights may take long, so only one that
        stands still is killed."""
        state = self._stages[worker.stage_index]
        state.tell_slow_loading(worker)
        limit_s = state.loading_limit_s
        if limit_s and worker.is_stalled(limit_s):
            worker.is_timed_out = worker.has_stalled = True
            worker.kill()

    def _bury(self, worker: WorkerProcess) -> None:
        """Take leave of a process that has ended, by our wish or not."""
        self._read_rest(worker)
        state = self._stages[worker.stage_index]
        phase, status = worker.phase, self._remove(worker)
        if phase is Phase.CLOSING and not worker.held and not worker.failure:
            return
        state.note_death(worker)
        fault, num_held = state.page_error(worker, status), len(worker.held)
        num_given_up = self._send_back(worker, fault)
        if self._fatal or self._is_stopping_with(worker):
            return
        self._fatal = state.run_error(worker, status, self._options.hopeless_after)
        if not self._fatal:
            num_again = num_held - num_given_up
            tell_death(fault, state.num_deaths, num_held=num_held, num_again=num_again)

    def _is_stopping_with(self, worker: WorkerProcess) -> bool:
        """The signal that stops us may hit workers too, before they are up and ignore it."""
        return self._options.stop() > 0 and worker.failure is None

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

    def _send_back(self, worker: WorkerProcess, fault: PageError) -> int:
        """Pages it had taken are suspects; those still in its inbox only start again. Returns how
        many have failed for good."""
        held = worker.held
        if self._drain_until is not None:
            for ticket in held.values():
                self._ledger.drop(ticket)
            return 0
        suspects = [ticket for serial, ticket in held.items() if serial in worker.taken]
        given_up = {result.key: result for result in self._ledger.suspect(suspects, fault)}
        for serial, ticket in reversed(held.items()):
            if result := given_up.get(ticket.job.key):
                self._stages[worker.stage_index].note_failure(worker)
                self._ready.append(result)
                continue
            if serial not in worker.taken:
                self._ledger.rewind(ticket)
            self._stages[ticket.stage].enqueue(ticket, is_first=True)
        return len(given_up)

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
        return tuple(state.status() for state in self._stages)
