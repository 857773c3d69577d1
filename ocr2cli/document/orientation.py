"""Which way up is a scan: a vote on the ink's profiles, for pages of printed lines.

Sideways or not shows in any script, since lines leave empty rows between them. Upright or upside
down is a vote of the glyphs: is each more like a Latin letter or digit as it stands, or turned
around? Where a vote is close the page stays as it is.
Knows nothing about files or what the text says.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ocr2cli.document.ink import MIN_CONTRAST
from ocr2cli.document.letters import glyphs, picture_of
from ocr2cli.pages import Uint8Array

FloatArray = npt.NDArray[np.float32]

# Turning a good page is worse than missing a bad one.
_SIDEWAYS_MARGIN = 1.25
_UPSIDE_DOWN_ERRORS = 4.0
_MIN_GLYPHS = 20
_SMOOTH_ROWS = 5

# Strips narrow enough that a skewed line stays within its own rows.
_NUM_STRIPS = 8
_MAX_SIDE = 1800
# A ruled line is all ink; cut to this share it weighs no more than a dense line of text.
_MAX_DENSITY = 0.4


def rotation_to_upright(rgb: Uint8Array, references: FloatArray) -> int:
    """Degrees (0, 90, 180 or 270) to turn a page clockwise so that its text stands upright.

    rgb: uint8 [H, W, 3]. references: see `letters.py`. 0 as well without a clear answer.
    """
    ink = _ink(rgb)
    if min(ink.shape) < _NUM_STRIPS * 8:
        return 0
    across, along = _line_evidence(ink), _line_evidence(ink.T)
    is_sideways = along > _SIDEWAYS_MARGIN * across
    # Turned a quarter counter-clockwise the text lies level: upright if its tops pointed right.
    level = np.rot90(ink) if is_sideways else ink
    evidence, num_glyphs = _letter_evidence(level, references)
    if not is_sideways:
        return 180 if evidence < -_UPSIDE_DOWN_ERRORS else 0
    # A quarter turn is needed either way: here the better side wins without a margin.
    return 0 if num_glyphs < _MIN_GLYPHS else 90 if evidence < 0 else 270


def turned(rgb: Uint8Array, degrees: int) -> Uint8Array:
    """The page turned clockwise. rgb: uint8 [H, W, 3]; degrees: a multiple of 90."""
    return np.ascontiguousarray(np.rot90(rgb, -degrees // 90))


def _ink(rgb: Uint8Array) -> FloatArray:
    """float32 [H, W], 1 for ink; thinned out to at most `_MAX_SIDE` a side."""
    step = -(-max(rgb.shape[:2]) // _MAX_SIDE)
    grey = rgb[::step, ::step, 1]
    paper = int(np.bincount(grey.ravel(), minlength=256).argmax())
    difference = np.abs(grey.astype(np.int16) - paper)
    return (difference > MIN_CONTRAST).astype(np.float32)


def _line_evidence(ink: FloatArray) -> float:
    """How much lines and the gaps between them stand out in the row profiles of vertical strips.

    Smoothed over letters' parts: their stems and bars make profiles of text on its side uneven,
    too, but only lines make them so at the width of a line.
    """
    total = 0.0
    for strip in np.array_split(ink, _NUM_STRIPS, axis=1):
        profile = np.minimum(strip.mean(axis=1), _MAX_DENSITY)
        smooth = np.convolve(profile, np.full(_SMOOTH_ROWS, 1 / _SMOOTH_ROWS), "same")
        total += float(smooth.var())
    return total


def _letter_evidence(ink: FloatArray, references: FloatArray) -> tuple[float, int]:
    """(how surely letters stand upright rather than upside down, glyphs looked at).

    The first is in standard errors of the mean; negative for upside down.
    """
    votes = []
    for glyph in glyphs(ink):
        standing, turned_over = picture_of(glyph), picture_of(glyph[::-1, ::-1])
        if standing is not None and turned_over is not None:
            votes.append((references @ standing).max() - (references @ turned_over).max())
    if len(votes) < _MIN_GLYPHS:
        return 0.0, len(votes)
    error = float(np.std(votes)) / len(votes) ** 0.5
    return (float(np.mean(votes)) / error if error else 0.0), len(votes)
