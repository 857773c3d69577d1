"""Strict reading of TOML tables: every key known, every type right, every error one line.

Knows nothing about suites: it is handed a table and the names that may stand in it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ocr2cli.errors import InputError, UsageError

Kind = TypeVar("Kind")


def read_toml(path: Path) -> dict[str, Any]:
    """The file as a table. Raises: InputError when missing, UsageError when not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}. Correct that line.") from error


def check_keys(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises: UsageError that names the nearest right key."""
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}.{nearest(key, known)}")


def nearest(word: str, known: Collection[str]) -> str:
    """A sentence that offers the nearest known word, or the whole list when none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(sorted(known))}."


def take(
    table: Mapping[str, Any], key: str, kind: type[Kind], where: str, default: Kind | None = None
) -> Kind:
    """`table[key]` as `kind` (an int is accepted where a float is asked for).

    Raises: UsageError when the key is missing and has no default, or has another type.
    """
    if key not in table:
        if default is None:
            raise UsageError(f"{where}: {key!r} is missing. Add `{key} = ...`.")
        return default
    value = table[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)  # type: ignore[call-arg]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{where}: {key!r} must be {_NAMES[kind]}, not {value!r}.")
    return value


_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
