"""Does a PDF's text layer say what its pixels show? Only then may it stand for them.

A layer lies when its characters are hidden, when their codes are shifted against their shapes,
when it covers a part of the page only, or when its order is no reading order. Each glyph's picture
is compared with the pictures of characters; scripts other than Latin cannot be checked this way and
are not trusted. In doubt the page goes to the model.
Knows nothing about PDF.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ocr2cli.document.ink import MIN_CONTRAST
from ocr2cli.document.letters import (
    ALPHABET,
    LETTERS,
    FloatArray,
    Reference,
    glyphs,
    picture_of,
    placed_picture,
    runs,
)
from ocr2cli.pages import Uint8Array

BoolArray = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]

BULLET = "\u2022"

_MIN_CHARACTERS = 20
_MIN_DISTINCT = 8
_MIN_CHECKABLE_SHARE = 0.6
_MAX_UNKNOWN_SHARE = 0.1

# Hidden characters: a dot lost between two pixels is none, a word is.
_MAX_HIDDEN_SHARE = 0.02
_MIN_HIDDEN_RUN = 4
_MAX_OWN_COLOUR_SHARE = 0.5

_MAX_STRAY_INK_SHARE = 0.3
_MAX_IMAGE_SHARE = 0.25
_MAX_STRAY_LETTERS = 8
_MIN_LETTER_LIKENESS = 0.75
_THIN = 5.0
_MIN_GROUND_SIDE = 12.0
_MAX_DRAWINGS = 20_000
_MAX_DRAWN_AREAS = 30  # of the page

_SAMPLES_PER_GLYPH = 4


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


def readable(text: str, layer: TextLayer, rgb: Uint8Array, reference: Reference) -> str | None:
    """The layer's text where it is visible, covers the page's ink and matches its shapes.

    Codes that no one can read become bullets where bullets are printed. None in all other cases.
    text: as the file gives it. rgb: uint8 [H, W, 3], the page that the boxes belong to.
    """
    why, text = judged(text, layer, rgb, reference)
    return None if why else text


def judged(
    text: str, layer: TextLayer, rgb: Uint8Array, reference: Reference
) -> tuple[str, str]:
    """(what speaks against the layer or "", its text with bullets in place)."""
    on_page = [c for c in layer.characters if _is_on_page(c, rgb.shape)]
    written = [character for character in on_page if not character.text.isspace()]
    if len(written) < _MIN_CHARACTERS:
        return "short", text
    if Counter(_dense(text)) - Counter(_dense("".join(c.text for c in on_page))):
        return "other text", text
    if not _is_meaningful(written):
        return "script", text
    if _is_overdrawn(layer.drawings, rgb.shape):
        return "drawings", text
    if _has_hidden(written, layer.drawings, rgb):
        return "hidden", text
    if fault := _order_fault(written, text):
        return fault, text
    ink = _ink_on_grounds(rgb, layer.drawings)
    if fault := _stray_fault(written, layer.drawings, ink, rgb, reference):
        return fault, text
    if _has_inked_spaces(on_page, ink):
        return "inked spaces", text
    fault, bullets = _shape_fault(written, ink, reference)
    for code in bullets:
        text = text.replace(code, BULLET)
    return fault, text


def _is_on_page(character: TextCharacter, shape: tuple[int, ...]) -> bool:
    x0, y0, x1, y1 = character.box
    return 0 <= (x0 + x1) / 2 < shape[1] and 0 <= (y0 + y1) / 2 < shape[0]


def _is_overdrawn(drawings: Sequence[Drawing], shape: tuple[int, ...]) -> bool:
    """So many drawings, or so large, that looking at each would take longer than the model."""
    windows = [_window(drawing.box, shape) for drawing in drawings[: _MAX_DRAWINGS + 1]]
    area = sum((w[0].stop - w[0].start) * (w[1].stop - w[1].start) for w in windows)
    return len(drawings) > _MAX_DRAWINGS or area > _MAX_DRAWN_AREAS * shape[0] * shape[1]


def _dense(text: str) -> str:
    return "".join(text.split())


def _is_meaningful(written: Sequence[TextCharacter]) -> bool:
    # A row of dots, as in a table of contents, is one mark.
    marks = [
        now for before, now in pairwise(["", *(character.text for character in written)])
        if now.isalnum() or before != now
    ]  # fmt: skip
    num_checkable = sum(text in _KNOWN and text.isalnum() for text in marks)
    num_unknown = sum(text not in _KNOWN and not is_meaningless(text) for text in marks)
    return num_checkable >= _MIN_CHECKABLE_SHARE * len(marks) and (
        num_unknown <= _MAX_UNKNOWN_SHARE * len(marks)
    )


def is_meaningless(character: str) -> bool:
    # Private use, unassigned, control and surrogate codes: no one can read them.
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs")


def _has_hidden(
    written: Sequence[TextCharacter], drawings: Sequence[Drawing], rgb: Uint8Array
) -> bool:
    """A run of characters that no one sees: invisible, of the colour of what is around them,
    painted over, or under a picture."""
    share = _own_colour_shares(written, rgb)
    hidden = np.array([not c.style.is_visible for c in written])
    hidden |= (share <= 0) | (share > _MAX_OWN_COLOUR_SHARE)
    boxes = np.array([c.box for c in written])
    seqno = np.array([c.style.seqno for c in written])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    for drawing in drawings:
        if drawing.kind == "image":
            x0, y0, x1, y1 = drawing.box
            hidden |= (seqno < drawing.seqno) & (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
    longest = max((end - start for start, end in runs(hidden)), default=0)
    return longest >= _MIN_HIDDEN_RUN or hidden.sum() > _MAX_HIDDEN_SHARE * len(written)


def _own_colour_shares(
    written: Sequence[TextCharacter], rgb: Uint8Array
) -> npt.NDArray[np.float64]:
    """float64 [N]: how much of each character's box has about the colour it is drawn in."""
    paper = _paper(rgb).astype(np.int16)
    shares = np.full(len(written), 0.5)
    by_colour: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for n, character in enumerate(written):
        x0, y0, x1, y1 = character.box
        if character.style.colour is not None and x1 - x0 > 0.5 and y1 - y0 > 0.5:
            by_colour[character.style.colour].append(n)
    for colour, numbers in by_colour.items():
        contrast = int(np.abs(np.array(colour) - paper).max())
        # Thin strokes are half paper; white print, on a dark ground, must not be that wide.
        reach = 0.75 * contrast if contrast > MIN_CONTRAST else 60
        windows = [_window(written[n].box, rgb.shape) for n in numbers]
        top, left = (min(window[k].start for window in windows) for k in (0, 1))
        bottom, right = (max(window[k].stop for window in windows) for k in (0, 1))
        near = np.zeros(rgb.shape[:2], np.bool_)
        near[top:bottom, left:right] = True
        for channel, value in enumerate(colour):
            part = rgb[top:bottom, left:right, channel]
            low, high = max(0, value - reach), min(255, value + reach)
            near[top:bottom, left:right] &= (part >= low) & (part <= high)
        for n, window in zip(numbers, windows, strict=True):
            own = near[window]
            shares[n] = np.count_nonzero(own) / max(1, own.size)
    return shares


def _order_fault(written: Sequence[TextCharacter], text: str) -> str:
    """What makes the file's order no reading order."""
    words = [word for word in text.split() if word.isalpha()]
    if len(words) >= 20 and sum(len(word) == 1 for word in words) > 0.5 * len(words):
        return "letterspaced"
    if _num_doubled(written) >= 5:
        return "doubled"
    level = [c for c in written if c.style.turn == written[0].style.turn]
    pieces = list(_pieces(level))
    num_back = num_across = 0
    stretch, stretches = 0, []
    for before, now in pairwise(pieces):
        stretch += before.count
        em = max(before.size, now.size)
        if abs(now.y - before.y) < 0.5 * em:
            gap = now.left - before.right
            num_across += gap > 1.5 * em and min(before.count, now.count) >= 20
        if now.y < before.y - 3 * em:  # a formula goes up by less
            # Back to the top of the next column is how columns are read.
            is_next_column = now.left >= before.left + 4 * em
            num_back += 1
            if not is_next_column:
                stretches.append(stretch)
                stretch = 0
    stretch += pieces[-1].count if pieces else 0
    stretches.append(stretch)
    if num_across >= 6 and num_across > 0.25 * len(pieces):
        return "across columns"
    if num_back > max(6, 0.2 * len(pieces)):
        return "jumping"
    if sum(min(a, b) >= 150 for a, b in pairwise(stretches)):
        return "backwards"
    return ""


def _num_doubled(written: Sequence[TextCharacter]) -> int:
    """Characters that lie nearly on the same one before, as in a shadow or a false bold."""
    seen: set[tuple[str, int, int]] = set()
    count = 0
    for character in written:
        x, y = character.origin
        reach = 0.05 * character.style.size
        if not character.text.isalnum() or character.glyph < 0 or reach <= 0:
            continue
        column, row = int(x / reach), int(y / reach)
        around = ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        count += any((character.text, i, j) in seen for i, j in around)
        seen.add((character.text, column, row))
    return count


@dataclass(slots=True)
class _Piece:
    """Characters that follow each other on one line, as it stands upright."""

    left: float
    right: float
    y: float
    size: float
    count: int


def _pieces(written: Iterable[TextCharacter]) -> Iterator[_Piece]:
    piece: _Piece | None = None
    for character in written:
        left, right, y = _level(character)
        size = character.style.size
        if (
            piece
            and abs(y - piece.y) < 0.6 * max(size, piece.size)
            and -0.5 * size < left - piece.right < 1.5 * size
        ):
            piece.right, piece.count = max(piece.right, right), piece.count + 1
            continue
        if piece:
            yield piece
        piece = _Piece(left, right, y, size, 1)
    if piece:
        yield piece


def _level(character: TextCharacter) -> tuple[float, float, float]:
    """(left, right, baseline) as they are once the text stands upright."""
    x0, y0, x1, y1 = character.box
    x, y = character.origin
    return {
        0: (x0, x1, y),
        1: (y0, y1, -x),
        2: (-x1, -x0, -y),
        3: (-y1, -y0, x),
    }.get(character.style.turn or 0, (x0, x1, y))


def _ink_on_grounds(rgb: Uint8Array, drawings: Sequence[Drawing]) -> FloatArray:
    """The page's ink, on a coloured band the difference from the band."""
    ink = _ink(rgb)
    for drawing in drawings:
        x0, y0, x1, y1 = drawing.box
        if drawing.kind == "fill" and min(x1 - x0, y1 - y0) >= _MIN_GROUND_SIDE:
            window = _window(drawing.box, rgb.shape)
            part = rgb[window]
            if not part.size:
                continue
            thin = part[::2, ::2]
            ground = _paper(thin, 1)
            if (np.abs(thin.astype(np.int16) - ground).max(axis=2) < 8).mean() > 0.5:
                ink[window] = _ink(part, ground)
    return ink


def _stray_fault(
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
        stray[_window((x0 - 1, y0 - 1, x1 + 1, y1 + 1), ink.shape)] = 0
    area = 0.0
    for drawing in drawings:
        x0, y0, x1, y1 = drawing.box
        window = _window((x0 - 1, y0 - 1, x1 + 1, y1 + 1), ink.shape)
        if drawing.kind == "image":
            part = rgb[window]
            if not part.size:
                continue
            inside = _ink(part, _paper(part[::2, ::2], 1))
            if np.count_nonzero(inside) > 0.001 * inside.size:
                area += inside.size
                if _num_letters(inside, reference) >= _MAX_STRAY_LETTERS:
                    return "picture of text"
            stray[window] = 0
        elif _is_line(x1 - x0, y1 - y0):
            stray[window] = 0
        elif min(x1 - x0, y1 - y0) >= _MIN_GROUND_SIDE:  # a frame: its own lines, not what it holds
            for line in ((x0, y0, x1, y0), (x0, y1, x1, y1), (x0, y0, x0, y1), (x1, y0, x1, y1)):
                stray[_window((line[0] - 2, line[1] - 2, line[2] + 2, line[3] + 2), ink.shape)] = 0
    if area > _MAX_IMAGE_SHARE * ink.size:
        return "pictures"
    if _has_drawn_underscores(written, drawings):
        return "underscores"
    if float(stray.sum()) > _MAX_STRAY_INK_SHARE * num_ink:
        return "stray ink"
    if _num_letters(stray, reference) >= _MAX_STRAY_LETTERS:
        return "stray letters"
    return ""


def _is_line(width: float, height: float) -> bool:
    thickness, length = min(width, height), max(width, height)
    return thickness <= _THIN or (thickness <= 3 * _THIN and length >= 20 * thickness)


def _num_letters(ink: FloatArray, reference: Reference) -> int:
    """How many single glyphs look like letters."""
    pictures = [picture for glyph in glyphs(ink) if (picture := picture_of(glyph)) is not None]
    if len(pictures) < _MAX_STRAY_LETTERS:
        return 0
    likeness = (np.stack(pictures) @ reference.shapes_of(LETTERS).T).max(axis=1)
    return int((likeness >= _MIN_LETTER_LIKENESS).sum())


def _has_drawn_underscores(
    written: Sequence[TextCharacter], drawings: Sequence[Drawing]
) -> bool:
    """A short rule on the baseline in a gap between two glyphs of a word, as TeX draws them."""
    rules = [
        d.box
        for d in drawings
        if d.kind != "image" and d.box[3] - d.box[1] <= _THIN and d.box[2] - d.box[0] <= 40
    ]
    if not rules:
        return False
    level = [c for c in written if c.style.turn == 0]
    lefts = np.array([c.box[0] for c in level])
    rights = np.array([c.box[2] for c in level])
    lines = np.array([c.origin[1] for c in level])
    sizes = np.array([c.style.size for c in level])
    for x0, y0, x1, y1 in rules:
        middle = (y0 + y1) / 2
        is_here = (middle > lines - 0.05 * sizes) & (middle < lines + 0.25 * sizes)
        is_here &= x1 - x0 < 0.8 * sizes
        before = is_here & (np.abs(rights - x0) < 0.2 * sizes)
        after = is_here & (np.abs(lefts - x1) < 0.2 * sizes)
        if before.any() and after.any():
            return True
    return False


def _has_inked_spaces(characters: Sequence[TextCharacter], ink: FloatArray) -> bool:
    """A glyph that is printed, though its code is a space."""
    spaces: dict[tuple[str, int], list[TextCharacter]] = defaultdict(list)
    for character in characters:
        if character.text.isspace() and character.style.turn == 0 and character.glyph >= 0:
            spaces[character.style.font, character.glyph].append(character)
    for found in spaces.values():
        step = max(1.0, len(found) / _SAMPLES_PER_GLYPH)
        samples = [found[int(k * step)] for k in range(min(_SAMPLES_PER_GLYPH, len(found)))]
        if len(samples) > 1 and all(_is_inked(sample, ink) for sample in samples):
            return True
    return False


def _is_inked(space: TextCharacter, ink: FloatArray) -> bool:
    x0, _, x1, _ = space.box
    width, y, em = x1 - x0, space.origin[1], space.style.size
    middle = (x0 + 0.3 * width, y - 0.7 * em, x1 - 0.3 * width, y - 0.05 * em)
    return bool(ink[_window(middle, ink.shape)].any())


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
        step = max(1.0, len(found) / _SAMPLES_PER_GLYPH)
        samples = [found[int(k * step)] for k in range(min(_SAMPLES_PER_GLYPH, len(found)))]
        pictures = []
        for glyph, em, baseline in (_upright(sample, ink) for sample in samples):
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
    window = _window((columns[0], rows[0], columns[1], rows[1]), ink.shape)
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


def _shape_fault(
    written: Sequence[TextCharacter], ink: FloatArray, reference: Reference
) -> tuple[str, list[str]]:
    """(which kind of characters does not look like itself or "", codes that show bullets)."""
    groups = [group for group in _groups(written, ink) if group.samples]
    known = [group for group in groups if group.text in _KNOWN or is_meaningless(group.text[0])]
    if len({group.text for group in known if group.text in LETTERS}) < _MIN_DISTINCT:
        return "few letters", []
    others = {group.text for group in known} & (_KNOWN - set(_COMMON))
    characters = _COMMON + "".join(sorted(others))
    likeness = reference.likeness([s for g in known for s in g.samples], characters)
    gaps: dict[str, list[tuple[int, float]]] = defaultdict(list)
    bullets = set()
    first = 0
    for group in known:
        rows = likeness[first : first + len(group.samples)]
        first += len(group.samples)
        if group.text not in _KNOWN:
            if not any(characters[n] in _BULLETS for n in rows.argmax(axis=1)):
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
_KNOWN = frozenset(ALPHABET)
_COMMON = LETTERS + string.punctuation + BULLET
_BULLETS = BULLET
_LIGATURES = {"fi": "\ufb01", "fl": "\ufb02"}

# What the pictures cannot tell apart in all fonts.
_ALIKE = (
    "lI1|!i/\u00a1\u0131", "'`\u2018\u2019\u00b4,;\u201a", "-~_\u2013\u2014\u2212",
    ".*\u00b7\u2022\u00b0", ".:;", "\"\u201c\u201d", "xX\u00d7", "[({|l1It", ")]}|1",
    "<\u2039", ">\u203a", ":;i",
)  # fmt: skip
_ALIKE_LETTERS = ("lI", "OQ")


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


def _paper(rgb: Uint8Array, step: int = 7) -> Uint8Array:
    """uint8 [3]: the colour of what lies under the ink."""
    paper: Uint8Array = np.median(rgb[::step, ::step].reshape(-1, 3), axis=0).astype(np.uint8)
    return paper


def _ink(rgb: Uint8Array, paper: Uint8Array | None = None) -> FloatArray:
    """float32 [H, W] in 0-1: the difference from the paper, most in any channel."""
    paper = _paper(rgb) if paper is None else paper
    difference = np.zeros(rgb.shape[:2], np.uint8)
    for channel in range(3):  # all at once, in wider numbers, takes six times as long
        values = rgb[:, :, channel]
        apart = np.maximum(values, paper[channel]) - np.minimum(values, paper[channel])
        np.maximum(difference, apart, out=difference)
    difference[difference <= MIN_CONTRAST] = 0
    return difference.astype(np.float32) / np.float32(255)


def _window(box: Box, shape: tuple[int, ...]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    left, top = min(max(0, int(x0)), shape[1]), min(max(0, int(y0)), shape[0])
    right, bottom = min(shape[1], int(np.ceil(x1))), min(shape[0], int(np.ceil(y1)))
    return slice(top, max(top, bottom)), slice(left, max(left, right))
