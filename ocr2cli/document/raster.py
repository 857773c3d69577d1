"""PageJob to PageImage, from whichever kind of file. All of PyMuPDF is in this room.

Knows nothing about views, and nothing about which pages are wanted.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ocr2cli.config import RasterConfig
from ocr2cli.document.base_fonts import drawn_characters, drawn_letters
from ocr2cli.document.files import InputFile, Kind, open_input, shown, sniff
from ocr2cli.document.images import ImageDocument
from ocr2cli.document.orientation import rotation_to_upright, turned
from ocr2cli.document.paragraphs import Paragraph
from ocr2cli.document.pdf import PdfDocument, is_cut
from ocr2cli.document.text_layer.judge import readable
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageImage, PageJob, Uint8Array

_MAX_OPEN_DOCUMENTS = 2


class PageSource(Protocol):
    """An open document of either kind; `images.ImageDocument` documents the methods."""

    num_pages: int

    def render(
        self, page: int, dpi: float, max_pixels: int
    ) -> tuple[Uint8Array, float, list[str], str]: ...

    def size(self, page: int, dpi: float, max_pixels: int) -> tuple[int, int]: ...

    def text(self, page: int) -> str: ...

    def close(self) -> None: ...


def render_page(job: PageJob, cfg: RasterConfig) -> PageImage:
    """The pixels of one page, upright, uint8 [H, W, 3], with what was odd about it as warnings.

    The document stays open for the next page of the same file.

    Raises: PageFault: the job's own error, or encrypted, unreadable, changed, away, too_large, ...
    Source: model-spec 2.1 and 2.7 (144 dpi is `get_pixmap(matrix=Matrix(2, 2), alpha=False)`).
    """
    with _open_documents.borrow(job, cfg) as document:
        rgb, dpi, notes, damage = document.render(job.key.page, job.dpi, cfg.max_pixels)
    if cfg.rotate == "auto" and (degrees := rotation_to_upright(rgb, drawn_letters())):
        rgb = turned(rgb, degrees)
        notes.append(f"turned by {degrees} degrees clockwise")
    return PageImage(job.key, rgb, dpi, tuple(dict.fromkeys(notes)), damage)


def turn_upright(rgb: Uint8Array) -> tuple[Uint8Array, int]:
    """The page turned so that its text stands upright, and by how many degrees clockwise."""
    degrees = rotation_to_upright(rgb, drawn_letters())
    return turned(rgb, degrees), degrees


def text_layer(job: PageJob, cfg: RasterConfig) -> str:
    """The page's own text, as the file gives it; "" for an image. Raises: PageFault."""
    with _open_documents.borrow(job, cfg) as document:
        return document.text(job.key.page)


def trusted_text(job: PageJob, cfg: RasterConfig, page: PageImage | None = None) -> str | None:
    """The page's own text where `cfg.text_layer` allows its use instead of reading the pixels.

    trust: whenever there is any. auto: when it agrees with the pixels, see `text_layer/`. None:
    read the pixels. page: what `render_page` made of the job, if it is at hand. Raises: PageFault.
    """
    with _open_documents.borrow(job, cfg) as document:
        text = document.text(job.key.page)
        if not text.strip() or not isinstance(document, PdfDocument):
            return None
        if cfg.text_layer == "trust":
            return text
        if cfg.text_layer != "auto":
            return None
        if page and cfg.rotate != "auto":
            rgb, dpi = page.rgb, page.dpi
        else:  # the boxes belong to the page as it lies in the file
            rgb, dpi, *_ = document.render(job.key.page, job.dpi, cfg.max_pixels)
        text = document.text(job.key.page, is_as_drawn=True)
        layer = document.layer(job.key.page, dpi)
    # A text that long has been cut.
    return None if is_cut(text) else readable(text, layer, rgb, drawn_characters())


def own_paragraphs(job: PageJob, cfg: RasterConfig, text: str) -> list[Paragraph]:
    """What `trusted_text` gave, for a reader; [] where its lines have no places.

    Boxes in 0-1 of the page, not turned by `cfg.rotate`. Raises: PageFault.
    """
    with _open_documents.borrow(job, cfg) as document:
        if not isinstance(document, PdfDocument):
            return []
        return document.paragraphs(job.key.page, text, is_as_drawn=cfg.text_layer == "auto")


def page_estimate(job: PageJob, cfg: RasterConfig) -> tuple[int, int, int]:
    """(width, height, characters of the text layer) of a page, without rendering it.

    Raises: PageFault.
    """
    with _open_documents.borrow(job, cfg) as document:
        width, height = document.size(job.key.page, job.dpi, cfg.max_pixels)
        return width, height, len(document.text(job.key.page))


def load_libraries() -> None:
    """Import what opens documents, which takes a while."""
    import PIL.Image
    import pymupdf

    PIL.Image.preinit()
    pymupdf.TOOLS.reset_mupdf_warnings()


def open_document(source: InputFile, password: str = "") -> PageSource:
    """Open a file by its first bytes; it must stay open as long as the result is used.

    Raises: PageFault.
    """
    kind = sniff(source)
    if kind is Kind.PDF:
        return PdfDocument(source, password)
    return ImageDocument(source, kind)


@dataclass(slots=True)
class _Opened:
    source: InputFile
    sha256: str
    document: PageSource
    password: str


class _OpenDocuments:
    """The last documents used in this process, so that a file is opened once, not once a page."""

    def __init__(self) -> None:
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        # MuPDF's state is one a process; the lock is for callers with threads.
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self, job: PageJob, cfg: RasterConfig) -> Iterator[PageSource]:
        """The job's document. Raises: PageFault, also when the file is not the one listed."""
        if job.error is not None:
            raise PageFault(job.error.code, job.error.message)
        password = job.ask.password or cfg.password
        with self._lock:
            opened = self._current(job, password) or self._open(job, password)
            self._opened.move_to_end(job.path)
            if job.key.page >= opened.document.num_pages:
                raise PageFault(
                    "unreadable",
                    f"{shown(job.path)} has no page {job.key.page + 1}, only "
                    f"{opened.document.num_pages}. Give a smaller page number.",
                )
            try:
                yield opened.document
            finally:
                # A large file is read while it is drawn: what was drawn may be neither file.
                if not opened.source.is_small and opened.source.has_changed():
                    self._drop(job.path)
                    raise _changed(job.path)

    def _current(self, job: PageJob, password: str) -> _Opened | None:
        opened = self._opened.get(job.path)
        if opened is None:
            return None
        is_same = (
            opened.source.is_current()
            and opened.password == password
            and job.sha256 in ("", opened.sha256)
        )
        if is_same:
            return opened
        self._drop(job.path)
        return None

    def _open(self, job: PageJob, password: str) -> _Opened:
        try:
            source = open_input(job.path)
        except PageFault as fault:
            if not job.sha256:
                raise
            # It was there when it was listed: no fault of the file's. Another run may find it, or
            # another machine.
            raise PageFault("away", fault.message) from fault
        try:
            try:
                sha256 = source.sha256()
            except OSError as error:
                why = f"{shown(job.path)} cannot be read: {error.strerror}."
                raise PageFault("away", why) from error
            if job.sha256 not in ("", sha256):
                raise _changed(job.path)
            opened = _Opened(source, sha256, open_document(source, password), password)
        except BaseException:
            source.close()
            raise
        self._opened[job.path] = opened
        while len(self._opened) > _MAX_OPEN_DOCUMENTS:
            self._drop(next(iter(self._opened)))
        return opened

    def _drop(self, path: str) -> None:
        opened = self._opened.pop(path)
        opened.document.close()
        opened.source.close()


# The one piece of state here: open files, which belong to a process.
_open_documents = _OpenDocuments()


def _changed(path: str) -> PageFault:
    return PageFault(
        "changed", f"{shown(path)} was changed while the run was reading it. Run again."
    )
