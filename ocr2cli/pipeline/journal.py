"""The record of finished pages: append-only, checksummed, on the disk before a page counts as done.

OUT/.ocr2/journal.jsonl, one line a page: `{"crc": ..., "row": {...}}`. Resume asks it what is still
to do. A page that ended badly is settled too: its row is found again, so the exit code still tells,
and it is read again only with `retry_failed` or when input or settings changed. For the same input
and settings a failure never replaces text, nor does text that was cut replace a whole one. Knows
nothing about parts but their digest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ocr2cli.pages import PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.durable import atomic_write, sweep_temps, write_all
from ocr2cli.pipeline.lock import open_state_file
from ocr2cli.pipeline.output_faults import output_error
from ocr2cli.printing import printable

logger = logging.getLogger("ocr2")

_NAME = "journal.jsonl"
# A row takes about 500 bytes; a document's name up to 4 KiB, escaped six times that.
_MAX_LINE_BYTES = 1 << 16
# Codes of failures that neither the page nor the settings explain: a server's, and a file's that
# was not there, or not the same, while the run was reading it.
PASSING = frozenset({"request", "changed", "away"})
# Superseded rows that are worth a rewrite, beyond as many as there are live ones.
_MIN_SUPERSEDED = 256


@dataclass(frozen=True, slots=True)
class Row:
    """One finished page. page: 0-based. part_sha256: digest of the page part on the disk.
    input_sha256: "" for a document that could not be listed: such a row settles no page."""

    document: str
    page: int
    status: str
    finish_reason: str
    attempts: int
    input_sha256: str
    pixels_sha256: str
    fingerprint: str
    part_sha256: str
    error: str = ""  # the failure's code; rows of earlier versions have none

    @property
    def key(self) -> PageKey:
        return PageKey(self.document, self.page)

    @property
    def is_good(self) -> bool:
        return Status(self.status).is_good

    @property
    def is_read(self) -> bool:
        return self.status != Status.FAILED


class Journal:
    """All rows in memory, the file open for appending. One owner: hold the output lock."""

    def __init__(self, fd: int, rows: dict[PageKey, Row], fingerprint: str, path: Path) -> None:
        self._fd = fd
        self._rows = rows
        self._fingerprint = fingerprint
        self._path = path
        self._num_bytes = os.fstat(fd).st_size
        # Of earlier runs: a document is opened once in a run.
        self._read_before = {
            row.document
            for row in rows.values()
            if row.is_read and row.fingerprint == fingerprint
        }

    @classmethod
    def open(cls, out: Path, fingerprint: str) -> Journal:
        """Read OUT's journal, or begin one. A torn end is cut off, damaged lines are left out.

        Raises: OutputError when it cannot be read or written.
        """
        path = Path(os.path.realpath(out)) / ".ocr2" / _NAME
        fd = open_state_file(out, _NAME)
        try:
            with os.fdopen(os.dup(fd), "rb") as stream:
                found = _Reading.of(stream)
            if found.num_damaged:
                lines = "line was" if found.num_damaged == 1 else "lines were"
                pages = "its page is" if found.num_damaged == 1 else "their pages are"
                logger.warning("%s: %d damaged %s left out; %s read again",
                               printable(str(path)), found.num_damaged, lines, pages)  # fmt: skip
            os.ftruncate(fd, found.num_whole_bytes)
            sweep_temps(path.parent)
        except OSError as error:
            os.close(fd)
            raise output_error(path, error) from error
        if found.wants_compaction:
            _compact(path, found.rows)
            # Whatever came of it: a disk may fail after the new file has taken the old one's
            # place, and rows appended to the old one would be lost.
            os.close(fd)
            fd = open_state_file(out, _NAME)
        return cls(fd, found.rows, fingerprint, path)

    @classmethod
    def peek(cls, out: Path, fingerprint: str) -> Journal:
        """OUT's journal to look at: nothing is made, and nothing can be recorded. Where there is
        none that can be read it is empty."""
        path = Path(os.path.realpath(out)) / ".ocr2" / _NAME
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        # Where a folder has its name, that opens, but not as a stream.
        with contextlib.suppress(OSError), os.fdopen(os.dup(fd), "rb") as stream:
            return cls(fd, _Reading.of(stream).rows, fingerprint, path)
        return cls(fd, {}, fingerprint, path)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, job: PageJob, *, retry_failed: bool = False) -> Row | None:
        """The row that settles this job: same page, same input, same fingerprint.

        retry_failed: rows that are not good settle nothing. A job that could not even be listed
        is never settled, nor is one by a row of that kind: looking again costs nothing. A server
        that refused a page is asked again, and a file that was away is looked for.
        """
        row = self._rows.get(job.key)
        if row is None or job.error or row.fingerprint != self._fingerprint:
            return None
        if row.input_sha256 != job.sha256 or (retry_failed and not row.is_good):
            return None
        return None if row.error in PASSING else row

    def better(self, job: PageJob, status: Status) -> Row | None:
        """The row of the same page, input and fingerprint, if a result of this status is worse."""
        row = self._rows.get(job.key)
        if row is None or (row.fingerprint, row.input_sha256) != (self._fingerprint, job.sha256):
            return None
        return row if _worth(row.status) > _worth(status) else None

    def was_read(self, document: str) -> bool:
        """Whether an earlier run read any page of a document under this fingerprint, whatever the
        file was then."""
        return document in self._read_before

    def earlier(self, key: PageKey) -> Row | None:
        """A good row of this page under this fingerprint, whatever the input file was.

        The file's digest changes with any of its pages; if this page's pixels are still those of
        the row, its result holds.
        """
        row = self._rows.get(key)
        if row is None or row.fingerprint != self._fingerprint:
            return None
        return row if row.is_good and row.pixels_sha256 else None

    def record(self, result: PageResult, part_sha256: str) -> None:
        """Note a page whose part is on the disk; durable on return.

        Raises: OutputError when the disk is full or gone; then the row does not count.
        """
        row = Row(
            document=result.key.document,
            page=result.key.page,
            status=str(result.status),
            finish_reason=str(result.finish_reason or ""),
            attempts=max(1, len(result.attempts)),
            input_sha256=result.input_sha256,
            pixels_sha256=result.pixels_sha256,
            fingerprint=self._fingerprint,
            part_sha256=part_sha256,
            error=result.error.code if result.error else "",
        )
        self._append(_to_line(row))
        _fold(self._rows, row)

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, line: bytes) -> None:
        try:
            os.lseek(self._fd, self._num_bytes, os.SEEK_SET)
            write_all(self._fd, line)
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):  # the next run cuts a torn line off
                os.ftruncate(self._fd, self._num_bytes)
            raise output_error(self._path, error) from error
        self._num_bytes += len(line)


@dataclass(slots=True)
class _Reading:
    """What a journal file holds. num_whole_bytes: up to the end of the last whole line."""

    rows: dict[PageKey, Row]
    num_lines: int = 0
    num_damaged: int = 0
    num_whole_bytes: int = 0

    @classmethod
    def of(cls, stream: BinaryIO) -> _Reading:
        found = cls({})
        for line in _whole_lines(stream):
            found.num_lines += 1
            found.num_whole_bytes += len(line)
            row = _from_line(line)
            if row is None:
                found.num_damaged += 1
            else:
                _fold(found.rows, row)
        return found

    @property
    def wants_compaction(self) -> bool:
        num_superseded = self.num_lines - len(self.rows)
        return self.num_damaged > 0 or num_superseded > len(self.rows) + _MIN_SUPERSEDED


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines that end; one that is too long comes in pieces, none of which is a row."""
    while line := stream.readline(_MAX_LINE_BYTES):
        if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
            return
        yield line


def _compact(path: Path, rows: dict[PageKey, Row]) -> None:
    """Rewrite the file with the live rows only; a full disk can do without."""
    try:
        atomic_write(path, b"".join(map(_to_line, rows.values())))
    except OSError as error:
        logger.warning("%s was not compacted: %s", path, error.strerror)


def _fold(rows: dict[PageKey, Row], row: Row) -> None:
    """Later beats earlier, but for the same input and settings not where it is worse."""
    old = rows.get(row.key)
    is_same_work = old is not None and (old.fingerprint, old.input_sha256) == (
        row.fingerprint,
        row.input_sha256,
    )
    if old is not None and is_same_work and _worth(old.status) > _worth(row.status):
        return
    rows[row.key] = row


def _worth(status: str) -> int:
    """Text beats none; text that is whole beats any other."""
    return Status(status).is_good + (status != Status.FAILED)


def _to_line(row: Row) -> bytes:
    plain = asdict(row)
    return _canonical({"crc": _crc(plain), "row": plain}) + b"\n"


def _from_line(line: bytes) -> Row | None:
    """The row, or None when the line is damaged in any way."""
    try:
        outer = json.loads(line)
        plain = outer["row"]
        if outer["crc"] != _crc(plain):
            return None
        row = Row(**plain)
        is_typed = all(type(getattr(row, f.name)).__name__ == f.type for f in fields(Row))
        return row if is_typed and Status(row.status) and row.page >= 0 else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _crc(plain: dict[str, Any]) -> str:
    return f"{zlib.crc32(_canonical(plain)):08x}"
