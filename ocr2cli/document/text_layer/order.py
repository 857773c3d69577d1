"""Is the file's order of characters one that can be read? Knows nothing about pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ocr2cli.document.text_layer.nouns import TextCharacter


def order_fault(written: Sequence[TextCharacter], text: str) -> str:
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
