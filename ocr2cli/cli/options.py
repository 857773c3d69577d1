"""Options shared by the commands, and where their values come from.

A flag beats the environment (OCR2_<FLAG>), the environment beats the TOML file, the file beats the
default. Knows nothing about what the values are used for.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ocr2cli.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

# Keys of the file that are settings of every command.
_COMMON = ("verbose", "quiet", "log_format")


def option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """`click.option` with OCR2_<FLAG> as its environment variable and its default in --help."""
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    settings.setdefault("envvar", "OCR2_" + flag.removeprefix("--").replace("-", "_").upper())
    settings.setdefault("show_default", True)
    return click.option(*names, **settings)


def common(function: Function) -> Function:
    """-v, -q, --log-format and --config, on every command."""
    for decorate in (
        option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_load_file,
            show_default="./ocr2.toml, then the user's config folder",
            help="TOML file with options.",
        ),
        option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            help="Log lines on stderr.",
        ),
        option(
            "-q", "--quiet", is_flag=True, show_default=False, help="Say nothing if all is well."
        ),
        option(
            "-v", "--verbose", count=True, show_default=False, help="Say more; -vv: still more."
        ),
    ):
        function = decorate(function)
    return function


def set_up_logging(*, verbose: int, quiet: bool, log_format: str) -> None:
    """Send log lines to stderr: warnings by default, -v info, -vv debug, -q errors."""
    level = (
        logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logger = logging.getLogger("ocr2")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def one_line(text: str) -> str:
    """`text` with every character that could break or colour a terminal line spelled out."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_line(f"{record.levelname.lower()}: {record.getMessage()}")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; whatever was given as `extra={"fields": {...}}` is merged in."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        row.update(getattr(record, "fields", {}))
        return json.dumps(row, ensure_ascii=True)


def _load_file(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    found = path or _first_config_file()
    if found is None:
        return
    try:
        table = tomllib.loads(found.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{found}: not a readable TOML file: {error}") from error
    ctx.default_map = _settings_for(ctx.command, table, found)


def _first_config_file() -> Path | None:
    import platformdirs  # late: --help needs none of it

    user = Path(platformdirs.user_config_dir("ocr2")) / "config.toml"
    for candidate in (Path("ocr2.toml"), user):
        try:
            if candidate.is_file():
                return candidate
        except OSError:
            continue
    return None


def _settings_for(command: click.Command, table: dict[str, Any], path: Path) -> dict[str, Any]:
    """Top-level keys and those of the command's own table, checked against its options."""
    from ocr2cli.cli.main import COMMANDS

    known = _keys_of(command)
    settings: dict[str, Any] = {}
    others = {key for key, value in table.items() if isinstance(value, dict)}
    for name in others - set(COMMANDS):
        raise UsageError(f"{path}: [{name}] is not a command.{_nearest(name, list(COMMANDS))}")
    own = table.get(command.name or "", {})
    for key, value in {**{k: v for k, v in table.items() if k not in others}, **own}.items():
        name = key.replace("-", "_")
        if name in known:
            settings[known[name]] = ",".join(map(str, value)) if isinstance(value, list) else value
        elif key in own or not _is_known_anywhere(name):
            words = [word.replace("_", "-") for word in known]
            raise UsageError(f"{path}: unknown key {key!r}.{_nearest(key, words)}")
    return settings


def _keys_of(command: click.Command) -> dict[str, str]:
    """What a file may call each option, with _ for -: its long name, or the parameter's; -> the
    parameter's."""
    keys = {}
    for parameter in command.params:
        for word in (*parameter.opts, parameter.name or ""):
            if word.startswith("--") or word == parameter.name:
                keys[word.removeprefix("--").replace("-", "_")] = parameter.name or ""
    return keys


def _is_known_anywhere(name: str) -> bool:
    """A top-level key may be meant for another command; a misspelt one is known to none."""
    import importlib

    from ocr2cli.cli.main import COMMANDS

    for module, attribute, _ in COMMANDS.values():
        command = getattr(importlib.import_module(module), attribute)
        if name in _keys_of(command):
            return True
    return name in _COMMON


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word.replace("_", "-"), names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """Print to a stdout that may be closed (`ocr2 ... | head -1`): nobody wanted more, and the
    exit code stays what it was."""
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain once more when it flushes the stream at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_terminal() -> bool:
    """True when stderr is a terminal that may be drawn on."""
    dumb = os.environ.get("TERM") == "dumb"
    return bool(sys.stderr and sys.stderr.isatty() and not dumb)
