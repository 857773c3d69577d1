"""Text distance block by block, and reading order, for truth that comes in blocks.

In the manner of OmniDocBench's end-to-end text and order scores; written from their description,
not its official scorer, so numbers are close to its but not the same. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from ocr2cli.eval.metrics import fold, plain_text

# Two blocks further apart than this have nothing to do with each other.
MIN_SIMILARITY = 0.4

_DISPLAY_MATH = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]", re.DOTALL)
_HTML_TABLE = re.compile(r"<table.*?(?:</table>|\Z)", re.DOTALL | re.IGNORECASE)
_PIPE_TABLE = re.compile(r"(?:^[ \t]*\|.*\|[ \t]*$\n?){2,}", re.MULTILINE)


def block_scores(
    blocks: Sequence[str], ignored: Sequence[str], markdown: str
) -> tuple[float, float | None]:
    """(text distance 0-1, order distance 0-1 or None when no two blocks were found).

    blocks: the page's texts in reading order. ignored: texts whose match is left out. Formulas on
    lines of their own and tables of the output are left out too: other scores judge them.
    """
    truth = [fold(plain_text(text)) for text in (*blocks, *ignored)]
    output = _paragraphs(markdown)
    owner = _match(truth, output)
    texts = _joined(truth, output, owner)
    errors = total = 0
    for i in range(len(blocks)):
        errors += int(Levenshtein.distance(truth[i], texts[i]))
        total += max(len(truth[i]), len(texts[i]))
    stray = sum(len(text) for text, block in zip(output, owner, strict=True) if block is None)
    order = list(dict.fromkeys(b for b in owner if b is not None and b < len(blocks)))
    total += stray
    distance = (errors + stray) / total if total else 0.0
    return distance, order_distance(order)


def order_distance(order: Sequence[int]) -> float | None:
    """Moves needed to sort the blocks as found, over their number; None for fewer than two."""
    if len(order) < 2:
        return None
    return float(Levenshtein.normalized_distance(list(order), sorted(order)))


def _paragraphs(markdown: str) -> list[str]:
    text = _PIPE_TABLE.sub("\n\n", _HTML_TABLE.sub("\n\n", _DISPLAY_MATH.sub("\n\n", markdown)))
    # a heading is a block of its own even without a blank line after it
    text = re.sub(r"^(#{1,6} .*)$", r"\n\1\n", text, flags=re.MULTILINE)
    folded = (fold(plain_text(part)) for part in re.split(r"\n\s*\n", text))
    return [part for part in folded if part]


def _match(truth: Sequence[str], output: Sequence[str]) -> list[int | None]:
    """The truth block of each paragraph: best pairs first, then leftovers join a neighbour's."""
    owner: list[int | None] = [None] * len(output)
    if not truth or not output:
        return owner
    similarity = process.cdist(output, truth, scorer=Levenshtein.normalized_similarity)
    taken: set[int] = set()
    pairs = sorted(
        ((float(similarity[o, t]), o, t) for o in range(len(output)) for t in range(len(truth))),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    for score, o, t in pairs:
        if score >= MIN_SIMILARITY and owner[o] is None and t not in taken:
            owner[o] = t
            taken.add(t)
    _join_leftovers(truth, output, owner)
    return owner


def _join_leftovers(truth: Sequence[str], output: Sequence[str], owner: list[int | None]) -> None:
    """A paragraph cut in two by the output belongs to the block it brings closer."""
    for o in range(len(output)):
        if owner[o] is not None:
            continue
        best = 0
        for t in {owner[n] for n in (o - 1, o + 1) if 0 <= n < len(output)} - {None}:
            assert t is not None
            trial = [*owner]
            trial[o] = t
            now = _joined(truth, output, owner)[t]
            then = _joined(truth, output, trial)[t]
            gain = Levenshtein.distance(truth[t], now) - Levenshtein.distance(truth[t], then)
            if gain > best:
                best, owner[o] = gain, t


def _joined(truth: Sequence[str], output: Sequence[str], owner: Sequence[int | None]) -> list[str]:
    parts: list[list[str]] = [[] for _ in truth]
    for text, block in zip(output, owner, strict=True):
        if block is not None:
            parts[block].append(text)
    return [" ".join(part) for part in parts]
