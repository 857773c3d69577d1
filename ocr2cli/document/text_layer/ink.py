"""Ink, paper and windows of a rendered page. Knows nothing about characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ocr2cli.document.ink import MIN_CONTRAST
from ocr2cli.document.letters import FloatArray
from ocr2cli.document.text_layer.nouns import Box, Drawing
from ocr2cli.pages import Uint8Array

# Pixels: what is no thicker is a rule, what is no narrower may be a band that text stands on.
THIN = 5.0
MIN_GROUND_SIDE = 12.0


def ink_on_grounds(rgb: Uint8Array, drawings: Sequence[Drawing]) -> FloatArray:
    """The page's ink, on a coloured band the difference from the band."""
    ink = ink_of(rgb)
    for drawing in drawings:
        x0, y0, x1, y1 = drawing.box
        if drawing.kind == "fill" and min(x1 - x0, y1 - y0) >= MIN_GROUND_SIDE:
            window = window_of(drawing.box, rgb.shape)
            part = rgb[window]
            if not part.size:
                continue
            thin = part[::2, ::2]
            ground = paper_of(thin, 1)
            if (np.abs(thin.astype(np.int16) - ground).max(axis=2) < 8).mean() > 0.5:
                ink[window] = ink_of(part, ground)
    return ink


def paper_of(rgb: Uint8Array, step: int = 7) -> Uint8Array:
    """uint8 [3]: the colour of what lies under the ink."""
    paper: Uint8Array = np.median(rgb[::step, ::step].reshape(-1, 3), axis=0).astype(np.uint8)
    return paper


def ink_of(rgb: Uint8Array, paper: Uint8Array | None = None) -> FloatArray:
    """float32 [H, W] in 0-1: the difference from the paper, most in any channel."""
    paper = paper_of(rgb) if paper is None else paper
    difference = np.zeros(rgb.shape[:2], np.uint8)
    for channel in range(3):  # all at once, in wider numbers, takes six times as long
        values = rgb[:, :, channel]
        apart = np.maximum(values, paper[channel]) - np.minimum(values, paper[channel])
        np.maximum(difference, apart, out=difference)
    difference[difference <= MIN_CONTRAST] = 0
    return difference.astype(np.float32) / np.float32(255)


def window_of(box: Box, shape: tuple[int, ...]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    left, top = min(max(0, int(x0)), shape[1]), min(max(0, int(y0)), shape[0])
    right, bottom = min(shape[1], int(np.ceil(x1))), min(shape[0], int(np.ceil(y1)))
    return slice(top, max(top, bottom)), slice(left, max(left, right))
