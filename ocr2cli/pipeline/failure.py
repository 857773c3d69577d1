"""What an exception in a worker, or its death, means: for the page, or for the whole run.

Knows nothing about processes; a `Failure` is plain enough to cross a pipe.
"""

from __future__ import annotations

import logging
import os
import traceback
from dataclasses import dataclass

import ocr2cli.errors
from ocr2cli.errors import EngineError, Ocr2Error, PageFault
from ocr2cli.pages import PageError

logger = logging.getLogger("ocr2")

# A worker that dies with no page to blame is replaced this often in a row.
MAX_UNBLAMED_DEATHS = 10
# Deaths of a stage that everybody is told of; a run in which many pages are deadly has a line for
# each of those anyway.
_MAX_TOLD_DEATHS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that ended a worker.

    is_loading: raised while the worker was made. is_ours: one of `errors.py`, to be raised again
    by that name. code: a `PageFault`'s. message: one line, with the place for foreign exceptions.
    """

    class_name: str
    message: str
    is_loading: bool = False
    is_ours: bool = False
    code: str = ""

    def page_error(self, stage_name: str) -> PageError:
        """For the pages the worker had taken."""
        is_memory = self.class_name in ("MemoryError", "OutOfMemoryError")  # the latter is torch's
        code = "out_of_memory" if is_memory else self.code or "worker_died"
        return PageError(code, f"the {stage_name} worker stopped: {self.message}")

    def run_error(self, stage_name: str) -> Ocr2Error | None:
        """For the run, where another try cannot help: loading failed, or our engine said so."""
        if self.is_ours:
            return _our_class(self.class_name)(self.message)
        if self.is_loading:
            return EngineError(f"the {stage_name} worker could not be loaded: {self.message}")
        return None


def describe(error: BaseException, *, is_loading: bool) -> Failure:
    """The facts about an exception, as they are needed elsewhere."""
    is_ours = isinstance(error, Ocr2Error)
    text = str(error) if is_ours else _last_line(error)
    return Failure(
        type(error).__name__,
        " ".join(text.split()),
        is_loading=is_loading,
        is_ours=is_ours,
        code=error.code if isinstance(error, PageFault) else "",
    )


def tell_death(fault: PageError, num_deaths: int, *, num_held: int, num_again: int) -> None:
    """One line for a death that does not end the run: nothing else would tell that memory runs
    short, say. num_deaths: of the stage, with this one; num_again: of the pages it held, those
    that are read again, now or by the next run."""
    pages = "page" if num_held == 1 else f"{num_held} pages"
    if not num_held:
        fate = "it held no page"
    elif num_again == num_held:
        fate = f"the {pages} it held {'is' if num_held == 1 else 'are'} read again"
    elif not num_again:
        fate = f"the {pages} it held {'has' if num_held == 1 else 'have'} failed"
    else:
        fate = f"of the {pages} it held {num_again} {'is' if num_again == 1 else 'are'} read again"
    level = logging.WARNING if num_deaths <= _MAX_TOLD_DEATHS else logging.INFO
    logger.log(level, "%s; %s", fault.message, fate)


def _last_line(error: BaseException) -> str:
    """ "ZeroDivisionError: division by zero (toys.py:12)"."""
    text = "".join(traceback.format_exception_only(error)).strip()
    steps = traceback.extract_tb(error.__traceback__)
    if not steps:
        return text
    return f"{text} ({os.path.basename(steps[-1].filename)}:{steps[-1].lineno})"


def _our_class(name: str) -> type[Ocr2Error]:
    found = getattr(ocr2cli.errors, name, EngineError)
    is_error = isinstance(found, type) and issubclass(found, Ocr2Error)
    return found if is_error else EngineError
