"""What is printed beside the characters of a text layer? Knows nothing about their codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ocr2cli.document.letters import LETTERS, FloatArray, Reference, glyphs, picture_of
from ocr2cli.document.text_layer.ink import MIN_GROUND_SIDE, THIN, ink_of, paper_of, window_of
from ocr2cli.document.text_layer.nouns import Drawing, TextCharacter
from ocr2cli.pages import Uint8Array

_MAX_STRAY_INK_SHARE = 0.3
_MAX_IMAGE_SHARE = 0.25
_MAX_STRAY_LETTERS = 8
_MIN_LETTER_LIKENESS = 0.75
_MAX_DRAWINGS = 20_000
_MAX_DRAWN_AREAS = 30  # of the page


def is_overdrawn(drawings: Sequence[Drawing], shape: tuple[int, ...]) -> bool:
    """So many drawings, or so large, that looking at each would take longer than the model."""
    windows = [window_of(drawing.box, shape) for drawing in drawings[: _MAX_DRAWINGS + 1]]
    area = sum((w[0].stop - w[0].start) * (w[1].stop - w[1].start) for w in windows)
    return len(drawings) > _MAX_DRAWINGS or area > _MAX_DRAWN_AREAS * shape[0] * shape[1]


def stray_fault(
    written: Sequence[TextCharacter],
    drawings: Sequence[Drawing],
    ink: FloatArray,
    rgb: Uint8Array,
    reference: Reference,
) -> str:
    """What is printed beside the layer's characters and may be text."""
    stray = ink.copy()
    num_ink = float(ink.sum())
    for character in written:
        x0, y0, x1, y1 = character.box
        stray[window_of((x0 - 1, y0 - 1, x1 + 1, y1 + 1), ink.shape)] = 0
    area = 0.0
    for drawing in drawings:
        x0, y0, x1, y1 = drawing.box
        window = window_of((x0 - 1, y0 - 1, x1 + 1, y1 + 1), ink.shape)
        if drawing.kind == "image":
            part = rgb[window]
            if not part.size:
                continue
            inside = ink_of(part, paper_of(part[::2, ::2], 1))
            if np.count_nonzero(inside) > 0.001 * inside.size:
                area += inside.size
                if _num_letters(inside, reference) >= _MAX_STRAY_LETTERS:
                    return "picture of text"
            stray[window] = 0
        elif _is_line(x1 - x0, y1 - y0):
            stray[window] = 0
        elif min(x1 - x0, y1 - y0) >= MIN_GROUND_SIDE:  # a frame: its own lines, not what it holds
            for line in ((x0, y0, x1, y0), (x0, y1, x1, y1), (x0, y0, x0, y1), (x1, y0, x1, y1)):
                around = (line[0] - 2, line[1] - 2, line[2] + 2, line[3] + 2)
                stray[window_of(around, ink.shape)] = 0
    if area > _MAX_IMAGE_SHARE * ink.size:
        return "pictures"
    if float(stray.sum()) > _MAX_STRAY_INK_SHARE * num_ink:
        return "stray ink"
    if _num_letters(stray, reference) >= _MAX_STRAY_LETTERS:
        return "stray letters"
    return ""


def _is_line(width: float, height: float) -> bool:
    thickness, length = min(width, height), max(width, height)
    return thickness <= THIN or (thickness <= 3 * THIN and length >= 20 * thickness)


def _num_letters(ink: FloatArray, reference: Reference) -> int:
    """How many single glyphs look like letters."""
    pictures = [picture for glyph in glyphs(ink) if (picture := picture_of(glyph)) is not None]
    if len(pictures) < _MAX_STRAY_LETTERS:
        return 0
    likeness = (np.stack(pictures) @ reference.shapes_of(LETTERS).T).max(axis=1)
    return int((likeness >= _MIN_LETTER_LIKENESS).sum())
