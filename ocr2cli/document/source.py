"""Inputs as people give them to PageJobs, one after the other.

Holds the paths of a run, never its pages. Knows nothing about what is in a document: `listing.py`
counts its pages, in a process that may die.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ocr2cli.config import RasterConfig
from ocr2cli.document.files import ENDINGS, shown
from ocr2cli.document.listing import Listing, list_documents
from ocr2cli.document.naming import common_root, document_ids
from ocr2cli.document.page_ranges import PageSelection, parse_pages
from ocr2cli.document.urls import is_url, list_url, local_path, name_of
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageError, PageJob, PageKey


@dataclass(frozen=True, slots=True)
class Source:
    """One input file. id: its name in this run; path: absolute."""

    id: str
    path: str


def find_jobs(
    inputs: Sequence[str],
    pages: str = "",
    cfg: RasterConfig | None = None,
    *,
    out: Path | None = None,
    out_url: str = "",
    is_isolated: bool = True,
) -> Iterator[PageJob]:
    """Every page to read, document after document, in page order; made as they are asked for.

    inputs: files, folders, globs. pages: `--pages`. out: the output folder, left out of folders
    that are walked; out_url: the same where the output is a URL. is_isolated: count pages in a
    process of its own, which a hostile file may hang or kill. A document that cannot be opened
    gives exactly one job, for page 0, with `error`.

    Raises: UsageError for a bad page range, before anything is opened.
    """
    selection = parse_pages(pages)
    sources = find_sources(inputs, out=out, out_url=out_url)
    return _jobs(sources, selection, cfg or RasterConfig(), is_isolated)


def find_sources(
    inputs: Sequence[str], *, out: Path | None = None, out_url: str = ""
) -> list[Source]:
    """The input files, each once, in order: as given, a folder's and a glob's sorted."""
    hidden = os.path.realpath(out) if out is not None else ""
    seen: set[str] = set()
    paths: list[str] = []
    roots: list[str] = []
    for given in inputs:
        root, found = _expand(local_path(given), hidden, out_url)
        roots.append(root)
        for path in found:
            identity = _identity(path)
            if identity not in seen:
                seen.add(identity)
                paths.append(path)
    names = [name_of(path) if is_url(path) else path for path in paths]
    ids = document_ids(names, common_root(roots))
    return [Source(*pair) for pair in zip(ids, paths, strict=True)]


def _identity(path: str) -> str:
    """The folder's real name, the file's own: a link and its target are two documents."""
    if is_url(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _jobs(
    sources: Sequence[Source], selection: PageSelection, cfg: RasterConfig, is_isolated: bool
) -> Iterator[PageJob]:
    listings = list_documents([source.path for source in sources], cfg, is_isolated=is_isolated)
    for source, listing in zip(sources, listings, strict=True):
        yield from _document_jobs(source, listing, selection, cfg.dpi)


def _document_jobs(
    source: Source, listing: Listing, selection: PageSelection, dpi: int
) -> Iterator[PageJob]:
    error = listing.error
    num_pages = selection.count(listing.num_pages)
    if error is None and num_pages == 0:
        error = _nothing_selected(source, listing)
    if error is not None:
        key = PageKey(source.id, 0)
        yield PageJob(key, source.path, listing.sha256, 1, dpi, error=error)
        return
    for page in selection.select(listing.num_pages):
        yield PageJob(PageKey(source.id, page), source.path, listing.sha256, num_pages, dpi)


def _nothing_selected(source: Source, listing: Listing) -> PageError:
    if listing.num_pages == 0:
        return PageError("empty", f"{shown(source.path)} has no pages. Leave it out.")
    return PageError(
        "empty",
        f"{shown(source.path)} has {listing.num_pages} pages and --pages selects none of them. "
        "Give a smaller page number.",
    )


def _expand(given: str, hidden: str, hidden_url: str) -> tuple[str, Iterable[str]]:
    """(folder that names count from, absolute paths) of one input."""
    if is_url(given):
        return _expand_url(given, hidden_url)
    path = os.path.abspath(given)
    # A folder called x.pdf is a mistake to report, not a folder to search.
    if os.path.isdir(path) and not _has_document_ending(path):
        return path, _walk(path, hidden)
    if not os.path.lexists(path) and glob.has_magic(given):
        return _glob(given, hidden)
    return os.path.dirname(path), [path]


def _expand_url(url: str, hidden_url: str) -> tuple[str, list[str]]:
    try:
        folder, found = list_url(url, ENDINGS, hidden_url)
    except PageFault:
        # Listed as one document: opening it meets the same fault, which becomes its error.
        folder, found = url.rpartition("/")[0], [url]
    return name_of(folder), found


def _walk(folder: str, hidden: str) -> Iterator[str]:
    """Documents below a folder, by their ending, sorted; hidden files and folders are left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError:
        # Listed as one document, so that the reason shows as its error.
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _has_document_ending(entry.name):
            yield entry.path
        elif entry.is_dir(follow_symlinks=False) and os.path.realpath(entry.path) != hidden:
            yield from _walk(entry.path, hidden)


def _glob(pattern: str, hidden: str) -> tuple[str, list[str]]:
    """Matches of a quoted glob, sorted; the pattern itself when nothing matches."""
    found = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
    found = [match for match in found if not _is_below(match, hidden)]
    plain = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    root = os.path.abspath(os.path.dirname(plain))
    paths: list[str] = []
    for match in found:
        path = os.path.abspath(match)
        if os.path.isdir(path) and not _has_document_ending(path):
            # `**` matches folders besides their files; a folder alone is walked.
            paths += [] if "**" in pattern else _walk(path, hidden)
        elif "**" not in pattern or _has_document_ending(path):
            paths.append(path)
    return root, paths or [os.path.abspath(pattern)]


def _is_below(path: str, folder: str) -> bool:
    return bool(folder) and (os.path.realpath(path) + os.sep).startswith(folder + os.sep)


def _has_document_ending(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ENDINGS
