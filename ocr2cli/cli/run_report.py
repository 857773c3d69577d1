"""What `ocr2 run` says to people: before page one, at a stop, and at its end.

Knows nothing about how a run is started or stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ocr2cli.cli.options import json_line, say
from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.errors import ExitCode
from ocr2cli.output.formats import BOX_FORMATS
from ocr2cli.text.prompt import asks_for_boxes, asks_for_text, prompt_text

if TYPE_CHECKING:
    from ocr2cli.output.summary import Summary

logger = logging.getLogger("ocr2")

_TEXT_HINT = (
    "PDFs among them have a text of their own: --text-layer auto takes it where it looks like the "
    "page"
)
# A stranger's first page may well be small print.
_NANO_HINT = (
    "nano, the small model that comes along, reads large print only. For pages like these: "
    "ocr2 models pull deepseek-ocr-2, then --model deepseek-ocr-2"
)


def warn(cfg: RunConfig) -> None:
    """Tells, before page one, of what is asked for and will not be had."""
    prompt = cfg.engine.prompt_text or prompt_text(cfg.engine.prompt)
    if _reads_with_nano(cfg.engine) and not asks_for_text(prompt):
        logger.warning(
            "nano was trained on --prompt markdown and --prompt ocr alone: what it answers to "
            "another prompt makes no sense"
        )
    drawn = [name for name in cfg.formats if name in BOX_FORMATS]
    if drawn and not asks_for_boxes(prompt):
        logger.warning(
            "--format %s: this prompt asks for no boxes, so there will be none to draw; "
            "--prompt markdown does", ",".join(drawn),
        )  # fmt: skip


def say_stopping(drain_s: float, signum: int, *, is_over_bar: bool) -> None:
    """One line, at once, past the buffers of `sys.stderr`, which a signal may find half written."""
    again = "Ctrl-C again" if signum == signal.SIGINT else "a second signal"
    text = (
        f"stopping: pages under way are being finished, for {drain_s:g} s at most; {again} to stop "
        "now"
    )
    line = f"{json_line(text, logging.WARNING) or text}\n"
    # The bar, and the ^C that a terminal shows, are drawn over; the bar comes back below.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), (f"\r\x1b[K{line}" if is_over_bar else line).encode())


def say_end(cfg: RunConfig, summary: Summary, *, quiet: bool, as_json: bool) -> None:
    """The summary of a run that no error ended; on stderr only where somebody wants to hear of it,
    or ought to."""
    if as_json:
        print_json(summary)
    if summary.exit_code != ExitCode.OK or not (quiet or as_json):
        for line in (summary.to_text(), *_hints(cfg, summary)):
            say(line)
    if summary.ended_by:  # by a signal, then
        goes_on = ": run the same command again to go on"
        say(f"stopped{goes_on if summary.has_rest else ', after the last page'}")


def print_json(summary: Summary) -> None:
    """The summary as one object on stdout."""
    click.echo(json.dumps(summary.to_json(), ensure_ascii=True))


def _hints(cfg: RunConfig, summary: Summary) -> Iterator[str]:
    """What else to try with the pages that were read badly."""
    if summary.pages_badly_read_of_text and cfg.raster.text_layer == "never":
        yield _TEXT_HINT
    if summary.pages_badly_read and _reads_with_nano(cfg.engine):
        yield _NANO_HINT


def _reads_with_nano(engine: EngineConfig) -> bool:
    return engine.model == "nano" and engine.engine != "openai"
