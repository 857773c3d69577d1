"""What a PDF's text layer is made of, in pixels of the rendered page. Knows nothing about PDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class TextStyle:
    """What the characters of one span have in common.

    size: the font's em in pixels. turn: quarter turns counter-clockwise that the page needs for
    the text to stand upright; None for text at another angle. colour: of the fill; None where no
    one colour is known. seqno: when it was drawn, counted as in `TextLayer.drawings`.
    """

    font: str
    size: float
    turn: int | None
    colour: tuple[int, int, int] | None
    is_visible: bool
    seqno: int


@dataclass(frozen=True, slots=True)
class TextCharacter:
    """One character of a text layer, in pixels of the rendered page.

    box: (x0, y0, x1, y1). origin: where it begins on its baseline. glyph: its number in the font.
    """

    text: str
    box: Box
    origin: tuple[float, float]
    glyph: int
    style: TextStyle


@dataclass(frozen=True, slots=True)
class Drawing:
    """Something drawn that is no text. kind: "image", "fill" or "stroke"."""

    kind: str
    box: Box
    seqno: int


@dataclass(frozen=True, slots=True)
class TextLayer:
    """A page's characters in the file's order, and what else is drawn on it."""

    characters: Sequence[TextCharacter]
    drawings: Sequence[Drawing]
