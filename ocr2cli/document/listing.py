"""How many pages a file has, its digest, and how large a page is, found out where it cannot do
harm.

MuPDF and image libraries can hang or crash in C on a hostile file, and no Python code in the same
process can stop that. So a child process opens the files; the kernel ends it when a file takes too
long, and the next file gets a fresh one. Knows nothing about names or page ranges.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ocr2cli.children import child_environment, end_with_parent
from ocr2cli.config import RasterConfig
from ocr2cli.document.files import open_input, shown, sniff
from ocr2cli.document.urls import is_url
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageError, PageJob, PageKey

# Time to open a file and count, on top of reading it once at a slow disk's speed.
BASE_DEADLINE_S = 20
SLOWEST_BYTES_PER_S = 20_000_000
DOWNLOAD_DEADLINE_S = 280
MAX_ADDRESS_SPACE = 8 << 30

# Files named to the child ahead of time, so that it works while the pages of one are read.
_AHEAD = 4
# How long the caller is kept while a file is opened, before it may look after other things.
_TICK_S = 0.02
_BOOT = "from ocr2cli.document.listing import serve; serve()"


@dataclass(frozen=True, slots=True)
class Listing:
    """What opening a file showed. num_pages is 0 when `error` is set."""

    sha256: str = ""
    num_pages: int = 0
    error: PageError | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A page before it is drawn: its pixels, and the characters of its text layer. All are 0 when
    `error` is set. is_own_text: the layer is taken, as far as that was asked."""

    width: int = 0
    height: int = 0
    num_characters: int = 0
    is_own_text: bool = False
    error: PageError | None = None


def list_documents(
    paths: Sequence[str],
    cfg: RasterConfig,
    *,
    is_isolated: bool = True,
) -> Generator[Listing | None]:
    """One listing a path, in order. Nothing here raises for what a file holds.

    None, any number of times, while the other process opens a file, which may take minutes: ask
    again. Who has other work, or may be told to stop, sees to it in between.
    """
    if not is_isolated:
        yield from (inspect(path, cfg) for path in paths)
        return
    with contextlib.ExitStack() as stack:
        child: _Child | None = None
        waiting = deque(paths)
        suspect = ""
        while waiting:
            if child is None:
                child = stack.enter_context(_Child(cfg))
            child.name(waiting)
            while not child.has_answer(_TICK_S):
                yield None
            answer = child.next_answer()
            if answer is not None:
                listing = Listing(**answer)
            else:
                death = child.death_of(waiting[0])
                child = None
                stack.close()
                # A process may die of something else than its file: once more, to be sure.
                if waiting[0] != suspect and death.code == "worker_died":
                    suspect = waiting[0]
                    continue
                listing = Listing(error=death)
            waiting.popleft()
            yield listing


def inspect(path: str, cfg: RasterConfig) -> Listing:
    """Open one file in this process. Its faults become `error`; a hang stays a hang."""
    from ocr2cli.document.raster import open_document

    sha256 = ""
    try:
        with contextlib.closing(open_input(path)) as source:
            sniff(source)  # before the digest: what is no document need not be read whole
            sha256 = source.sha256()
            with contextlib.closing(open_document(source, cfg.password)) as document:
                num_pages = document.num_pages
    except PageFault as fault:
        return Listing(sha256, error=PageError(fault.code, fault.message))
    except MemoryError:
        return Listing(sha256, error=PageError("out_of_memory", _no_memory(path)))
    return Listing(sha256, num_pages)


class PageEstimates:
    """Looks at pages, one after the other, in the process that opens files."""

    def __init__(self, cfg: RasterConfig) -> None:
        self._cfg = cfg
        self._stack = contextlib.ExitStack()
        self._child: _Child | None = None

    def __enter__(self) -> PageEstimates:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, job: PageJob, *, is_layer_asked: bool = False) -> Estimate:
        """Nothing here raises for what a file holds. is_layer_asked: whether the text layer is
        taken, for which the page is drawn."""
        found = self._ask(job, is_layer_asked)
        # As in a listing: it may have died of something else, or of the drawing.
        if found.error is not None and (is_layer_asked or found.error.code == "worker_died"):
            found = self._ask(job, False)
        return found

    def _ask(self, job: PageJob, is_layer_asked: bool) -> Estimate:
        if self._child is None:
            self._child = self._stack.enter_context(_Child(self._cfg))
        child = self._child
        child.name([[job.path, is_layer_asked, job.key.page, job.sha256, job.dpi]])
        while not child.has_answer(_TICK_S):
            pass
        answer = child.next_answer()
        if answer is not None:
            return Estimate(**answer)
        death = child.death_of(job.path)
        self._child = None
        self._stack.close()
        return Estimate(error=death)


def estimate(job: PageJob, cfg: RasterConfig, *, is_layer_asked: bool = False) -> Estimate:
    """Look at one page in this process. Its faults become `error`; a hang stays a hang."""
    from ocr2cli.document.raster import page_estimate, trusted_text

    try:
        found = page_estimate(job, cfg)
        return Estimate(*found, is_layer_asked and trusted_text(job, cfg) is not None)
    except PageFault as fault:
        return Estimate(error=PageError(fault.code, fault.message))
    except MemoryError:
        message = "there is not enough memory to look at it."
        return Estimate(error=PageError("out_of_memory", message))


def serve() -> None:
    """The child: reads one JSON line a file or page from stdin, answers with one on stdout."""
    from ocr2cli.document.raster import load_libraries

    end_with_parent()
    bound_memory()
    load_libraries()  # before the first file's time runs
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # nothing a library prints may look like an answer
    cfg = RasterConfig(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        question = json.loads(line)
        path, *page = [question] if isinstance(question, str) else question
        _limit_seconds(path)
        answer = _estimate(cfg, path, *page) if page else inspect(path, cfg)
        signal.alarm(0)
        answers.write(json.dumps(asdict(answer)) + "\n")
        answers.flush()


def _estimate(
    cfg: RasterConfig, path: str, is_layer_asked: bool, page: int, sha256: str, dpi: int
) -> Estimate:
    job = PageJob(PageKey("", page), path, sha256, num_pages=1, dpi=dpi)
    return estimate(job, cfg, is_layer_asked=is_layer_asked)


class _Child:
    """The process that opens files. One that died is not used again."""

    def __init__(self, cfg: RasterConfig) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,
        )
        self._num_named = 0
        self._answers = b""
        self._is_dead = False
        self._say(asdict(cfg))

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def name(self, waiting: Sequence[object]) -> None:
        """Tell it the next files, or the next page, so that it is never idle."""
        while self._num_named < min(len(waiting), _AHEAD):
            self._say(waiting[self._num_named])
            self._num_named += 1

    def has_answer(self, within_s: float) -> bool:
        """Wait so long at most until there is an answer, or the child has died."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not (self._is_dead or b"\n" in self._answers):
            # Not `readline`: what it read ahead would be out of sight of `poll`.
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            if poll.poll(within_s * 1000):
                arrived = os.read(pipe, 1 << 16)
                self._answers += arrived
                self._is_dead = not arrived
        return self._is_dead or b"\n" in self._answers

    def next_answer(self) -> dict[str, Any] | None:
        """What it says of the first file or page it was told of; None when it died of that."""
        answer, newline, self._answers = self._answers.partition(b"\n")
        if not newline:
            return None
        self._num_named -= 1
        fields: dict[str, Any] = json.loads(answer)
        if fields["error"]:
            fields["error"] = PageError(**fields["error"])
        return fields

    def death_of(self, path: str) -> PageError:
        """Why the child died while it had this file open."""
        status = self._process.wait()
        # By its name: whoever looks into it here may be ended as well.
        is_pdf = path.lower().partition("?")[0].endswith(".pdf")
        repair = "try `qpdf` to repair it" if is_pdf else "copy it again or leave it out"
        if status == -getattr(signal, "SIGALRM", 0):
            return PageError(
                "timeout", f"{shown(path)} took too long to open. It may be damaged; {repair}."
            )
        return PageError(
            "worker_died",
            f"{shown(path)} ended the process that opened it, and so it did a second time (status "
            f"{status}). It may be damaged; {repair}.",
        )

    def _say(self, message: object) -> None:
        # Few and short messages: they fit the pipe's buffer, so this never waits for the child.
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode("ascii") + b"\n")
            self._process.stdin.flush()


def bound_memory() -> None:
    """So that a hostile file costs the child, not the machine."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_seconds(path: str) -> None:
    """Let the kernel end this process: no handler, so that it works inside C code too."""
    try:
        seconds = os.stat(path).st_size // SLOWEST_BYTES_PER_S
    except (OSError, ValueError):
        seconds = DOWNLOAD_DEADLINE_S if is_url(path) else 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(BASE_DEADLINE_S + seconds)


def _no_memory(path: str) -> str:
    return f"there is not enough memory to open {shown(path)}. Split the file or leave it out."
