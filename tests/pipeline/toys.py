"""Toy stages: workers that count, sleep, raise, hang or die on the pages they are told to.

Spawned workers import this module by name, so it holds no test.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ocr2cli.errors import EngineError, ModelError
from ocr2cli.pages import PageError, PageJob, PageKey, PageResult, Status, Uint8Array
from ocr2cli.pipeline.stage import Emit, Inbox, Stage


@dataclass(frozen=True)
class Item:
    """What toy stages pass on: the job, the path it took, and some weight."""

    key: PageKey
    job: PageJob
    steps: tuple[str, ...] = ()
    load: Uint8Array = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass(frozen=True)
class Recipe:
    """What a toy worker does. Page sets are 0-based; `first_try_only` spares later attempts."""

    name: str = "work"
    sleep_s: float = 0.0
    batch: int = 1
    load_bytes: int = 0
    early: frozenset[int] = frozenset()
    misdeeds: tuple[tuple[int, str], ...] = ()
    first_try_only: bool = False
    is_last: bool = False
    log: str = ""
    load_misdeed: str = ""
    lingers: bool = False
    retry_sleep_s: float = 0.0


class ToyWorker:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while items := inbox.take(self.recipe.batch, wait=True):
            self.note("take", items)
            for item in items:
                self.do(item)
            if self.recipe.sleep_s:
                time.sleep(self.recipe.sleep_s)
            for item in items:
                emit(self.answer(item))
        if self.recipe.lingers:
            time.sleep(600)

    def do(self, item: PageJob | Item) -> None:
        job = item if isinstance(item, PageJob) else item.job
        if job.attempt:
            time.sleep(self.recipe.retry_sleep_s)
        if self.recipe.first_try_only and job.attempt:
            return
        for page, misdeed in self.recipe.misdeeds:
            if page == job.key.page:
                commit(misdeed)

    def answer(self, item: PageJob | Item) -> Item | PageResult:
        job = item if isinstance(item, PageJob) else item.job
        steps = () if isinstance(item, PageJob) else item.steps
        steps = (*steps, self.recipe.name)
        if self.recipe.is_last or job.key.page in self.recipe.early:
            checksum = 0 if isinstance(item, PageJob) else int(item.load.sum())
            return PageResult(job.key, Status.OK, markdown="/".join(steps), new_tokens=checksum)
        weight = np.full(self.recipe.load_bytes, job.key.page % 7, np.uint8)
        return Item(job.key, job, steps, weight)

    def note(self, word: str, items: list[PageJob | Item]) -> None:
        if self.recipe.log:
            pages = ",".join(str(item.key.page) for item in items)
            with open(self.recipe.log, "a") as log:
                log.write(f"{word} {self.recipe.name} {os.getpid()} {pages}\n")


class RollingWorker:
    """A decoder's rhythm: takes without waiting while it has something running."""

    def __init__(self, maker: RollingMaker) -> None:
        self.maker = maker
        self.slots, self.steps, self.deadly = maker.slots, maker.steps, maker.deadly
        self.largest = self.num_steps = 0

    def run(self, inbox: Inbox, emit: Emit) -> None:
        running: dict[PageKey, list[int]] = {}
        while True:
            for item in inbox.take(self.slots - len(running), wait=not running):
                running[item.key] = [self.steps + item.key.page % 3]
                job = item if isinstance(item, PageJob) else item.job
                if item.key.page == self.deadly and not job.attempt:
                    commit("exit")
            if not running:
                return
            self.largest = max(self.largest, len(running))
            time.sleep(self.maker.step_s)
            self.num_steps += 1
            if self.num_steps == self.maker.hangs_at:
                commit("hang")
            if self.maker.tells:
                inbox.note_progress()
            for key in list(running):
                running[key][0] -= 1
                if running[key][0] == 0:
                    del running[key]
                    emit(PageResult(key, Status.OK, new_tokens=self.largest))


def commit(misdeed: str) -> None:
    if misdeed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif misdeed == "exit":
        os._exit(3)
    elif misdeed == "exit late":
        time.sleep(0.4)
        os._exit(3)
    elif misdeed == "leave a child":
        if os.fork() == 0:
            time.sleep(600)
        os._exit(3)
    elif misdeed == "raise":
        raise ZeroDivisionError("no such luck\nsecond line")
    elif misdeed == "log":
        logging.getLogger("ocr2").info("a word from the worker")
        logging.getLogger("ocr2").debug("whispered")
        logging.getLogger("other").warning("a library's word")
        warnings.warn("deprecated", stacklevel=1)
    elif misdeed == "log badly":
        logging.getLogger("other").warning("%d pages", "many")
    elif misdeed == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif misdeed == "hang":
        time.sleep(600)
    elif misdeed == "allocate":
        np.ones(4 << 30, np.uint8)
    elif misdeed == "engine":
        raise EngineError("the device is lost")
    elif misdeed == "model":
        raise ModelError("weights.safetensors is cut short")
    elif misdeed == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)


@dataclass(frozen=True)
class Maker:
    """Picklable `make_worker`."""

    recipe: Recipe

    def __call__(self) -> ToyWorker:
        if self.recipe.load_misdeed.startswith("flag"):
            # Load well once, badly ever after: the file is the memory.
            flag = Path(self.recipe.log)
            if flag.exists():
                commit(self.recipe.load_misdeed[5:] or "model")
            flag.touch()
        elif self.recipe.load_misdeed.startswith("once "):
            # Badly once, well ever after.
            flag = Path(self.recipe.log)
            if not flag.exists():
                flag.touch()
                commit(self.recipe.load_misdeed[5:])
        elif self.recipe.load_misdeed:
            commit(self.recipe.load_misdeed)
        return ToyWorker(self.recipe)


@dataclass(frozen=True)
class RollingMaker:
    slots: int = 4
    steps: int = 20
    deadly: int = -1
    step_s: float = 0.003
    tells: bool = False
    hangs_at: int = -1

    def __call__(self) -> RollingWorker:
        return RollingWorker(self)


@dataclass(frozen=True)
class OddMaker:
    """Of a worker that does not keep to what `stage.Worker` asks of it."""

    way: str

    def __call__(self) -> OddWorker:
        return OddWorker(self.way)


class OddWorker:
    def __init__(self, way: str) -> None:
        self.way = way

    def run(self, inbox: Inbox, emit: Emit) -> None:
        if self.way == "fails at the start":
            raise ZeroDivisionError
        while items := inbox.take(1, wait=True):
            key = items[0].key
            if self.way == "keeps its page":
                return
            if self.way == "answers for another":
                key = PageKey("another", 7)
            if self.way == "waits for more":
                inbox.take(1, wait=True)
            emit(PageResult(key, Status.OK))
            if self.way == "answers twice":
                emit(PageResult(key, Status.OK, markdown="again"))
            if self.way == "leaves early":
                return
        if self.way.startswith("writes "):
            Path(self.way.removeprefix("writes ")).touch()
        if self.way == "fails at the end":
            raise ZeroDivisionError


class ReportingWorker:
    """Tells what its process looks like, as the markdown of each page."""

    def run(self, inbox: Inbox, emit: Emit) -> None:
        facts = {
            "omp": os.environ.get("OMP_NUM_THREADS", ""),
            "spins": os.environ.get("GOMP_SPINCOUNT", ""),
            "stdin": os.readlink("/proc/self/fd/0"),
            "stdout": os.readlink("/proc/self/fd/1"),
            "sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_IGN,
            "sighup": signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
            "group": os.getpgrp() == os.getpid(),
            "fds": len(os.listdir("/proc/self/fd")),
            "torch": "torch" in sys.modules,
            "out of the collector": gc.get_freeze_count(),
        }
        while items := inbox.take(1, wait=True):
            emit(PageResult(items[0].key, Status.OK, extra=facts))


class PriorityWorker:
    """Tells how nice each of its threads is, as the facts of each page; has one of its own."""

    def run(self, inbox: Inbox, emit: Emit) -> None:
        done = threading.Event()
        threading.Thread(target=done.wait, daemon=True).start()
        while items := inbox.take(1, wait=True):
            threads = map(int, os.listdir("/proc/self/task"))
            facts = {"nice": [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads]}
            emit(PageResult(items[0].key, Status.OK, extra=facts))
        done.set()


def stage(recipe: Recipe, **fields: object) -> Stage:
    make: Callable[[], ToyWorker] = Maker(recipe)
    return Stage(recipe.name, make, **fields)  # type: ignore[arg-type]


def line(*recipes: Recipe, **fields: object) -> list[Stage]:
    """Three stages in a row, or the given ones."""
    chosen = recipes or (Recipe("a"), Recipe("b"), Recipe("c", is_last=True))
    return [stage(recipe, **fields) for recipe in chosen]


def jobs(count: int, document: str = "doc") -> Iterator[PageJob]:
    for page in range(count):
        yield PageJob(PageKey(document, page), "/in/doc.pdf", "ab" * 32, count)


def broken_job(page: int) -> PageJob:
    error = PageError("unreadable", "cannot be read")
    return PageJob(PageKey("doc", page), "/in/doc.pdf", "", 1, error=error)


def by_page(results: Iterable[PageResult]) -> dict[int, PageResult]:
    listed = list(results)
    found = {result.key.page: result for result in listed}
    assert len(found) == len(listed), "a page came out twice"
    return found


def failed_pages(results: dict[int, PageResult]) -> list[int]:
    return sorted(page for page, result in results.items() if result.status is Status.FAILED)
