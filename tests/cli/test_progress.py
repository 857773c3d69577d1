"""What a person sees while a run goes."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ocr2cli.batch import Batch
from ocr2cli.cli.options import set_up_logging
from ocr2cli.cli.progress import BarProgress, LineProgress, Progress, make_progress
from ocr2cli.pages import PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.outlook import Outlook

logger = logging.getLogger("ocr2")


def result(document: str = "a", page: int = 0, status: Status = Status.OK) -> PageResult:
    return PageResult(PageKey(document, page), status, seconds={"decode": 1.0})


def outlook(*num_pages: int, num_documents: int = 20) -> Outlook:
    one = Outlook(num_documents)
    for number, count in enumerate(num_pages):
        for page in range(count):
            one.note(PageJob(PageKey(str(number), page), "/in", "", count))
    return one


def test_a_book_that_is_opened_first_does_not_stand_for_all_documents() -> None:
    """570 pages were expected of 58, and more than an hour of a minute and a half."""
    expected = [outlook(30, *[1] * more).num_to_read for more in range(20)]
    assert expected == [49] * 20
    assert outlook(*[30] * 5, num_documents=10).num_to_read == 300
    assert outlook(30).is_guess and not outlook(*[1] * 20).is_guess


def test_a_guess_of_the_total_is_marked(monkeypatch, capsys) -> None:
    monkeypatch.setattr("ocr2cli.cli.progress._LINE_EVERY_S", 0.0)
    progress = LineProgress()
    progress.expect(58, is_guess=True)
    progress.page(result())
    progress.expect(49)
    progress.page(result(status=Status.LOOP))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("1/~58 pages after ")
    assert second.startswith("2/49 pages after ") and second.endswith(", 1 to look at")


def read(progress: Progress, ends: list[float], total: int, monkeypatch) -> list[float | None]:
    """The time left after each page, with pages that are done at `ends`."""
    left = []
    progress.started = 0.0
    for end in ends:
        monkeypatch.setattr("time.monotonic", lambda now=end: now)
        progress.expect(total)
        progress.page(result())
        left.append(progress.seconds_left)
    return left


def test_no_time_left_is_told_before_it_means_something(monkeypatch) -> None:
    """1:39:51 were left at the first page of a run of 88 seconds."""
    ends = [60.0 + page for page in range(40)]  # the first page came late
    left = read(Progress(), ends, 40, monkeypatch)
    assert left[:9] == [None] * 9 and left[9:] == list(range(30, -1, -1))
    assert read(Progress(), [1.0, 2.0, 3.0], 3, monkeypatch) == [None, None, 0]
    assert read(Progress(), [float(page) for page in range(2000)], 9000, monkeypatch)[-1] == 7000


@pytest.fixture()
def bar(monkeypatch) -> Iterator[BarProgress]:
    """24 of about 58 pages done after 52 s."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = BarProgress()
    read(progress, [4.0 + 2.0 * page for page in range(1, 25)], 58, monkeypatch)
    progress.num_bad, progress.is_guess = 3, True
    yield progress
    progress.close()


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (120, "{l_bar}{bar}| 24/~58 [00:52<~01:08, 3 to look at, 27.7/min, letters/a {{}} letter]"),
        (80, "{l_bar}{bar}| 24/~58 [00:52<~01:08, 3 to look at, 27.7/min, ...ers/a {{}} letter]"),
        (64, "{l_bar}{bar}| 24/~58 [00:52<~01:08, 3 to look at, 27.7/min]"),
        (56, "{l_bar}{bar}| 24/~58 [00:52<~01:08, 3 to look at]"),
        (40, "24/~58 [00:52<~01:08, 3 to look at]"),
        (24, "24/~58 [3 to look at]"),
    ],
)
def test_a_narrow_bar_drops_what_matters_least(bar, columns: int, line: str) -> None:
    """At 40 columns it was cut between `3` and `to look at`."""
    assert bar.line("letters/a {} letter", columns) == line


def test_log_lines_go_above_the_bar(monkeypatch) -> None:
    """The bar stood in the middle of the word `warning`."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handlers = logger.handlers[:]
    set_up_logging(verbose=0, quiet=False, log_format="text")
    with make_progress(quiet=False, bar=True) as progress:
        progress.expect(2)
        progress.page(result())
        logger.warning("a line")
    logger.handlers[:] = handlers
    lines = stream.getvalue().replace("\r", "\n").splitlines()
    assert "warning: a line" in lines


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_line_comes_while_no_page_ends(monkeypatch, capsys) -> None:
    """Pages that are decoded together end late: for minutes a log said nothing."""
    monkeypatch.setattr("ocr2cli.cli.progress._LINE_EVERY_S", 0.05)
    monkeypatch.setattr("ocr2cli.cli.progress._TICK_EVERY_S", 0.01)
    lines: list[str] = []
    with make_progress(quiet=False, bar=False) as progress:
        progress.expect(58, is_guess=True)

        def has_come() -> bool:
            lines.extend(capsys.readouterr().err.splitlines())
            return any(re.fullmatch(r"0/~58 pages after \d+ s", line) for line in lines)

        wait_for(has_come)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "nothing is drawn when the run is over"
    assert not [each for each in threading.enumerate() if each.name == "ocr2-progress"]


def test_two_threads_that_find_a_line_due_at_once_say_it_once(capsys) -> None:
    """A page ends while the clock ticks."""

    class Overtaken(LineProgress):
        """Another thread ticks while the first one has just read when the last line came."""

        @property
        def _last(self) -> float:
            last = self._when
            if not others:
                others.append(threading.Thread(target=self.tick))
                others[0].start()
                others[0].join(0.2)  # held up by the first one, it is waited for in vain
            return last

        @_last.setter
        def _last(self, when: float) -> None:
            self._when = when

    others: list[threading.Thread] = []
    progress = Overtaken()
    progress._last = progress.started - 3600.0
    progress.tick()
    others[0].join()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bars_clock_goes_on_while_no_page_ends(monkeypatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("ocr2cli.cli.progress._TICK_EVERY_S", 0.01)
    with make_progress(quiet=False, bar=True) as progress:
        progress.started -= 7000.0
        progress.expect(5)
        wait_for(lambda: bool(re.search(r"0/5 \[1:\d\d:\d\d\]", stream.getvalue())))
        progress.page(result("letters/b"))
        progress.started -= 7000.0
        line = r"1/5 \[3:\d\d:\d\d, 0\.0/min, letters/b\]"
        wait_for(lambda: bool(re.search(line, stream.getvalue())))


def test_a_drawing_that_was_broken_off_with_tqdms_lock_does_not_hold_the_end(monkeypatch) -> None:
    """A third Ctrl-C in the midst of it: the run could not be ended but by a fourth."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr("ocr2cli.cli.progress._TICK_EVERY_S", 0.01)
    started = time.monotonic()
    with make_progress(quiet=False, bar=True) as progress:
        progress.expect(5)
        lock = progress._bar.get_lock()
        lock.acquire()  # as tqdm leaves it: this thread has it, and may take it again
    lock.release()
    assert time.monotonic() - started < 60.0


def test_a_stderr_that_is_gone_ends_the_ticks_and_nothing_else(monkeypatch) -> None:
    monkeypatch.setattr("ocr2cli.cli.progress._TICK_EVERY_S", 0.01)
    asked = []

    def tick(self: LineProgress) -> None:
        asked.append(1)
        raise BrokenPipeError

    monkeypatch.setattr(LineProgress, "tick", tick)
    with make_progress(quiet=False, bar=False):
        wait_for(lambda: bool(asked))
        time.sleep(0.05)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0 s"), (299.0, "299 s"), (300.0, "5 min"), (3600.0, "1 h 0 min"),
     (12345.0, "3 h 25 min")],
)  # fmt: skip
def test_the_time_spent_is_told_as_people_do(monkeypatch, seconds: float, words: str) -> None:
    progress = Progress()
    progress.started = 100.0
    monkeypatch.setattr("time.monotonic", lambda: 100.0 + seconds)
    assert progress.time_spent == words


class Told:
    """What a progress was told of how many pages there are."""

    def __init__(self) -> None:
        self.totals: list[int] = []

    def page(self, result: PageResult) -> None:
        raise AssertionError("no page was read")

    def expect(self, total: int, *, is_guess: bool = False) -> None:
        self.totals.append(total)


def test_pages_are_expected_before_one_is_read_and_those_of_an_earlier_run_are_not() -> None:
    told = Told()
    nothing: Any = None
    batch = Batch(nothing, nothing, nothing, {}, nothing, outlook=Outlook(1), progress=told)
    for page in range(3):
        batch.note(PageJob(PageKey("a", page), "/in", "", 3), is_resumed=page < 2)
    assert told.totals == [2, 1, 1]
    unwatched = Batch(nothing, nothing, nothing, {}, nothing, outlook=Outlook(1))
    unwatched.note(PageJob(PageKey("a", 0), "/in", "", 3))
    assert unwatched.outlook.num_to_read == 3
