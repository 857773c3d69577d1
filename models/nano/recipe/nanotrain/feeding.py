"""Batches made in child processes, so that a trainer never waits for pages to be laid out.

Knows nothing about what the batches are. Their arrays travel through memory that trainer and
child share: a pipe brings half a gigabyte a second, and a GPU learns from more.
"""

from __future__ import annotations

import mmap
import multiprocessing as mp
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Full
from typing import Any

_PATIENCE_S = 2.0  # between two looks whether the other side still lives
_SLOTS = 2  # batches of a child that may lie in shared memory
_SLOT_BYTES = 1 << 28  # memory is taken as it is written; a larger batch goes through the pipe


def default_workers(device: str) -> int:
    """How many children keep a trainer busy: a CPU has no core to spare, a GPU waits for them."""
    return 1 if device == "cpu" else max(1, min(32, (os.cpu_count() or 1) - 1))


@dataclass
class _Desk:
    """What one child and the trainer share: slots for the arrays of batches, used in turn."""

    free: Any  # semaphore: slots that the child may write
    slots: list[mmap.mmap] = field(
        default_factory=lambda: [mmap.mmap(-1, _SLOT_BYTES) for _ in range(_SLOTS)]
    )
    next_slot: int = 0  # each side counts for itself


@dataclass(frozen=True)
class _Parcel:
    """A pickled batch; its arrays, of these sizes, lie one after the other in the child's next
    slot."""

    child: int
    pickled: bytes
    sizes: tuple[int, ...]


class Feeder:
    """One child for each source, an endless iterator that it makes itself; `take` gives batches as
    they come. Children end with the trainer, however that ends."""

    def __init__(self, sources: Sequence[Callable[[], Iterator[Any]]], room: int = 8) -> None:
        context = mp.get_context("fork")
        self._queue: mp.Queue = context.Queue(room)
        self._desks = [_Desk(context.Semaphore(_SLOTS)) for _ in sources]
        self._children = [
            context.Process(
                target=partial(_serve, self._queue, os.getpid(), child, desk, source), daemon=True
            )
            for child, (desk, source) in enumerate(zip(self._desks, sources, strict=True))
        ]
        for child in self._children:
            child.start()

    def take(self) -> Any:
        """Raises: RuntimeError from a child's error, or when all children have died without one."""
        while True:
            try:
                found = self._queue.get(timeout=_PATIENCE_S)
            except Empty:
                if any(child.is_alive() for child in self._children):
                    continue
                raise RuntimeError("the feeders were killed; is there memory enough?") from None
            if isinstance(found, Exception):
                raise RuntimeError("a feeder ended") from found
            return self._unpacked(found)

    def _unpacked(self, parcel: _Parcel) -> Any:
        if not parcel.sizes:
            return pickle.loads(parcel.pickled)
        desk = self._desks[parcel.child]
        slot, desk.next_slot = desk.slots[desk.next_slot], (desk.next_slot + 1) % _SLOTS
        buffers, at, memory = [], 0, memoryview(slot)
        for size in parcel.sizes:
            buffers.append(bytearray(memory[at : at + size]))
            at += size
        desk.free.release()
        return pickle.loads(parcel.pickled, buffers=buffers)

    def close(self) -> None:
        for child in self._children:
            child.kill()  # asked politely, it would first wait for its last batches to be taken
            child.join()


def _serve(
    queue: mp.Queue,
    parent: int,
    child: int,
    desk: _Desk,
    source: Callable[[], Iterator[Any]],
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    # Libraries install handlers that leave in good order, and that waits for batches to be taken.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for batch in source():
            _offer(queue, parent, _packed(parent, child, desk, batch))
    except Exception as error:
        _offer(queue, parent, error)
        raise


def _packed(parent: int, child: int, desk: _Desk, batch: Any) -> _Parcel:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    if not raw or sum(part.nbytes for part in raw) > _SLOT_BYTES:
        return _Parcel(child, pickle.dumps(batch, protocol=5), ())
    while not desk.free.acquire(timeout=_PATIENCE_S):
        _end_with(parent)
    slot, desk.next_slot = desk.slots[desk.next_slot], (desk.next_slot + 1) % _SLOTS
    at = 0
    for part in raw:
        slot[at : at + part.nbytes] = part
        at += part.nbytes
    return _Parcel(child, pickled, tuple(part.nbytes for part in raw))


def _offer(queue: mp.Queue, parent: int, found: _Parcel | Exception) -> None:
    while True:
        try:
            return queue.put(found, timeout=_PATIENCE_S)
        except Full:
            _end_with(parent)


def _end_with(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)  # nobody takes what is left
