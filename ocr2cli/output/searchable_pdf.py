"""Document -> searchable PDF: each page's picture with invisible text inside its block boxes.

The model gives boxes of blocks, not of words: lines are estimated, and the file says so.
Knows nothing about how a PDF is put together.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.blocks import page_blocks
from ocr2cli.output.figures import encode, jpeg_size
from ocr2cli.output.names import printable
from ocr2cli.output.pdf_file import PdfFile, Picture, TextLine, page_size
from ocr2cli.output.plain import plain_lines
from ocr2cli.pages import PageImage, PageResult, Status, Uint8Array
from ocr2cli.text.grounding import BOX_MAX

SUBJECT = (
    "Scanned pages with a text layer made by OCR. The positions of lines and words are estimated "
    "from the boxes of whole blocks; they were not measured."
)
_WHOLE_PAGE = (50, 50, 949, 949)
_CHAR_ASPECT = 0.4  # width of a character by the height of a line, about, in Latin print
_A4 = (595.0, 842.0)

Area = tuple[float, float, float, float]


def write_searchable_pdf(assembly: Assembly) -> None:
    """Stages `<stem>.ocr.pdf`; the name never meets that of an input `<stem>.pdf`."""
    with assembly.new_file(".ocr.pdf") as stream:
        pdf = PdfFile(stream, printable(assembly.name), SUBJECT)
        for result in assembly.pages():
            image = None if result.status is Status.FAILED else assembly.image(result)
            size = page_points(assembly, result, image)
            lines = text_lines(result, size)
            shown = picture(None if image is None else image.rgb)
            pdf.add_page(size, shown, lines, failed_note(result))
        pdf.close()


def page_points(
    assembly: Assembly, result: PageResult, image: PageImage | None
) -> tuple[float, float]:
    """(width, height) of the page in points; A4 when nothing is known of it."""
    if image is not None:
        height, width = image.rgb.shape[:2]
        dpi = image.dpi if image.dpi > 0 else assembly.job.dpi
        return page_size(width * 72 / dpi, height * 72 / dpi)
    if result.status is Status.FAILED:
        return _A4  # room for its note
    width, height = result.page_size
    scale = 72 / assembly.job.dpi
    return page_size(width * scale, height * scale) if width and height else _A4


def picture(rgb: Uint8Array | None) -> Picture | None:
    """The page as JPEG at quality 85."""
    return None if rgb is None else Picture(encode(rgb, "JPEG"), *jpeg_size(rgb))


def failed_note(result: PageResult) -> list[str]:
    """Visible lines for the page that has no picture because it failed."""
    if result.status is not Status.FAILED or result.error is None:
        return []
    words = printable(f"{result.error.message} ({result.error.code})")
    lines = [words[start : start + 80] for start in range(0, min(len(words), 800), 80)]
    return [f"Page {result.key.page + 1} could not be read:", *lines]


def text_lines(result: PageResult, size: tuple[float, float]) -> Iterator[TextLine]:
    """The page's words, block by block in reading order. size: of the page, in points."""
    for area, lines in _blocks(result):
        x1, y1, x2, y2 = area
        scale_x, scale_y = size[0] / BOX_MAX, size[1] / BOX_MAX
        yield from spread(lines, (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y))


def _blocks(result: PageResult) -> Iterator[tuple[Area, list[str]]]:
    """(area in 0-999, lines) of each block with words; the whole page where there are no boxes."""
    for block in page_blocks(result):
        lines = plain_lines(block.text)
        if lines:
            yield _union(block.boxes) if block.boxes else _WHOLE_PAGE, lines


def _union(boxes: tuple[tuple[int, int, int, int], ...]) -> Area:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def spread(lines: list[str], area: Area) -> Iterator[TextLine]:
    """Lines over an area, top to bottom, in as many rows as the area's shape suggests.

    With n rows a character is width * n / N wide and height / n high; its usual aspect gives n.
    Lines that are there already are kept when there are at least as many.
    """
    left, top, right, bottom = area
    width, height = max(right - left, 1.0), max(bottom - top, 1.0)
    num_chars = sum(_columns(line) for line in lines)
    num_rows = max(1, round(math.sqrt(_CHAR_ASPECT * height * num_chars / width)))
    rows = lines if len(lines) >= num_rows else _wrap(lines, math.ceil(num_chars / num_rows))
    row_height = height / len(rows)
    column = width / max(_columns(row) for row in rows)
    for index, row in enumerate(rows):
        baseline = top + (index + 0.8) * row_height
        size = max(1.0, min(row_height, 200.0))
        yield TextLine(left, baseline, column * _columns(row), size, row)


def _columns(text: str) -> int:
    """Width in columns: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text) or 1


def _wrap(lines: list[str], columns: int) -> list[str]:
    rows: list[str] = []
    for line in lines:
        row, taken = "", 0
        for word in _words(line):
            if row and taken + _columns(word.rstrip()) > columns:
                rows.append(row.rstrip())
                row, taken = "", 0
            row += word
            taken += _columns(word)
        rows.append(row.rstrip())
    return [row for row in rows if row]


def _words(line: str) -> Iterator[str]:
    """Pieces that a row may end after: words with their space, wide characters one by one."""
    word = ""
    for char in line:
        word += char
        if char == " " or unicodedata.east_asian_width(char) in "WF":
            yield word
            word = ""
    yield word
