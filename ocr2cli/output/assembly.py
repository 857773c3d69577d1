"""One complete document on its way to files: its pages read one by one, its files staged.

What a format gets. Knows nothing about any format.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.document.urls import without_password
from ocr2cli.errors import OutputError, PageFault
from ocr2cli.output.folder import STATE, DocumentFault, OutFolder, Staged, StagedWriter
from ocr2cli.output.names import document_digest, document_stem, name_here
from ocr2cli.output.parts import PartDamaged, read_part
from ocr2cli.pages import PageImage, PageJob, PageKey, PageResult, Status
from ocr2cli.printing import printable

Render = Callable[[PageJob], PageImage]

# Bump when the same parts give other files: documents of earlier runs are then written anew.
ASSEMBLY_VERSION = 4


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """What decides the files' bytes besides the pages. min_confidence: 0-1, for the formats
    that mark unsure pages."""

    formats: tuple[str, ...]
    fingerprint: str = ""
    save_tokens: bool = False
    min_confidence: float = 0.0


@dataclass(slots=True)
class Expected:
    """A document of this run. parts: page index -> SHA-256 of its part, as pages get done."""

    job: PageJob
    parts: dict[int, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return len(self.parts) >= self.job.num_pages


class Assembly:
    """The document's pages in order, and the files a format makes of them.

    links: page index -> figure number -> link target, filled by figures.py.
    picture_folders: below OUT, filled by who puts pictures there: an earlier version's are removed.
    kept: path -> new path of files at the names of this document's that ocr2 had not written.
    """

    def __init__(
        self, folder: OutFolder, document: Expected, settings: OutputSettings, render: Render
    ) -> None:
        self.id = document.job.key.document
        self.job = document.job
        self.settings = settings
        self.stem = document_stem(self.id)
        self.links: dict[int, dict[int, str]] = {}
        self.picture_folders: set[str] = set()
        self.kept: dict[str, str] = {}
        self._folder = folder
        self._parts = dict(sorted(document.parts.items()))
        self._render = render
        self._staged: list[Staged] = []
        self.files: dict[str, Staged] = {}

    @property
    def name(self) -> str:
        """The stem's last part: what a link from a file beside it starts with."""
        return self.stem.rpartition("/")[2]

    @property
    def num_pages(self) -> int:
        return len(self._parts)

    @property
    def is_multi_page(self) -> bool:
        """True when readers need page numbers: also for one page alone of a longer document."""
        num_pages = max(len(self._parts), self.job.of_pages)
        return num_pages > 1 or any(page > 0 for page in self._parts)

    def pages(self) -> Iterator[PageResult]:
        """The pages in order, each read from its part; only one is held.

        Raises: DocumentFault when a part was damaged since it was written.
        """
        for page, sha256 in self._parts.items():
            try:
                yield read_part(self._folder, PageKey(self.id, page), sha256)
            except PartDamaged as fault:
                raise DocumentFault(f"{fault}. Run the same command again to redo it.") from None

    def image(self, result: PageResult) -> PageImage | None:
        """The page's pixels, rendered again; None when the input went away or changed."""
        try:
            image = self._render(self._page_job(result.key))
        except (PageFault, OSError):
            return None
        height, width = image.rgb.shape[:2]
        has_size = result.page_size in ((0, 0), (width, height))
        has_pixels = result.pixels_sha256 in ("", pixels_sha256(image.rgb))
        return image if has_size and has_pixels else None

    def _page_job(self, key: PageKey) -> PageJob:
        job = self.job
        return PageJob(key, job.path, job.sha256, job.num_pages, job.dpi)

    @contextlib.contextmanager
    def new_file(self, ending: str) -> Iterator[StagedWriter]:
        """A stream into the file `<stem><ending>`, which gets its name when all files are whole."""
        with self.new_file_at(self.stem + ending) as stream:
            yield stream

    @contextlib.contextmanager
    def new_file_at(self, relative: str) -> Iterator[StagedWriter]:
        """As `new_file`, for a path below OUT that does not start with the stem."""
        with self._folder.stage(self._staged) as stream:
            yield stream
        self.files[relative] = self._staged[-1]

    def publish(self) -> None:
        """Writes the record of what the files are to be, then renames all of them into place.

        In this order a kill in between is seen by the next run: the files are not what the record
        says. It writes them anew, and knows both the old ones and the new ones as ours.
        """
        for relative in self.files:
            if self._folder.is_same_file(relative, self.job.path):
                raise DocumentFault(
                    f"{printable(relative)} would replace the input itself. "
                    "Choose another folder with `-o`."
                )
        old = self._record()
        has_html = "html" in self.settings.formats
        pages, lowest = self._facts() if has_html else (old.pages, old.lowest)
        there = {name: self._folder.sha256(name) for name in {*old.written, *self.files}}
        files = {relative: staged.sha256 for relative, staged in sorted(self.files.items())}
        earlier = {
            name: sha256
            for table in (old.earlier, old.files)
            for name, sha256 in table.items()
            if there[name] == sha256 != files.get(name)
        }
        strange = {
            name for name, sha256 in files.items() if there[name] not in (None, sha256)
        } - earlier.keys()
        for other in _records(str(self._folder.path)) if strange else ():
            strange -= {name for name in strange
                        if there[name] in (other.files.get(name), other.earlier.get(name))}
        self._write_record(
            replace(
                old, files=files, earlier=earlier, picture_folders=sorted(self.picture_folders),
                pages=pages, lowest=lowest,
            )
        )  # fmt: skip
        for relative, staged in self.files.items():
            if relative in strange:
                self.kept[relative] = self._folder.set_aside(relative)
            self._folder.publish(staged, relative)
        self._remove_old_figures(earlier)

    def _facts(self) -> tuple[dict[str, int], float | None]:
        """(pages by status, the lowest confidence), for the list of documents."""
        pages: Counter[str] = Counter()
        sure = []
        for result in self.pages():
            pages[result.status.value] += 1
            if result.confidence is not None and result.status is not Status.FAILED:
                sure.append(result.confidence)
        return dict(pages), min(sure, default=None)

    def replaces(self) -> str:
        """The path of another input whose files this one's are about to replace; "" for none.

        Neither new content at the same path is another input, nor the same content elsewhere.
        """
        old = self._record()
        if "" in (old.path, old.sha256) or self.path == old.path or self.job.sha256 == old.sha256:
            return ""
        is_there = any(
            relative in self.files and self._folder.sha256(relative) == sha256
            for relative, sha256 in old.written.items()
        )
        return old.path if is_there else ""

    def note_path(self) -> None:
        """Keeps where an unchanged document was found now: what changes there later is its own."""
        old = self._record()
        if old.path != self.path:
            self._write_record(old)

    def _write_record(self, new: _Record) -> None:
        own = {"document": self.id, "path": self.path, "sha256": self.job.sha256}
        record = asdict(new) | own | {"key": self.key}
        self._folder.write(self._record_path, json.dumps(record).encode() + b"\n")

    @property
    def path(self) -> str:
        """The input's, for people and for the record."""
        return without_password(self.job.path)

    def published(self) -> tuple[dict[str, str], list[str]]:
        """(Relative path -> SHA-256 of the files that the last record names, the folders whose
        pictures are theirs)."""
        record = self._record()
        return record.files, record.picture_folders

    def drop(self) -> None:
        """Removes whatever was staged and not published."""
        self._folder.drop(self._staged)

    @property
    def key(self) -> str:
        """Digest of all that decides the files: equal key, equal files."""
        settings = self.settings
        parts = [ASSEMBLY_VERSION, self.id, sorted(settings.formats), settings.fingerprint]
        parts += [settings.save_tokens, settings.min_confidence, list(self._parts.items())]
        if self.is_multi_page and list(self._parts) == [0]:
            parts.append("page 1 of several")  # the same part as a document of one page
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def is_up_to_date(self) -> bool:
        """True when an earlier run wrote exactly these files, they are still there, and the figures
        before them are gone."""
        record = self._record()
        return (
            record.key == self.key
            and all(self._is_there(*row) for row in record.files.items())
            and not any(self._is_there(*row) for row in record.earlier.items()
                        if _folder_of(row[0]) in record.picture_folders)
        )  # fmt: skip

    @property
    def _record_path(self) -> str:
        return f"{STATE}/documents/{document_digest(self.id)}.json"

    def _record(self) -> _Record:
        """The last record; an empty one when it is missing or damaged."""
        return _Record.of(self._folder.read(self._record_path))

    def _remove_old_figures(self, earlier: dict[str, str]) -> None:
        """Figures that an earlier run cut and this one does not; a file changed since stays."""
        for relative, sha256 in earlier.items():
            is_old = relative not in self.files and _folder_of(relative) in self.picture_folders
            if is_old and self._is_there(relative, sha256):
                self._folder.remove(relative)

    def _is_there(self, relative: str, sha256: str) -> bool:
        return self._folder.sha256(relative) == sha256


def _folder_of(relative: str) -> str:
    return relative.rpartition("/")[0]


def _records(out: str | Path) -> Iterator[_Record]:
    for path in Path(out, STATE, "documents").glob("*.json"):
        with contextlib.suppress(OSError):
            if path.is_file():  # a pipe would be waited for
                yield _Record.of(path.read_bytes())


@dataclass(frozen=True, slots=True)
class Listed:
    """A document that some run wrote as HTML. html: its file; files: all of them, relative to OUT.
    pages: by status; lowest: confidence of its least sure page."""

    id: str
    html: str
    files: tuple[str, ...]
    pages: dict[str, int]
    lowest: float | None


def listed_documents(out: Path) -> list[Listed]:
    """By the records in OUT, whichever run wrote them."""
    found = []
    for record in _records(out):
        with contextlib.suppress(OutputError):
            html = document_stem(record.document) + ".html"
            if html in record.written:
                files = tuple(record.written)
                found.append(Listed(record.document, html, files, record.pages, record.lowest))
    return found


def written_files(out: str) -> frozenset[str]:
    """Real paths of all files that the records in OUT name: a run that has the output of runs
    before it among its inputs must not read it."""
    real = os.path.realpath(out)
    found: set[str] = set()
    for record in _records(real):
        found.update(os.path.join(real, name) for name in record.files)
        # The next run writes none of these: by now the name may be another file's.
        for name, sha256 in record.earlier.items():
            earlier = os.path.join(real, name)
            if os.path.isfile(earlier) and _sha256(earlier) == sha256:
                found.add(earlier)
    return frozenset(found)


def _sha256(path: str) -> str:
    """Empty for a file that is not there."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class _Record:
    """What a document's files are, or were about to be. key: see `Assembly.key`; files: relative
    path -> SHA-256; earlier: the same of what runs before had written, in other formats or in the
    place of these; picture_folders: see `Assembly`; path, sha256: the input's; document: its id;
    pages, lowest: their number by status and the lowest confidence, as in the HTML file. What
    earlier versions did not write is empty."""

    key: str
    files: dict[str, str]
    earlier: dict[str, str]
    picture_folders: list[str]
    path: str = ""
    sha256: str = ""
    document: str = ""
    pages: dict[str, int] = field(default_factory=dict)
    lowest: float | None = None

    @property
    def written(self) -> dict[str, str]:
        """All of them."""
        return {**self.earlier, **self.files}

    @classmethod
    def of(cls, data: bytes | None) -> _Record:
        """An empty one where there is none, or a damaged one."""
        try:
            row = json.loads(data or b"{}")
            files, earlier = (
                {name_here(name): str(sha256) for name, sha256 in table.items()}
                for table in (row["files"], row.get("earlier", {}))
            )
            folders = [name_here(folder) for folder in row.get("picture_folders", [])]
            path, document = (name_here(row.get(name, "")) for name in ("path", "document"))
            pages = {str(name): int(count) for name, count in row.get("pages", {}).items()}
            lowest = None if row.get("lowest") is None else float(row["lowest"])
            key, sha256 = str(row["key"]), str(row.get("sha256", ""))
            return cls(key, files, earlier, folders, path, sha256, document, pages, lowest)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls("", {}, {}, [])
