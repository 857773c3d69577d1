"""Does a PDF's text layer say what its pixels show? Only then may it stand for them.

A layer lies when its characters are hidden, when their codes are shifted against their shapes,
when it covers a part of the page only, or when its order is no reading order. Scripts other than
Latin cannot be checked this way and are not trusted. In doubt the page goes to the model.
Knows nothing about PDF.
"""

from __future__ import annotations

from collections import Counter

from ocr2cli.document.letters import Reference
from ocr2cli.document.text_layer.codes import BULLET, is_meaningful
from ocr2cli.document.text_layer.cover import is_overdrawn, stray_fault
from ocr2cli.document.text_layer.hidden import has_hidden
from ocr2cli.document.text_layer.ink import ink_on_grounds
from ocr2cli.document.text_layer.nouns import TextCharacter, TextLayer
from ocr2cli.document.text_layer.order import order_fault
from ocr2cli.document.text_layer.shapes import has_inked_spaces, shape_fault
from ocr2cli.document.text_layer.underscores import with_underscores
from ocr2cli.pages import Uint8Array

_MIN_CHARACTERS = 20


def readable(text: str, layer: TextLayer, rgb: Uint8Array, reference: Reference) -> str | None:
    """The layer's text where it is visible, covers the page's ink and matches its shapes.

    Codes that no one can read become bullets where bullets are printed, and rules between two
    glyphs of a word underscores. None in all other cases.
    text: as the file gives it. rgb: uint8 [H, W, 3], the page that the boxes belong to.
    """
    why, text = judged(text, layer, rgb, reference)
    return None if why else text


def judged(
    text: str, layer: TextLayer, rgb: Uint8Array, reference: Reference
) -> tuple[str, str]:
    """(what speaks against the layer or "", its text with bullets and underscores in place)."""
    on_page = [c for c in layer.characters if _is_on_page(c, rgb.shape)]
    written = [character for character in on_page if not character.text.isspace()]
    if len(written) < _MIN_CHARACTERS:
        return "short", text
    if Counter(_dense(text)) - Counter(_dense("".join(c.text for c in on_page))):
        return "other text", text
    if not is_meaningful(written):
        return "script", text
    if is_overdrawn(layer.drawings, rgb.shape):
        return "drawings", text
    if has_hidden(written, layer.drawings, rgb):
        return "hidden", text
    if fault := order_fault(written, text):
        return fault, text
    ink = ink_on_grounds(rgb, layer.drawings)
    if fault := stray_fault(written, layer.drawings, ink, rgb, reference):
        return fault, text
    if has_inked_spaces(on_page, ink):
        return "inked spaces", text
    whole = with_underscores(text, written, layer.drawings, ink)
    if whole is None:
        return "underscores", text
    text = whole
    fault, bullets = shape_fault(written, ink, reference)
    for code in bullets:
        text = text.replace(code, BULLET)
    return fault, text


def _is_on_page(character: TextCharacter, shape: tuple[int, ...]) -> bool:
    x0, y0, x1, y1 = character.box
    return 0 <= (x0 + x1) / 2 < shape[1] and 0 <= (y0 + y1) / 2 < shape[0]


def _dense(text: str) -> str:
    return "".join(text.split())
