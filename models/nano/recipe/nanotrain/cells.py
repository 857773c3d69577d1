"""From glyphs on a page to labels of a view: sub-cells of each visual token, and patches.

A visual token stands for a 64 x 64 pixel cell of its view. Its label has 16 slots: 2 rows of
32 pixels times 8 columns of 8 pixels; a slot names the character whose middle lies in it.
Knows nothing about pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanotrain.characters import TINY
from nanotrain.pages import Glyphs

SLOT_W, SLOT_H, SLOTS = 8, 32, 16
MOST_ROWS = 3 * 768 // SLOT_H  # of slots, in three tiles one above the other
# Pixels of type size below which text is labelled TINY, by the view's side: 9.5 pt in the tiles of
# an A4 page. Below that two lines may fall into one row of slots.
TOO_SMALL = {768: 26.0, 1024: 33.0}


@dataclass(frozen=True)
class Window:
    """A square of a view: page pixel (x, y) lies at (x * sx - left, y * sy - top) in it."""

    sx: float
    sy: float
    left: float
    top: float
    side: int


def page_windows(width: int, height: int) -> tuple[list[Window], Window]:
    """(tiles, global view) of a page, as document/tiles.py cuts them."""
    w, h = (
        (1024, round(height / width * 1024))
        if width > height
        else (round(width / height * 1024), 1024)
    )
    view = Window(
        w / width,
        h / height,
        -float(round((1024 - w) * 0.5)),
        -float(round((1024 - h) * 0.5)),
        1024,
    )
    if max(width, height) <= 768:
        return [], view
    columns, rows = (2, 1) if width > height else (2, 3)
    return [
        Window(768 * columns / width, 768 * rows / height, 768.0 * c, 768.0 * r, 768)
        for r in range(rows)
        for c in range(columns)
    ], view


def slot_labels(glyphs: Glyphs, window: Window) -> np.ndarray:
    """int64 [cells, 16] of a window whose side is a multiple of 64."""
    side = window.side
    x = (glyphs.x0 + glyphs.x1) / 2 * window.sx - window.left
    y = glyphs.middle * window.sy - window.top
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    label = np.where(glyphs.size * window.sy < TOO_SMALL[window.side], TINY, glyphs.label)[inside]
    columns, rows = side // SLOT_W, side // SLOT_H
    where = (y[inside] // SLOT_H).astype(np.int64) * columns + (x[inside] // SLOT_W).astype(
        np.int64
    )
    fine = np.zeros(columns * rows, np.int64)
    fine[where[::-1]] = label[::-1]
    if len(np.unique(where)) < len(where):
        _place_collided(fine, where, label)
    cells = side // 64
    fine = fine.reshape(cells, 2, cells, 8).transpose(0, 2, 1, 3)
    return fine.reshape(cells * cells, SLOTS)


def _place_collided(fine: np.ndarray, where: np.ndarray, label: np.ndarray) -> None:
    """The second character of a slot goes to the next one if that is free."""
    seen: set[int] = set()
    for at, name in zip(where.tolist(), label.tolist(), strict=True):
        if at in seen and name != TINY and at + 1 < len(fine) and fine[at + 1] == 0:
            fine[at + 1] = name
            seen.add(at + 1)
        seen.add(at)


def patch_labels(glyphs: Glyphs, window: Window) -> np.ndarray:
    """int64 [side/16, side/16]: the class whose box covers the middle of each patch."""
    side = window.side
    n = side // 16
    out = np.zeros((n, n), np.int64)
    size = glyphs.size * window.sy
    low = glyphs.middle * window.sy - window.top - 0.5 * size
    edges = (
        np.stack(
            [
                (glyphs.x0 * window.sx - window.left + 8) // 16,
                (glyphs.x1 * window.sx - window.left + 8) // 16,
                (low + 8) // 16,
                (low + size + 8) // 16,
            ]
        )
        .clip(0, n)
        .astype(np.int64)
    )
    for index in np.nonzero((edges[1] > edges[0]) & (edges[3] > edges[2]))[0]:
        a, b, c, d = edges[:, index]
        out[c:d, a:b] = TINY if size[index] < TOO_SMALL[side] else glyphs.label[index]
    return out


def token_of(places: np.ndarray, windows: tuple[list[Window], Window]) -> np.ndarray:
    """Visual token (0-based, in sequence order) that holds each page place. int64 [n]."""
    tiles, view = windows
    x, y = _in_views(places, windows)
    side = tiles[0].side if tiles else view.side
    tile = y // side * (2 if tiles else 1) + x // side
    cells = side // 64
    return tile * cells * cells + y % side // 64 * cells + x % side // 64


def slot_of(places: np.ndarray, windows: tuple[list[Window], Window]) -> np.ndarray:
    """Which slot of its token each page place lies in: int64 [n], 0 to 15, row by row."""
    x, y = _in_views(places, windows)
    return y % 64 // SLOT_H * (64 // SLOT_W) + x % 64 // SLOT_W


def row_of(places: np.ndarray, windows: tuple[list[Window], Window]) -> np.ndarray:
    """Which row of slots each page place lies in, counted from the top of the views: int64 [n],
    below MOST_ROWS."""
    return _in_views(places, windows)[1] // SLOT_H


def _in_views(
    places: np.ndarray, windows: tuple[list[Window], Window]
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y), int64 [n], of page places in pixels of all tiles together, or of the global view
    where it is alone; a place outside lies at the edge."""
    tiles, view = windows
    first = tiles[0] if tiles else view
    columns, rows = (2, len(tiles) // 2) if tiles else (1, 1)
    x = places[:, 0] * first.sx - first.left
    y = places[:, 1] * first.sy - first.top
    x, y = x.clip(0, columns * first.side - 1), y.clip(0, rows * first.side - 1)
    return x.astype(np.int64), y.astype(np.int64)
