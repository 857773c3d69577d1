"""What a person sees while a run goes: a bar on a terminal, a plain line every ten seconds else.

Knows nothing about where the counts come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ocr2cli.cli.options import one_line
from ocr2cli.output.summary import is_reused
from ocr2cli.pages import PageResult

_LINE_EVERY_S = 10.0


class Progress:
    """Counts results. `total` is None while documents are still being listed.

    startup_s: seconds until work on the first page began.
    """

    def __init__(self) -> None:
        self.num_done = 0
        self.num_bad = 0
        self.total: int | None = None
        self.started = time.monotonic()
        self.startup_s = 0.0

    def expect(self, total: int) -> None:
        """So many pages are known by now."""
        self.total = total

    def page(self, result: PageResult) -> None:
        """One more page has its result."""
        if not self.num_done:
            spent = time.monotonic() - self.started
            own_s = 0.0 if is_reused(result) else sum(result.seconds.values())
            self.startup_s = max(0.0, spent - own_s)
        self.num_done += 1
        self.num_bad += not result.status.is_good
        self.show(result)

    def show(self, result: PageResult) -> None:
        """Draw; the silent progress draws nothing."""

    def close(self) -> None:
        """Leave the terminal clean."""

    @property
    def pages_per_minute(self) -> float:
        return 60.0 * self.num_done / max(time.monotonic() - self.started, 1e-9)


class LineProgress(Progress):
    """One line every ten seconds, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._last = self.started

    def show(self, result: PageResult) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        of = f"/{self.total}" if self.total else ""
        bad = f", {self.num_bad} to look at" if self.num_bad else ""
        line = f"{self.num_done}{of} pages, {self.pages_per_minute:.1f}/min{bad}"
        click.echo(line, err=True)  # `print` would go to stdout where stderr is closed


class BarProgress(Progress):
    """tqdm's bar: pages, pages/min, time left, failures, and the document in hand."""

    def __init__(self) -> None:
        super().__init__()
        from tqdm import tqdm

        self._bar: Any = tqdm(
            unit="page",
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def expect(self, total: int) -> None:
        super().expect(total)
        self._bar.total = total

    def show(self, result: PageResult) -> None:
        name = one_line(result.key.document)
        shown = name if len(name) <= 32 else "..." + name[-29:]
        bad = f"{self.num_bad} to look at, " if self.num_bad else ""
        self._bar.set_postfix_str(f"{self.pages_per_minute:.1f}/min, {bad}{shown}", refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def make_progress(*, quiet: bool, bar: bool) -> Iterator[Progress]:
    """The right progress for this stderr, closed at the end whatever happens."""
    progress = Progress() if quiet else BarProgress() if bar else LineProgress()
    try:
        yield progress
    finally:
        progress.close()
