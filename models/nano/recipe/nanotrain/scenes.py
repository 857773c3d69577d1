"""Crops of views with their labels, for the eyes: made on the fly, never stored.

Knows nothing about tensors. A scene is a patch of page as it lies in one view (tile or global).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from nanotrain import cells, draw, pages
from nanotrain.fonts import Font

# (x, y) pixels of the view per pixel of the page, for the page shapes that are trained.
_TILE_SCALES = [(1.29, 1.368), (1.255, 1.4545), (0.8, 0.711), (1.2, 1.067), (0.929, 0.985)]
CROP = 256


@dataclass
class Crops:
    """pixels: uint8 [n, 256, 256, 3]. places: int64 [n, 2]. slots: int64 [n, 16, 16].
    patches: int64 [n, 16, 16]. side: 768 or 1024."""

    side: int
    pixels: np.ndarray
    places: np.ndarray
    slots: np.ndarray
    patches: np.ndarray
    group: int = 1


def view_scene(
    rng: Random,
    fonts: tuple[Font, ...],
    side: int,
    *,
    held_out: bool = False,
    smallest: float = 38.0,
) -> tuple[np.ndarray, pages.Glyphs, cells.Window]:
    """One view's pixels [side, side, 3], the page's glyphs and the view's window on them."""
    if side == 1024:
        kind = "note"
        page = pages.random_page(rng, kind, fonts, held_out=held_out, smallest=smallest)
        picture = draw.draw_page(page, rng)
        window = cells.page_windows(page.width, page.height)[1]
        pixels = _pad_global(picture)
        return np.asarray(pixels), pages.glyphs_of(page), window
    sx, sy = rng.choice(_TILE_SCALES)
    width, height = round(768 * 1.4 / sx) + 2, round(768 * 1.2 / sy) + 2
    page = pages.random_page(
        rng,
        "letter" if rng.random() < 0.6 else "slide",
        fonts,
        held_out=held_out,
        smallest=smallest,
        size=(width, height),
        scale=(sx, sy),
    )
    left, top = rng.uniform(0, 0.4 * 768), rng.uniform(0, 0.2 * 768)
    picture = draw.draw_page(page, rng)
    box = (left / sx, top / sy, (left + 768) / sx, (top + 768) / sy)
    pixels = picture.resize((768, 768), Image.Resampling.BICUBIC, box=box)
    return np.asarray(pixels), pages.glyphs_of(page), cells.Window(sx, sy, left, top, 768)


def _pad_global(picture: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.pad(picture, (1024, 1024), color=(127, 127, 127))


def crops_of(
    rng: Random,
    fonts: tuple[Font, ...],
    side: int,
    *,
    keep: int = 9,
    held_out: bool = False,
    smallest: float = 38.0,
) -> Crops:
    """Up to `keep` crops of one view, those with text first."""
    pixels, glyphs, window = view_scene(rng, fonts, side, held_out=held_out, smallest=smallest)
    per_side = side // CROP
    slots = cells.slot_labels(glyphs, window).reshape(per_side, 4, per_side, 4, 16)
    slots = slots.transpose(0, 2, 1, 3, 4).reshape(per_side**2, 16, 16)
    patches = cells.patch_labels(glyphs, window).reshape(per_side, 16, per_side, 16)
    patches = patches.transpose(0, 2, 1, 3).reshape(per_side**2, 16, 16)
    squares = pixels.reshape(per_side, CROP, per_side, CROP, 3).transpose(0, 2, 1, 3, 4)
    squares = squares.reshape(per_side**2, CROP, CROP, 3)
    places = np.stack(np.divmod(np.arange(per_side**2), per_side), axis=1)
    full = (slots > 0).sum(axis=(1, 2)) >= 2
    chosen = np.nonzero(full | (np.array([rng.random() for _ in full]) < 0.15))[0].tolist()
    rng.shuffle(chosen)
    chosen = chosen[:keep] or [0]
    return Crops(side, squares[chosen], places[chosen], slots[chosen], patches[chosen])


def crop_batch(
    rng: Random,
    fonts: tuple[Font, ...],
    side: int,
    count: int,
    *,
    held_out: bool = False,
    smallest: float = 38.0,
) -> Crops:
    """Exactly `count` crops of several scenes."""
    parts: list[Crops] = []
    while sum(len(part.pixels) for part in parts) < count:
        parts.append(crops_of(rng, fonts, side, keep=6, held_out=held_out, smallest=smallest))
    join = [
        np.concatenate([getattr(p, name) for p in parts])[:count]
        for name in ("pixels", "places", "slots", "patches")
    ]
    return Crops(side, *join)


def grouped(rng: Random, crops: Crops, group: int) -> Crops:
    """The same crops as members of views of up to `group` crops, each at a place of its own there.

    What a crop shows does not depend on its place; how the eyes treat it does. If the number of
    crops is no multiple of the group, all of them stand in one view (or the largest that divides
    it).
    """
    count, per_side = len(crops.pixels), crops.side // CROP
    while count % group or group > per_side**2:
        group -= 1
    places = np.concatenate(
        [
            np.array([divmod(at, per_side) for at in rng.sample(range(per_side**2), group)])
            for _ in range(count // group)
        ]
    )
    return Crops(crops.side, crops.pixels, places, crops.slots, crops.patches, group)
