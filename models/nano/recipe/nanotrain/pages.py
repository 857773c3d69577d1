"""Lays out a page of large print: which character stands where.

Knows nothing about pixels (draw.py) or about views and labels (cells.py). Lengths are pixels of the
page image; y grows downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

import numpy as np

from nanotrain import texts
from nanotrain.characters import CLASS_OF, LINE_END, LINE_START, READABLE
from nanotrain.fonts import Font, pick_font

_INDEX = {char: index for index, char in enumerate(READABLE)}

Kind = Literal["note", "slide", "poster", "letter", "dense", "clip"]
SMALL = ("note", "clip")  # kinds of image that have no tiles


@dataclass
class Line:
    """One printed line. left: float [n] left edge of each character; right: its end."""

    text: str
    font: Font
    size: int
    baseline: float
    left: np.ndarray
    right: np.ndarray
    is_hyphenated: bool = False


@dataclass
class Block:
    """lines: of a table one line a cell, row by row. columns: of a table. area: the box of an image
    block, which has no lines."""

    label: Literal["title", "sub_title", "text", "list", "table", "image"]
    lines: list[Line]
    columns: int = 0
    area: tuple[float, float, float, float] | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) around the lines."""
        if self.area is not None:
            return self.area
        first, last = self.lines[0], self.lines[-1]
        return (
            min(float(line.left[0]) for line in self.lines),
            first.baseline - 0.8 * first.size,
            max(float(line.right[-1]) for line in self.lines),
            last.baseline + 0.25 * last.size,
        )


@dataclass
class Page:
    """A laid-out page. kind says its look; scale: (x, y) pixels of the read views per page
    pixel."""

    kind: Kind
    width: int
    height: int
    scale: tuple[float, float]
    blocks: list[Block] = field(default_factory=list)
    skew: float = 0.0  # degrees, clockwise, about the page's middle
    wear: float = 0.2  # chance of blur, noise, uneven light or JPEG

    def lines(self) -> list[Line]:
        return [line for block in self.blocks for line in block.lines]

    def num_characters(self) -> int:
        return sum(len(line.text) for line in self.lines())

    def turned(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where places of the upright page lie once it is skewed."""
        if not self.skew:
            return x, y
        angle = np.deg2rad(self.skew)
        dx, dy = x - self.width / 2, y - self.height / 2
        return (
            self.width / 2 + dx * np.cos(angle) - dy * np.sin(angle),
            self.height / 2 + dx * np.sin(angle) + dy * np.cos(angle),
        )

    def turned_box(self, block: Block) -> tuple[float, float, float, float]:
        """The upright box around a block of the skewed page."""
        x0, y0, x1, y1 = block.box
        x, y = self.turned(np.array([x0, x1, x1, x0]), np.array([y0, y0, y1, y1]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@dataclass
class Glyphs:
    """Every printed character of a page, flat. Arrays of one length n.

    label: int64 classes; x0, x1: float edges; middle: float y of the label; size: float em.
    """

    label: np.ndarray
    x0: np.ndarray
    x1: np.ndarray
    middle: np.ndarray
    size: np.ndarray


def glyphs_of(page: Page) -> Glyphs:
    label, x0, x1, middle, size = [], [], [], [], []
    for line in page.lines():
        n = len(line.text)
        em = line.size
        label += [LINE_START, *[CLASS_OF[c] for c in line.text], LINE_END]
        x0 += [[line.left[0] - 0.55 * em], line.left, [line.right[-1] + 0.05 * em]]
        x1 += [[line.left[0] - 0.05 * em], line.right, [line.right[-1] + 0.55 * em]]
        middle += [line.baseline - 0.3 * em] * (n + 2)
        size += [em] * (n + 2)
    low, high = np.concatenate(x0), np.concatenate(x1)
    at_y = np.array(middle, np.float64)
    if page.skew:
        half = (high - low) / 2
        at_x, at_y = page.turned((low + high) / 2, at_y)
        low, high = at_x - half, at_x + half
    return Glyphs(
        np.array(label, np.int64),
        low.astype(np.float32),
        high.astype(np.float32),
        at_y.astype(np.float32),
        np.array(size, np.float32),
    )


def advances_em(font: Font, text: str) -> np.ndarray:
    return font.advances[[_INDEX[c] for c in text]]


def make_line(
    text: str,
    font: Font,
    size: int,
    *,
    x: float,
    baseline: float,
    space: float = 1.0,
    tracking: float = 0.0,
) -> Line:
    """A line whose first character starts at x. space: factor on the width of spaces."""
    widths = advances_em(font, text) * size + tracking * size
    if space != 1.0:
        widths = np.where(np.array(list(text)) == " ", widths * space, widths)
    right = x + np.cumsum(widths)
    return Line(text, font, size, baseline, right - widths, right)


# What a page of each kind looks like. sizes: of the type, as it will stand in the view, in pixels.
_SHAPES: dict[str, list[tuple[int, int]]] = {
    "slide": [(1920, 1080), (1280, 720), (1600, 900), (1366, 768)],
    "poster": [(1190, 1684), (1191, 1684), (1224, 1584), (1654, 2339), (1240, 1754)],
    "letter": [(1190, 1684), (1191, 1684), (1224, 1584)],
    "dense": [(1190, 1684), (1191, 1684), (1224, 1584)],
}


@dataclass(frozen=True)
class Style:
    """How a kind of page is set. largest: body sizes run up to so many times the smallest; centred:
    share of such pages; pitch: baselines apart, in type sizes; gap: so much more between blocks;
    margin: in page widths; smallest: range of the smallest type in view pixels, where the kind has
    its own."""

    largest: float
    centred: float
    pitch: tuple[float, float] = (1.15, 1.6)
    gap: tuple[float, float] = (0.35, 1.6)
    margin: tuple[float, float] = (0.03, 0.16)
    smallest: tuple[float, float] | None = None
    has_title: bool = True


# Kinds to learn from, where most lines share a row of cells with another: such lines are what a
# decoder takes for one another. No slot holds two of them (cells.SLOT_H).
_DENSE = Style(1.2, 0.05, (1.08, 1.3), (0.25, 0.6), (0.03, 0.36), (31.0, 42.0), has_title=False)
_STYLES: dict[str, Style] = {
    "note": Style(2.6, 0.2),
    "slide": Style(2.6, 0.25),
    "poster": Style(4.0, 0.6),
    "letter": Style(1.5, 0.05),
    "dense": _DENSE,
    "clip": replace(_DENSE, margin=(0.03, 0.3)),
}


def view_scale(width: int, height: int) -> tuple[float, float]:
    """(x, y) pixels of the views that are read per pixel of the page."""
    if max(width, height) <= 768:
        scale = 1024 / max(width, height)
        return scale, scale
    if width > height:
        return 1536 / width, 768 / height
    return 1536 / width, 2304 / height


# Type above this many pixels of a view is left to a later round: a glyph wider than two cells.
LARGEST = 100.0


def random_page(
    rng: Random,
    kind: Kind,
    fonts: tuple[Font, ...],
    *,
    held_out: bool = False,
    max_characters: int = 300,
    smallest: float = 41.0,
    size: tuple[int, int] | None = None,
    scale: tuple[float, float] | None = None,
) -> Page:
    """A page with as many blocks as fit and as max_characters allows, at least one line.

    smallest: size of the smallest type, in pixels of the view, unless the kind has its own. size,
    scale: of the page, if not one of the kind's own.
    """
    if size is not None:
        width, height = size
    elif kind in SMALL:
        long = rng.randrange(420, 769)
        short = rng.randrange(min(260, long), long + 1)
        width, height = (long, short) if rng.random() < 0.65 else (short, long)
    else:
        width, height = rng.choice(_SHAPES[kind])
    page = Page(kind, width, height, scale or view_scale(width, height))
    if own := _STYLES[kind].smallest:
        smallest = rng.uniform(*own)
    for _ in range(20):
        _fill(page, rng, fonts, held_out, max_characters, smallest)
        if page.blocks:
            return page
    raise AssertionError("no line fits this page")


def _fill(
    page: Page,
    rng: Random,
    fonts: tuple[Font, ...],
    held_out: bool,
    max_characters: int,
    smallest: float,
) -> None:
    unit = smallest / page.scale[1]
    body_font, title_font = pick_font(rng, fonts), pick_font(rng, fonts)
    if rng.random() < 0.6:
        title_font = body_font
    style = _STYLES[page.kind]
    largest = style.largest
    body = round(unit * min(largest, 1.0 + rng.expovariate(1 / (0.35 * (largest - 1)))))
    margin_x = page.width * rng.uniform(*style.margin) + 0.6 * unit
    top = page.height * rng.uniform(0.02, 0.2)
    bottom = page.height * rng.uniform(0.9, 0.98)
    centred = rng.random() < style.centred
    pitch = rng.uniform(*style.pitch)
    gap = rng.uniform(*style.gap)
    tracking = rng.choice([0, 0, 0, 0, 0.02, 0.05])
    y = top
    left_chars = rng.randrange(max_characters // 4, max_characters + 1)
    num_blocks = 0
    while left_chars > 0 and num_blocks < 9:
        draw = rng.random()
        if num_blocks == 0 and draw < 0.7 and style.has_title:
            label, font, size = "title", title_font, round(body * rng.uniform(1.2, 2.2))
            count = rng.randrange(1, 8)
        elif draw < 0.12:
            label, font, size = "sub_title", title_font, round(body * rng.uniform(1.08, 1.3))
            count = rng.randrange(1, 6)
        else:
            label, font, size = "text", body_font, body
            count = rng.randrange(2, max(4, min(60, left_chars // 5)))
        size = min(size, round(LARGEST / page.scale[1]))
        block, y_next = _set_block(
            page,
            rng,
            texts.words(rng, count, held_out),
            font=font,
            size=size,
            label=label,
            y=y,
            bottom=bottom,
            margin=margin_x,
            centred=centred,
            pitch=pitch,
            tracking=tracking,
        )
        if block is None:
            break
        page.blocks.append(block)
        num_blocks += 1
        left_chars -= sum(len(line.text) for line in block.lines)
        y = y_next + gap * body


def _set_block(
    page: Page,
    rng: Random,
    words: list[str],
    *,
    font: Font,
    size: int,
    label: str,
    y: float,
    bottom: float,
    margin: float,
    centred: bool,
    pitch: float,
    tracking: float,
) -> tuple[Block | None, float]:
    usable = page.width - 2 * margin
    text_words = [w if (font.advances[[_INDEX[c] for c in w]] > 0).all() else "ok" for w in words]
    if label == "text" and not centred and rng.random() < 0.2:
        text_words.insert(0, rng.choice(["\u2022", "-", "\u2013", f"{rng.randrange(1, 10)}."]))
        if (advances_em(font, text_words[0]) <= 0).any():
            text_words[0] = "-"
    rows = wrap(text_words, font, size, usable, tracking)
    lines: list[Line] = []
    baseline = y + 0.85 * size
    for row in rows:
        if baseline + 0.3 * size > bottom:
            break
        width = float(advances_em(font, row).sum() * size + tracking * size * len(row))
        x = (page.width - width) / 2 if centred else margin
        lines.append(make_line(row, font, size, x=x, baseline=baseline, tracking=tracking))
        baseline += pitch * size
    if not lines:
        return None, y
    return Block(label, lines), lines[-1].baseline + 0.3 * size


def wrap(words: list[str], font: Font, size: int, usable: float, tracking: float) -> list[str]:
    """Break greedily; a word wider than a line is cut, as print without hyphenation must."""
    rows: list[str] = []
    row = ""
    for word in words:
        while float(advances_em(font, word).sum() * size + tracking * size * len(word)) > usable:
            word = word[: max(1, len(word) * 2 // 3)]
            if len(word) == 1:
                break
        longer = f"{row} {word}" if row else word
        if row and float((advances_em(font, longer) + tracking).sum() * size) > usable:
            rows.append(row)
            row = word
        else:
            row = longer
    return [*rows, row] if row else rows
