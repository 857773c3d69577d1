"""Does a PDF's text layer say what its pixels show? Only then may it stand for them.

A layer lies when its characters are invisible, when their codes are shifted against their shapes,
or when it covers a part of the page only. Each character's picture is compared with the pictures
of letters and digits; scripts other than Latin cannot be checked this way and are not trusted.
Knows nothing about PDF.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ocr2cli.document.ink import MIN_CONTRAST
from ocr2cli.document.letters import LETTERS, picture_of
from ocr2cli.pages import Uint8Array

FloatArray = npt.NDArray[np.float32]

_MIN_CHARACTERS = 20
_MIN_DISTINCT = 8
_MIN_CHECKABLE_SHARE = 0.6
_MAX_INVISIBLE_SHARE = 0.02
_MAX_MEANINGLESS_SHARE = 0.01
_MIN_INKED_SHARE = 0.95
_MAX_STRAY_INK_SHARE = 0.3

# A character passes when its own letter is among the most similar ones. Chance gives about 0.15.
_SAMPLES_PER_CHARACTER = 4
_MAX_RANK = 5
_MIN_PASSING_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class TextCharacter:
    """One character of a text layer. box: (x0, y0, x1, y1) in pixels of the rendered page."""

    text: str
    box: tuple[float, float, float, float]
    is_visible: bool


def is_trustworthy(
    characters: Sequence[TextCharacter], rgb: Uint8Array, references: FloatArray
) -> bool:
    """True when the layer is visible, meaningful, covers the page's ink and matches its shapes.

    rgb: uint8 [H, W, 3], the page that the boxes belong to. references: see `letters.py`.
    """
    written = [character for character in characters if not character.text.isspace()]
    if len(written) < _MIN_CHARACTERS or not _is_meaningful(written):
        return False
    ink = _ink(rgb)
    return _covers(written, ink) and _matches_shapes(written, ink, references)


def _is_meaningful(written: Sequence[TextCharacter]) -> bool:
    num_invisible = sum(not character.is_visible for character in written)
    num_meaningless = sum(_is_meaningless(character.text) for character in written)
    num_checkable = sum(character.text in LETTERS for character in written)
    return (
        num_invisible <= _MAX_INVISIBLE_SHARE * len(written)
        and num_meaningless <= _MAX_MEANINGLESS_SHARE * len(written)
        and num_checkable >= _MIN_CHECKABLE_SHARE * len(written)
    )


def _is_meaningless(character: str) -> bool:
    # Private use, unassigned, control and surrogate codes: no one can read them.
    return character == "\ufffd" or unicodedata.category(character)[0] == "C"


def _covers(written: Iterable[TextCharacter], ink: FloatArray) -> bool:
    """The layer's boxes hold ink, and most of the page's ink lies in them."""
    is_text = np.zeros(ink.shape, np.bool_)
    num_inked = num_boxes = 0
    for character in written:
        window = _window(character, ink.shape)
        num_boxes += 1
        num_inked += bool(ink[window].any())
        is_text[window] = True
    num_ink = float(ink.sum())
    num_stray = float(ink[~is_text].sum())
    return num_inked >= _MIN_INKED_SHARE * num_boxes and num_stray <= (
        _MAX_STRAY_INK_SHARE * num_ink
    )


def _matches_shapes(
    written: Iterable[TextCharacter], ink: FloatArray, references: FloatArray
) -> bool:
    """Letters and digits look like themselves, each of the two kinds on its own."""
    pictures: dict[str, list[FloatArray]] = defaultdict(list)
    for character in written:
        samples = pictures[character.text]
        if character.text in LETTERS and len(samples) < _SAMPLES_PER_CHARACTER:
            picture = picture_of(ink[_window(character, ink.shape)])
            if picture is not None:
                samples.append(picture)
    passed = {
        text: _passes(text, samples, references) for text, samples in pictures.items() if samples
    }
    if len(passed) < _MIN_DISTINCT:
        return False
    letters = [is_same for text, is_same in passed.items() if text.isalpha()]
    digits = [is_same for text, is_same in passed.items() if text.isdigit()]
    return all(sum(kind) >= _MIN_PASSING_SHARE * len(kind) for kind in (letters, digits) if kind)


def _passes(text: str, samples: Sequence[FloatArray], references: FloatArray) -> bool:
    """The claimed letter, in either case, is among the nearest to the samples together."""
    likeness = np.mean(np.stack(samples) @ references.T, axis=0)
    order = [LETTERS[n % len(LETTERS)].lower() for n in np.argsort(-likeness)]
    nearest = list(dict.fromkeys(order))[:_MAX_RANK]
    return text.lower() in nearest


def _ink(rgb: Uint8Array) -> FloatArray:
    """float32 [H, W] in 0-1: the difference from the paper, most in any channel."""
    paper = np.median(rgb[::7, ::7].reshape(-1, 3), axis=0).astype(np.uint8)
    difference = np.zeros(rgb.shape[:2], np.uint8)
    for channel in range(3):  # all at once, in wider numbers, takes six times as long
        values = rgb[:, :, channel]
        apart = np.maximum(values, paper[channel]) - np.minimum(values, paper[channel])
        np.maximum(difference, apart, out=difference)
    difference[difference <= MIN_CONTRAST] = 0
    return difference.astype(np.float32) / np.float32(255)


def _window(character: TextCharacter, shape: tuple[int, ...]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = character.box
    left, top = max(0, int(x0)), max(0, int(y0))
    right, bottom = min(shape[1], int(np.ceil(x1))), min(shape[0], int(np.ceil(y1)))
    return slice(top, max(top, bottom)), slice(left, max(left, right))
