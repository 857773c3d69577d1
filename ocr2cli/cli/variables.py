"""Variables of the environment that look like settings and are none: a misspelt one is told.

Told and not refused: an environment is shared by programs, and by versions of one, as a command
line is not. Knows nothing about what the settings are for.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping

import click

logger = logging.getLogger("ocr2")

_PREFIX = "OCR2_"
# What Kubernetes sets in every container for a service called ocr2, or ocr2-serve.
_OF_KUBERNETES = re.compile(r"OCR2_(\w+_)?(SERVICE_(HOST|PORT)|PORT_\d+_|PORT=\w+://)")


def warn_of_misspelt(environ: Mapping[str, str]) -> None:
    """One line for each variable that no option of any command has."""
    named = [
        name
        for name, value in sorted(environ.items())
        if name.startswith(_PREFIX) and not _OF_KUBERNETES.match(f"{name}={value}")
    ]
    if not named:  # nearly always: no other command is imported to know its options
        return
    known = known_variables()
    for name in named:
        if name not in known:
            logger.warning("%s is not a setting; %s", name, _advice(name, known))


def known_variables() -> frozenset[str]:
    """Those that options of any command have."""
    from ocr2cli.cli.main import ocr2

    return frozenset(_variables_of(ocr2, click.Context(ocr2)))


def _variables_of(command: click.Command, ctx: click.Context) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter.envvar, str):
            yield parameter.envvar
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            if (below := command.get_command(ctx, name)) is not None:
                yield from _variables_of(below, ctx)


def _advice(name: str, known: frozenset[str]) -> str:
    # Without the prefix, which would make all of them alike.
    words = sorted(each.removeprefix(_PREFIX) for each in known)
    close = difflib.get_close_matches(name.removeprefix(_PREFIX), words, n=1)
    if close:
        return f"did you mean {_PREFIX}{close[0]}?"
    return "settings are named after flags, OCR2_DPI after --dpi"
