"""Pictures of single letters and digits, and how alike two are.

Coarse on purpose: enough to tell which of several claims about a glyph is the likelier one, not to
read it. Knows nothing about pages or text layers.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

LETTERS = string.ascii_letters + string.digits

_SIDE = 16
_MIN_HEIGHT = 4


def picture_of(ink: FloatArray) -> FloatArray | None:
    """float32 [256] of length 1: the ink's own box, its longer side scaled to 16, blurred.

    ink: float32 [H, W] in 0-1, one glyph. None when there is too little of it.
    The dot product of two pictures is their likeness, -1 to 1.
    """
    from PIL import Image

    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if rows.size < _MIN_HEIGHT:
        return None
    tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = tight.shape
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray((tight * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    picture = np.zeros((_SIDE, _SIDE), np.float32)
    top, left = (_SIDE - size[1]) // 2, (_SIDE - size[0]) // 2
    picture[top : top + size[1], left : left + size[0]] = np.asarray(image)
    flat = _blurred(picture).ravel()
    flat -= flat.mean()
    norm = float(np.linalg.norm(flat))
    return flat / np.float32(norm) if norm > 0 else None


def reference_pictures(draw: Callable[[str, str], FloatArray], fonts: Sequence[str]) -> FloatArray:
    """float32 [len(fonts) * 62, 256]: row n shows `LETTERS[n % 62]`.

    draw: (font, character) -> its ink, float32 [H, W] in 0-1.
    """
    pictures = [picture_of(draw(font, letter)) for font in fonts for letter in LETTERS]
    return np.stack([picture for picture in pictures if picture is not None])


def _blurred(picture: FloatArray) -> FloatArray:
    """A pixel's difference in a serif or a stem must not decide."""
    padded = np.pad(picture, 1)
    across: FloatArray = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred: FloatArray = across[:-2] + 2 * across[1:-1] + across[2:]
    return blurred
