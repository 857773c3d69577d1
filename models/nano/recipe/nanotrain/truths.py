"""What the model should write for a page, for both prompts, and where each character is printed.

Knows nothing about how a page is laid out or drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanotrain.pages import Block, Line, Page

PLAIN_PROMPT = "\nFree OCR."
GROUNDING_PROMPT = "\n<|grounding|>Convert the document to markdown."


@dataclass
class Truth:
    """What the model should write. text: after the prompt, without the end token.

    places: float32 [len(text), 2]: where on the page the character is printed, or what it is about.
    """

    text: str
    places: np.ndarray


def plain_truth(page: Page) -> Truth:
    """The printed lines as they stand; a blank line between blocks. A table's row is one line."""
    chars: list[str] = []
    places: list[tuple[float, float]] = []
    for block in page.blocks:
        if not block.lines:
            continue
        if chars:
            _put(chars, places, "\n", places[-1])
        if block.label == "table":
            _put_rows(chars, places, block, ("", " ", "\n"))
        else:
            _put_lines(chars, places, block.lines)
    return _truth(page, chars[:-1], places[:-1])


def grounded_truth(page: Page) -> Truth:
    """Blocks with label and box in 0..999 units of the page, then their markdown."""
    chars: list[str] = []
    places: list[tuple[float, float]] = []
    for block in page.blocks:
        x0, y0, x1, y1 = block.box
        u0, v0, u1, v1 = page.turned_box(block)
        start = _start_of(block.lines[0]) if block.lines else (x0, (y0 + y1) / 2)
        _put(chars, places, f"<|ref|>{block.label}<|/ref|><|det|>[[", start)
        corner = f"{_unit(u0, page.width)}, {_unit(v0, page.height)}, "
        _put(chars, places, corner, (x0, y0 + 2))
        corner = f"{_unit(u1, page.width)}, {_unit(v1, page.height)}"
        _put(chars, places, corner, (x1 - 2, y1 - 2))
        _put(chars, places, "]]<|/det|>\n", start)
        if block.label in ("title", "sub_title"):
            _put(chars, places, "# " if block.label == "title" else "## ", start)
        if block.label == "table":
            _put(chars, places, "<table>", start)
            _put_rows(chars, places, block, ("<tr><td>", "</td><td>", "</td></tr>"))
            _put(chars, places, "</table>\n", places[-1])
        else:
            _put_lines(chars, places, block.lines, is_joined=True)
        _put(chars, places, "\n", places[-1])
    while chars and chars[-1] == "\n":
        chars.pop()
        places.pop()
    return _truth(page, chars, places)


def _truth(page: Page, chars: list[str], places: list[tuple[float, float]]) -> Truth:
    known = np.array(places, np.float32).reshape(-1, 2)
    if page.skew:
        known = np.stack(page.turned(known[:, 0], known[:, 1]), axis=1).astype(np.float32)
    return Truth("".join(chars), known)


def _put_rows(chars: list[str], places: list, block: Block, marks: tuple[str, str, str]) -> None:
    """A table's cells row by row, with marks before, between and after the cells of a row."""
    before, between, after = marks
    for index, line in enumerate(block.lines):
        column = index % block.columns
        _put(chars, places, between if column else before, _start_of(line))
        middle = line.baseline - 0.3 * line.size
        chars.extend(line.text)
        places.extend((float(x), middle) for x in (line.left + line.right) / 2)
        if column == block.columns - 1:
            _put(chars, places, after, _end_of(line))


def _unit(value: float, whole: int) -> int:
    return max(0, min(999, int(value / whole * 999)))


def _put(chars: list[str], places: list, text: str, place: tuple[float, float]) -> None:
    chars.extend(text)
    places.extend([place] * len(text))


def _put_lines(
    chars: list[str], places: list, lines: list[Line], *, is_joined: bool = False
) -> None:
    """is_joined: a word that was broken at a line's end is made whole, as markdown wants it."""
    for index, line in enumerate(lines):
        middle = line.baseline - 0.3 * line.size
        is_broken = is_joined and line.is_hyphenated and index + 1 < len(lines)
        count = len(line.text) - is_broken
        chars.extend(line.text[:count])
        places.extend((float(x), middle) for x in ((line.left + line.right) / 2)[:count])
        if is_broken:
            continue
        _put(chars, places, "\n", _end_of(line))


def _start_of(line: Line) -> tuple[float, float]:
    return float(line.left[0]) - 0.3 * line.size, line.baseline - 0.3 * line.size


def _end_of(line: Line) -> tuple[float, float]:
    return float(line.right[-1]) + 0.3 * line.size, line.baseline - 0.3 * line.size
