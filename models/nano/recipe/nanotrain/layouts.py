"""Structured pages: columns, headings, lists, tables, pictures, page furniture, worn scans.

Beside pages.py, which lays out large print in one column. Each look has its own row in evaluate.py.
Knows nothing about pixels (draw.py). Sizes are points of an A4 page at 144 dpi; on a slide they are
the same share of the views' pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from nanotrain import pages, texts
from nanotrain.fonts import Font, pick_font

Look = Literal["columns", "lists", "tables", "scan", "sizes"]
LOOKS: tuple[Look, ...] = ("columns", "lists", "tables", "scan", "sizes")
VIEW_PIXELS_A_POINT = 2304 / 842  # of the tiles of an A4 page
# look -> (smallest, largest) body type in points
BODY: dict[Look, tuple[float, float]] = {
    "columns": (9, 14),
    "lists": (12, 20),
    "tables": (12, 20),
    "scan": (14, 22),
    "sizes": (8, 30),
}
LARGEST_TITLE = 72.0
MAX_SKEW = 2.0
_BULLETS = ("\u2022", "-", "\u2013", "*")


@dataclass
class _Pen:
    """Where the next block goes: a column from left to right, y down to bottom."""

    page: pages.Page
    rng: Random
    held_out: bool
    left: float
    right: float
    y: float
    bottom: float
    pitch: float

    def room(self) -> float:
        return self.bottom - self.y


def structured_page(
    rng: Random,
    look: Look,
    fonts: tuple[Font, ...],
    *,
    kind: pages.Kind = "letter",
    held_out: bool = False,
    max_characters: int = 1200,
    body_points: tuple[float, float] | None = None,
) -> pages.Page:
    """A page of the look on paper of the kind; at least one line of text stands on it."""
    width, height = rng.choice(pages._SHAPES[kind])
    for _ in range(30):
        page = pages.Page(kind, width, height, pages.view_scale(width, height))
        if look == "scan":
            page.skew, page.wear = rng.uniform(-MAX_SKEW, MAX_SKEW), 1.0
        low, high = body_points or BODY[look]
        _fill(page, rng, look, fonts, held_out, max_characters, rng.uniform(low, high))
        if page.lines():
            return page
    raise AssertionError("no line fits this page")


def _fill(
    page: pages.Page,
    rng: Random,
    look: Look,
    fonts: tuple[Font, ...],
    held_out: bool,
    max_characters: int,
    points: float,
) -> None:
    body = max(6, round(points * VIEW_PIXELS_A_POINT / page.scale[1]))
    font = pick_font(rng, fonts)
    head_font = font if rng.random() < 0.6 else pick_font(rng, fonts)
    margin = page.width * rng.uniform(0.07, 0.12)
    top, bottom = page.height * rng.uniform(0.06, 0.1), page.height * rng.uniform(0.9, 0.94)
    pen = _Pen(page, rng, held_out, margin, page.width - margin, top, bottom, rng.uniform(1.2, 1.5))
    small = max(6, round(0.8 * body))
    has_furniture = rng.random() < 0.6
    if has_furniture:
        _furniture(pen, font, small, 0.65 * top)
    if rng.random() < 0.8:
        largest = LARGEST_TITLE if look == "sizes" else 2.2 * points
        title = points * rng.uniform(1.3, max(1.4, largest / points))
        title_size = min(
            round(title * VIEW_PIXELS_A_POINT / page.scale[1]),
            round(pages.LARGEST * 2 / page.scale[1]),
        )
        _paragraph(pen, head_font, title_size, rng.randrange(1, 6), "title")
    budget = max_characters - page.num_characters()
    if look == "columns":
        gap = 1.8 * body
        middle = (pen.left + pen.right) / 2
        edges = ((pen.left, middle - gap / 2), (middle + gap / 2, pen.right))
        start = pen.y
        for left, right in edges:
            pen.left, pen.right, pen.y = left, right, start
            _column(pen, look, font, head_font, body, budget // 2)
    else:
        _column(pen, look, font, head_font, body, budget)
    if has_furniture:
        number = str(rng.randrange(1, 400))
        _set(pen, [number], font, small, "text", x=page.width / 2 - small, y=bottom + small)


def _column(pen: _Pen, look: Look, font: Font, head_font: Font, body: int, budget: int) -> None:
    """Blocks of the look, from the pen down, until the space or the budget is used up."""
    rng, used, blocks = pen.rng, pen.page.num_characters(), 0
    while pen.room() > 2 * body and blocks < 12:
        left = budget - (pen.page.num_characters() - used)
        if left < 12:
            break
        draw = rng.random()
        words = max(2, min(70, left // 6))
        if look == "lists" and draw < 0.6:
            _list(pen, font, body, min(words, 24))
        elif look == "tables" and draw < 0.45 and pen.room() > 8 * body:
            _table(pen, font, body)
        elif look == "tables" and draw < 0.65 and pen.room() > 9 * body:
            _picture(pen, body)
        elif draw > 0.85 and left > 60:
            _paragraph(pen, head_font, round(1.25 * body), rng.randrange(1, 5), "sub_title")
        elif look == "sizes":
            size = max(6, round(body * rng.uniform(0.6, 1.6)))
            _paragraph(pen, font, size, rng.randrange(2, max(3, words)), "text")
        else:
            _paragraph(pen, font, body, rng.randrange(2, max(3, words)), "text")
        blocks += 1


def _furniture(pen: _Pen, font: Font, size: int, y: float) -> None:
    words = texts.words(pen.rng, 3, pen.held_out)[:3]
    _set(pen, [" ".join(_printable(words, font))[:40]], font, size, "text", x=pen.left, y=y)


def _printable(words: list[str], font: Font) -> list[str]:
    return [w if (pages.advances_em(font, w) > 0).all() else "ok" for w in words]


def _set(
    pen: _Pen,
    rows: list[str],
    font: Font,
    size: int,
    label: Literal["title", "sub_title", "text", "list"],
    *,
    x: float,
    y: float,
    hyphenated: frozenset[int] = frozenset(),
) -> bool:
    """Rows below each other from y. False if not even one fits above the page's end."""
    lines = []
    baseline = y + 0.85 * size
    for index, row in enumerate(rows):
        if baseline + 0.3 * size > pen.page.height * 0.985:
            break
        line = pages.make_line(row, font, size, x=x, baseline=baseline)
        line.is_hyphenated = index in hyphenated
        lines.append(line)
        baseline += pen.pitch * size
    if lines:
        pen.page.blocks.append(pages.Block(label, lines))
    return bool(lines)


def _paragraph(
    pen: _Pen,
    font: Font,
    size: int,
    count: int,
    label: Literal["title", "sub_title", "text"],
) -> None:
    words = _printable(texts.words(pen.rng, count, pen.held_out), font)
    rows, broken = hyphenate(words, font, size, pen.right - pen.left, label == "text")
    most = max(0, int((pen.room() - 0.9 * size) / (pen.pitch * size)) + 1)
    rows = rows[:most]
    if rows and _set(
        pen, rows, font, size, label, x=pen.left, y=pen.y, hyphenated=frozenset(broken)
    ):
        pen.y += (len(rows) - 1) * pen.pitch * size + 1.2 * size
    pen.y += 0.6 * size


def hyphenate(
    words: list[str], font: Font, size: int, usable: float, may_break: bool
) -> tuple[list[str], set[int]]:
    """(rows, those that end in a broken word). Words of letters are broken after three letters or
    more; other words too wide for a row are cut."""

    def width(text: str) -> float:
        return float(pages.advances_em(font, text).sum()) * size

    rows: list[str] = []
    broken: set[int] = set()
    row = ""
    for word in words:
        while width(word) > usable and len(word) > 1:
            word = word[: max(1, len(word) * 2 // 3)]
        longer = f"{row} {word}" if row else word
        if width(longer) <= usable:
            row = longer
            continue
        cut = 0
        if may_break and word.isalpha() and len(word) >= 6:
            fitting = [
                at for at in range(3, len(word) - 2) if width(f"{row} {word[:at]}-") <= usable
            ]
            cut = max(fitting, default=0)
        if row and cut:
            broken.add(len(rows))
            rows.append(f"{row} {word[:cut]}-")
            row = word[cut:]
        else:
            if row:
                rows.append(row)
            row = word
    return ([*rows, row] if row else rows), broken


def _list(pen: _Pen, font: Font, size: int, words: int) -> None:
    """Two to six items; an item that does not fit its row hangs under its own start."""
    rng = pen.rng
    numbered = rng.random() < 0.4
    mark = rng.choice([m for m in _BULLETS if (pages.advances_em(font, m) > 0).all()])
    lines: list[pages.Line] = []
    y = pen.y
    for item in range(rng.randrange(2, 7)):
        head = f"{item + 1}." if numbered else mark
        indent = float(pages.advances_em(font, head + " ").sum()) * size
        text = _printable(
            texts.words(rng, rng.randrange(1, max(2, words // 3)), pen.held_out), font
        )
        rows, _ = hyphenate(text, font, size, pen.right - pen.left - indent, False)
        for index, row in enumerate(rows):
            baseline = y + 0.85 * size
            if baseline + 0.3 * size > pen.bottom:
                break
            whole = f"{head} {row}" if index == 0 else row
            x = pen.left if index == 0 else pen.left + indent
            lines.append(pages.make_line(whole, font, size, x=x, baseline=baseline))
            y += pen.pitch * size
    if lines:
        pen.page.blocks.append(pages.Block("list", lines))
        pen.y = y + 0.4 * size


def _table(pen: _Pen, font: Font, size: int) -> None:
    """Two to four columns of short cells, two to six rows, rules drawn by draw.py."""
    rng = pen.rng
    columns, rows = rng.randrange(2, 5), rng.randrange(2, 7)
    wide = (pen.right - pen.left) / columns
    rows = min(rows, int(pen.room() / (1.5 * size)) - 1)
    if rows < 2:
        return
    lines: list[pages.Line] = []
    for row in range(rows):
        baseline = pen.y + (1.2 + 1.5 * row) * size
        for column in range(columns):
            text = _cell(rng, font, size, wide - size, pen.held_out)
            x = pen.left + column * wide + 0.3 * size
            lines.append(pages.make_line(text, font, size, x=x, baseline=baseline))
    pen.page.blocks.append(pages.Block("table", lines, columns=columns))
    pen.y = lines[-1].baseline + 1.3 * size


def _cell(rng: Random, font: Font, size: int, usable: float, held_out: bool) -> str:
    words = _printable(texts.random_words(rng, rng.randrange(1, 3), held_out), font)
    rows, _ = hyphenate(words, font, size, usable, False)
    return rows[0]


def _picture(pen: _Pen, size: int) -> None:
    high = min(pen.room() - size, pen.rng.uniform(5, 12) * size)
    wide = (pen.right - pen.left) * pen.rng.uniform(0.4, 1.0)
    area = (pen.left, pen.y + 0.3 * size, pen.left + wide, pen.y + 0.3 * size + high)
    pen.page.blocks.append(pages.Block("image", [], area=area))
    pen.y += high + 1.2 * size
