"""Pictures of single characters, and how alike two are.

Coarse on purpose: enough to tell which of several claims about a glyph is the likelier one, not to
read it. Knows nothing about pages or text layers.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

LETTERS = string.ascii_letters + string.digits

# What a text layer may claim and pictures can bear out.
_ACCENTED = "".join(map(chr, [*range(0xC0, 0x180)])).translate({0xD7: None, 0xF7: None})
_SIGNS = (
    "\u2018\u2019\u201a\u201c\u201d\u201e\u2013\u2014\u2022\u2026\u2020\u2030\u2039\u203a\u2122\u2212"
    "\u20ac\u00a1\u00a3\u00a7\u00a9\u00ab\u00ae\u00b0\u00b1\u00b4\u00b5\u00b7\u00bb\u00bf\u00d7\u00f7"
    "\ufb01\ufb02"
)
ALPHABET = LETTERS + string.punctuation + _ACCENTED + _SIGNS

_SIDE = 16
_MIN_HEIGHT = 4
_PLACED_SIDE = 20
_ABOVE, _BELOW = 1.0, 0.35  # of the em, around the baseline

_NUM_STRIPS = 8
_MAX_GLYPHS = 480
_MIN_GLYPH_HEIGHT, _MAX_GLYPH_HEIGHT = 6, 80


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


def placed_picture(ink: FloatArray, em: float, baseline: float) -> FloatArray | None:
    """float32 [400] of length 1: the ink at its height over the baseline, scaled by the em.

    Unlike `picture_of` it tells a comma from a period, and c from C. ink: float32 [H, W] in 0-1,
    one glyph. em, baseline: in pixels, the second from the top. None where there is no ink.
    """
    from PIL import Image

    columns = np.flatnonzero(ink.any(axis=0))
    height = round((_ABOVE + _BELOW) * em)
    if not columns.size or height < _MIN_HEIGHT:
        return None
    tight = ink[:, columns[0] : columns[-1] + 1]
    first = round(baseline - _ABOVE * em)
    full = np.zeros((height, tight.shape[1]), np.float32)
    top, bottom = max(0, -first), min(height, tight.shape[0] - first)
    if top >= bottom:
        return None
    full[top:bottom] = tight[top + first : bottom + first]
    width = max(1, min(_PLACED_SIDE, round(tight.shape[1] / height * _PLACED_SIDE)))
    image = Image.fromarray((full * 255).astype(np.uint8))
    image = image.resize((width, _PLACED_SIDE), Image.Resampling.BOX)
    picture = np.zeros((_PLACED_SIDE, _PLACED_SIDE), np.float32)
    left = (_PLACED_SIDE - width) // 2
    picture[:, left : left + width] = np.asarray(image)
    flat = _blurred(picture).ravel()
    flat -= flat.mean()
    norm = float(np.linalg.norm(flat))
    return flat / np.float32(norm) if norm > 0 else None


@dataclass(frozen=True, slots=True)
class Reference:
    """Both pictures of each character of `characters` in several fonts; zeros where a font lacks
    it. shapes: float32 [A, F, 256], `picture_of`. places: float32 [A, F, 400], `placed_picture`."""

    characters: str
    shapes: FloatArray
    places: FloatArray

    def shapes_of(self, characters: str) -> FloatArray:
        """float32 [len(characters) * F, 256]"""
        chosen = self.shapes[[self.characters.index(character) for character in characters]]
        return chosen.reshape(-1, chosen.shape[-1])

    def likeness(
        self, glyphs: Sequence[tuple[FloatArray | None, FloatArray]], characters: str
    ) -> FloatArray:
        """float32 [N, len(characters)]: of each glyph, given as both its pictures, to each of the
        characters in the font where it is most alike. A glyph without a shape has its place alone.
        """
        chosen = [self.characters.index(character) for character in characters]
        places = np.stack([place for _, place in glyphs])
        none = np.zeros(self.shapes.shape[-1], np.float32)
        shapes = np.stack([none if shape is None else shape for shape, _ in glyphs])
        in_place = _best_font(places, self.places[chosen])
        in_shape = _best_font(shapes, self.shapes[chosen])
        has_shape = np.array([[shape is not None] for shape, _ in glyphs])
        return np.where(has_shape, (in_place + in_shape) / 2, in_place)


def _best_font(pictures: FloatArray, reference: FloatArray) -> FloatArray:
    """float32 [N, A], of pictures [N, D] and reference [A, F, D]."""
    num_characters, num_fonts, size = reference.shape
    likeness = pictures @ reference.reshape(-1, size).T
    best: FloatArray = likeness.reshape(-1, num_characters, num_fonts).max(axis=2)
    return best


def reference(
    draw: Callable[[str, str], list[FloatArray | None]],
    fonts: Sequence[str],
    em: float,
    baseline: float,
) -> Reference:
    """draw: (font, characters) -> the ink of each, float32 [H, W] in 0-1; None where the font lacks
    it. em, baseline: of what it draws, in pixels."""
    shapes = np.zeros((len(ALPHABET), len(fonts), _SIDE**2), np.float32)
    places = np.zeros((len(ALPHABET), len(fonts), _PLACED_SIDE**2), np.float32)
    for f, font in enumerate(fonts):
        for a, ink in enumerate(draw(font, ALPHABET)):
            if ink is None:
                continue
            shape, place = picture_of(ink), placed_picture(ink, em, baseline)
            if shape is not None:
                shapes[a, f] = shape
            if place is not None:
                places[a, f] = place
    return Reference(ALPHABET, shapes, places)


def glyphs(ink: FloatArray) -> Iterator[FloatArray]:
    """Up to 480 single letters, as far as empty rows and columns part them. ink: [H, W].

    Looked for in strips narrow enough that a skewed line stays within its own rows.
    """
    for strip in np.array_split(ink, _NUM_STRIPS, axis=1):
        num_left = _MAX_GLYPHS // _NUM_STRIPS
        for top, bottom in runs(strip.max(axis=1, initial=0) > 0):
            height = bottom - top
            if not _MIN_GLYPH_HEIGHT <= height <= _MAX_GLYPH_HEIGHT:
                continue
            line = strip[top:bottom]
            for left, right in runs(line.max(axis=0) > 0):
                is_at_edge = left == 0 or right == line.shape[1]
                if not is_at_edge and right - left <= 1.3 * height and num_left > 0:
                    num_left -= 1
                    yield line[:, left:right]


def runs(is_set: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], is_set.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _blurred(picture: FloatArray) -> FloatArray:
    """A pixel's difference in a serif or a stem must not decide."""
    padded = np.pad(picture, 1)
    across: FloatArray = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred: FloatArray = across[:-2] + 2 * across[1:-1] + across[2:]
    return blurred
