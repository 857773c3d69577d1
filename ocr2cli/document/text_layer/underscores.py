"""Underscores that a page draws as rules, as TeX does, and that its text layer lacks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ocr2cli.document.letters import FloatArray
from ocr2cli.document.text_layer.ink import THIN, window_of
from ocr2cli.document.text_layer.nouns import Box, Drawing, TextCharacter

# In pixels, and in the em of the text beside a rule.
_MAX_WIDTH = 40.0
_MAX_WIDTH_EM, _MAX_GAP_EM = 0.8, 0.2


def with_underscores(
    text: str, written: Sequence[TextCharacter], drawings: Sequence[Drawing], ink: FloatArray
) -> str | None:
    """The text with an underscore for each short rule on the baseline between two glyphs.

    None where their place in the text is not sure: beside one glyph only, or where the text has
    other characters than `written`, or these in another order.
    """
    places = _places(written, _rules(drawings, ink))
    if not places:
        return text
    at = [n for n, character in enumerate(text) if not character.isspace()]
    if None in places or [text[n] for n in at] != [character.text for character in written]:
        return None
    pieces, end = [], 0
    for place in sorted(place for place in places if place is not None):
        start = at[place] + 1
        if text[start : at[place + 1]] not in ("", " "):
            return None
        pieces += [text[end:start], "_"]
        end = at[place + 1]
    return "".join([*pieces, text[end:]])


def _rules(drawings: Sequence[Drawing], ink: FloatArray) -> list[Box]:
    """Short thin rules that are seen."""
    rules = [
        drawing.box
        for drawing in drawings
        if drawing.kind != "image"
        and drawing.box[3] - drawing.box[1] <= THIN
        and drawing.box[2] - drawing.box[0] <= _MAX_WIDTH
    ]
    return [box for box in rules if ink[window_of(box, ink.shape)].any()]


def _places(written: Sequence[TextCharacter], rules: Sequence[Box]) -> list[int | None]:
    """After which character each underscore stands; None for one that is not between two that
    follow each other. Rules elsewhere, under a word or in a table, are none."""
    if not rules or not written:
        return []
    boxes = np.array([character.box for character in written])
    lines = np.array([character.origin[1] for character in written])
    sizes = np.array([character.style.size for character in written])
    is_level = np.array([character.style.turn == 0 for character in written])
    places: list[int | None] = []
    for x0, y0, x1, y1 in rules:
        middle = (y0 + y1) / 2
        is_here = is_level & (middle > lines - 0.05 * sizes) & (middle < lines + 0.25 * sizes)
        is_here &= x1 - x0 < _MAX_WIDTH_EM * sizes
        shared = np.minimum(boxes[:, 2], x1) - np.maximum(boxes[:, 0], x0)
        if (shared[is_here] > 0.5 * (x1 - x0)).any():  # under a glyph
            continue
        before = np.flatnonzero(is_here & (np.abs(boxes[:, 2] - x0) < _MAX_GAP_EM * sizes))
        after = np.flatnonzero(is_here & (np.abs(boxes[:, 0] - x1) < _MAX_GAP_EM * sizes))
        if before.size and after.size:
            between = [n for n in before.tolist() if n + 1 in after]
            places.append(between[0] if len(between) == 1 else None)
        elif before.size or after.size:
            places.append(None)
    # Two rules in one gap: how many underscores that are is not looked at.
    known = sorted(place for place in places if place is not None)
    return [*places, None] if any(a == b for a, b in pairwise(known)) else places
