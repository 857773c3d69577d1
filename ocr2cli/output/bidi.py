"""Right-to-left writing: which lines are written so, and their letters from left to right.

Knows nothing about pages or formats.

Source: Unicode Standard Annex 9, rules W1-W7, N1-N2, I1-I2, L2 and L4, for lines without marks of
embedding; the brackets of a pair are not looked at together (N0).
"""

from __future__ import annotations

import re
import unicodedata

# One letter for each class that the rules name; the rest are neutral (O).
_CLASSES = {
    "L": "L", "R": "R", "AL": "A", "NSM": "M",
    "EN": "E", "AN": "N", "ES": "S", "CS": "C", "ET": "T",
}  # fmt: skip
_MIRRORED = str.maketrans("()[]{}<>\u00ab\u00bb\u2039\u203a", ")(][}{><\u00bb\u00ab\u203a\u2039")
_LEVELS = {"L": str.maketrans("LREN", "0122"), "R": str.maketrans("LREN", "2122")}


def is_rtl(text: str) -> bool:
    """Whether most of the letters are of a script that runs from right to left. The first letter
    would not tell: a line of a paragraph may begin with a foreign word."""
    if text.isascii():
        return False
    classes = _classes(text)
    return classes.count("R") + classes.count("A") > classes.count("L")


def visual(text: str) -> str:
    """The characters of a line as they stand on paper, from left to right."""
    if text.isascii() or not re.search("[RA]", _classes(text)):
        return text
    levels = _levels(_classes(text), "R" if is_rtl(text) else "L")
    chars = [
        char.translate(_MIRRORED) if level == "1" else char
        for char, level in zip(text, levels, strict=True)
    ]
    for runs in ("2+", "[12]+"):
        for run in re.finditer(runs, levels):
            chars[run.start() : run.end()] = chars[run.start() : run.end()][::-1]
    return "".join(chars)


def _classes(text: str) -> str:
    return "".join(_CLASSES.get(unicodedata.bidirectional(char), "O") for char in text)


def _levels(classes: str, base: str) -> str:
    """0: left to right; 1: right to left; 2: left to right inside 1. base: L or R, the line's."""
    classes = base + classes + base  # what is taken to stand before and after a line
    classes = re.sub("([^M])(M+)", lambda run: run[1] * len(run[0]), classes)
    classes = re.sub("A[^LR]*", lambda run: run[0].replace("E", "N"), classes).replace("A", "R")
    classes = re.sub("(?<=N)C(?=N)", "N", re.sub("(?<=E)[SC](?=E)", "E", classes))
    classes = re.sub("(?<=E)T+|(?<!T)T+(?=E)", lambda run: "E" * len(run[0]), classes)
    classes = re.sub("[SCT]", "O", classes)
    classes = re.sub("L[^R]*", lambda run: run[0].replace("E", "L"), classes)

    def resolved(run: re.Match[str]) -> str:
        before, after = (
            side if side == "L" else "R" for side in (classes[run.start() - 1], classes[run.end()])
        )
        return (before if before == after else base) * len(run[0])

    return re.sub("O+", resolved, classes)[1:-1].translate(_LEVELS[base])
