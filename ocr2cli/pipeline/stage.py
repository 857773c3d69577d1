"""The one seam between pipeline and engines: a stage makes workers, a worker takes and emits.

Knows nothing about OCR, torch or how workers are run (in this process or in others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Emit = Callable[[Any], None]


class Inbox(Protocol):
    """Items for one worker, in arrival order."""

    def take(self, max_items: int, *, wait: bool) -> list[Any]:
        """Up to `max_items` items. `wait`: block until there is one or the inbox is closed.

        An empty list means: nothing now (`wait=False`), or closed and empty (`wait=True`).
        """

    def note_progress(self) -> None:
        """Say that the pages held have moved on though none is done: a long batch on a slow machine
        is no hang. Cheap enough for every step."""

    @property
    def is_closed(self) -> bool:
        """True once no further item will ever come and none is left."""


class Worker(Protocol):
    """Holds what is costly to make (weights, open documents) and turns items into items.

    Every item taken carries `.key`. Each key taken is emitted exactly once, as the next stage's
    item or as a `PageResult` (which skips the later stages). An exception that escapes `run`
    counts as the death of the worker; a fault of one page must be emitted as a result instead.
    """

    def run(self, inbox: Inbox, emit: Emit) -> None:
        """Return when the inbox is closed and every item taken has been emitted."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of worker. make_worker is picklable and is called inside the worker's process.

    name: shown in logs, journal, progress. credit: items one worker may hold at a time: the
    back-pressure. timeout_s: a worker that holds an item and neither emits nor notes progress
    for this long is killed (0: never). recycle_after: items after which a worker is replaced by a
    fresh one (0: never). memory_limit_bytes: address-space limit set inside the worker (0: none).
    niceness: how far a worker steps back for the other stages on a busy processor (as `nice`) once
    it has emitted its first item; only between processes. remedy: what a person may do where
    its workers lack memory, as the rest of a sentence.
    """

    name: str
    make_worker: Callable[[], Worker]
    num_workers: int = 1
    credit: int = 2
    timeout_s: float = 0.0
    recycle_after: int = 0
    memory_limit_bytes: int = 0
    num_threads: int = 0
    niceness: int = 0
    remedy: str = "free some memory"


def remedy(num_workers: int, option: str, *others: str) -> str:
    """A `Stage.remedy`. option: what sets the number of its workers; others: what may be used
    besides, as nouns. One worker cannot be fewer."""
    fewer = [f"fewer workers ({option})"] if num_workers > 1 else []
    ways = " or ".join([*fewer, *others])
    return f"use {ways}, or free some memory" if ways else "free some memory"
