"""What a walk of a folder did not read, in a line each for people.

Knows nothing about how a walk decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ocr2cli.document.files import shown

# Told one line.
Tell = Callable[[str], object]


@dataclass(slots=True)
class LeftOut:
    """Paths that one input's walk did not read. others: files left out for their ending; links:
    those to folders; outputs: documents that other runs wrote; dotted: hidden files
    with a document's ending, and hidden folders with such files in them, which end in a slash;
    None where nobody asks for these."""

    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    dotted: list[str] | None = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.others or self.links or self.outputs or self.dotted)


def tell_of(root: str, left: LeftOut, tell: Tell, *, has_documents: bool) -> None:
    """An unmounted disk is an empty folder; a scan without an ending is no document to a walk."""
    others, links, outputs, dotted = left.others, left.links, left.outputs, left.dotted
    if others:
        files = "1 file was" if len(others) == 1 else f"{len(others):,} files were"
        tell(f"{shown(root)}: {files} left out, by the ending no document ({_some(others)})")
    if links:
        is_one = len(links) == 1
        were = "1 link to a folder was" if is_one else f"{len(links):,} links to folders were"
        name = "name it as an input" if is_one else "name them as inputs"
        tell(f"{shown(root)}: {were} not followed; {name} to read it all ({_some(links)})")
    if outputs:
        is_one = len(outputs) == 1
        were = "1 file was" if is_one else f"{len(outputs):,} files were"
        name = "name it as an input" if is_one else "name them as inputs"
        tell(
            f"{shown(root)}: {were} left out, which runs of ocr2 wrote there; {name} to read "
            f"{'it' if is_one else 'them'} all the same ({_some(outputs)})"
        )
    is_empty = not (others or links or outputs or has_documents)
    if dotted:
        is_one = len(dotted) == 1
        were = "was" if is_one else "were"
        name = "name it as an input to read it" if is_one else "name them as inputs to read them"
        empty = " holds no document but hidden ones" if is_empty else ""
        tell(f"{shown(root)}{empty}: {_counted(dotted)} {were} left out; {name} ({_some(dotted)})")
    elif is_empty:
        tell(f"{shown(root)} holds no document")


def _counted(dotted: Sequence[str]) -> str:
    """`1 hidden file and 2 hidden folders with documents in them`."""
    num_folders = sum(path.endswith(os.sep) for path in dotted)
    num_files = len(dotted) - num_folders
    counts = []
    if num_files:
        counts.append(f"{num_files:,} hidden file{'s' * (num_files > 1)}")
    if num_folders == 1:
        counts.append("1 hidden folder with documents in it")
    elif num_folders:
        counts.append(f"{num_folders:,} hidden folders with documents in them")
    return " and ".join(counts)


def _some(paths: Sequence[str]) -> str:
    names = [
        shown(path.removesuffix(os.sep)) + os.sep * path.endswith(os.sep) for path in paths[:3]
    ]
    return ", ".join(names) + (", ..." if len(paths) > 3 else "")
