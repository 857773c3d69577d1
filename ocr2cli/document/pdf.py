"""An open PDF: its pages' pixels, text and drawings.

What PyMuPDF says is behind `messages.py`. Knows nothing about jobs and settings.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ocr2cli.document.files import InputFile, shown
from ocr2cli.document.messages import lost_content, messages, notes_of
from ocr2cli.document.paragraphs import Area, LayerLine, Paragraph, paragraphs
from ocr2cli.document.text_layer.nouns import Drawing, TextCharacter, TextLayer, TextStyle
from ocr2cli.errors import PageFault
from ocr2cli.pages import Uint8Array

if TYPE_CHECKING:
    import pymupdf

POINTS_PER_INCH = 72.0
MAX_TEXT_CHARACTERS = 200_000


class PdfDocument:
    """An open PDF."""

    def __init__(self, source: InputFile, password: str) -> None:
        self._path = source.path
        self._source = source
        self._password = password
        self._document = self._opened()
        self.num_pages = len(self._document)
        # What MuPDF said on opening concerns every page of the file.
        self._notes = notes_of(messages(), self._document.is_repaired)
        self._has_complained = self._has_lost = False

    def render(
        self, page: int, dpi: float, max_pixels: int
    ) -> tuple[Uint8Array, float, list[str], str]:
        """(uint8 [H, W, 3], dpi as rendered, notes, what was lost of the page or "").

        Raises: PageFault.
        """
        import pymupdf

        self._forget_complaints()
        with self._page(page) as drawn:
            usable, notes = self._usable_dpi(drawn, dpi, max_pixels)
            zoom = usable / POINTS_PER_INCH
            pixmap = drawn.get_pixmap(
                matrix=pymupdf.Matrix(zoom, zoom), colorspace=pymupdf.csRGB, alpha=False
            )
            rgb = _pixels(pixmap)
        if page == 0:
            notes += self._embedded
        said = messages()
        return rgb, usable, [*notes, *self._notes, *notes_of(said)], lost_content(said)

    def size(self, page: int, dpi: float, max_pixels: int) -> tuple[int, int]:
        """(width, height) in pixels, as `render` would make it. Raises: PageFault."""
        import pymupdf

        with self._page(page) as drawn:
            usable, _ = self._usable_dpi(drawn, dpi, max_pixels)
            zoom = usable / POINTS_PER_INCH
            box = (drawn.rect * pymupdf.Matrix(zoom, zoom)).irect
        return (max(1, box.width), max(1, box.height))

    def text(self, page: int, is_as_drawn: bool = False) -> str:
        """The text layer, in the file's order. Raises: PageFault.

        is_as_drawn: the characters of the glyphs, also where the file has another text for them.
        """
        with self._page(page) as drawn:
            return str(drawn.get_text(flags=_text_flags(is_as_drawn)))[:MAX_TEXT_CHARACTERS]

    def paragraphs(self, page: int, text: str, *, is_as_drawn: bool) -> list[Paragraph]:
        """The page's text in paragraphs, with their boxes in 0-1 of the page; [] where its lines
        are others than the file has. Raises: PageFault."""
        import pymupdf

        with self._page(page) as drawn:
            flags = _text_flags(is_as_drawn)
            blocks = [block["lines"] for block in drawn.get_text("dict", flags=flags)["blocks"]]
            lines = text.removesuffix("\n").split("\n")
            if len(lines) != sum(map(len, blocks)):
                return []
            to_parts = pymupdf.Matrix(1 / drawn.rect.width, 1 / drawn.rect.height)
            texts = iter(lines)
            return [
                Paragraph(paragraph.text, _box(paragraph.box, to_parts))
                for block in blocks
                for paragraph in paragraphs(_layer_lines(texts, block, drawn.rotation_matrix))
            ]

    def layer(self, page: int, dpi: float) -> TextLayer:
        """Every character of the text layer and what else is drawn. Raises: PageFault."""
        with self._page(page) as drawn:
            to_pixels = np.array(drawn.rotation_matrix).reshape(3, 2) * (dpi / POINTS_PER_INCH)
            characters = [
                character
                for span in drawn.get_texttrace()
                for character in _span_characters(span, to_pixels)
            ]
            return TextLayer(characters, _drawings(drawn.get_bboxlog(), to_pixels))

    def close(self) -> None:
        import pymupdf

        self._document.close()
        pymupdf.TOOLS.store_shrink(100)

    def _opened(self) -> pymupdf.Document:
        document = _open_pdf(self._source)
        try:
            self._check(document)
            self._load_page_tree(document)
        except PageFault:
            document.close()
            raise
        # Before the notes are taken, like the page tree: it may make MuPDF speak.
        self._embedded = _embedded_files(document)
        return document

    @contextlib.contextmanager
    def _page(self, page: int) -> Iterator[Any]:
        """The loaded page; what MuPDF raises becomes one fault of this page."""
        import pymupdf

        pymupdf.TOOLS.mupdf_warnings()  # asking for them forgets them: they are of other pages
        try:
            yield self._document.load_page(page)
        except PageFault:
            raise
        except MemoryError:
            raise
        except Exception as error:  # MuPDF's own classes all derive from plain Exceptions
            if "malloc" in str(error):
                raise MemoryError(_one_line(error)) from error
            raise PageFault(
                "unreadable",
                f"page {page + 1} of {shown(self._path)} cannot be drawn: {_one_line(error)}. "
                "Try to repair the file with `qpdf IN OUT`.",
            ) from error
        finally:
            said = messages(keep=True)
            self._has_complained |= bool(said)
            self._has_lost |= bool(lost_content(said))

    def _forget_complaints(self) -> None:
        """Before a page is drawn: it must not depend on those that this worker had before.

        MuPDF speaks of a thing once and keeps what it made of it. Fonts, profiles, pictures and
        tiles are in its store, and are soon made again. Objects stay with the document until the
        file is opened anew, which takes up to a second where there are many: only lost content is
        worth that, and only where a page is drawn, for an estimate keeps no messages.
        """
        import pymupdf

        if self._has_lost:
            document = self._opened()
            self.close()
            self._document = document
        elif self._has_complained:
            pymupdf.TOOLS.store_shrink(100)
        self._has_complained = self._has_lost = False

    def _check(self, document: pymupdf.Document) -> None:
        where = shown(self._path)
        if not document.is_pdf:
            raise PageFault("unsupported", f"{where} is no PDF. Convert it to PDF.")
        if document.needs_pass and not document.authenticate(self._password):
            what = "the password does not open it" if self._password else "it needs a password"
            raise PageFault(
                "encrypted",
                f"{where}: {what}. Give it with --password-file FILE, or remove it with "
                "`qpdf --decrypt`.",
            )

    def _load_page_tree(self, document: pymupdf.Document) -> None:
        try:
            num_pages = len(document)
        except Exception as error:  # as in _page
            raise PageFault(
                "unreadable",
                f"{shown(self._path)}: the pages cannot be counted ({_one_line(error)}). "
                "Try to repair the file with `qpdf IN OUT`.",
            ) from error
        if not num_pages and document.is_repaired:
            raise PageFault(
                "unreadable",
                f"{shown(self._path)} is damaged: none of its pages was found. "
                "Copy it again, or try `qpdf IN OUT`.",
            )
        if num_pages:
            # Otherwise the first page that is asked for loads the tree, and its warnings are that
            # page's. A fault is every page's own: loading one meets it again.
            with contextlib.suppress(Exception):
                document.page_xref(0)

    def _usable_dpi(
        self, drawn: pymupdf.Page, dpi: float, max_pixels: int
    ) -> tuple[float, list[str]]:
        width, height = drawn.rect.width, drawn.rect.height
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise PageFault(
                "unreadable",
                f"page {drawn.number + 1} of {shown(self._path)} has no size. "
                "Try to repair the file with `qpdf IN OUT`.",
            )
        # One pixel more each way: MuPDF rounds the box outwards.
        zoom = dpi / POINTS_PER_INCH
        if (width * zoom + 1) * (height * zoom + 1) <= max_pixels:
            return dpi, []
        smaller = math.sqrt(max_pixels / (width * height)) * POINTS_PER_INCH * 0.999
        # A strip so long that one pixel of it is over the limit.
        longest = max_pixels / max(width, height) * POINTS_PER_INCH / 2
        smaller = min(smaller, longest)
        return smaller, [
            f"rendered at {smaller:.4g} dpi instead of {dpi:g}: the page is "
            f"{width:.0f} x {height:.0f} points"
        ]


def is_cut(text: str) -> bool:
    """True for a text layer that may have more than `PdfDocument.text` gives."""
    return len(text) >= MAX_TEXT_CHARACTERS


def _open_pdf(source: InputFile) -> pymupdf.Document:
    import pymupdf

    # Kept and shown as the page's warnings instead.
    pymupdf.TOOLS.mupdf_display_errors(False)
    pymupdf.TOOLS.mupdf_display_warnings(False)
    pymupdf.TOOLS.reset_mupdf_warnings()
    try:
        if source.is_small:
            return pymupdf.open(stream=source.read(), filetype="pdf")
        # By descriptor: the name may hold bytes that PyMuPDF cannot take, or point elsewhere now.
        return pymupdf.open(f"/dev/fd/{source.file.fileno()}", filetype="pdf")
    except Exception as error:  # PyMuPDF raises several kinds, all plain Exceptions
        raise PageFault(
            "unreadable",
            f"{shown(source.path)} is damaged and cannot be repaired here ({_one_line(error)}). "
            "Try `qpdf IN OUT`, or copy the file again.",
        ) from error


def _text_flags(is_as_drawn: bool) -> int:
    """is_as_drawn: the characters of the glyphs, also where the file has another text for them."""
    import pymupdf

    flags: int = pymupdf.TEXTFLAGS_TEXT
    if is_as_drawn:
        # Older versions lack the one; then a text that differs is seen by its characters.
        flags |= getattr(pymupdf, "TEXT_IGNORE_ACTUALTEXT", 0)
        # A sum's sign without a code is no P, though P has its number in another font.
        flags &= ~pymupdf.TEXT_CID_FOR_UNKNOWN_UNICODE
    return flags


def _layer_lines(
    texts: Iterator[str], block: list[dict[str, Any]], to_shown: pymupdf.Matrix
) -> Iterator[LayerLine]:
    import pymupdf

    # The lines' own texts would lack characters without width, such as accents.
    for line, text in zip(block, texts, strict=False):
        spans = line["spans"]
        x, y = line["dir"]
        yield LayerLine(
            text,
            box=_box(line["bbox"], to_shown),
            size=max((span["size"] for span in spans), default=0.0),
            is_bold=all(span["flags"] & pymupdf.TEXT_FONT_BOLD for span in spans),
            is_level=x * to_shown.a + y * to_shown.c > 0.99,
        )


def _box(box: Sequence[float], matrix: pymupdf.Matrix) -> Area:
    import pymupdf

    turned_box = pymupdf.Rect(box) * matrix
    return turned_box.x0, turned_box.y0, turned_box.x1, turned_box.y1


def _embedded_files(document: pymupdf.Document) -> list[str]:
    """A note on what a portfolio, or an invoice, holds besides its pages."""
    try:
        count = document.embfile_count()
        branches, _ = document.xref_get_key(document.pdf_catalog(), "Names/EmbeddedFiles/Kids")
    except Exception:  # as in _page; a list of files that cannot be read is no fault of the pages
        return []
    if count:
        files = "1 embedded file, which is" if count == 1 else f"{count} embedded files, which are"
    elif branches in ("array", "xref"):  # PyMuPDF counts only a list without branches
        files = "embedded files, which are"
    else:
        return []
    return [f"the PDF holds {files} not read"]


def _pixels(pixmap: pymupdf.Pixmap) -> Uint8Array:
    """uint8 [H, W, 3], a copy: the pixmap's memory goes with it."""
    rows = np.frombuffer(pixmap.samples_mv, np.uint8).reshape(pixmap.height, pixmap.stride)
    return rows[:, : pixmap.width * 3].reshape(pixmap.height, pixmap.width, 3).copy()


def _span_characters(
    span: dict[str, Any], to_pixels: npt.NDArray[np.float64]
) -> list[TextCharacter]:
    """to_pixels: [3, 2], from the page as written to the page as rendered."""
    kind, colour = span["type"], span["color"]
    scale = float(np.abs(np.linalg.det(to_pixels[:2]))) ** 0.5
    style = TextStyle(
        font=span["font"],
        size=span["size"] * scale,
        turn=_turn(np.array(span["dir"]) @ to_pixels[:2] / scale),
        # Filled or stroked; what is drawn through other text's shape has no colour of its own.
        colour=_in_bytes(colour) if kind in (0, 1) and span["opacity"] == 1 else None,
        # Type 3 is the invisible text that OCR programs put under a scan.
        is_visible=kind != 3 and span["opacity"] > 0,
        seqno=span["seqno"],
    )
    origins = np.array([origin for _, _, origin, _ in span["chars"]]).reshape(-1, 2)
    return [
        TextCharacter(chr(code), box, tuple(origin), glyph, style)
        for (code, glyph, _, _), box, origin in zip(
            span["chars"],
            _boxes_in_pixels([box for *_, box in span["chars"]], to_pixels),
            (origins @ to_pixels[:2] + to_pixels[2]).tolist(),
            strict=True,
        )
    ]


def _turn(direction: npt.NDArray[np.float64]) -> int | None:
    """Quarter turns counter-clockwise that make text in this direction level."""
    for turn, level in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        if np.abs(direction - level).max() < 0.02:
            return turn
    return None


def _in_bytes(colour: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in colour)
    return red, green, blue


def _drawings(
    log: list[tuple[str, tuple[float, ...]]], to_pixels: npt.NDArray[np.float64]
) -> list[Drawing]:
    kinds = {
        "fill-path": "fill", "fill-shade": "fill", "stroke-path": "stroke",
        "fill-image": "image", "fill-imgmask": "image",
    }  # fmt: skip
    found = [(kinds[kind], n) for n, (kind, *_) in enumerate(log) if kind in kinds]
    boxes = _boxes_in_pixels([log[n][1] for _, n in found], to_pixels)
    return [Drawing(kind, box, n) for (kind, n), box in zip(found, boxes, strict=True)]


def _boxes_in_pixels(
    boxes: Sequence[Sequence[float]], to_pixels: npt.NDArray[np.float64]
) -> list[tuple[float, float, float, float]]:
    ends = np.array(boxes).reshape(-1, 2, 2) @ to_pixels[:2] + to_pixels[2]
    upright = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in upright.tolist()]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
