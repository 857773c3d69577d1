"""Two texts as one line of equal, missing and added stretches, word by word, then in HTML.

Knows nothing about pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True, slots=True)
class Stretch:
    """kind: "equal", "missing" (in the truth only) or "added" (in the output only)."""

    kind: str
    text: str


def diff_words(truth: str, output: str) -> list[Stretch]:
    """Stretches in reading order; white space travels with the word before it.

    Words that differ in a few characters are compared inside, so that one wrong letter shows
    as one wrong letter.
    """
    a, b = _split(truth), _split(output)
    stretches: list[Stretch] = []
    for op in Levenshtein.opcodes([w.strip() for w in a], [w.strip() for w in b]):
        left, right = a[op.src_start : op.src_end], b[op.dest_start : op.dest_end]
        if op.tag == "equal":
            # the last word of a text has no space after it: keep the other text's
            words = [max(pair, key=len) for pair in zip(left, right, strict=True)]
            stretches.append(Stretch("equal", "".join(words)))
        elif op.tag == "replace":
            for x, y in zip(left, right, strict=True):
                stretches += _diff_word(x, y)
        else:
            kind, words = ("missing", left) if op.tag == "delete" else ("added", right)
            stretches.append(Stretch(kind, "".join(words)))
    return _joined(stretches)


def diff_html(truth: str, output: str) -> str:
    """The stretches with <del> for missing and <ins> for added text, everything escaped."""
    tags = {"equal": ("", ""), "missing": ("<del>", "</del>"), "added": ("<ins>", "</ins>")}
    parts = []
    for stretch in diff_words(truth, output):
        before, after = tags[stretch.kind]
        parts.append(f"{before}{escape(stretch.text)}{after}")
    return "".join(parts)


def _diff_word(truth: str, output: str) -> list[Stretch]:
    if Levenshtein.normalized_similarity(truth, output) < 0.5:
        return [Stretch("missing", truth), Stretch("added", output)]
    stretches = []
    for op in Levenshtein.opcodes(truth, output):
        left, right = truth[op.src_start : op.src_end], output[op.dest_start : op.dest_end]
        if op.tag == "equal":
            stretches.append(Stretch("equal", right))
            continue
        stretches += [Stretch("missing", left)] if left else []
        stretches += [Stretch("added", right)] if right else []
    return stretches


def _joined(stretches: list[Stretch]) -> list[Stretch]:
    joined: list[Stretch] = []
    for stretch in stretches:
        if joined and joined[-1].kind == stretch.kind:
            joined[-1] = Stretch(stretch.kind, joined[-1].text + stretch.text)
        elif stretch.text:
            joined.append(stretch)
    return joined


def _split(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text.lstrip())
