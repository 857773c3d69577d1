"""Inputs as people give them to PageJobs, one after the other.

Holds the paths of a run, never its pages. Knows nothing about what is in a document: `listing.py`
counts its pages, in a process that may die.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from ocr2cli.config import RasterConfig
from ocr2cli.document.files import ENDINGS, shown
from ocr2cli.document.left_out import LeftOut, Tell, tell_of
from ocr2cli.document.listing import Listing, list_documents
from ocr2cli.document.naming import common_root, document_ids
from ocr2cli.document.page_ranges import PageSelection, parse_pages, shortened
from ocr2cli.document.urls import is_url, list_url, local_path, name_of
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageError, PageJob, PageKey

# An output folder's real path -> real paths of the files that runs wrote into it.
Written = Callable[[str], frozenset[str]]

# What a folder that a run wrote into has in it.
_STATE = ".ocr2"
# Hidden folders in which other programs keep documents that nobody misses: what was thrown away, a
# Mac's notes under the names of what they are about, small pictures, and earlier versions.
_TRASH = ".Trash"  # `.Trash`, `.Trashes`, `.Trash-1000`
_PROGRAMS_OWN = frozenset((".recycle", ".AppleDouble", ".thumbnails", ".stversions"))
# The path of each hidden file or folder in a path ends where a match does.
_DOTTED = re.compile(r"/\.[^/]*")


@dataclass(slots=True)
class _Hidden:
    """What a walk leaves out. folder: OUT's real path, or ""; files: what runs wrote into it, for
    a walk that begins in OUT or below; written: tells that of another folder, and elsewhere is what
    it told so far. left: where a walk notes what it left out, None where nobody is told."""

    folder: str
    files: frozenset[str]
    written: Written
    elsewhere: set[str] = field(default_factory=set)
    left: LeftOut | None = None


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
    written: Written = lambda out: frozenset(),
    is_isolated: bool = True,
) -> Iterator[PageJob]:
    """Every page to read, document after document, in page order; made as they are asked for.

    inputs: files, folders, globs. pages: `--pages`. out: the output folder, left out of folders
    that are walked; out_url: the same where the output is a URL; written: what earlier runs wrote
    into a folder, left out where a walk meets an output folder. is_isolated: count pages in a
    process of its own, which a hostile file may hang or kill. A document that cannot be opened
    gives exactly one job, for page 0, with `error`.

    Raises: UsageError for a bad page range, before anything is opened.
    """
    jobs = poll_jobs(
        inputs, pages, cfg, out=out, out_url=out_url, written=written, is_isolated=is_isolated
    )
    return (job for job in jobs if job is not None)


def poll_jobs(
    inputs: Sequence[str],
    pages: str = "",
    cfg: RasterConfig | None = None,
    *,
    out: Path | None = None,
    out_url: str = "",
    written: Written = lambda out: frozenset(),
    is_isolated: bool = True,
) -> Iterator[PageJob | None]:
    """`find_jobs` for who has other work meanwhile: None while a document is still being opened."""
    selection = parse_pages(pages)
    sources = find_sources(inputs, out=out, out_url=out_url, written=written)
    listings = list_documents(
        [source.path for source in sources],
        cfg or RasterConfig(),
        is_isolated=is_isolated,
    )
    return _jobs(sources, listings, selection, (cfg or RasterConfig()).dpi)


def find_sources(
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    out_url: str = "",
    written: Written = lambda out: frozenset(),
    tell: Tell | None = None,
) -> list[Source]:
    """The input files, each once, in order: as given, a folder's and a glob's sorted.

    tell: is told in one line of a folder that gave nothing, of files and of folders that it left
    out.
    """
    own = os.path.realpath(out) if out is not None else ""
    hidden = _Hidden(own, written(own) if own else frozenset(), written)
    seen: set[str] = set()
    walks: list[tuple[str, bool, LeftOut]] = []
    paths: list[str] = []
    roots: list[str] = []
    for given in inputs:
        hidden.left = left = None if tell is None else LeftOut()
        root, found = _expand(local_path(given), hidden, out_url)
        roots.append(root)
        found = list(found)
        if left is not None and (left or not found):
            walks.append((root, bool(found), left))
        for path in found:
            identity = _identity(path)
            if identity not in seen:
                seen.add(identity)
                paths.append(path)
    if tell is not None and walks:
        # Only now: an input may be what another one's walk left out.
        is_any = any(left.dotted for _, _, left in walks)
        not_missed = _not_missed(inputs, seen, hidden) if is_any else set()
        for root, has_documents, left in walks:
            dotted = [path for path in left.dotted or () if _real(path) not in not_missed]
            tell_of(root, replace(left, dotted=dotted), tell, has_documents=has_documents)
    names = [name_of(path) if is_url(path) else path for path in paths]
    ids = document_ids(names, common_root(roots))
    return [Source(*pair) for pair in zip(ids, paths, strict=True)]


def _not_missed(inputs: Sequence[str], seen: Set[str], hidden: _Hidden) -> set[str]:
    """Real paths of which no hidden one is told as left out: what the run reads or wrote, the
    folders of that, and all hidden folders that any of it lies below."""
    named = [os.path.abspath(local_path(given)) for given in inputs if not is_url(given)]
    real = {*map(os.path.realpath, named), *map(_identity, named)}
    folders = {os.path.dirname(path) for path in seen}
    paths = itertools.chain(real, seen, hidden.files, hidden.elsewhere, (hidden.folder,))
    above = {path[: part.end()] for path in paths for part in _DOTTED.finditer(path)}
    return real | folders | above


def _real(path: str) -> str:
    """Of a folder, where a link leads: what is in it may be read by another name."""
    return os.path.realpath(path) if path.endswith(os.sep) else _identity(path)


def _identity(path: str) -> str:
    """The folder's real name, the file's own: a link and its target are two documents."""
    if is_url(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _jobs(
    sources: Sequence[Source],
    listings: Iterator[Listing | None],
    selection: PageSelection,
    dpi: int,
) -> Iterator[PageJob | None]:
    for source in sources:
        while (listing := next(listings)) is None:
            yield None
        yield from _document_jobs(source, listing, selection, dpi)


def _document_jobs(
    source: Source, listing: Listing, selection: PageSelection, dpi: int
) -> Iterator[PageJob]:
    error = listing.error
    num_pages = selection.count(listing.num_pages)
    if error is None and num_pages == 0:
        error = _nothing_selected(source, listing, selection)
    if error is not None:
        key = PageKey(source.id, 0)
        yield PageJob(key, source.path, listing.sha256, 1, dpi, error=error)
        return
    for page in selection.select(listing.num_pages):
        key = PageKey(source.id, page)
        yield PageJob(key, source.path, listing.sha256, num_pages, dpi, of_pages=listing.num_pages)


def _nothing_selected(source: Source, listing: Listing, selection: PageSelection) -> PageError:
    if listing.num_pages == 0:
        return PageError("empty", f"{shown(source.path)} has no pages. Leave it out.")
    asked = f"--pages {shortened(str(selection))}"
    has = (
        f"has 1 page; {asked} does not ask for it"
        if listing.num_pages == 1
        else f"has {listing.num_pages:,} pages; {asked} asks for none of them"
    )
    return PageError("empty", f"{shown(source.path)} {has}. Give a smaller page number.")


def _expand(given: str, hidden: _Hidden, hidden_url: str) -> tuple[str, Iterable[str]]:
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


def _walk(folder: str, hidden: _Hidden) -> Iterator[str]:
    """Documents below a folder, by their ending, sorted; hidden files and folders are left out."""
    # (path, real path, is a folder), the next one last: folders may lie deeper than calls may.
    waiting = [(folder, os.path.realpath(folder), True)]
    while waiting:
        path, real, is_folder = waiting.pop()
        if is_folder:
            try:
                entries = sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name))
            except OSError:
                # Listed as one document, so that the reason shows as its error.
                yield path
            else:
                waiting += reversed(list(_chosen(entries, real, hidden)))
        else:
            yield path


def _chosen(
    entries: Sequence[os.DirEntry[str]], folder: str, hidden: _Hidden
) -> Iterator[tuple[str, str, bool]]:
    """(path, real path, is a folder) of what a walk reads of a folder with that real path."""
    if folder != hidden.folder and any(entry.name == _STATE for entry in entries):
        hidden.elsewhere |= hidden.written(folder)
    names = {entry.name for entry in entries} if hidden.left is not None else set()
    for entry in entries:
        real = os.path.join(folder, entry.name)
        if real in hidden.files or real == hidden.folder:
            continue
        if not entry.name.startswith(".") and real not in hidden.elsewhere:
            is_document = _has_document_ending(entry.name)
            if is_document or entry.is_dir(follow_symlinks=False):
                yield entry.path, real, not is_document
                continue
        if hidden.left is not None:
            _leave(entry, hidden.left, names, is_output=real in hidden.elsewhere)


def _leave(
    entry: os.DirEntry[str], left: LeftOut, names: Container[str], *, is_output: bool
) -> None:
    """Notes what a walk did not take from a folder, which has these names."""
    if is_output:
        if _has_document_ending(entry.name):
            left.outputs.append(entry.path)
    elif entry.name.startswith("."):
        if left.dotted is not None and _is_missed(entry, names):
            left.dotted.append(entry.path + os.sep * _is_folder(entry))
    elif _is_folder(entry):
        left.links.append(entry.path)
    else:
        left.others.append(entry.path)


def _is_missed(entry: os.DirEntry[str], names: Container[str]) -> bool:
    """Whether a person may miss a hidden entry of a folder that has these names."""
    # A Mac keeps what it knows of `scan.pdf` as `._scan.pdf` beside it, on other systems' disks.
    if entry.name.startswith("._") and entry.name[2:] in names:
        return False
    if not _is_folder(entry):
        return _has_document_ending(entry.name)
    if entry.name.startswith(_TRASH) or entry.name in _PROGRAMS_OWN or entry.name == _STATE:
        return False
    # Elsewhere than in OUT, other runs may have written into a hidden folder.
    return _holds_document(entry.path) and not os.path.lexists(os.path.join(entry.path, _STATE))


def _holds_document(folder: str) -> bool:
    """By the ending; no deeper, since most hidden folders are a program's own, and large."""
    try:
        with os.scandir(folder) as entries:
            return any(
                _has_document_ending(entry.name)
                and not entry.name.startswith(".")
                and not _is_folder(entry)
                for entry in entries
            )
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also a link to one. Asks the disk about links alone: the folder's list tells of the rest."""
    if entry.is_symlink():
        return os.path.isdir(entry.path)
    return entry.is_dir(follow_symlinks=False)


def _glob(pattern: str, hidden: _Hidden) -> tuple[str, list[str]]:
    """Matches of a quoted glob, sorted; the pattern itself when nothing matches."""
    stars = re.search(r"(?<![^/])\*\*(?![^/])", pattern)
    matches = _deep_glob(pattern, stars.start(), hidden) if stars else glob.glob(pattern)
    found = sorted(matches, key=os.fsencode)
    plain = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    root = os.path.abspath(os.path.dirname(plain))
    found = [match for match in found if os.path.realpath(match) not in hidden.files]
    if not _is_below(root, hidden.folder):
        found = [match for match in found if not _is_below(match, hidden.folder)]
    paths: list[str] = []
    for match in found:
        path = os.path.abspath(match)
        is_walked = os.path.isdir(path) and not stars and not _has_document_ending(path)
        paths += _walk(path, hidden) if is_walked else [path]
    return root, paths or [os.path.abspath(pattern)]


def _deep_glob(pattern: str, at: int, hidden: _Hidden) -> Iterator[str]:
    """Documents that match a pattern whose first `**` stands at `at`: found by walks, which follow
    no link to a folder. Python's own `**` follows them, round and round."""
    above, below = pattern[:at], [part for part in pattern[at:].split("/") if part]
    inside = replace(hidden)
    if hidden.left is not None:  # no pattern here asks for other files, nor for hidden ones
        inside.left = replace(hidden.left, others=[], dotted=None)
    for folder in glob.glob(above) if glob.has_magic(above) else [above or "."]:
        folder = os.path.abspath(folder)
        for path in _walk(folder, inside) if os.path.isdir(folder) else ():
            # What has no document's ending is a folder that cannot be looked into.
            if _matches(os.path.relpath(path, folder), below) or not _has_document_ending(path):
                yield path


def _matches(path: str, pattern: Sequence[str]) -> bool:
    """Whether the parts of a relative path are those of a pattern; `**` is any number of them."""
    ends = _over_stars({0}, pattern)  # how much of the pattern the parts so far may have used up
    for part in path.split("/"):
        ends = _over_stars(
            {
                end if pattern[end] == "**" else end + 1
                for end in ends
                if end < len(pattern) and fnmatch.fnmatchcase(part, pattern[end])
            },
            pattern,
        )
    return len(pattern) in ends


def _over_stars(ends: set[int], pattern: Sequence[str]) -> set[int]:
    for end, part in enumerate(pattern):
        if part == "**" and end in ends:
            ends.add(end + 1)
    return ends


def _is_below(path: str, folder: str) -> bool:
    return bool(folder) and (os.path.realpath(path) + os.sep).startswith(folder + os.sep)


def _has_document_ending(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ENDINGS
