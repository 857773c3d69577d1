"""Framed messages over pipes: a small header, then a body that only its receiver opens.

A body is one pickle plus the raw buffers of the arrays in it (protocol 5, out of band), so that an
array is never copied into the pickle and the receiver's arrays lie in the received bytes. Pickle is
used only between a run's own processes. Knows nothing about pages or stages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Any

_HEADER = struct.Struct("<IQQ")  # kind, serial, body size
_COUNT = struct.Struct("<Q")
# numpy and torch like their data aligned; a cache line is enough for every dtype.
_ALIGNMENT = 64
_PIPE_BYTES = 1 << 20
# One reader must not starve the others: about one large item at a time.
_MAX_READ_BYTES = 16 << 20
_MAX_BUFFERS_PER_WRITE = 64

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a frame says. Down: SETUP, ITEM, CLOSE. Up: the others and ITEM."""

    SETUP = 1
    ITEM = 2
    CLOSE = 3
    READY = 4
    TAKEN = 5
    RESULT = 6
    FAILED = 7
    LOG = 8
    PROGRESS = 9


@dataclass(slots=True)
class Frame:
    """One message. serial: the parent's number of the page, 0 where there is none."""

    kind: Kind
    serial: int
    body: bytearray


def encode_item(item: Any) -> list[Buffer]:
    """The item as a list of buffers to be sent one after the other; arrays are not copied."""
    raw: list[pickle.PickleBuffer] = []
    head = pickle.dumps(item, protocol=5, buffer_callback=raw.append)
    parts: list[Buffer] = [head, *(buffer.raw() for buffer in raw)]
    table = b"".join(_COUNT.pack(_size(part)) for part in parts)
    body: list[Buffer] = [_COUNT.pack(len(parts)) + table]
    offset = _size(body[0])
    for part in parts:
        padding = -offset % _ALIGNMENT
        body += [bytes(padding), part] if padding else [part]
        offset += padding + _size(part)
    return body


def decode_item(body: bytearray) -> Any:
    """Undo `encode_item`; arrays share the memory of `body` and are writable."""
    view = memoryview(body)
    (num_parts,) = _COUNT.unpack_from(view)
    offset = _COUNT.size * (1 + num_parts)
    parts = []
    for index in range(num_parts):
        (size,) = _COUNT.unpack_from(view, _COUNT.size * (1 + index))
        offset += -offset % _ALIGNMENT
        parts.append(view[offset : offset + size])
        offset += size
    return pickle.loads(parts[0], buffers=parts[1:])


def open_pipe() -> tuple[int, int]:
    """(read end, write end), widened where the system allows it: fewer wake-ups per item."""
    read_fd, write_fd = (above_standard(fd) for fd in os.pipe())
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read_fd, write_fd


def above_standard(fd: int) -> int:
    """The same file under a descriptor above 2; closes `fd` if that is another.

    A process started with stdin, stdout or stderr closed gets their numbers for its own files,
    and stray prints would go into them.
    """
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


class FrameReader:
    """Puts frames together from a pipe, blocking or not."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._header = bytearray(_HEADER.size)
        self._frame: Frame | None = None
        self._num_filled = 0

    def read_available(self) -> tuple[list[Frame], bool]:
        """Whole frames that can be read now from a non-blocking pipe, and whether it has ended."""
        frames: list[Frame] = []
        budget = _MAX_READ_BYTES
        while budget > 0:
            try:
                num_read, frame = self._step()
            except BlockingIOError:
                return frames, False
            if frame:
                frames.append(frame)
            elif not num_read:
                return frames, True
            budget -= num_read + _HEADER.size
        return frames, False

    def read(self) -> Frame | None:
        """The next frame from a blocking pipe; None at its end."""
        while True:
            num_read, frame = self._step()
            if frame or not num_read:
                return frame

    def _step(self) -> tuple[int, Frame | None]:
        """One read of at most what the current frame lacks: (bytes, frame if now whole)."""
        target = self._frame.body if self._frame else self._header
        num_read = os.readv(self._fd, [memoryview(target)[self._num_filled :]])
        self._num_filled += num_read
        if self._num_filled < len(target):
            return num_read, None
        self._num_filled = 0
        if self._frame is None:
            kind, serial, size = _HEADER.unpack(self._header)
            self._frame = Frame(Kind(kind), serial, bytearray(size))
            if size:
                return num_read, None
        frame, self._frame = self._frame, None
        return num_read, frame


class FrameWriter:
    """Queues frames for a pipe and writes as much as it takes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending: deque[memoryview] = deque()

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def push(self, kind: Kind, serial: int = 0, body: Sequence[Buffer] = ()) -> None:
        """Queue one frame; `body`'s buffers must stay unchanged until they are written."""
        size = sum(_size(part) for part in body)
        self._pending.append(memoryview(_HEADER.pack(kind, serial, size)))
        self._pending.extend(memoryview(part).cast("B") for part in body if _size(part))

    def flush(self) -> None:
        """Write until all is written (blocking pipe) or the pipe is full (non-blocking).

        Raises: BrokenPipeError when the reader is gone.
        """
        while self._pending:
            batch = list(islice(self._pending, _MAX_BUFFERS_PER_WRITE))
            try:
                num_written = os.writev(self._fd, batch)
            except BlockingIOError:
                return
            self._drop(num_written)

    def _drop(self, num_written: int) -> None:
        while num_written:
            first = self._pending.popleft()
            if len(first) > num_written:
                self._pending.appendleft(first[num_written:])
                return
            num_written -= len(first)


def _size(part: Buffer) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
