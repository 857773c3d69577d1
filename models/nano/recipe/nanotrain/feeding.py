"""Batches made in child processes, so that a trainer never waits for pages to be laid out.

Knows nothing about what the batches are.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Empty, Full
from typing import Any

_PATIENCE_S = 2.0  # between two looks whether the other side still lives


def default_workers(device: str) -> int:
    """How many children keep a trainer busy: a CPU has no core to spare, a GPU waits for them."""
    return 1 if device == "cpu" else max(1, min(32, (os.cpu_count() or 1) - 1))


class Feeder:
    """One child for each source, an endless iterator that it makes itself; `take` gives batches as
    they come. Children end with the trainer, however that ends."""

    def __init__(self, sources: Sequence[Callable[[], Iterator[Any]]], room: int = 8) -> None:
        context = mp.get_context("fork")
        self._queue: mp.Queue = context.Queue(room)
        serve = partial(_serve, self._queue, os.getpid())
        self._children = [context.Process(target=serve, args=(s,), daemon=True) for s in sources]
        for child in self._children:
            child.start()

    def take(self) -> Any:
        """Raises: RuntimeError from a child's error, or when all children have died without one."""
        while True:
            try:
                batch = self._queue.get(timeout=_PATIENCE_S)
            except Empty:
                if any(child.is_alive() for child in self._children):
                    continue
                raise RuntimeError("the feeders were killed; is there memory enough?") from None
            if isinstance(batch, Exception):
                raise RuntimeError("a feeder ended") from batch
            return batch

    def close(self) -> None:
        for child in self._children:
            child.kill()  # asked politely, it would first wait for its last batches to be taken
            child.join()


def _serve(queue: mp.Queue, parent: int, source: Callable[[], Iterator[Any]]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    # Libraries install handlers that leave in good order, and that waits for batches to be taken.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for batch in source():
            _offer(queue, parent, batch)
    except Exception as error:
        _offer(queue, parent, error)
        raise


def _offer(queue: mp.Queue, parent: int, batch: Any) -> None:
    while True:
        try:
            return queue.put(batch, timeout=_PATIENCE_S)
        except Full:
            if os.getppid() != parent:
                os._exit(1)  # nobody takes what is left
