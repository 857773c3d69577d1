"""Page parts: one finished page as JSON in OUT/.ocr2/parts, whole or absent, checked when read.

A part is the full `PageResult`; it is on the disk before the journal says so. Knows nothing about
documents or formats.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ocr2cli.output.folder import STATE, OutFolder
from ocr2cli.output.names import document_digest
from ocr2cli.pages import (
    Attempt,
    Box,
    FinishReason,
    PageError,
    PageKey,
    PageResult,
    Status,
)

PART_VERSION = 1


class PartDamaged(Exception):
    """A part that is missing, altered or not a part: its page must be read again."""


def part_path(key: PageKey) -> str:
    """Where the part lies, relative to OUT; the page in the name is 1-based."""
    return f"{STATE}/parts/{document_digest(key.document)}/{key.page + 1}.json"


def write_part(folder: OutFolder, result: PageResult) -> str:
    """Writes the part, synced to the disk; returns the SHA-256 that the journal keeps.

    Raises: OutputError when the folder cannot be written.
    """
    return folder.write(part_path(result.key), to_json(result))


def read_part(folder: OutFolder, key: PageKey, sha256: str) -> PageResult:
    """The page's result as it was written.

    Raises: PartDamaged when the file is missing, has another digest or is not this page's part.
    """
    data = folder.read(part_path(key))
    if data is None:
        raise PartDamaged(f"the part of {key} is missing")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PartDamaged(f"the part of {key} was altered")
    result = from_json(data)
    if result.key != key:
        raise PartDamaged(f"the part of {key} is another page's")
    return result


def to_json(result: PageResult) -> bytes:
    """ASCII, one line; text with surrogate escapes survives."""
    plain = dataclasses.replace(result, seconds=dict(result.seconds), extra=dict(result.extra))
    row = {"version": PART_VERSION, **dataclasses.asdict(plain)}
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def from_json(data: bytes) -> PageResult:
    """The exact inverse of `to_json`.

    Raises: PartDamaged naming the first field that is missing, unknown or of the wrong type.
    """
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise PartDamaged(f"not JSON: {fault}") from None
    fields = _Fields(row, "part")
    if fields.take("version", int) != PART_VERSION:
        raise PartDamaged("made by another version of ocr2")
    key = _Fields(fields.take("key", dict), "key")
    error = fields.take_or_none("error", dict)
    result = PageResult(
        key=PageKey(key.take("document", str), key.take("page", int)),
        status=_word(Status, fields.take("status", str)),
        markdown=fields.take("markdown", str),
        raw=fields.take("raw", str),
        finish_reason=_finish_reason(fields.take_or_none("finish_reason", str)),
        boxes=tuple(_box(one) for one in fields.take("boxes", list)),
        grid=_pair(fields.take("grid", list)),
        page_size=_pair(fields.take("page_size", list)),
        visual_tokens=fields.take("visual_tokens", int),
        prompt_tokens=fields.take("prompt_tokens", int),
        new_tokens=fields.take("new_tokens", int),
        confidence=fields.take_or_none("confidence", float, int),
        confidence_p5=fields.take_or_none("confidence_p5", float, int),
        seconds=_seconds(fields.take("seconds", dict)),
        attempts=tuple(_attempt(one) for one in fields.take("attempts", list)),
        input_sha256=fields.take("input_sha256", str),
        pixels_sha256=fields.take("pixels_sha256", str),
        warnings=_all(fields.take("warnings", list), str),
        error=None if error is None else _error(error),
        token_ids=_all(fields.take("token_ids", list), int),
        extra=fields.take("extra", dict),
    )
    key.finish()
    fields.finish()
    return result


class _Fields:
    """One JSON object being taken apart: each field once, with its type, none left over."""

    def __init__(self, row: object, where: str) -> None:
        if not isinstance(row, dict):
            raise PartDamaged(f"{where} is not an object")
        self._row: dict[str, Any] = dict(row)
        self._where = where

    def take(self, name: str, *types: type) -> Any:
        if name not in self._row:
            raise PartDamaged(f"{self._where}: {name} is missing")
        value = self._row.pop(name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise PartDamaged(f"{self._where}: {name} has the wrong type")
        return value

    def take_or_none(self, name: str, *types: type) -> Any:
        return self.take(name, *types, type(None))

    def finish(self) -> None:
        if self._row:
            raise PartDamaged(f"{self._where}: unknown field {min(self._row)!r}")


def _word(kind: type[Status], value: str) -> Status:
    try:
        return kind(value)
    except ValueError:
        raise PartDamaged(f"unknown status {value!r}") from None


def _finish_reason(value: str | None) -> FinishReason | None:
    try:
        return None if value is None else FinishReason(value)
    except ValueError:
        raise PartDamaged(f"unknown finish reason {value!r}") from None


def _all(values: list[Any], kind: type) -> tuple[Any, ...]:
    if any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
        raise PartDamaged(f"a list holds something that is no {kind.__name__}")
    return tuple(values)


def _pair(values: list[Any]) -> tuple[int, int]:
    if len(values) != 2:
        raise PartDamaged("a pair does not have two numbers")
    first, second = _all(values, int)
    return first, second


def _box(row: object) -> Box:
    fields = _Fields(row, "box")
    label, box = fields.take("label", str), _all(fields.take("box", list), int)
    fields.finish()
    if len(box) != 4:
        raise PartDamaged("a box does not have four numbers")
    return Box(label, (box[0], box[1], box[2], box[3]))


def _attempt(row: object) -> Attempt:
    fields = _Fields(row, "attempt")
    attempt = Attempt(
        step=fields.take("step", str),
        finish_reason=_finish_reason(fields.take_or_none("finish_reason", str)),
        new_tokens=fields.take("new_tokens", int),
        note=fields.take("note", str),
    )
    fields.finish()
    return attempt


def _error(row: object) -> PageError:
    fields = _Fields(row, "error")
    error = PageError(fields.take("code", str), fields.take("message", str))
    fields.finish()
    return error


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    if any(
        not isinstance(value, (int, float)) or isinstance(value, bool) for value in row.values()
    ):
        raise PartDamaged("seconds holds something that is no number")
    return dict(row)
