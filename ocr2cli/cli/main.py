"""The command group and the one border where an exception becomes an exit code.

A stdout or stderr that nobody reads any more costs what is printed, and nothing else; so does a
stderr on a full disk, but a result that cannot be written is an error. Knows nothing about any
command until it is asked for: commands are imported by name, so `ocr2 --help` finishes without
torch.
"""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

import click
from click.core import ParameterSource

from ocr2cli import __version__
from ocr2cli.errors import ExitCode, Ocr2Error, OutputError
from ocr2cli.printing import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# name -> (module, attribute, one line for --help). The line stands here so that listing the
# commands imports none of them; `tests/cli` checks that it equals the command's own.
COMMANDS = {
    "run": ("ocr2cli.cli.run", "run", "Read documents, write markdown."),
    "eval": ("ocr2cli.cli.evaluate", "evaluate", "Score a model against truth and a reference."),
    "bench": ("ocr2cli.cli.bench", "bench", "Measure encode, prefill, decode and end to end."),
    "convert": ("ocr2cli.cli.convert", "convert", "Convert safetensors <-> GGUF, quantise."),
    "models": ("ocr2cli.cli.models", "models", "List, pull or locate models."),
    "info": ("ocr2cli.cli.info", "info", "Show model, device, memory plan; the grid of a page."),
    "doctor": ("ocr2cli.cli.doctor", "doctor", "Find the first stage that reads a page wrongly."),
    "serve": ("ocr2cli.cli.serve", "serve", "Serve an OpenAI-compatible HTTP endpoint."),
    "completion": ("ocr2cli.cli.completion", "completion", "Print a shell's completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # a shell completes a line that is half typed
                return None
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {cmd_name!r}.{hint}")
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ocr2")
def ocr2() -> None:
    """Turn piles of PDFs and images into markdown with DeepSeek-OCR-2."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code of cli.md."""
    # Not where a caller has put streams of its own.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _unbroken(sys.stdout, "stdout")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _unbroken(sys.stderr)
    sys.exit(_run(argv))


class _Unbroken(io.FileIO):
    """A file that takes what nobody reads: `ocr2 ... | head -1` wanted no more.

    results: its name if results go to it; then any other error is one, once.
    """

    results = ""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            name, self.results = self.results, ""
            if name and not isinstance(error, BrokenPipeError):
                raise OutputError(
                    f"cannot write to {name}: {error.strerror}. Make room, or send it elsewhere"
                ) from None
            return memoryview(data).nbytes


def _unbroken(stream: TextIO | None, results: str = "") -> TextIO | None:
    """The same stream, but a closed pipe is no error; None where there is no stream.

    results: as of `_Unbroken`.

    Here and not around what is printed: then it holds for progress, logs and libraries too, and
    a run goes on after the first line that nobody read.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    file = _Unbroken(stream.fileno(), "w", closefd=False)
    file.results = results
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _run(argv: Sequence[str] | None) -> int:
    logging.getLogger("ocr2").handlers.clear()  # of an earlier line, where a program gives several
    try:
        code = ocr2.main(args=argv, prog_name="ocr2", standalone_mode=False)
        return int(code) if isinstance(code, int) else ExitCode.OK
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.Abort:
        return ExitCode.SIGINT
    except click.ClickException as error:
        _set_up_early(argv)
        _complain(f"{' '.join(error.format_message().split())}{_hint(error)}")
        return ExitCode.USAGE
    except Ocr2Error as error:
        _set_up_early(argv)
        notes = getattr(error, "__notes__", ())
        _complain(". ".join([str(error).rstrip("."), *notes]) if notes else str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.SIGINT


def _set_up_early(argv: Sequence[str] | None) -> None:
    """Set up how lines are sent for an error that came before a command did so: of a line that
    cannot be parsed, or of a TOML file. As the line, or the environment, asks for it."""
    from ocr2cli.cli.options import set_up_logging

    if logging.getLogger("ocr2").handlers:
        return
    words = sys.argv[1:] if argv is None else list(argv)
    log_format = os.environ.get("OCR2_LOG_FORMAT", "")
    for word, following in pairwise([*words, ""]):
        flag, is_one_word, value = word.partition("=")
        if flag == "--log-format":
            log_format = value if is_one_word else following
    is_asked = os.environ.get("OCR2_QUIET", "").lower() in ("1", "true", "yes", "on")
    is_quiet = is_asked or not {"-q", "--quiet"}.isdisjoint(words)
    with click.Context(ocr2):
        set_up_logging(verbose=0, quiet=is_quiet, log_format=log_format)


def _hint(error: click.ClickException) -> str:
    """Where a value came from that nobody typed, and which page of help tells more."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return ""
    where = ""
    if isinstance(error, click.NoSuchOption) and ctx.parent is None:
        where = " Options stand after the command: ocr2 run -v."
    if isinstance(error, click.BadParameter) and error.param is not None and error.param.name:
        source = ctx.get_parameter_source(error.param.name)
        if source is ParameterSource.ENVIRONMENT:
            where = f" It stands in the environment as {error.param.envvar}."
        elif source is ParameterSource.DEFAULT_MAP:
            from ocr2cli.cli.options import CONFIG_FILE

            where = f" It stands in the TOML file {ctx.meta.get(CONFIG_FILE)}."
    return f"{where} Help: {ctx.command_path} --help"


def _complain(message: str) -> None:
    """One line on stderr, even when the message carries a hostile file name or stderr is gone."""
    from ocr2cli.cli.options import json_line

    if sys.stderr is None:
        return
    line = json_line(message, logging.ERROR) or printable(f"ocr2: {message}")
    with_fallback = line.encode(sys.stderr.encoding or "ascii", "backslashreplace")
    try:
        sys.stderr.write(with_fallback.decode(sys.stderr.encoding or "ascii") + "\n")
    except OSError:
        return
