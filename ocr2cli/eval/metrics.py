"""Scores of one page's text against its truth, each defined in one sentence.

Knows nothing about models, files or limits. The aligned scores repeat llama.cpp's protocol
(tools/mtmd/tests/test-deepseek-ocr.py); the whole-page scores exist because the aligned ones
forgive everything around the best match, a repetition loop after a perfect page for example.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, fields
from functools import cache
from html import unescape
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz
from sacrebleu.metrics import CHRF

from ocr2cli.eval.tables import find_tables, page_teds


@dataclass(frozen=True, slots=True)
class Scores:
    """One page. None: does not apply (no table in the truth, truth covers a part of the page).

    cer, chrf: on the part of the output that matches the truth best (CER 0 is perfect and may
    exceed 1; chrF 0-100). whole_cer, whole_chrf: on the whole output. word_recall: share of the
    truth's words found in the output, order ignored, 0-1. length_ratio: characters of the output
    over characters of the truth. teds: 0-1. stopped: 1.0 when the decoder ended the page itself.
    order: reading order distance, 0 is perfect. block_distance: text distance block by block.
    facts: share of the page's facts that hold.
    """

    cer: float | None = None
    chrf: float | None = None
    whole_cer: float | None = None
    whole_chrf: float | None = None
    word_recall: float | None = None
    length_ratio: float | None = None
    teds: float | None = None
    stopped: float | None = None
    order: float | None = None
    block_distance: float | None = None
    facts: float | None = None

    def get(self, metric: str) -> float | None:
        value: float | None = getattr(self, metric)
        return value


METRICS = tuple(f.name for f in fields(Scores))

# Characters of either text up to which a page is aligned as in llama.cpp's test; letters of one
# times letters of the other above which a page is not aligned at all.
LONG = 4_000
MOST_CELLS = 10**9


def score_text(truth: str, output: str, *, covers_page: bool = True) -> Scores:
    """Scores of plain text. Both strings are normalised here; markup is the caller's to strip.

    covers_page: False when the truth is a part of the page only; the whole-page scores and the
    length ratio would then measure the truth and are left out.
    """
    expected, got = fold(truth), fold(output)
    span = align(expected, got)
    whole = covers_page
    return Scores(
        cer=cer(expected, span),
        chrf=chrf(expected, span),
        whole_cer=cer(expected, got) if whole else None,
        whole_chrf=chrf(expected, got) if whole else None,
        word_recall=word_recall(expected, got),
        length_ratio=length_ratio(expected, got),
    )


def fold(text: str) -> str:
    """NFC, every run of white space one space, ends stripped. Source: llama.cpp's test."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def align(expected: str, output: str) -> str:
    """The part of the output that matches best; all of it when nothing does.

    Up to LONG characters as llama.cpp's test has it (rapidfuzz's partial ratio). That takes minutes
    for longer texts: there it is the part with the fewest edits, and beyond MOST_CELLS all of it.
    """
    if max(len(expected), len(output)) > LONG:
        is_bearable = len(expected) * len(output) <= MOST_CELLS
        return _fewest_edits(expected, output) if expected and is_bearable else output
    found = fuzz.partial_ratio_alignment(expected, output)
    if found is None or found.dest_end <= found.dest_start:
        return output
    return output[found.dest_start : found.dest_end]


def _fewest_edits(expected: str, output: str) -> str:
    """Sellers' algorithm: where the best match ends, then backwards from there where it begins."""
    costs = _edits_by_end(expected, output, begins_anywhere=True)
    end = len(output) - int(costs[::-1].argmin())
    back = _edits_by_end(expected[::-1], output[:end][::-1], begins_anywhere=False)
    return output[end - int(back.argmin()) : end] or output


def _edits_by_end(query: str, text: str, *, begins_anywhere: bool) -> npt.NDArray[np.int32]:
    """Fewest edits from `query` to a stretch of `text`, by where it ends. A numpy row a letter."""
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    steps = np.arange(len(letters) + 1, dtype=np.int32)
    row = np.zeros_like(steps) if begins_anywhere else steps
    for i, letter in enumerate(query, start=1):
        new = np.empty_like(row)
        new[0] = i
        np.minimum(row[:-1] + (letters != ord(letter)), row[1:] + 1, out=new[1:])
        # an inserted character costs one more than its left neighbour: a running minimum
        row = np.minimum.accumulate(new - steps) + steps
    return row


def cer(expected: str, output: str) -> float:
    """Edits over truth length. Empty output is 1.0; empty truth is 0.0 or 1.0."""
    if not expected:
        return 1.0 if output else 0.0
    return float(jiwer.cer(expected, output))


def chrf(expected: str, output: str) -> float:
    """Character n-gram F score, 0-100, sacrebleu's defaults (order 6, words 0, beta 2)."""
    if not expected:
        return 0.0 if output else 100.0
    return float(_chrf_metric().sentence_score(output, [expected]).score)


def chrf_signature() -> str:
    """sacrebleu's signature of the settings above, to print beside every number."""
    _chrf_metric().sentence_score("a", ["a"])  # the signature wants a first score
    return str(_chrf_metric().get_signature())


def word_recall(expected: str, output: str) -> float:
    """Share of the truth's words that the output has, each as often as the truth; case ignored.

    A truth of punctuation alone is read (1.0) when the output has it.
    """
    wanted, got = Counter(_words(expected)), Counter(_words(output))
    total = sum(wanted.values())
    if not total:
        return float(expected in output)
    return sum(min(count, got[word]) for word, count in wanted.items()) / total


def length_ratio(expected: str, output: str) -> float:
    """Characters of the output over those of the truth; empty truth: 1.0 plus the output's."""
    if not expected:
        return 1.0 + len(output)
    return len(output) / len(expected)


def table_score(truth_markdown: str, output_markdown: str) -> float | None:
    """Mean TEDS of the page's tables; None when the truth has none."""
    truth = find_tables(truth_markdown)
    return page_teds(truth, find_tables(output_markdown)) if truth else None


def bootstrap_interval(values: list[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean, 2,000 resamples of the pages. values: at least one."""
    rng = np.random.default_rng(seed)
    data = np.asarray(values, dtype=np.float64)
    means = data[rng.integers(0, len(data), size=(2000, len(data)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


_GROUNDING = re.compile(r"<\|ref\|>.*?<\|/ref\|>\s*<\|det\|>.*?<\|/det\|>", re.DOTALL)
_GROUNDING_TAG = re.compile(r"<\|/?(?:ref|det|grounding)\|>")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Lengths are bounded: a page of nothing but opening marks must not take minutes.
_IMAGE = re.compile(r"!\[[^\]\n]{0,500}\]\([^)\n]{0,500}\)")
_LINK = re.compile(r"\[([^\]\n]{1,500})\]\([^)\n]{0,500}\)")
_CELL_END = re.compile(r"<br\s*/?>|</(?:td|th|tr|p|div|li|h[1-6])\s*>", re.IGNORECASE)
# Only tags that exist: "a < b and c > d" is text.
_TAG = re.compile(
    r"</?(?:table|thead|tbody|tfoot|tr|td|th|caption|colgroup|col|b|i|u|s|em|strong|sup|sub|span"
    r"|div|p|center|ul|ol|li|h[1-6]|code|pre|a|img|hr|br|figure|figcaption)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+)", re.MULTILINE)
# Within a line, each run of blanks with one place to match at: else many blank lines take minutes.
_RULE = re.compile(
    r"^[ \t]*(?:[-*_][ \t]*){3,}$|^[ \t]*(?:\|[ \t]*)?(?::?-{2,}:?[ \t]*\|[ \t]*)+.*$",
    re.MULTILINE,
)
_FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*\*|\*\*|__|~~|`)(?=\S)(.{1,1000}?)(?<=\S)\1")
# At the edges of words only: "2*3*4" and "snake_case_name" are text.
_ONE_STAR = re.compile(r"(?<!\w)\*(?=\S)(.{1,1000}?)(?<=\S)\*(?!\w)")
_UNDERSCORE = re.compile(r"(?<!\w)_(?=\S)([^_\n]+?)(?<=\S)_(?!\w)")
_MATH = re.compile(r"\\[()\[\]]|\$\$")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|<>~$])")


def plain_text(markdown: str) -> str:
    """What a reader sees: grounding tags, HTML and markdown marks removed, text kept.

    Table cells are separated by spaces; image links vanish with their names; entities are read.
    """
    text = _GROUNDING.sub("", markdown)
    text = _GROUNDING_TAG.sub("", text)
    for pattern, kept in (
        (_COMMENT, " "),
        (_FENCE, ""),
        (_RULE, ""),
        (_IMAGE, " "),
        (_LINK, r"\1"),
    ):
        text = pattern.sub(kept, text)
    text = _CELL_END.sub(" ", text)
    text = _TAG.sub("", text)
    text = _LINE_MARK.sub("", text)
    text = _pipes(text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _ONE_STAR.sub(r"\1", text)
    text = _UNDERSCORE.sub(r"\1", text)
    text = _MATH.sub(" ", text)
    return unescape(_ESCAPE.sub(r"\1", text))


def _pipes(text: str) -> str:
    """Markdown table rows lose their bars; a bar inside a sentence stays."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if line.lstrip().startswith("|") and line.rstrip().endswith("|"):
            lines[i] = re.sub(r"(?<!\\)\|", " ", line)
    return "\n".join(lines)


# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def _words(text: str) -> list[str]:
    """Between white space and punctuation; symbols and letters of unspaced scripts one by one.

    A mark (an accent, a vowel sign) belongs to the letter before it.
    """
    words: list[str] = []
    is_open = False  # the next letter goes on with the last word
    for character in text.casefold():
        kind = unicodedata.category(character)
        if kind[0] == "M" and words:
            words[-1] += character
        elif kind[0] == "S" or _UNSPACED.match(character):
            words.append(character)
            is_open = False
        elif kind[0] in "PZ" or kind == "Cc":
            is_open = False
        elif kind != "Cf":  # nobody sees a joiner
            if is_open:
                words[-1] += character
            else:
                words.append(character)
            is_open = True
    return words


@cache
def _chrf_metric() -> Any:
    return CHRF()
