"""What a person sees while a run goes: a bar on a terminal, a plain line every ten seconds else.

Knows nothing about where the counts come from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from ocr2cli.cli.options import say
from ocr2cli.output.summary import is_reused
from ocr2cli.pages import PageResult
from ocr2cli.printing import printable

_LINE_EVERY_S = 10.0
_TICK_EVERY_S = 1.0
_MAX_RECENT = 500  # pages that the time left is told by
# Columns that the bar itself, and a document's name, are worth drawing with.
_MIN_BAR, _MIN_NAME, _MAX_NAME = 8, 10, 32


class Progress:
    """Counts results. total: None before the first one; is_guess: documents not opened yet may
    hold more pages, or fewer.

    startup_s: seconds until work on the first page began.
    """

    def __init__(self) -> None:
        self.num_done = 0
        self.num_bad = 0
        self.total: int | None = None
        self.is_guess = False
        self.started = time.monotonic()
        self.startup_s = 0.0
        self._ends: deque[float] = deque(maxlen=_MAX_RECENT + 1)

    def expect(self, total: int, *, is_guess: bool = False) -> None:
        """So many pages are known, or guessed, by now."""
        self.total, self.is_guess = total, is_guess

    def page(self, result: PageResult) -> None:
        """One more page has its result."""
        if not self.num_done:
            spent = time.monotonic() - self.started
            own_s = 0.0 if is_reused(result) else sum(result.seconds.values())
            self.startup_s = max(0.0, spent - own_s)
        self.num_done += 1
        self._ends.append(time.monotonic())
        self.num_bad += not result.status.is_good
        self.show(result)

    def show(self, result: PageResult) -> None:
        """Draw; the silent progress draws nothing."""

    def tick(self) -> None:
        """Draw anew while no page ends, from another thread: pages that are decoded together all
        end late."""

    def close(self) -> None:
        """Leave the terminal clean."""

    @property
    def pages_per_minute(self) -> float:
        return 60.0 * self.num_done / max(time.monotonic() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the later half of the pages: the first ones, read together, come late.
        None until that means something."""
        num_done, total = self.num_done, self.total or 0
        if num_done < 3 or (num_done < 50 and 4 * num_done < total):
            return None
        num_recent = min(num_done // 2, _MAX_RECENT)
        spent = time.monotonic() - self._ends[-1 - num_recent]
        return spent / num_recent * max(0, total - num_done)

    @property
    def time_spent(self) -> str:
        """Since the start: "42 s", "13 min" or "3 h 25 min"."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        if minutes < 5:
            return f"{60 * minutes + seconds} s"
        return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

    @property
    def count(self) -> str:
        """Pages done, of how many: "12", "12/58" or "12/~58"."""
        return str(self.num_done) + (f"/{self._mark}{self.total}" if self.total else "")

    @property
    def bad(self) -> str:
        return f"{self.num_bad} to look at" if self.num_bad else ""

    @property
    def _mark(self) -> str:
        return "~" if self.is_guess else ""


class LineProgress(Progress):
    """One line every ten seconds, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._last = self.started
        self._lock = threading.Lock()

    def show(self, result: PageResult) -> None:
        self.tick()

    def tick(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last < _LINE_EVERY_S:
                return
            self._last = now
        bad = f", {self.bad}" if self.bad else ""
        speed = f", {self.pages_per_minute:.1f}/min" if self.num_done else ""
        line = f"{self.count} pages after {self.time_spent}{speed}{bad}"
        say(line)  # `print` would go to stdout where stderr is closed


class BarProgress(Progress):
    """tqdm's bar: pages, time left, failures, pages/min, and the document in hand."""

    def __init__(self) -> None:
        super().__init__()
        from tqdm import tqdm

        self._bar: Any = tqdm(unit="page", dynamic_ncols=True, bar_format="{l_bar}{bar}| 0/?")
        self._document = ""

    def expect(self, total: int, *, is_guess: bool = False) -> None:
        super().expect(total, is_guess=is_guess)
        self._bar.total = total

    def show(self, result: PageResult) -> None:
        self._document = printable(result.key.document)
        self._put_line()
        self._bar.update(1)

    def tick(self) -> None:
        if self.total is not None:
            self._put_line()
            # tqdm gives its lock back only where nothing goes wrong in between.
            with self._bar.get_lock():
                self._bar.refresh(nolock=True)

    def _put_line(self) -> None:
        columns = self._bar.format_dict["ncols"] or 80
        self._bar.bar_format = self.line(self._document, columns)

    def line(self, document: str, columns: int) -> str:
        """tqdm's format of a line of so many columns. What matters least goes first where there
        is no room: the document, the speed, the bar, the time."""
        from tqdm.utils import disp_len

        speed = f"{self.pages_per_minute:.1f}/min" if self.num_done else ""
        facts = [self._time(), self.bad, speed]
        room = columns - disp_len(_drawn(self.count, facts)) - _MIN_BAR - len("100%|| , ")
        room = min(room, _MAX_NAME)
        if disp_len(document) > room:
            document = "..." + document[3 - room :] if room >= _MIN_NAME else ""
        for shown in ([*facts, document], facts, facts[:2]):
            text = _drawn(self.count, shown)
            if disp_len(text) + _MIN_BAR + len("100%|| ") <= columns:
                return "{l_bar}{bar}| " + _escaped(text)
        for shown in (facts[:2], facts[1:2]):
            text = _drawn(self.count, shown)
            if disp_len(text) <= columns:
                break
        return _escaped(text)

    def _time(self) -> str:
        spent = self._bar.format_interval(time.monotonic() - self.started)
        if (left := self.seconds_left) is None:
            return str(spent)
        return f"{spent}<{self._mark}{self._bar.format_interval(left)}"

    def close(self) -> None:
        self._bar.close()


def _drawn(count: str, facts: Sequence[str]) -> str:
    return f"{count} [{', '.join(filter(None, facts))}]"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@contextmanager
def make_progress(*, quiet: bool, bar: bool) -> Iterator[Progress]:
    """The right progress for this stderr, closed at the end whatever happens; log lines go above
    the bar."""
    with _logs_above_bar() if bar and not quiet else nullcontext():
        progress = Progress() if quiet else BarProgress() if bar else LineProgress()
        is_over = threading.Event()
        ticker = threading.Thread(
            target=_tick, args=(progress, is_over), name="ocr2-progress", daemon=True
        )
        ticker.start()
        try:
            yield progress
        finally:
            is_over.set()
            try:
                # Not for ever: a Ctrl-C in the midst of drawing leaves tqdm's lock taken.
                ticker.join(timeout=1.0)
            finally:
                progress.close()


def _tick(progress: Progress, is_over: threading.Event) -> None:
    # A stderr that is gone ends the ticks; who writes to it next will say so.
    with suppress(OSError, ValueError):
        while not is_over.wait(_TICK_EVERY_S):
            progress.tick()


def _logs_above_bar() -> AbstractContextManager[None]:
    from tqdm.contrib.logging import logging_redirect_tqdm

    redirect: AbstractContextManager[None] = logging_redirect_tqdm([logging.getLogger("ocr2")])
    return redirect
