"""Lines of a text layer, with their places, as paragraphs for a reader. Their order is the file's.

Knows nothing about PDF or markdown, but that two spaces at its end keep a line from flowing into
the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

BREAK = "  \n"
_FLOW = "\n"
_LINE_ENDS = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]+")
# Shapes of letters, not letters: "file" is to be found.
_LIGATURES = str.maketrans(
    {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl",
     "\ufb05": "st", "\ufb06": "st"}
)  # fmt: skip
_SOFT_HYPHEN = "\u00ad"

Area = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class LayerLine:
    """box: (x0, y0, x1, y1) on the page as it is shown. size: of its type. is_level: it runs from
    left to right there."""

    text: str
    box: Area
    size: float = 0.0
    is_bold: bool = False
    is_level: bool = True


@dataclass(frozen=True, slots=True)
class Paragraph:
    """text: lines as printed, none of them empty. box: around them."""

    text: str
    box: Area


def paragraphs(block: Iterable[LayerLine]) -> Iterator[Paragraph]:
    """Paragraphs of a block. A line that ends early, though there was room for the next word,
    keeps its end; a short one in another type is a heading."""
    lines = [line for line in block if line.text.strip()]
    if not lines:
        return
    right = max(line.box[2] for line in lines)
    joints = [_joint(line, following, right) for line, following in pairwise(lines)]
    ends = [joint for joint in joints if joint in (BREAK, _FLOW)]
    is_table = any(
        joint == " " and following.box[0] - line.box[2] > 1.5 * (line.box[3] - line.box[1])
        for joint, line, following in zip(joints, lines, lines[1:], strict=False)
    )
    # Of code and lists, the longest line alone has no room left.
    if is_table or 2 * ends.count(BREAK) >= len(ends):
        joints = [BREAK if joint == _FLOW else joint for joint in joints]
    start = 0
    for index in range(1, len(lines) + 1):
        if index == len(lines) or (
            joints[index - 1] == BREAK and _is_other_type(lines[index - 1], lines[index])
        ):
            yield _paragraph(lines[start:index], joints[start : index - 1])
            start = index


def _joint(line: LayerLine, following: LayerLine, right: float) -> str:
    """What stands between two lines: nothing after a soft hyphen, a space in a row of a table."""
    if line.text.rstrip().endswith(_SOFT_HYPHEN):
        return ""
    if not (line.is_level and following.is_level):
        return BREAK
    _, top, end, bottom = line.box
    start, next_top, next_end, next_bottom = following.box
    height = min(bottom - top, next_bottom - next_top)
    if min(bottom, next_bottom) - max(top, next_top) > 0.5 * height and start > end - height:
        return " "
    text = following.text.strip()
    word = (next_end - start) * len(text.split(maxsplit=1)[0]) / len(text)
    return BREAK if end + 1.1 * word + 0.5 * height < right else _FLOW


def _is_other_type(line: LayerLine, following: LayerLine) -> bool:
    smaller, larger = sorted((line.size, following.size))
    return line.is_bold != following.is_bold or larger > 1.15 * smaller


def _paragraph(lines: Sequence[LayerLine], joints: Sequence[str]) -> Paragraph:
    pieces = []
    for line, joint in zip(lines, (*joints, "\n"), strict=True):
        text = _LINE_ENDS.sub(" ", line.text.strip()).translate(_LIGATURES)
        pieces += [text.rstrip(_SOFT_HYPHEN) if not joint else text, joint]
    left, top, right, bottom = zip(*(line.box for line in lines), strict=True)
    return Paragraph("".join(pieces[:-1]), (min(left), min(top), max(right), max(bottom)))
