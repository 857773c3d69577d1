"""Names of documents: the path below the common root, without its ending, unique in the run.

Knows nothing about what is in a file; `output/` turns a name into files.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence


def common_root(folders: Sequence[str]) -> str:
    """The deepest folder that holds all of these absolute ones."""
    try:
        return os.path.commonpath(folders)
    except ValueError:  # none given, or several drives
        return os.path.abspath(os.sep)


def document_ids(paths: Sequence[str], root: str) -> list[str]:
    """One id a path, `/`-separated, all different even in lower case, none with a part `..`.

    paths: absolute. Where two would share a name both keep their ending; where those are alike as
    well, as of two servers' files or `A.pdf` and `a.pdf`, the second is `NAME~2`.
    """
    relative = [_below(path, root) for path in paths]
    stems = [_without_ending(name) for name in relative]
    has_ending = [False] * len(paths)
    while True:
        ids = [
            full if keeps else stem
            for full, stem, keeps in zip(relative, stems, has_ending, strict=True)
        ]
        # Some file systems keep one file of two whose names differ in case alone.
        alike = [name.casefold() for name in ids]
        counts = Counter(alike)
        # A full name may meet another one's stem (a.pdf, a.png and a.pdf.pdf), hence the loop.
        clashing = [n for n, name in enumerate(alike) if counts[name] > 1 and not has_ending[n]]
        if not clashing:
            return _numbered(ids)
        for n in clashing:
            has_ending[n] = True


def _numbered(names: Sequence[str]) -> list[str]:
    """Every name that is like none before it as it is; the others with a number that is free."""
    taken = {name.casefold() for name in names}
    seen: set[str] = set()
    ids = []
    for name in names:
        if name.casefold() in seen:
            numbered = (f"{name}~{number}" for number in itertools.count(2))
            name = next(one for one in numbered if one.casefold() not in taken)
            taken.add(name.casefold())
        seen.add(name.casefold())
        ids.append(name)
    return ids


def _below(path: str, root: str) -> str:
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    parts = [part for part in relative.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "document"


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]
