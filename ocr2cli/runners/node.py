"""One node's side of the Ray runner: a whole local runner, fed and emptied by calls.

Lives in a Ray actor, but imports no Ray. Commits nothing: whatever it holds when it is killed is
read again elsewhere. Knows nothing about other nodes, the journal or files that are written.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ocr2cli import __version__
from ocr2cli.document.files import shown
from ocr2cli.document.urls import is_url
from ocr2cli.errors import EngineError
from ocr2cli.pages import PageError, PageJob, PageResult
from ocr2cli.pipeline import local
from ocr2cli.pipeline.failure import Failure, describe
from ocr2cli.pipeline.ledger import failed_result
from ocr2cli.pipeline.options import RunnerOptions, RunStatus, StageStatus
from ocr2cli.pipeline.stage import Stage

# Results that are finished shortly after each other travel together.
_LINGER_S = 0.02
# How long an idle node sleeps before it looks whether it should end.
_IDLE_S = 1.0
_MAX_LOG_LINES = 100


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """What a node is told once. stages: used when there is no `make_plan` (see ClusterOptions)."""

    name: str
    version: str
    stages: tuple[Stage, ...]
    make_plan: Callable[[int], Any] | None
    fingerprint: str
    num_cores: int
    retries: int
    drain_s: float
    hopeless_after: int
    log_level: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A node's answer to one call.

    num_wanted: pages it likes to hold, so that no stage of it waits; 0 while it makes its plan.
    failure: why its runner ended, when it did not end by request. logs: (level, line).
    """

    results: tuple[PageResult, ...] = ()
    stages: tuple[StageStatus, ...] = ()
    num_wanted: int = 0
    is_ended: bool = False
    failure: Failure | None = None
    logs: tuple[tuple[int, str], ...] = ()


class Node:
    """A local runner in a thread of its own, which lives as long as the actor's process.

    The thread matters: Linux ends workers with the thread that started them, and that is how a
    killed actor leaves none behind.
    """

    def __init__(self, setup: NodeSetup) -> None:
        self._setup = setup
        self._jobs: queue.SimpleQueue[PageJob | None] = queue.SimpleQueue()
        self._finished: deque[PageResult] = deque()
        self._logs: deque[tuple[int, str]] = deque(maxlen=_MAX_LOG_LINES)
        self._changed = threading.Condition()
        self._num_held = 0
        self._num_stops = 0
        self._num_wanted = 0
        self._is_closed = False
        self._is_ended = False
        self._failure: Failure | None = None
        self._status = RunStatus()
        logger = logging.getLogger("ocr2")
        logger.setLevel(setup.log_level)
        logger.addHandler(_Keeper(self._logs))
        threading.Thread(target=self._main, name="ocr2-node", daemon=True).start()

    def turn(self, jobs: Sequence[PageJob], num_stops: int, wait_s: float) -> Turn:
        """Take jobs, give what is finished; wait up to `wait_s` for a first result.

        A job whose file this node does not see comes back failed. num_stops: stop requests so far.
        """
        seen: list[PageJob] = []
        unseen: list[PageJob] = []
        for job in jobs:  # each is looked at once: a file may come or go at any time
            (seen if _is_visible(job.path) else unseen).append(job)
        with self._changed:
            self._finished.extend(failed_result(job, self._not_here(job)) for job in unseen)
            self._num_held += len(jobs)
        for job in seen:
            self._jobs.put(job)
        if num_stops != self._num_stops:
            self._num_stops = num_stops
            self._jobs.put(None)
        return self._answer(wait_s)

    def close(self) -> None:
        """Let the runner end by itself and its workers with it; returns when it has."""
        self._is_closed = True
        self._jobs.put(None)
        with self._changed:
            self._changed.wait_for(lambda: self._is_ended)

    def _answer(self, wait_s: float) -> Turn:
        with self._changed:
            self._changed.wait_for(self._has_news, wait_s)
            if self._finished and not self._is_ended:
                self._changed.wait_for(lambda: self._is_ended, _LINGER_S)
            is_ended = self._is_ended
            results = tuple(self._finished)
            self._finished.clear()
            self._num_held -= len(results)
        logs = tuple(self._logs.popleft() for _ in range(len(self._logs)))
        stages = self._status.stages()
        return Turn(results, stages, self._num_wanted, is_ended, self._failure, logs)

    def _has_news(self) -> bool:
        is_ready_for_first = not self._num_held and self._num_wanted > 0
        return bool(self._finished) or self._is_ended or is_ready_for_first

    def _main(self) -> None:
        setup = self._setup
        try:
            stages = self._stages()
            with self._changed:
                self._num_wanted = sum(stage.credit * stage.num_workers for stage in stages)
                self._changed.notify_all()
            options = RunnerOptions(
                retries=setup.retries,
                stop=lambda: self._num_stops,
                drain_s=setup.drain_s,
                status=self._status,
                hopeless_after=setup.hopeless_after,
            )
            for result in local.run(stages, self._source(), options=options):
                with self._changed:
                    self._finished.append(result)
                    self._changed.notify_all()
        except BaseException as error:  # the border: the driver decides what it means
            facts = describe(error, is_loading=False)
            name = facts.class_name if facts.is_ours else EngineError.__name__
            self._failure = Failure(name, f"node {setup.name}: {facts.message}", is_ours=True)
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def _stages(self) -> tuple[Stage, ...]:
        setup = self._setup
        if setup.version != __version__:
            raise EngineError(
                f"it has ocr2 {__version__}, the driver {setup.version}. Install the same version "
                "on every node"
            )
        if setup.make_plan is None:
            return setup.stages
        plan = setup.make_plan(setup.num_cores)
        if plan.fingerprint != setup.fingerprint:
            raise EngineError(
                "it would read pages differently: its model files or its ocr2 are not the "
                "driver's. Put the same on every node"
            )
        stages: tuple[Stage, ...] = plan.stages
        return stages

    def _source(self) -> Iterator[PageJob | None]:
        while True:
            try:
                # Nothing to look after: sleep until a page comes. Else the runner must go on.
                job = self._jobs.get(block=not self._num_held, timeout=_IDLE_S)
            except queue.Empty:
                job = None
            if job is None and self._is_closed:
                return
            yield job

    def _not_here(self, job: PageJob) -> PageError:
        return PageError(
            "away",
            f"{shown(job.path)} is not there on node {self._setup.name}. Every node must see the "
            "inputs under the same path: put them on a shared file system, or give URLs such as "
            "s3://bucket/a.pdf.",
        )


def _is_visible(path: str) -> bool:
    """False only when the name is not there; what else may be wrong, the raster stage tells."""
    if is_url(path):
        return True
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


class _Keeper(logging.Handler):
    """Keeps log lines for the driver, which alone knows how they should look."""

    def __init__(self, lines: deque[tuple[int, str]]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append((record.levelno, record.getMessage()))
        except Exception:  # a library's slip in its own line
            self.handleError(record)
