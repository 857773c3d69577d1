"""Strict reading of TOML tables: every key known, every type right, every error one line.

Knows nothing about suites: it is handed a table and the names that may stand in it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

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


def check_keys(table: Any, known: Collection[str], where: str) -> None:
    """Raises: UsageError for what is no table, and one that names the nearest right key."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: must be a table, not {table!r}.")
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


def take_tables(
    table: Mapping[str, Any], key: str, where: str, default: list[Any] | None = None
) -> list[dict[str, Any]]:
    """`table[key]` as a list of tables. Raises: UsageError as `take` does."""
    rows = take(table, key, list, where, default)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{where}: {key} {number}: must be a table, not {row!r}.")
    return rows


def take_fields(table: Mapping[str, Any], shape: type, where: str) -> dict[str, Any]:
    """The table as values for a dataclass, each of its field's type; a field may be left out.

    Raises: UsageError for a key that is no field, or a value of another type.
    """
    kinds = get_type_hints(shape)
    check_keys(table, kinds, where)
    return {key: take(table, key, kinds[key], where) for key in table}


_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
