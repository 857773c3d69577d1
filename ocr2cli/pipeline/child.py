"""The worker's side of the local runner: one process, one worker, two pipes.

Started by `process.py` as `python -c ... FD_IN FD_OUT PARENT_PID`. Knows nothing about other
workers; ends when its inbox is closed, and at once when its parent is gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ocr2cli.children import end_with_parent, step_back
from ocr2cli.pages import PageKey, PageResult
from ocr2cli.pipeline.channel import (
    Buffer,
    Frame,
    FrameReader,
    FrameWriter,
    Kind,
    decode_item,
    encode_item,
)
from ocr2cli.pipeline.failure import describe
from ocr2cli.pipeline.stage import Stage
from ocr2cli.pipeline.stop import SIGNALS

# Progress is told to the parent at most this often.
_PROGRESS_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Setup:
    """First message to a worker."""

    stage: Stage
    log_level: int


def main() -> NoReturn:
    """Entry point of a worker process; never returns."""
    fd_in, fd_out, parent_pid = (int(word) for word in sys.argv[-3:])
    _settle(parent_pid)
    uplink = _Uplink(fd_out)
    reader = FrameReader(fd_in)
    code = 1
    with contextlib.suppress(BrokenPipeError):
        code = _serve(reader, uplink)
    _leave(code)


def _settle(parent_pid: int) -> None:
    """Die with the parent; leave the signals to it; keep stdout for the parent's results."""
    end_with_parent()
    if os.getppid() != parent_pid:
        os._exit(1)
    # The parent decides when to stop; systemd and terminals signal the whole group.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    # Held back since before this process began; what this worker starts is to hear them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _serve(reader: FrameReader, uplink: _Uplink) -> int:
    first = reader.read()
    if first is None:
        return 1
    is_loading = True
    try:
        setup: Setup = pickle.loads(first.body)
        _log_to_parent(uplink, setup.log_level)
        _limit_memory(setup.stage.memory_limit_bytes)
        worker = setup.stage.make_worker()
        # What is loaded stays. Else a collection of garbage, one in some steps of a large batch,
        # looks through all of torch each time.
        gc.freeze()
        uplink.send(Kind.READY)
        is_loading = False
        inbox = PipeInbox(reader, uplink, setup.stage.niceness)
        worker.run(inbox, inbox.emit)
        inbox.check_finished()
    except BrokenPipeError:
        raise
    except BaseException as error:
        _limit_memory(sys.maxsize)  # within the limit there may be none left to describe it with
        facts = asdict(describe(error, is_loading=is_loading))
        uplink.send(Kind.FAILED, body=[json.dumps(facts).encode()])
        return 1
    return 0


class _Uplink:
    """The pipe to the parent, shared by the worker's threads: any of them may log."""

    def __init__(self, fd: int) -> None:
        self._writer = FrameWriter(fd)
        self._lock = threading.Lock()

    def send(self, kind: Kind, serial: int = 0, body: Sequence[Buffer] = ()) -> None:
        with self._lock:
            self._writer.push(kind, serial, body)
            self._writer.flush()


class _ParentHandler(logging.Handler):
    """Sends records to the parent, which alone knows how they should look."""

    def __init__(self, uplink: _Uplink) -> None:
        super().__init__()
        self._uplink = uplink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # a library's slip in its own line
            self.handleError(record)
            return
        facts = {"name": record.name, "level": record.levelno, "message": message}
        self._uplink.send(Kind.LOG, body=[json.dumps(facts).encode()])


def _log_to_parent(uplink: _Uplink, level: int) -> None:
    logging.basicConfig(handlers=[_ParentHandler(uplink)], level=logging.WARNING, force=True)
    logging.getLogger("ocr2").setLevel(level)
    # Libraries' warnings are for developers: a nightly run with nothing wrong must stay silent.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


class PipeInbox:
    """Items from the parent, read by a thread of its own so that the parent never waits."""

    def __init__(self, reader: FrameReader, uplink: _Uplink, niceness: int) -> None:
        self._reader = reader
        self._uplink = uplink
        self._niceness = niceness  # still to be taken
        self._arrived = threading.Condition()
        self._frames: deque[Frame] = deque()
        self._is_ended = False
        self._held: dict[PageKey, int] = {}
        self._told_at = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def take(self, max_items: int, *, wait: bool) -> list[Any]:
        """See `stage.Inbox.take`. Tells the parent which pages are now at risk."""
        with self._arrived:
            while wait and not self._frames and not self._is_ended:
                self._arrived.wait()
            frames = [self._frames.popleft() for _ in range(min(max_items, len(self._frames)))]
        if not frames:
            return []
        serials = [frame.serial for frame in frames]
        self._uplink.send(Kind.TAKEN, body=[struct.pack(f"<{len(serials)}Q", *serials)])
        items = [decode_item(frame.body) for frame in frames]
        self._held.update(zip((item.key for item in items), serials, strict=True))
        return items

    def note_progress(self) -> None:
        """See `stage.Inbox.note_progress`."""
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_EVERY_S:
            self._told_at = now
            self._uplink.send(Kind.PROGRESS)

    @property
    def is_closed(self) -> bool:
        with self._arrived:
            return self._is_ended and not self._frames

    def emit(self, item: Any) -> None:
        """Send an item or a result for a page that was taken and not yet answered."""
        if item.key not in self._held:
            raise RuntimeError(f"the worker emitted {item.key}, which it does not hold")
        serial = self._held.pop(item.key)
        kind = Kind.RESULT if isinstance(item, PageResult) else Kind.ITEM
        self._uplink.send(kind, serial, encode_item(item))
        if self._niceness:
            step_back(self._niceness)
            self._niceness = 0

    def check_finished(self) -> None:
        """`Worker.run` may return only when all is done."""
        if self._held or not self.is_closed:
            raise RuntimeError(f"the worker returned too early, holding {len(self._held)} pages")

    def _read(self) -> None:
        while True:
            frame = self._reader.read()
            if frame is None:
                _leave(1)
            with self._arrived:
                if frame.kind is Kind.CLOSE:
                    self._is_ended = True
                else:
                    self._frames.append(frame)
                self._arrived.notify()


def _limit_memory(num_bytes: int) -> None:
    if num_bytes:
        try:
            import resource
        except ImportError:
            return
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _leave(code: int) -> NoReturn:
    """End now: no exit handlers of libraries, which can hang with threads still running."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(code)
