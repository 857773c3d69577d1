"""What can go wrong, with the exit code each ends in.

    Ocr2Error                 exit 1
    |- UsageError             exit 2   flags, config file, page ranges
    |- InputError             exit 3   no input could be read
    |- ModelError             exit 4   the model could not be loaded
    |- EngineError            exit 6   out of memory, device lost, server unreachable
    |- GateFailed             exit 7   a gate of `ocr2 eval` failed
    |- OutputInUse            exit 75  another run holds the output folder
    `- OutputError            exit 6   the output folder cannot be written

A message has three parts: what happened, where, what to type next.
A fault in one page is data (`PageError`), never one of these.
Knows nothing about what raises them.
"""

from __future__ import annotations

from enum import IntEnum


def extra_hint(extra: str) -> str:
    """What to type for an extra, as README.md has it. Not by the project's name: it is on no index,
    and what anybody puts there under that name would be installed."""
    return f"In the project's folder type: pip install -c constraints.txt '.[{extra}]'"


class ExitCode(IntEnum):
    """The stable exit codes of cli.md."""

    OK = 0
    BUG = 1
    USAGE = 2
    INPUT = 3
    MODEL = 4
    PAGES_FAILED = 5
    ENGINE = 6
    GATE_FAILED = 7
    IN_USE = 75
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


class Ocr2Error(Exception):
    """Base of all; the CLI's border turns `exit_code` into the process's."""

    exit_code: ExitCode = ExitCode.BUG


class UsageError(Ocr2Error):
    exit_code = ExitCode.USAGE


class InputError(Ocr2Error):
    exit_code = ExitCode.INPUT


class ModelError(Ocr2Error):
    exit_code = ExitCode.MODEL


class EngineError(Ocr2Error):
    exit_code = ExitCode.ENGINE


class OutputError(Ocr2Error):
    exit_code = ExitCode.ENGINE


class GateFailed(Ocr2Error):
    exit_code = ExitCode.GATE_FAILED


class OutputInUse(Ocr2Error):
    exit_code = ExitCode.IN_USE


def exit_code_of(error: BaseException) -> ExitCode:
    """What a process ends with when nobody catches this."""
    if isinstance(error, Ocr2Error):
        return error.exit_code
    return ExitCode.SIGINT if isinstance(error, KeyboardInterrupt) else ExitCode.BUG


class PageFault(Exception):
    """Raised inside a worker for one page; the worker loop turns it into `PageResult.error`.

    code: one of the stable words: unreadable, encrypted, not_a_file, unsupported, empty,
    too_large, changed, away (not to be opened, though it was when it was listed), timeout,
    worker_died, out_of_memory, nan_logits, internal, request; and not_applicable, of a recovery
    step that has nothing to do, which no page fails with.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
