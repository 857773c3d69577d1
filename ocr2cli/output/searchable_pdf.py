"""Document -> searchable PDF: each page's picture with invisible text inside its block boxes.

The model gives boxes of blocks, not of words: lines are estimated, and the file says so.
Knows nothing about how a PDF is put together.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from statistics import median

from ocr2cli.document.ink import ink_box
from ocr2cli.output.assembly import Assembly
from ocr2cli.output.bidi import is_rtl
from ocr2cli.output.blocks import page_blocks
from ocr2cli.output.figures import encode, jpeg_size, without_colour
from ocr2cli.output.markdown import what_failed
from ocr2cli.output.pdf_file import PdfFile, Picture, TextLine, page_size
from ocr2cli.output.plain import plain_lines
from ocr2cli.pages import PageImage, PageResult, Status, Uint8Array
from ocr2cli.printing import printable
from ocr2cli.text.grounding import BOX_MAX

SUBJECT = (
    "Scanned pages with a text layer made by OCR. The positions of lines and words are estimated "
    "from the boxes of whole blocks; they were not measured."
)
_MARGIN = 0.05  # of a page, where its ink is not known
_USUAL_LINES = 60  # of a page, where no block of words has a box
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
            rgb = None if image is None else image.rgb
            lines = text_lines(result, size, rgb)
            pdf.add_page(size, picture(rgb), lines, failed_note(result))
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
    if rgb is None:
        return None
    pixels = without_colour(rgb)
    return Picture(encode(pixels, "JPEG"), *jpeg_size(pixels), is_grey=pixels.ndim == 2)


def failed_note(result: PageResult) -> list[str]:
    """Visible lines for the page that has no picture because it failed."""
    if result.status is not Status.FAILED or result.error is None:
        return []
    words = printable(f"{result.error.message} ({result.error.code})")
    lines = [words[start : start + 80] for start in range(0, min(len(words), 800), 80)]
    return [f"{what_failed(result)}:", *lines]


def text_lines(
    result: PageResult, size: tuple[float, float], rgb: Uint8Array | None
) -> Iterator[TextLine]:
    """The page's words, block by block in reading order. size: of the page, in points; rgb: its
    pixels, where they are to be had."""
    blocks = _blocks(result, size)
    boxes = [area for area, _ in blocks if area]
    is_any_astray = len(boxes) < len(blocks)
    printed = _printed(rgb, size) if is_any_astray else (0.0, 0.0, *size)
    if is_any_astray and not boxes:
        yield from spread(blocks[0][1], printed)
        return
    rows = [list(spread(lines, area)) if area and lines else [] for area, lines in blocks]
    sizes = [row.size for block in rows for row in block]
    usual = median(sizes) if sizes else size[1] / _USUAL_LINES
    for index, (area, lines) in enumerate(blocks):
        if area:
            yield from rows[index]
            continue
        above = blocks[index - 1][0] if index else None
        below = blocks[index + 1][0] if index + 1 < len(blocks) else None
        yield from _fitted(lines, list(_gaps(above, below, boxes, printed)), usual)


def _blocks(result: PageResult, size: tuple[float, float]) -> list[tuple[Area | None, list[str]]]:
    """(area in points, lines) of each block; None: the model gave no box that makes sense. Those
    with neither are left out, and neighbours without a box are one."""
    scale_x, scale_y = size[0] / BOX_MAX, size[1] / BOX_MAX
    blocks: list[tuple[Area | None, list[str]]] = []
    for block in page_blocks(result):
        lines = plain_lines(block.text)
        if block.boxes:
            x1, y1, x2, y2 = _union(block.boxes)
            area = (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)
            blocks.append((area, lines))
        elif lines and blocks and blocks[-1][0] is None:
            blocks[-1][1].extend(lines)
        elif lines:
            blocks.append((None, lines))
    return blocks


def _union(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _printed(rgb: Uint8Array | None, size: tuple[float, float]) -> Area:
    """Where there is ink, in points; all but a margin where that is not to be known."""
    width, height = size
    box = None if rgb is None else ink_box(rgb)
    if rgb is None or box is None:
        return _MARGIN * width, _MARGIN * height, (1 - _MARGIN) * width, (1 - _MARGIN) * height
    scale_x, scale_y = width / rgb.shape[1], height / rgb.shape[0]
    return box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y


def _gaps(
    above: Area | None, below: Area | None, boxes: Sequence[Area], printed: Area
) -> Iterator[Area]:
    """Room for a block below the one before it, then above the one after it: as wide as what is
    printed there, or, beside another column, as that neighbour."""
    _, top, right, bottom = printed
    near = [area for area in (above, below) if area]
    widest = min(area[0] for area in near), max(right, *(area[2] for area in near))
    for neighbour in near:
        for x1, x2 in (widest, (neighbour[0], neighbour[2])):
            others = [area for area in boxes if area[0] < x2 and area[2] > x1]
            if neighbour is above:
                y1 = above[3]
                y2 = min([max(bottom, y1), *(area[1] for area in others if area[3] > y1)])
            else:
                y2 = neighbour[1]
                y1 = max([min(top, y2), *(area[3] for area in others if area[1] < y2)])
            yield x1, y1, x2, y2


def _fitted(lines: list[str], gaps: Sequence[Area], size: float) -> Iterator[TextLine]:
    """Lines at the top of the first gap that has room for type of `size`; in smaller type in the
    highest one where none has."""
    column = _CHAR_ASPECT * size
    for left, top, right, bottom in gaps:
        rows = _wrap(lines, max(1, int((right - left) / column)))
        if len(rows) * size <= bottom - top:
            width = min(right - left, column * max(map(_columns, rows)))
            yield from spread(rows, (left, top, left + width, top + len(rows) * size))
            return
    yield from spread(lines, max(gaps, key=lambda area: area[3] - area[1]))


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
        taken = column * _columns(row)
        yield TextLine(right - taken if is_rtl(row) else left, baseline, taken, size, row)


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
