"""Page ranges as people write them: `1-3,7,10-`, counted from 1.

Knows nothing about documents: a selection meets a page count only in `select`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ocr2cli.errors import UsageError

_PART = re.compile(r"\s*([0-9]{1,9})\s*(?:(-)\s*([0-9]{1,9})?\s*)?")
_NO_END = 10**9


@dataclass(frozen=True, slots=True)
class PageSelection:
    """Which pages of every document. ranges: (first, last), 0-based, last included, ascending,
    apart from each other. No range at all means every page."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        """As people write it; "" for every page."""
        return ",".join(map(_written, self.ranges))

    def select(self, num_pages: int) -> Iterator[int]:
        """0-based pages of a document, ascending, each once; nothing is held in memory."""
        for first, last in self.ranges or ((0, _NO_END),):
            yield from range(first, min(last + 1, num_pages))

    def count(self, num_pages: int) -> int:
        """How many pages `select` gives."""
        ranges = self.ranges or ((0, _NO_END),)
        return sum(max(0, min(last + 1, num_pages) - first) for first, last in ranges)


def parse_pages(spec: str) -> PageSelection:
    """A selection from `1-3,7,10-`. An empty text means every page.

    Raises: UsageError that names the part and says what to write.
    """
    if not spec.strip():
        return PageSelection()
    return PageSelection(_merged(sorted(_parse_part(part, spec) for part in spec.split(","))))


def _parse_part(part: str, spec: str) -> tuple[int, int]:
    found = _PART.fullmatch(part)
    if not found:
        what = f"{part.strip()!r} is no page range" if part.strip() else "a part is empty"
        raise _bad(spec, what)
    first = int(found[1])
    last = int(found[3]) if found[3] else (_NO_END if found[2] else first)
    if first == 0 or last == 0:
        raise _bad(spec, "pages count from 1")
    if last < first:
        raise _bad(spec, f"{part.strip()!r} ends before it begins")
    return (first - 1, last - 1)


def _written(pages: tuple[int, int]) -> str:
    first, last = pages
    if first == last:
        return f"{first + 1}"
    return f"{first + 1}-" if last >= _NO_END - 1 else f"{first + 1}-{last + 1}"


def shortened(spec: str) -> str:
    """A range of any length, for a message."""
    return spec if len(spec) <= 60 else spec[:57] + "..."


def _bad(spec: str, what: str) -> UsageError:
    return UsageError(f"--pages {shortened(spec)!r}: {what}. Write for example --pages 1-3,7,10-")


def _merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in ranges:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
