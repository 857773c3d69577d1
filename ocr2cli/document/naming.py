"""Names of documents: the path below the common root, without its ending, unique in the run.

Knows nothing about what is in a file; `output/` turns a name into files.
"""

from __future__ import annotations

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
    """One id a path, `/`-separated, all different, none with a part `..`.

    paths: absolute and different. Where two would share a name both keep their ending.
    """
    relative = [_below(path, root) for path in paths]
    stems = [_without_ending(name) for name in relative]
    has_ending = [False] * len(paths)
    while True:
        ids = [
            full if keeps else stem
            for full, stem, keeps in zip(relative, stems, has_ending, strict=True)
        ]
        counts = Counter(ids)
        # A full name may meet another one's stem (a.pdf, a.png and a.pdf.pdf), hence the loop.
        clashing = [n for n, name in enumerate(ids) if counts[name] > 1 and not has_ending[n]]
        if not clashing:
            return ids
        for n in clashing:
            has_ending[n] = True


def _below(path: str, root: str) -> str:
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    parts = [part for part in relative.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "document"


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]
