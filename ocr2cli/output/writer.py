"""The writer: page parts as pages arrive, documents when all their pages are there.

Runs in the parent and is the only code that writes user files. Knows nothing about the journal,
which must record a page after `add` returns and before the document is assembled.

    OUT/.ocr2/parts/<digest of the document's name>/<page>.json   one finished page, see parts.py
    OUT/.ocr2/documents/<digest>.json   what the document's files are, to see if they still are
    OUT/.ocr2/tmp/                      files on their way; whatever is there at the start is swept
    OUT/.ocr2/summary.json              the last run in numbers, once it has ended
    OUT/.ocr2/journal.jsonl, lock       `pipeline/`'s
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from ocr2cli.config import RasterConfig
from ocr2cli.document.naming import folded
from ocr2cli.document.urls import is_url
from ocr2cli.errors import OutputError
from ocr2cli.output.assembly import Assembly, Expected, OutputSettings, Render
from ocr2cli.output.figures import cut_figures
from ocr2cli.output.folder import STATE, DocumentFault, OutFolder
from ocr2cli.output.formats import LINKING_FORMATS, load_formats
from ocr2cli.output.index_html import INDEX, write_index
from ocr2cli.output.names import document_stem, output_name
from ocr2cli.output.parts import PartDamaged, read_part, write_part
from ocr2cli.output.summary import INPUT_CODES, Summary
from ocr2cli.pages import PageImage, PageJob, PageKey, PageResult
from ocr2cli.printing import printable

logger = logging.getLogger("ocr2")

SUMMARY_PATH = f"{STATE}/summary.json"

# Told of a document whose files are in place: its id, its name in JSON, relative path -> SHA-256,
# and the folders of which it holds all pictures that are still its own.
OnDocument = Callable[[str, str, Mapping[str, str], Collection[str]], None]


class Writer:
    """OUT of one run. Make it under the output folder's lock: it sweeps OUT/.ocr2/tmp.

    For every page of the run, in any order: `expect(job)`, then either `restore` (an earlier run
    read it) or `add`. At the end, also of an interrupted run: `finish`, then `close`.
    """

    def __init__(
        self,
        out: Path,
        settings: OutputSettings,
        *,
        raster: RasterConfig | None = None,
        render: Render | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_document: OnDocument | None = None,
        summary: Summary | None = None,
    ) -> None:
        """render: replaces `document.raster.render_page`, in tests. summary: counts into this one.

        Raises: UsageError for an unknown format; OutputError when OUT cannot be written.
        """
        self._formats = load_formats(settings.formats)
        self._settings = settings
        self._folder = OutFolder(out)
        self._folder.remove(SUMMARY_PATH)  # it says how another run ended
        self._render = render or _default_render(raster or RasterConfig())
        self._documents: dict[str, Expected] = {}
        self._complete: list[Expected] = []
        self._num_unwritten = 0
        self._owners: dict[str, str] = {}
        self._inputs: frozenset[str] = frozenset()
        self._on_document = on_document
        self._is_finished = False
        self._clock = clock
        self._start = clock()
        self.summary = summary or Summary(min_confidence=settings.min_confidence)

    def spare(self, inputs: Iterable[str]) -> None:
        """Paths of the run's inputs: no document's file takes the place of one that lies in OUT."""
        self._inputs = self._folder.holds(inputs)

    def expect(self, job: PageJob) -> None:
        """Says which document a page belongs to and how many pages the run reads of it.

        Raises: OutputError for a document name that is not a path below OUT.
        """
        if job.key.document in self._documents:
            return
        document_stem(job.key.document)
        self._documents[job.key.document] = Expected(job)
        self.summary.documents += 1

    def leave(self, job: PageJob) -> None:
        """A document that cannot be opened now, of which an earlier run read pages: its files and
        parts stay, and the summary says why nothing new was read."""
        assert job.error is not None
        self.summary.documents += 1
        self.summary.documents_kept += job.error.code in INPUT_CODES
        why = f"{job.error.message} What an earlier run read of it is kept."
        self.summary.document_faults.append((output_name(job.key.document), printable(why)))

    def restore(self, key: PageKey, part_sha256: str) -> bool:
        """Takes over a page of an earlier run; False when its part is damaged: read it again."""
        try:
            result = read_part(self._folder, key, part_sha256)
        except PartDamaged:
            return False
        self._done(result, part_sha256, is_resumed=True)
        return True

    def keep(self, result: PageResult, part_sha256: str) -> bool:
        """Instead of `add`, for a page that was read again and came out worse: what an earlier run
        read of it stays, and the summary says why. False when its part is damaged."""
        if not self.restore(result.key, part_sha256):
            return False
        ended = result.error.message if result.error else f"it ended as {result.status}."
        why = f"page {result.key.page + 1}, read again: {ended} What was read of it before is kept."
        self.summary.document_faults.append((output_name(result.key.document), printable(why)))
        return True

    def read_earlier(self, key: PageKey, part_sha256: str) -> PageResult | None:
        """The result of an earlier run without taking it over; None when its part is damaged."""
        try:
            return read_part(self._folder, key, part_sha256)
        except PartDamaged:
            return None

    def add(self, result: PageResult) -> str:
        """Writes the page's part, synced; returns its SHA-256 for the journal.

        Documents completed by earlier calls are assembled first, so the last page's journal line
        is written before its document's files.

        Raises: OutputError when OUT cannot be written.
        """
        self.assemble_complete()
        with _state_errors():
            sha256 = write_part(self._folder, result)
        self._done(result, sha256, is_resumed=False)
        return sha256

    def _done(self, result: PageResult, sha256: str, *, is_resumed: bool) -> None:
        document = self._documents[result.key.document]
        if result.key.page in document.parts:
            raise AssertionError(f"{result.key} arrived twice")
        document.parts[result.key.page] = sha256
        self.summary.count(result, is_resumed=is_resumed)
        if document.is_complete:
            self._complete.append(document)

    def assemble_complete(self) -> None:
        """Writes the files of every document whose pages are all there.

        A document whose files cannot be put in place is noted in the summary; the run goes on.

        Raises: OutputError when OUT cannot be written.
        """
        while self._complete:
            document = self._complete.pop()
            if _is_nowhere(document.job):
                continue  # the summary has it; no file is to bear a mistyped name
            why = ""
            try:
                self._assemble(document)
            except DocumentFault as fault:
                why = str(fault)
            except MemoryError:  # a large page drawn again for its figures, beside the workers
                why = "no memory to write its files. Run the same command again to write them."
            except BaseException:
                self._num_unwritten += 1
                raise
            if why:
                self.summary.document_faults.append((output_name(document.job.key.document), why))
            # Kept as a finished document without its pages: ten thousand of them stay small.
            document.parts = dict.fromkeys(document.parts, "")

    def _assemble(self, document: Expected) -> None:
        assembly = Assembly(self._folder, document, self._settings, self._render)
        if assembly.is_up_to_date():
            assembly.note_path()
            self.summary.documents_unchanged += 1
            logger.debug("%s: its files are there", printable(assembly.id))
            self._tell(assembly)
            return
        try:
            if LINKING_FORMATS & set(self._settings.formats):
                cut_figures(assembly)
            for write in self._formats:
                write(assembly)
            self._claim(assembly)
            if other := assembly.replaces():
                logger.warning(
                    "%s: %s takes the place of %s, which an earlier run read. To keep both, give "
                    "the two in one run, or another `-o`",
                    *map(printable, (assembly.id, assembly.path, other)),
                )
            assembly.publish()
            self.summary.documents_written += 1
            fields = {"document": output_name(assembly.id), "pages": assembly.num_pages}
            logger.info(
                "%s: written, %d page%s", printable(assembly.id), assembly.num_pages,
                "" if assembly.num_pages == 1 else "s",
                extra={"fields": fields},
            )  # fmt: skip
        finally:
            assembly.drop()
            if assembly.kept:
                logger.warning(
                    "%s: not written by ocr2, or changed since; kept as %s",
                    *(", ".join(map(printable, sorted(names)))
                      for names in (assembly.kept, assembly.kept.values())),
                )  # fmt: skip
        self._tell(assembly)

    def _tell(self, assembly: Assembly) -> None:
        if self._on_document is not None:
            self._on_document(assembly.id, output_name(assembly.id), *assembly.published())

    def _claim(self, assembly: Assembly) -> None:
        """Two documents of a run never write one file, even where `a_det.mmd` meets `a_det`, or
        where the disk takes one name for the other; and none writes where another was read from."""
        for relative in assembly.files:
            if relative in self._inputs:
                raise DocumentFault(
                    f"{printable(relative)} would replace an input of this run. "
                    "Choose another folder with `-o`."
                )
            owner = self._owners.setdefault(folded(relative), assembly.id)
            if owner != assembly.id:
                raise DocumentFault(
                    f"{printable(relative)} already belongs to {printable(owner)}. "
                    "Rename one of the inputs or write them to two folders."
                )

    def _write_index(self) -> None:
        if "html" not in self._settings.formats:
            return
        sha256 = write_index(self._folder, self._inputs, self._settings.min_confidence)
        if sha256 and self._on_document is not None:
            name = f"/{INDEX}"  # no document has it
            self._on_document(name, name, {INDEX: sha256}, ())

    def finish(self) -> None:
        """Assembles what is complete: the last documents that `on_document` is told of.

        Raises: OutputError when OUT cannot be written, or has lost its name.
        """
        if self._is_finished:
            return
        self._is_finished = True
        try:
            self.assemble_complete()
            self._write_index()
            self._folder.look_for()
        finally:
            self.summary.documents_incomplete = (
                sum(not document.is_complete for document in self._documents.values())
                + len(self._complete)
                + self._num_unwritten
            )
            self.summary.wall_seconds = self._clock() - self._start

    def close(self) -> Summary:
        """`finish` if that was not called, then writes OUT/.ocr2/summary.json and lets go of OUT.

        Raises: OutputError when OUT cannot be written.
        """
        try:
            self.finish()
            text = json.dumps(self.summary.to_json(), indent=2)
            with _state_errors():
                self._folder.write(SUMMARY_PATH, text.encode() + b"\n")
        finally:
            self._folder.close()
        return self.summary


def _is_nowhere(job: PageJob) -> bool:
    """True for an input that could not be opened since nothing has its name."""
    return job.error is not None and not is_url(job.path) and not os.path.lexists(job.path)


@contextlib.contextmanager
def _state_errors() -> Iterator[None]:
    """What stands where the run keeps its own state is no document's error: the run ends."""
    try:
        yield
    except DocumentFault as fault:
        raise OutputError(str(fault)) from None


def _default_render(raster: RasterConfig) -> Render:
    return partial(_render_page, raster)


def _render_page(raster: RasterConfig, job: PageJob) -> PageImage:
    # Here, so that a run without figures never loads PyMuPDF in the parent.
    from ocr2cli.document.raster import render_page

    return render_page(job, raster)
