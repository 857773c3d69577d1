"""Names of documents: the path below the common root, without its ending, unique in the run.

Knows nothing about what is in a file; `output/` turns a name into files.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence, Set
from unicodedata import normalize

# Of all formats, whichever a run writes: a document has one name.
OUTPUT_ENDINGS = (
    ".md", ".jsonl", ".json", ".html", ".ocr.pdf", ".layout.pdf",
    ".mmd", "_det.mmd", "_layouts.pdf",
)  # fmt: skip


def common_root(folders: Sequence[str]) -> str:
    """The deepest folder that holds all of these absolute ones."""
    try:
        return os.path.commonpath(folders)
    except ValueError:  # none given, or several drives
        return os.path.abspath(os.sep)


def folded(name: str) -> str:
    """The same for all names of which some file systems keep one: they differ in case alone, or in
    how a letter with an accent is spelled, as one character or as two."""
    return normalize("NFD", normalize("NFD", name).casefold())


def document_ids(paths: Sequence[str], root: str) -> list[str]:
    """One id a path, `/`-separated, all different even when folded, none with a part `..`, and
    none of a document whose file would stand where another one's folder does.

    paths: absolute. Where two would share a name both keep their ending; where those are alike as
    well, as of two servers' files or `A.pdf` and `a.pdf`, the second is `NAME~2`.
    """
    relative = [_below(path, root) for path in paths]
    stems = [_without_ending(name) for name in relative]
    has_ending = [False] * len(paths)
    folders = _folders(relative)
    while True:
        ids = [
            full if keeps else stem
            for full, stem, keeps in zip(relative, stems, has_ending, strict=True)
        ]
        alike = [folded(name) for name in ids]
        counts = Counter(alike)
        # A full name may meet another one's stem (a.pdf, a.png and a.pdf.pdf), hence the loop.
        clashing = [n for n, name in enumerate(alike) if not has_ending[n]
                    and (counts[name] > 1 or _is_in_the_way(name, folders))]  # fmt: skip
        if not clashing:
            return _numbered(ids, folders)
        for n in clashing:
            has_ending[n] = True


def _folders(names: Sequence[str]) -> set[str]:
    """All folders of these files, folded."""
    found: set[str] = set()
    for name in names:
        folder = os.path.dirname(folded(name))
        while folder and folder not in found:
            found.add(folder)
            folder = os.path.dirname(folder)
    return found


def _is_in_the_way(name: str, folders: Set[str]) -> bool:
    return any(name + ending in folders for ending in OUTPUT_ENDINGS)


def _numbered(names: Sequence[str], folders: Set[str]) -> list[str]:
    """Every name that is like none before it as it is; the others with a number that is free."""
    taken = {folded(name) for name in names}
    seen: set[str] = set()
    ids = []
    for name in names:
        if folded(name) in seen or _is_in_the_way(folded(name), folders):
            numbered = (f"{name}~{number}" for number in itertools.count(2))
            name = next(one for one in numbered if folded(one) not in taken
                        and not _is_in_the_way(folded(one), folders))  # fmt: skip
            taken.add(folded(name))
        seen.add(folded(name))
        ids.append(name)
    return ids


def _below(path: str, root: str) -> str:
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    parts = [part for part in relative.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "document"


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]
