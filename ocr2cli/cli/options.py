"""Options shared by the commands, and where their values come from.

A flag beats the environment (OCR2_<FLAG>), the environment beats the TOML file, the file beats the
default. Knows nothing about what the values are used for.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import os
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ocr2cli import __version__
from ocr2cli.cli.variables import advice, is_of_kubernetes, settings_in
from ocr2cli.errors import UsageError
from ocr2cli.home import user_folder
from ocr2cli.printing import printable

# Where a context remembers which TOML file was read.
CONFIG_FILE = "ocr2cli.config"

Function = TypeVar("Function", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A number in a range; nan is in every range, and no JSON."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _Option(click.Option):
    """One whose variable Kubernetes may set for a service of that name: OCR2_PORT is an address."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return None if value and is_of_kubernetes(str(self.envvar), value) else value


def option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """`click.option` with OCR2_<FLAG> as its environment variable and its default in --help."""
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    settings.setdefault("envvar", "OCR2_" + flag.removeprefix("--").replace("-", "_").upper())
    settings.setdefault("show_default", True)
    return click.option(*names, cls=_Option, **settings)


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completes(words: Callable[[], Iterable[str]], *, is_list: bool = False) -> Complete:
    """`shell_complete` of an option that has words of its own and takes others: those are files.

    words: called when a shell asks. is_list: the words stand between commas, and there are no
    others.
    """

    def complete(
        _ctx: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, begun = incomplete.rpartition(",") if is_list else ("", "", incomplete)
        taken = before.split(",")
        found = [word for word in words() if word.startswith(begun) and word not in taken]
        if not found and not is_list:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(before + comma + word) for word in found]

    return complete


def model_names() -> tuple[str, ...]:
    """Names that --model knows; there are others on the hub, and on the disk."""
    from ocr2cli.weights.hub import HUB_NAMES

    return ("nano", *HUB_NAMES)


class TopicCommand(click.Command):
    """A command whose options stand below headings, in --help and in docs/cli.md.

    topics: heading -> its flags without their dashes, with spaces between.
    """

    def __init__(self, *args: Any, topics: dict[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.topics = topics

    def options_by_topic(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        """The options below each heading; those of no heading come last, as General."""
        below = {flag: topic for topic, flags in self.topics.items() for flag in flags.split()}
        found: dict[str, list[click.Parameter]] = {topic: [] for topic in (*self.topics, "General")}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option):
                flag = parameter.opts[-1].removeprefix("--")
                found[below.get(flag, "General")].append(parameter)
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for topic, options in self.options_by_topic(ctx).items():
            with formatter.section(topic):
                records = [option.get_help_record(ctx) for option in options]
                formatter.write_dl([record for record in records if record])


def common(function: Function) -> Function:
    """-v, -q, --log-format, --config and --version, on every command."""
    for decorate in (
        click.version_option(__version__, prog_name="ocr2"),
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
    """Send log lines to stderr: warnings by default, -v info, -vv debug, -q errors. Then tell of
    misspelt variables, of which no line could be sent before."""
    level = (
        logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logger = logging.getLogger("ocr2")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    _tell_misspelt_variables()


def _tell_misspelt_variables() -> None:
    """One line for each variable that no option of any command has."""
    given, ctx = settings_in(os.environ), click.get_current_context(silent=True)
    if not given or ctx is None:  # nearly always: no other command is imported to know its options
        return
    root = ctx.find_root()
    known = _variables_below(root, root.command)
    for name in given:
        if name not in known:
            logging.getLogger("ocr2").warning(
                "%s is not a setting; %s", name, advice(name, known)
            )


def _variables_below(ctx: click.Context, command: click.Command) -> set[str]:
    """Of the command's options and, of a group, of all its commands'."""
    found = {str(each.envvar) for each in command.params if each.envvar}
    for each in _commands_of(ctx, command).values():
        found |= _variables_below(ctx, each)
    return found


def json_line(text: str, level: int = logging.INFO) -> str:
    """`text` as a log line where those are JSON, else ""."""
    for handler in logging.getLogger("ocr2").handlers:
        if isinstance(handler.formatter, _JsonFormatter):
            return handler.format(logging.LogRecord("ocr2", level, "", 0, text, None, None))
    return ""


def say(text: str) -> None:
    """A message on stderr that is no log line and is heard at every level."""
    click.echo(json_line(text) or text, err=True)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(f"{record.levelname.lower()}: {record.getMessage()}")


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
    ctx.meta[CONFIG_FILE] = str(found)
    ctx.default_map = _settings_for(ctx, table, found)


def _first_config_file() -> Path | None:
    candidates = [Path("ocr2.toml")]
    with contextlib.suppress(RuntimeError):
        candidates.append(user_folder("config") / "config.toml")
    for candidate in candidates:
        try:
            if candidate.is_file():
                return candidate
        except OSError:
            continue
    return None


def _settings_for(ctx: click.Context, table: dict[str, Any], path: Path) -> dict[str, Any]:
    """Top-level keys and those of the command's own table, checked against its options.

    A command of a command has both its parent's and its own, [models] and [models.list].
    """
    lineage = [ctx]
    while lineage[0].parent is not None:
        lineage.insert(0, lineage[0].parent)
    _check_keys(lineage[0], lineage[0].command, table, path)
    known = _keys_of(ctx.command)
    settings: dict[str, Any] = {}
    for at in lineage:
        if at.parent is not None:
            table = table.get(at.info_name or "", {})
        for key, value in table.items():
            # Others are commands, and options of other commands.
            if parameter := known.get(key.replace("-", "_")):
                settings[parameter.name or ""] = _value(parameter, value, f"{path}: {key}")
    return settings


def _check_keys(
    ctx: click.Context, command: click.Command, table: dict[str, Any], path: Path
) -> None:
    """Raises: UsageError for a key or a table that nothing reads, in any command's part."""
    below = _commands_of(ctx, command)
    _check_tables(table, list(below), path)
    known = _keys_below(ctx, command)
    for key, value in table.items():
        if key in below:
            _check_keys(ctx, below[key], value, path)
        elif key.replace("-", "_") not in known:
            words = [word.replace("_", "-") for word in known]
            raise UsageError(f"{path}: unknown key {key!r}.{_nearest(key, words)}")


def _check_tables(table: dict[str, Any], names: list[str], path: Path) -> None:
    """Raises: UsageError for a table of no command, and for a command that is no table."""
    for key, value in table.items():
        if isinstance(value, dict) and key not in names:
            raise UsageError(f"{path}: [{key}] is not a command.{_nearest(key, names)}")
        if key in names and not isinstance(value, dict):
            raise UsageError(
                f"{path}: {key!r} is a command, not an option. Write its options below [{key}]."
            )


def _value(parameter: click.Parameter, value: Any, where: str) -> Any:
    """A value of the file as click wants it: a list where the option may be repeated, as `--suite`;
    else a list is the comma list of the command line, as of `--format`.

    Raises: UsageError for a value of another kind than the option's: click would take 144.9 for
    144, and a date for a bug.
    """
    kinds, wanted = _kinds_of(parameter)
    for one in value if isinstance(value, list) else [value]:
        # A bool is an int to Python, and to nobody else.
        if not isinstance(one, kinds) or (isinstance(one, bool) and bool not in kinds):
            raise UsageError(f"{where} is {one}: write {wanted}")
    if getattr(parameter, "multiple", False) or parameter.nargs != 1:
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _kinds_of(parameter: click.Parameter) -> tuple[tuple[type, ...], str]:
    """What a file may hold for an option, and how to say so. Text goes the command line's way."""
    if getattr(parameter, "is_flag", False):
        return (bool, str), "true or false"
    if isinstance(parameter.type, click.types.IntParamType):
        return (int, str), "a whole number"
    if isinstance(parameter.type, click.types.FloatParamType):
        return (int, float, str), "a number"
    if isinstance(parameter.type, click.types.StringParamType):
        return (str, int, float), "text"
    return (str,), "text"


def _keys_of(command: click.Command) -> dict[str, click.Parameter]:
    """What a file may call each option, with _ for -: its long name, or the parameter's."""
    keys = {}
    for parameter in command.params:
        for word in (*parameter.opts, parameter.name or ""):
            # --config is not passed on: a file names no other.
            if parameter.expose_value and (word.startswith("--") or word == parameter.name):
                keys[word.removeprefix("--").replace("-", "_")] = parameter
    return keys


def _keys_below(ctx: click.Context, command: click.Command) -> dict[str, click.Parameter]:
    """Of a group the keys of all its commands: a key above their tables may be meant for any."""
    keys = _keys_of(command)
    for each in _commands_of(ctx, command).values():
        keys |= _keys_below(ctx, each)
    return keys


def _commands_of(ctx: click.Context, command: click.Command) -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {}
    found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
    return {name: each for name, each in found.items() if each is not None}


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word.replace("_", "-"), names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_terminal() -> bool:
    """True when stderr is a terminal that may be drawn on."""
    is_plain = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR")
    return bool(sys.stderr and sys.stderr.isatty() and not is_plain)
