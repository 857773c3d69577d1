"""Write docs/cli.md from the commands themselves: `python docs/make_cli.py`.

With --check nothing is written, and a page that is not what the commands say is exit code 1.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))

import click  # noqa: E402

from ocr2cli.cli.main import COMMANDS, ocr2  # noqa: E402
from ocr2cli.cli.options import TopicCommand  # noqa: E402
from ocr2cli.errors import ExitCode  # noqa: E402

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
<!-- Made by docs/make_cli.py from the commands; `make check` holds it to them. -->

# The command line

Every option of every command, as `ocr2 COMMAND --help` prints it. Messages and progress go to
stderr, results to stdout.

A value comes from the flag; else from the environment variable in the last column; else from the
TOML file (`--config FILE`, else `./ocr2.toml`, else `ocr2/config.toml` in the user's config
folder); else it is the default. In the file an option has its long name without the dashes: at the
top for every command that has it, or in a table with the command's name:

```toml
model = "deepseek-ocr-2"

[run]
format = "md,html"
```

`pages` means something else in `bench`, `cache` in `eval`, and `api-key` in `serve`: put them in
`[run]`, not at the top, and set `OCR2_PAGES`, `OCR2_CACHE` and `OCR2_API_KEY` for one command only.
A key that no option has is refused; a variable that begins with `OCR2_` and is no option's gets a
warning (not with `-q`). Both name the nearest right one where there is one.

Environment variables of other programs that ocr2 respects: `NO_COLOR` and `TERM=dumb` (lines
instead of a bar), `HF_HOME`, `HF_HUB_OFFLINE`, `CUDA_VISIBLE_DEVICES`, `RAY_ADDRESS`,
`XDG_CACHE_HOME`, `XDG_CONFIG_HOME`, `XDG_STATE_HOME`, `TMPDIR`, `OMP_WAIT_POLICY`,
`GOMP_SPINCOUNT`, and `AWS_*` for `s3://`.

What the output holds: [output.md](output.md). The server's requests: [server.md](server.md).
"""
EXIT_CODES = {
    ExitCode.OK: "every page was read, or there was nothing left to do",
    ExitCode.BUG: "a bug in ocr2",
    ExitCode.USAGE: "usage",
    ExitCode.INPUT: "no input could be read",
    ExitCode.MODEL: "the model could not be loaded",
    ExitCode.PAGES_FAILED: "done, but some pages or documents looped, were cut or failed",
    ExitCode.ENGINE: "the engine failed (out of memory, device lost, server unreachable), "
    "or the output cannot be written (disk full, bucket refuses)",
    ExitCode.GATE_FAILED: "a gate of `ocr2 eval` failed, or a stage of `ocr2 doctor` differs",
    ExitCode.IN_USE: "the output folder is in use by another run; try later",
    ExitCode.SIGHUP: "the terminal was closed; what was finished is kept",
    ExitCode.SIGINT: "interrupted; what was finished is kept",
    ExitCode.SIGTERM: "ended by SIGTERM; what was finished is kept",
}


def page() -> str:
    """The whole of docs/cli.md."""
    sections = ["\n".join(command_lines(f"ocr2 {name}", load(name))) for name in COMMANDS]
    codes = ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    codes += [f"| {int(code)} | {EXIT_CODES[code]} |" for code in ExitCode]
    listing = [
        f"- [`ocr2 {name}`](#ocr2-{name}): {line}" for name, (_, _, line) in COMMANDS.items()
    ]
    return "\n".join([HEAD, *listing, "", *sections, "\n".join(codes), ""])


def load(name: str) -> click.Command:
    module, attribute, _ = COMMANDS[name]
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def command_lines(path: str, command: click.Command) -> Iterator[str]:
    """One command's section, then those of its subcommands."""
    context = click.Context(command, info_name=path, parent=None)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from (f"## {path}", "", "```", " ".join(usage.split()), "```", "")
    yield from (description(command), "")
    if isinstance(command, TopicCommand):
        for topic, options in command.options_by_topic(context).items():
            yield from (f"### {topic}", "", *option_table(options, context))
    else:
        yield from option_table(command.params, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from command_lines(f"{path} {name}", below)


def option_table(options: list[click.Parameter], context: click.Context) -> Iterator[str]:
    """A row for each option of a command's own; nothing where there is none."""
    rows = [row for each in options if (row := option_row(each, context))]
    if rows:
        yield from ("| option | meaning | default | environment |", "|---|---|---|---|", *rows, "")


def description(command: click.Command) -> str:
    """The docstring; a block marked as it stands becomes code."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        as_it_stands = paragraph.startswith("\b\n")
        text = paragraph.removeprefix("\b\n")
        paragraphs.append(f"```\n{text}\n```" if as_it_stands else text)
    return "\n\n".join(paragraphs)


def option_row(parameter: click.Parameter, context: click.Context) -> str:
    """One row of the table; "" for an argument, which the usage line shows, and for --help."""
    if not isinstance(parameter, click.Option) or "--help" in parameter.opts:
        return ""
    record = parameter.get_help_record(context)
    extra = parameter.get_help_extra(context)
    notes = [extra.get("range", ""), extra.get("required", "")]
    note = "".join(f" ({note})" for note in notes if note)
    default, envvar = extra.get("default", ""), parameter.envvar
    assert record is not None, "no option is hidden"
    cells = (
        f"`{record[0]}`",
        (parameter.help or "") + note,
        # click brackets a default that is words, not a value.
        default.strip("()") if default.startswith("(") else f"`{default}`" if default else "",
        f"`{envvar}`" if envvar else "",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    assert ocr2.name, "the group is what `ocr2` runs"
    new, old = page(), PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if "--check" not in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), "docs/cli.md", "now", n=1):
        print(line)
    if new != old:
        print("docs/cli.md is old; write it anew: python docs/make_cli.py")
    return int(new != old)


if __name__ == "__main__":
    sys.exit(main())
