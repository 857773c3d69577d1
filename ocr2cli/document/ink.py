"""Is anything on this page? Blank paper, with or without scanner noise, needs no model.

Knows nothing about text: a page is blank when almost nothing on it stands out from its paper.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ocr2cli.pages import Uint8Array

# Grey levels by which ink differs from the paper. Scanner noise and paper grain stay within about
# 25; the lightest print that is meant to be read is at about 60.
MIN_CONTRAST = 32

# An ink pixel counts when this many of its eight neighbours are ink: a stroke of one pixel has
# two, a speck of dust or a noisy pixel none.
MIN_NEIGHBOURS = 2

# Neighbouring pixels of pure noise are independent; of anything drawn or photographed they are not.
_MAX_NOISE_CORRELATION = 0.05
_MIN_NOISE_DEVIATION = 20.0
_MIN_NOISE_PIXELS = 4096
_NOISE_SIDE = 512

_BAND_ROWS = 256
_SAMPLE_STEP = 4

BoolArray = npt.NDArray[np.bool_]


def is_blank(rgb: Uint8Array, min_share: float) -> bool:
    """True for an empty page: less than `min_share` of it is ink, or all of it is noise.

    rgb: uint8 [H, W, 3]. min_share: 0 to 1. An all black page is blank as well: nothing stands out.
    """
    needed = min_share * rgb.shape[0] * rgb.shape[1]
    found = 0
    # Nearly every page has its share of ink in the first bands that hold any.
    for ink in _ink_bands(rgb):
        found += int(np.count_nonzero(ink))
        if found >= needed:
            return _is_noise(rgb)
    return True


def ink_box(rgb: Uint8Array) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) in pixels around all that stands out from the paper; None where
    nothing does. rgb: uint8 [H, W, 3]."""
    in_rows, in_columns = zip(
        *((ink.any(axis=1), ink.any(axis=0)) for ink in _ink_bands(rgb)), strict=True
    )
    rows, columns = np.concatenate(in_rows), np.logical_or.reduce(in_columns)
    if not rows.any():
        return None
    (top, bottom), (left, right) = (np.flatnonzero(line)[[0, -1]] for line in (rows, columns))
    return int(left), int(top), int(right) + 1, int(bottom) + 1


def _ink_bands(rgb: Uint8Array) -> Iterator[BoolArray]:
    """Which pixels of one band of rows after the other differ from the paper and have neighbours
    that do, too. The paper is the page's most frequent colour, channel by channel, so a dark ground
    or a yellowed sheet counts as paper."""
    sample = rgb[::_SAMPLE_STEP, ::_SAMPLE_STEP].reshape(-1, 3)
    papers = [int(np.bincount(channel, minlength=256).argmax()) for channel in sample.T]
    for top in range(0, rgb.shape[0], _BAND_ROWS):
        band = rgb[top : top + _BAND_ROWS]
        ink = np.zeros(band.shape[:2], np.bool_)
        for channel, paper in enumerate(papers):
            low, high = max(paper - MIN_CONTRAST, 0), min(paper + MIN_CONTRAST, 255)
            ink |= (band[:, :, channel] < low) | (band[:, :, channel] > high)
        yield _supported(ink)


def _supported(ink: BoolArray) -> BoolArray:
    """The ink pixels with enough ink around them. bool [H, W]."""
    rows = np.flatnonzero(ink.any(axis=1))
    if not rows.size:
        return ink
    # Only the band that holds ink: on a nearly empty page that is almost nothing.
    band = np.pad(ink[rows[0] : rows[-1] + 1], 1).astype(np.uint8)
    across = band[:, :-2] + band[:, 1:-1] + band[:, 2:]
    around = across[:-2] + across[1:-1] + across[2:]
    centre = band[1:-1, 1:-1].astype(np.bool_)
    supported = np.zeros_like(ink)
    supported[rows[0] : rows[-1] + 1] = centre & (around > MIN_NEIGHBOURS)
    return supported


def _is_noise(rgb: Uint8Array) -> bool:
    """True when no pixel in the middle of the page says anything about its neighbour."""
    top, left = (max(0, (side - _NOISE_SIDE) // 2) for side in rgb.shape[:2])
    grey = rgb[top : top + _NOISE_SIDE, left : left + _NOISE_SIDE, 1].astype(np.float32)
    if grey.size < _MIN_NOISE_PIXELS or grey.std() < _MIN_NOISE_DEVIATION:
        return False
    grey -= grey.mean()
    power = float(np.mean(grey * grey))
    across = float(np.mean(grey[:, 1:] * grey[:, :-1])) / power
    down = float(np.mean(grey[1:] * grey[:-1])) / power
    return max(abs(across), abs(down)) < _MAX_NOISE_CORRELATION
