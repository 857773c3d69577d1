"""What a message tells a person to type is something that a command takes."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click

from ocr2cli.cli.main import COMMANDS, ocr2

REPO = Path(__file__).parents[2]
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)(?:[ =]([\w.-]+))?")
# Flags that messages and command lines give to other programs.
OTHERS = {
    "cp": {"--sparse"},
    "qpdf": {"--decrypt"},
    "nvidia-smi": {"--query-gpu"},
    "ray": {"--head"},
    "hf": {"--revision", "--local-dir"},
    "llama.cpp": {
        "--chat-template", "--dry-allowed-length", "--dry-base", "--dry-multiplier",
        "--dry-penalty-last-n", "--dry-sequence-breaker", "--flash-attn", "--image", "--no-jinja",
        "--no-warmup", "--special", "--temp",
    },
}  # fmt: skip


def options(command: click.Command) -> Iterator[click.Option]:
    known = command.get_params(click.Context(command))
    yield from (each for each in known if isinstance(each, click.Option))
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from options(below)


def flags() -> dict[str, set[str]]:
    """Every flag of every command; the values of those that know them all, else an empty set."""
    commands = [getattr(importlib.import_module(m), name) for m, name, _ in COMMANDS.values()]
    known: dict[str, set[str]] = {}
    for each in (option for command in (ocr2, *commands) for option in options(command)):
        values = each.type.choices if isinstance(each.type, click.Choice) else ()
        for word in (*each.opts, *each.secondary_opts):
            known.setdefault(word, set()).update(map(str, values))
    return known


def literals(tree: ast.Module) -> Iterator[ast.Constant]:
    """Strings that are no docstrings and no style sheets, whose variables look like flags."""
    nodes = list(ast.walk(tree))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docs and "var(--" not in node.value:
            yield node


def wrong(text: str, known: dict[str, set[str]]) -> list[str]:
    """What no command takes: a flag, or a value of one that knows its values."""
    of_others = set().union(*OTHERS.values())
    found = []
    for flag, value in FLAG.findall(text):
        value, values = value.rstrip("."), known.get(flag, set())
        if flag not in known and flag not in of_others:
            found.append(flag)
        elif value and values and value not in values:
            found.append(f"{flag} {value}")
    return found


def test_every_flag_and_value_in_a_message_is_one_that_a_command_takes() -> None:
    known = flags()
    complaints = [
        f"{path.relative_to(REPO)}:{node.lineno}: {word}"
        for path in sorted((REPO / "ocr2cli").rglob("*.py"))
        for node in literals(ast.parse(path.read_text("utf-8")))
        for word in wrong(node.value, known)
    ]
    assert not complaints, "\n".join(complaints)


def test_advice_that_no_command_takes_is_seen() -> None:
    known = flags()
    assert wrong("try --dtype float32.", known) == ["--dtype float32"]
    assert wrong("or use --no-such-flag 3", known) == ["--no-such-flag"]
    assert wrong("use --dtype f32, or --quant=q9; --dpi 72 is small", known) == ["--quant q9"]
