"""Inputs as people give them to PageJobs, one after the other.

Holds the paths of a run, never its pages. Knows nothing about what is in a document: `listing.py`
counts its pages, in a process that may die.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ocr2cli.config import RasterConfig
from ocr2cli.document.files import ENDINGS, shown
from ocr2cli.document.listing import Listing, list_documents
from ocr2cli.document.naming import common_root, document_ids
from ocr2cli.document.page_ranges import PageSelection, parse_pages, shortened
from ocr2cli.document.urls import is_url, list_url, local_path, name_of
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageError, PageJob, PageKey

# Told one line, for people.
Tell = Callable[[str], object]
# An output folder's real path -> real paths of the files that runs wrote into it.
Written = Callable[[str], frozenset[str]]

# What a folder that a run wrote into has in it.
_STATE = ".ocr2"
# Hidden folders that are other programs' own: nobody misses a document of theirs.
_NO_ONES = frozenset((".git", ".hg", ".svn"))


@dataclass(slots=True)
class _Hidden:
    """What a walk leaves out. folder: OUT's real path, or ""; files: what runs wrote into it, for
    a walk that begins in OUT or below; written: tells that of another folder, and elsewhere is what
    it told so far. named: the inputs as given, absolute. others: files left out for their ending,
    so far; links: those to folders; outputs: documents that are among `elsewhere`; unseen: hidden
    files with a document's ending, and hidden folders, which end in a slash."""

    folder: str
    files: Container[str]
    written: Written
    named: Container[str] = ()
    elsewhere: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


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
    named = {os.path.abspath(local_path(given)) for given in inputs}
    hidden = _Hidden(own, written(own) if own else (), written, named)
    seen: set[str] = set()
    paths: list[str] = []
    roots: list[str] = []
    for given in inputs:
        root, found = _expand(local_path(given), hidden, out_url)
        roots.append(root)
        found = list(found)
        if tell is not None:
            _tell_of(root, found, hidden, tell)
        for path in found:
            identity = _identity(path)
            if identity not in seen:
                seen.add(identity)
                paths.append(path)
    names = [name_of(path) if is_url(path) else path for path in paths]
    ids = document_ids(names, common_root(roots))
    return [Source(*pair) for pair in zip(ids, paths, strict=True)]


def _tell_of(root: str, found: Sequence[str], hidden: _Hidden, tell: Tell) -> None:
    """An unmounted disk is an empty folder; a scan without an ending is no document to a walk."""
    others, hidden.others = hidden.others, []
    links, hidden.links = hidden.links, []
    outputs, hidden.outputs = hidden.outputs, []
    unseen, hidden.unseen = hidden.unseen, []
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
    is_empty = not (others or links or outputs or found)
    if unseen:
        is_one = len(unseen) == 1
        were = "was" if is_one else "were"
        name = "name it as an input to read it" if is_one else "name them as inputs to read them"
        empty = " holds no other document" if is_empty else ""
        tell(
            f"{shown(root)}{empty}: {_counted_unseen(unseen)} {were} left out; {name} "
            f"({_some(unseen)})"
        )
    elif is_empty:
        tell(f"{shown(root)} holds no document")


def _counted_unseen(paths: Sequence[str]) -> str:
    """`1 hidden file`, `2 hidden files or folders`."""
    num_folders = sum(path.endswith(os.sep) for path in paths)
    if len(paths) == 1:
        return f"1 hidden {'folder' if num_folders else 'file'}"
    nouns = ["files"] * (num_folders < len(paths)) + ["folders"] * (num_folders > 0)
    return f"{len(paths):,} hidden {' or '.join(nouns)}"


def _some(paths: Sequence[str]) -> str:
    names = [shown(path) for path in paths[:3]]
    return ", ".join(names) + (", ..." if len(paths) > 3 else "")


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
    names = {entry.name for entry in entries}
    for entry in entries:
        real = os.path.join(folder, entry.name)
        if real in hidden.files:
            continue
        if entry.name.startswith("."):
            if entry.path not in hidden.named and real != hidden.folder:
                hidden.unseen += _missed(entry, names)
        elif real in hidden.elsewhere:
            if _has_document_ending(entry.name):
                hidden.outputs.append(entry.path)
        elif _has_document_ending(entry.name):
            yield entry.path, real, False
        elif entry.is_dir(follow_symlinks=False):
            if real != hidden.folder:
                yield entry.path, real, True
        elif os.path.isdir(entry.path):
            hidden.links.append(entry.path)
        else:
            hidden.others.append(entry.path)


def _missed(entry: os.DirEntry[str], names: Container[str]) -> Iterator[str]:
    """What a person may miss of a hidden entry of a folder, which has these names: its path, with
    a slash where it is a folder. It is not looked into."""
    if os.path.isdir(entry.path):
        # Elsewhere than in OUT, other runs may have written into a hidden folder.
        is_runs = entry.name == _STATE or os.path.lexists(os.path.join(entry.path, _STATE))
        if not is_runs and entry.name not in _NO_ONES:
            yield entry.path + os.sep
    # A Mac keeps what it knows of `scan.pdf` as `._scan.pdf` beside it, on other systems' disks.
    elif _has_document_ending(entry.name):
        is_of_another = entry.name.startswith("._") and entry.name[2:] in names
        if not is_of_another:
            yield entry.path


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
    inside = replace(hidden, others=[], unseen=[])  # no pattern here asks for them
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
