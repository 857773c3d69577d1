"""One worker process as its parent sees it: start, send, receive, kill, bury.

Knows nothing about scheduling; `local.py` decides what to send and what a death means.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import MutableMapping
from enum import Enum
from typing import Any

from ocr2cli.children import child_environment
from ocr2cli.pipeline.channel import Frame, FrameReader, FrameWriter, Kind, encode_item, open_pipe
from ocr2cli.pipeline.child import Setup
from ocr2cli.pipeline.failure import Failure
from ocr2cli.pipeline.ledger import Company, Ticket
from ocr2cli.pipeline.pulse import pulse
from ocr2cli.pipeline.stage import Stage
from ocr2cli.pipeline.stop import SIGNALS

_BOOT = "from ocr2cli.pipeline.child import main; main()"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A thread that waits for its next piece spins, on a core that the other worker or somebody else's
# program needs: some 300,000 times unless it is told. A thousand times bridges the gap between two
# products: fewer slow a worker that is alone.
_SPINS = "1000"
# How often it is looked at whether a worker that loads makes progress.
_FEEL_EVERY_S = 1.0
# At most so much of the time between two looks counts: in a container that was frozen for longer
# the worker was frozen too.
_MAX_LOOK_S = 3.0


class Phase(Enum):
    """Where a worker process is in its life."""

    LOADING = "loading"
    READY = "ready"
    CLOSING = "closing"


class WorkerProcess:
    """A process running one worker of `stage`.

    held: pages sent and not yet answered; taken: those the worker has taken from its inbox.
    company: who alone may be given to it while it holds any of them; None: anybody.
    quiet_since: when it last emitted, or first held something after that; while it loads, when it
    was last seen to make progress; moved on by `excuse`.
    is_timed_out: killed for its silence; has_stalled: that was while it loaded, though what it had
    written by then may say that it is ready.
    """

    def __init__(self, stage: Stage, stage_index: int, slot: int) -> None:
        self.stage = stage
        self.stage_index = stage_index
        self.slot = slot
        self.phase = Phase.LOADING
        self.held: dict[int, Ticket] = {}
        self.taken: set[int] = set()
        self.num_sent = 0
        self.company: Company | None = None
        self.is_timed_out = self.has_stalled = False
        self.failure: Failure | None = None
        self.quiet_since = self.busy_since = self.started = time.monotonic()
        self._felt_at, self._felt = 0.0, ""
        setup = pickle.dumps(Setup(stage, logging.getLogger("ocr2").getEffectiveLevel()))
        child_in, self.down_fd = open_pipe()
        self.up_fd, child_out = open_pipe()
        try:
            self._process = _spawn(stage, child_in, child_out)
        except BaseException:
            os.close(self.down_fd)
            os.close(self.up_fd)
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        os.set_blocking(self.down_fd, False)
        os.set_blocking(self.up_fd, False)
        self._reader = FrameReader(self.up_fd)
        self._writer = FrameWriter(self.down_fd)
        self._writer.push(Kind.SETUP, body=[setup])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_pending(self) -> bool:
        return self._writer.has_pending

    @property
    def is_open(self) -> bool:
        """True when it may be given another page."""
        return self.phase is Phase.READY and len(self.held) < self.stage.credit

    def send(self, ticket: Ticket) -> None:
        """Give it a page: the job itself, or the previous stage's item as it came."""
        body: Any = [ticket.body] if ticket.body is not None else encode_item(ticket.job)
        ticket.body = None
        if not self.held:
            self.quiet_since = self.busy_since = time.monotonic()
        self.held[ticket.serial] = ticket
        self.num_sent += 1
        self._writer.push(Kind.ITEM, ticket.serial, body)
        if self.stage.recycle_after and self.num_sent >= self.stage.recycle_after:
            self.close_inbox()

    def release(self, serial: int) -> Ticket:
        """Book an answer; returns the page it answers."""
        ticket = self.held.pop(serial)
        self.taken.discard(serial)
        if not self.held:
            self.company = None
        self.quiet_since = time.monotonic()
        return ticket

    def excuse(self, seconds: float) -> None:
        """Do not count a time in which nobody listened as the worker's silence."""
        self.quiet_since += seconds

    def is_stalled(self, limit_s: float) -> bool:
        """Of one that loads: whether it has made no progress at all for so long. False where the
        system does not tell."""
        now = time.monotonic()
        if now - self._felt_at < min(_FEEL_EVERY_S, limit_s / 4):
            return False
        if now - self._felt_at > _MAX_LOOK_S:
            # No further than now: `excuse` may have moved it for the same time.
            self.quiet_since = min(now, self.quiet_since + now - self._felt_at - _MAX_LOOK_S)
        self._felt_at = now
        felt = pulse(self.pid)
        if felt is None or felt != self._felt:
            self._felt = felt or ""
            self.quiet_since = now
        return now - self.quiet_since > limit_s

    def close_inbox(self) -> None:
        """No further item will come; the worker finishes what it holds and exits."""
        if self.phase is not Phase.CLOSING:
            self.phase = Phase.CLOSING
            self._writer.push(Kind.CLOSE)

    def flush(self) -> None:
        """Write what the pipe takes; a dead reader is noticed by `read`."""
        with contextlib.suppress(BrokenPipeError):
            self._writer.flush()

    def read(self) -> tuple[list[Frame], bool]:
        """Frames that have arrived, and whether the process is gone."""
        frames, is_ended = self._reader.read_available()
        for frame in frames:
            if frame.kind is Kind.FAILED:
                self.failure = Failure(**json.loads(frame.body))
        return frames, is_ended

    def has_exited(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL to the worker and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Close the pipes and reap; returns the exit status, negative for a signal.

        A process that closed its pipe without exiting is killed: it can do nothing for us. So is
        what it leaves behind: that could hold a device or a pipe.
        """
        os.close(self.down_fd)
        os.close(self.up_fd)
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()
        self.kill()
        return status


def describe_exit(status: int) -> str:
    """Exit status for people: "was killed by SIGKILL", "exited with status 3"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def wait_quietly(env: MutableMapping[str, str]) -> None:
    """Let the threads of a process with this environment give up their cores soon when they wait.

    Of the own process: before torch is imported, later it changes nothing. What the user says of
    it, in either variable, stands.
    """
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", _SPINS)


def _spawn(stage: Stage, child_in: int, child_out: int) -> subprocess.Popen[bytes]:
    env = child_environment()
    if stage.num_threads:
        env.update(dict.fromkeys(_THREAD_VARIABLES, str(stage.num_threads)))
        wait_quietly(env)
    words = [f"ocr2-{stage.name}", *map(str, (child_in, child_out, os.getpid()))]
    # A signal to the whole group may come before the child can say that it leaves it to us: the
    # child inherits the mask and lifts it when it has settled.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # Not multiprocessing: it runs the caller's main module again, so a script without a main
        # guard would start itself for ever, and daemonic processes may not have children.
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if _is_open(2) else subprocess.DEVNULL,
            pass_fds=(child_in, child_out),
            env=env,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
