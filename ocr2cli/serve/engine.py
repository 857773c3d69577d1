"""Serving is batch with an endless list: requests become page jobs, results find their way back.

One thread runs the same runner and stages as `ocr2 run`; pages of different requests share its
batches. Knows nothing about HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from ocr2cli.config import RunConfig
from ocr2cli.document.files import is_plain_image
from ocr2cli.document.source import find_jobs
from ocr2cli.engines.choose import EnginePlan, plan_engine
from ocr2cli.errors import Ocr2Error, PageFault
from ocr2cli.pages import Ask, PageJob, PageKey, PageResult
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.stop import StopRequests
from ocr2cli.runners import runner_named

logger = logging.getLogger("ocr2")

_SPOOL = "ocr2-serve-"
# A request's file as messages name it.
_SPOOLED = rf"\S*{_SPOOL}\w+/request-\d+\.\w+"
# Advice that is meant for the command line, and what stands for it in a request.
_REQUEST_WORDS = (
    ("--password-file FILE", "the form's field `password`"),
    (", or give your own text with --prompt-text", ""),
    ("a lower --dpi", "a smaller page"),
    ("--pages", "`pages`"),
    ("--prompt", "`prompt`"),
)


class QueueFull(Exception):
    """More pages wait than the server takes; `retry_after_s` is a guess at when there is room."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


class TooManyPages(Exception):
    """A document with more pages than the server reads in one request."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes. body_bytes: of a request; pages: of a document; queued: pages."""

    body_bytes: int = 64_000_000
    pages: int = 200
    queued: int = 256
    seconds: float = 600.0


@dataclass(slots=True)
class _File:
    """A document on the disk. num_open: pages that a worker may still look for there."""

    path: Path
    num_open: int


class ServeEngine:
    """Submit a document's bytes, get one future per page. Start it once, stop it once.

    A page whose future is cancelled is not read, unless a worker has it already.
    """

    def __init__(self, cfg: RunConfig, limits: Limits, plan: EnginePlan | None = None) -> None:
        self.cfg = cfg
        self.limits = limits
        self.plan = plan or plan_engine(cfg)
        self.pages_by_status: Counter[str] = Counter()
        self.status = RunStatus()
        self.fault: str = ""
        self.error: Ocr2Error | None = None  # what ended it
        self.on_death: Callable[[], object] = lambda: None  # called in its thread
        self._ended = ""  # why no page is taken any more
        self._jobs: OrderedDict[PageKey, PageJob] = OrderedDict()  # with no worker yet
        self._futures: dict[PageKey, Future[PageResult]] = {}
        self._files: dict[str, _File] = {}  # by the name of their document
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._stop = StopRequests()
        self._is_closing = threading.Event()
        self._spool = tempfile.TemporaryDirectory(prefix=_SPOOL)
        self._thread = threading.Thread(target=self._run, name="ocr2-runner", daemon=True)

    def start(self) -> None:
        """Begin to take pages; workers load while the first one waits."""
        self._thread.start()

    def close(self) -> None:
        """Finish the pages under way (at most cfg.drain seconds), fail the rest, clean up."""
        self._is_closing.set()
        self._stop.request()
        if self._thread.is_alive():
            self._thread.join(self.cfg.drain + 5)
        self._fail_all("the server is shutting down")
        self._spool.cleanup()

    @property
    def num_queued(self) -> int:
        """Pages submitted, not answered, and still waited for."""
        return len(self._futures)

    @property
    def is_healthy(self) -> bool:
        return self._thread.is_alive() and not self.fault

    def submit(
        self, body: bytes, *, ending: str, ask: Ask, pages: str = "", max_pages: int = 0
    ) -> list[Future[PageResult]]:
        """Queue every page of one document; futures in page order.

        max_pages: fewer than the server's limit, where that is too many.
        Raises: QueueFull, TooManyPages, UsageError for a bad page range, PageFault for a document
        without a page to read, Ocr2Error when the engine has stopped.
        """
        self._check_running()
        self._check_room(1)
        name = f"request-{next(self._numbers)}"
        path = Path(self._spool.name) / f"{name}{ending}"
        try:
            path.write_bytes(body)
            # Opening a hostile file may hang or crash: that happens in a process of its own.
            jobs = self._list(
                path, name, pages, ask,
                max_pages=max_pages or self.limits.pages, is_isolated=not is_plain_image(body),
            )  # fmt: skip
            return self._enqueue(jobs, path, name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _check_running(self) -> None:
        if self._ended:
            raise Ocr2Error(self._ended)

    def _check_room(self, num_pages: int) -> None:
        if self.num_queued + num_pages > self.limits.queued:
            raise QueueFull(self._retry_after())

    def _list(
        self, path: Path, name: str, pages: str, ask: Ask, *, max_pages: int, is_isolated: bool
    ) -> list[PageJob]:
        jobs: list[PageJob] = []
        raster = replace(self.cfg.raster, password=ask.password)
        for job in find_jobs([str(path)], pages, raster, is_isolated=is_isolated):
            if job.error is not None:
                raise PageFault(job.error.code, for_clients(job.error.message))
            if len(jobs) >= max_pages:
                raise TooManyPages(f"at most {max_pages} pages in one request")
            jobs.append(replace(job, key=PageKey(name, job.key.page), ask=ask))
        return jobs

    def _enqueue(self, jobs: Sequence[PageJob], path: Path, name: str) -> list[Future[PageResult]]:
        futures = {job.key: Future[PageResult]() for job in jobs}
        with self._lock:
            self._check_running()
            self._check_room(len(jobs))
            self._futures |= futures
            self._jobs |= {job.key: job for job in jobs}
            self._files[name] = _File(path, len(jobs))
        for key, future in futures.items():
            future.add_done_callback(partial(self._one_done, key))
        return list(futures.values())

    def _one_done(self, key: PageKey, future: Future[PageResult]) -> None:
        """Nobody waits for a page any more that was cancelled."""
        if not future.cancelled():
            return
        with self._lock:
            self._futures.pop(key, None)
            if self._jobs.pop(key, None) is not None:
                self._leave_file(key)

    def _leave_file(self, key: PageKey) -> None:
        """The document's file goes with the last page that may be looked for. Under the lock."""
        file = self._files.get(key.document)
        if file is None:
            return
        file.num_open -= 1
        if not file.num_open:
            del self._files[key.document]
            with contextlib.suppress(OSError):
                file.path.unlink()

    def _run(self) -> None:
        options = RunnerOptions(
            retries=self.cfg.retries, stop=self._stop, drain_s=self.cfg.drain, status=self.status
        )
        run = runner_named(self.cfg.runner)
        # Who asks a server waits for this page, not for the sum of all.
        stages = [replace(stage, niceness=0) for stage in self.plan.stages]
        try:
            for result in run(stages, self._endless(), options=options):
                self._answer(result)
        except Ocr2Error as error:
            self.fault, self.error = str(error), error
        except Exception as error:
            self.fault = f"a bug in ocr2: {type(error).__name__}"
            self.error = Ocr2Error(self.fault)
            logger.exception("the engine stopped by %s", self.fault)
        finally:
            self._fail_all(self.fault or "the server is shutting down")
            if self.error is not None:
                self.on_death()

    def _endless(self) -> Iterator[PageJob | None]:
        """Jobs as they come; None tells the runner to look after its workers and ask again."""
        while not self._is_closing.is_set():
            with self._lock:
                job = self._jobs.popitem(last=False)[1] if self._jobs else None
            yield job

    def _answer(self, result: PageResult) -> None:
        self.pages_by_status[result.status] += 1
        if result.error is not None:
            message = for_clients(result.error.message)
            result = replace(result, error=replace(result.error, message=message))
        with self._lock:
            future = self._futures.pop(result.key, None)
            self._leave_file(result.key)
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(result)

    def _fail_all(self, reason: str) -> None:
        """The end: what waits is refused, and so is what comes later."""
        with self._lock:
            self._ended = reason
            left, self._futures = list(self._futures.values()), {}
            self._jobs.clear()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(Ocr2Error(reason))

    def _retry_after(self) -> int:
        """Seconds until a page is likely to have left, from the pages so far."""
        done = sum(self.pages_by_status.values())
        busy = sum(stage.busy_s for stage in self.status.stages())
        return max(1, min(60, round(busy / done))) if done else 5


def for_clients(message: str) -> str:
    """A message for who has no flags to give. Where the server keeps a request's file is nobody's
    business, and no help."""
    message = re.sub(_SPOOLED, "the document", message)
    for words, instead in _REQUEST_WORDS:
        message = message.replace(words, instead)
    return message


def now() -> int:
    """Seconds since 1970, for the `created` field of answers."""
    return int(time.time())
