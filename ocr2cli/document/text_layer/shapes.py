"""Do the characters of a text layer look like the shapes they stand on?

Each glyph of each font is compared with pictures of characters, by shape and by height on its line.
Knows nothing about what else is on the page.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ocr2cli.document.letters import (
    ALPHABET,
    LETTERS,
    FloatArray,
    Reference,
    picture_of,
    placed_picture,
)
from ocr2cli.document.text_layer.codes import BULLET, KNOWN, is_meaningless
from ocr2cli.document.text_layer.ink import window_of
from ocr2cli.document.text_layer.nouns import TextCharacter

_MIN_DISTINCT = 8
_SAMPLES_PER_GLYPH = 4

# By kind: how much more a glyph may look like another character than like its own, the share of
# the kind's characters that may do so all the same, and how few of them are never too many.
_MAX_GAPS = {
    "digits": ((0.05, 0.0, 1),),
    "letters": ((0.06, 0.04, 1),),
    "amounts": ((0.1, 0.0, 1),),
    "accents": ((0.06, 0.1, 1),),
    "signs": ((0.06, 0.1, 3), (0.03, 0.25, 5)),
}
_AMOUNTS = "$%\u20ac\u00a3"
_COMMON = LETTERS + string.punctuation + BULLET
_LIGATURES = {"fi": "\ufb01", "fl": "\ufb02"}

# What the pictures cannot tell apart in all fonts.
_ALIKE = (
    "lI1|!i/\u00a1\u0131", "'`\u2018\u2019\u00b4,;\u201a", "-~_\u2013\u2014\u2212",
    ".*\u00b7\u2022\u00b0", ".:;", "\"\u201c\u201d", "xX\u00d7", "[({|l1It", ")]}|1",
    "<\u2039", ">\u203a", ":;i",
)  # fmt: skip
_ALIKE_LETTERS = ("lI", "OQ")


def has_inked_spaces(characters: Sequence[TextCharacter], ink: FloatArray) -> bool:
    """A glyph that is printed, though its code is a space."""
    spaces: dict[tuple[str, int], list[TextCharacter]] = defaultdict(list)
    for character in characters:
        if character.text.isspace() and character.style.turn == 0 and character.glyph >= 0:
            spaces[character.style.font, character.glyph].append(character)
    for found in spaces.values():
        samples = _spread(found)
        if len(samples) > 1 and all(_is_inked(sample, ink) for sample in samples):
            return True
    return False


def _is_inked(space: TextCharacter, ink: FloatArray) -> bool:
    x0, _, x1, _ = space.box
    width, y, em = x1 - x0, space.origin[1], space.style.size
    middle = (x0 + 0.3 * width, y - 0.7 * em, x1 - 0.3 * width, y - 0.05 * em)
    return bool(ink[window_of(middle, ink.shape)].any())


def _spread(found: Sequence[TextCharacter]) -> list[TextCharacter]:
    """A few, from all over the page."""
    step = max(1.0, len(found) / _SAMPLES_PER_GLYPH)
    return [found[int(k * step)] for k in range(min(_SAMPLES_PER_GLYPH, len(found)))]


@dataclass(slots=True)
class _Group:
    """All the characters that one glyph of one font draws under one code.

    samples: the pictures of some, see `letters.py`.
    """

    text: str
    count: int
    samples: list[tuple[FloatArray | None, FloatArray]]


def _groups(written: Sequence[TextCharacter], ink: FloatArray) -> list[_Group]:
    members: dict[tuple[str, int, str], list[TextCharacter]] = defaultdict(list)
    for n, character in enumerate(written):
        if character.style.turn is not None and character.glyph >= 0:
            text = character.text
            while n + 1 < len(written) and written[n + 1].glyph < 0:  # a ligature's other letters
                n += 1
                text += written[n].text
            text = _LIGATURES.get(text, text)
            members[character.style.font, character.glyph, text].append(character)
    groups = []
    for (_, _, text), found in members.items():
        pictures = []
        for glyph, em, baseline in (_upright(sample, ink) for sample in _spread(found)):
            place = placed_picture(glyph, em, baseline)
            if place is not None:
                pictures.append((picture_of(glyph), place))
        groups.append(_Group(text, len(found), pictures))
    return groups


def _upright(character: TextCharacter, ink: FloatArray) -> tuple[FloatArray, float, float]:
    """(the ink around a character, standing upright; its em; its baseline from the top)."""
    x0, y0, x1, y1 = character.box
    x, y = character.origin
    em = character.style.size
    above, below = em, 0.35 * em
    turn = character.style.turn or 0
    if turn == 0:
        rows, columns = (y - above, y + below), (x0, x1)
    elif turn == 2:
        rows, columns = (y - below, y + above), (x0, x1)
    elif turn == 3:
        rows, columns = (y0, y1), (x - above, x + below)
    else:
        rows, columns = (y0, y1), (x - below, x + above)
    window = window_of((columns[0], rows[0], columns[1], rows[1]), ink.shape)
    baseline = {
        0: y - window[0].start,
        2: window[0].stop - y,
        3: x - window[1].start,
        1: window[1].stop - x,
    }[turn]
    return _without_neighbours(np.rot90(ink[window], turn)), em, baseline


def _without_neighbours(ink: FloatArray) -> FloatArray:
    """Cleared of what comes in over an edge and ends soon: parts of the glyphs around it."""
    cleared = ink.copy()
    for side, share in (
        (cleared, 0.2), (cleared[::-1], 0.2), (cleared.T, 0.34), (cleared.T[::-1], 0.34)
    ):  # fmt: skip
        is_inked = side.any(axis=1)
        depth = int(np.argmin(is_inked)) if is_inked.size and not is_inked.all() else 0
        if 0 < depth <= share * len(side):
            side[:depth] = 0
    return cleared


def shape_fault(
    written: Sequence[TextCharacter], ink: FloatArray, reference: Reference
) -> tuple[str, list[str]]:
    """(which kind of characters does not look like itself or "", codes that show bullets)."""
    groups = [group for group in _groups(written, ink) if group.samples]
    known = [group for group in groups if group.text in KNOWN or is_meaningless(group.text[0])]
    if len({group.text for group in known if group.text in LETTERS}) < _MIN_DISTINCT:
        return "few letters", []
    others = {group.text for group in known} & (KNOWN - set(_COMMON))
    characters = _COMMON + "".join(sorted(others))
    likeness = reference.likeness([s for g in known for s in g.samples], characters)
    gaps: dict[str, list[tuple[int, float]]] = defaultdict(list)
    bullets = set()
    first = 0
    for group in known:
        rows = likeness[first : first + len(group.samples)]
        first += len(group.samples)
        if group.text not in KNOWN:
            if not any(characters[n] == BULLET for n in rows.argmax(axis=1)):
                return "unreadable", []
            bullets.add(group.text)
            continue
        own = rows[:, characters.index(group.text)]
        each = np.sort(rows[:, _RIVALS[group.text]].max(axis=1) - own)
        # What comes near a glyph varies, a wrong code does not; most comes near the small signs.
        kind = _kind(group.text)
        middle = 0 if kind == "signs" else (len(each) - 1) // 2
        gaps[kind].append((group.count, float(each[middle])))
    for kind, limits in _MAX_GAPS.items():
        total = sum(count for count, _ in gaps[kind])
        for gap, share, least in limits:
            failing = sum(count for count, found in gaps[kind] if found > gap)
            if failing > share * total and failing >= least:
                return kind, []
    return "", list(bullets)


def _kind(text: str) -> str:
    if text in LETTERS or text in _LIGATURES.values():
        return "digits" if text.isdigit() else "letters"
    return "amounts" if text in _AMOUNTS else "accents" if text.isalpha() else "signs"


def _rivals(text: str) -> list[int]:
    """Whose pictures speak against a claim, as places in the alphabet."""
    if _kind(text) in ("digits", "letters"):
        rivals = string.digits if text.isdigit() else string.ascii_letters
        alike = {text}.union(*(row for row in _ALIKE_LETTERS if text in row))
    else:
        rivals = _COMMON
        alike = {text}.union(*(row for row in _ALIKE if text in row))
    return [_COMMON.index(rival) for rival in rivals if rival not in alike]


_RIVALS = {text: _rivals(text) for text in ALPHABET}
