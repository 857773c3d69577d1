"""Statements about a page that hold or do not: present, absent, order, cells, formula, sound text.

Knows nothing about where a fact was written down. A fact never raises on model text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ocr2cli.eval.metrics import plain_text
from ocr2cli.eval.tables import Table, find_tables

_ASCII = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        "\u00b5": "\u03bc",  # micro sign to Greek mu
        "\u00a0": " ",
    }
)


@dataclass(frozen=True, slots=True)
class Present:
    """`text` stands on the page with at most `max_edits` changed characters.

    first_n, last_n: look only at so many characters of the page's start and end; 0: everywhere.
    """

    text: str
    max_edits: int = 0
    first_n: int = 0
    last_n: int = 0
    is_case_sensitive: bool = True


@dataclass(frozen=True, slots=True)
class Absent:
    """The opposite of `Present`, same fields: a header, a page number, invented text."""

    text: str
    max_edits: int = 0
    first_n: int = 0
    last_n: int = 0
    is_case_sensitive: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """`before` begins somewhere before a place where `after` begins."""

    before: str
    after: str
    max_edits: int = 0


@dataclass(frozen=True, slots=True)
class CellIs:
    """A table holds `cell`, and the texts next to it are as said; empty: not asked.

    up, down, left, right: the neighbour. top_heading, left_heading: some heading cell above it
    in its column, left of it in its row (the outermost one where none is marked as a heading).
    """

    cell: str
    up: str = ""
    down: str = ""
    left: str = ""
    right: str = ""
    top_heading: str = ""
    left_heading: str = ""
    max_edits: int = 0


@dataclass(frozen=True, slots=True)
class Formula:
    """The page holds this LaTeX, compared as source: spaces, braces and styling are ignored."""

    latex: str


@dataclass(frozen=True, slots=True)
class Sound:
    """The page has text, does not end in a loop, and holds no script it cannot hold.

    max_length: at most so many letters and digits (a page known to be blank); -1: not asked.
    max_repeats: how often the last 1 to 5 characters may repeat at the end.
    """

    max_length: int = -1
    max_repeats: int = 30
    allows_cjk: bool = False


Fact = Present | Absent | Order | CellIs | Formula | Sound


@dataclass(frozen=True, slots=True)
class FactResult:
    """holds: the verdict. why: one line, empty when it holds."""

    id: str
    holds: bool
    why: str = ""


def check_fact(fact: Fact, markdown: str) -> str:
    """Why the fact does not hold on this page, or "" when it does."""
    match fact:
        case Present():
            return "" if _is_there(fact, markdown) else f"{_quote(fact.text)} is not on the page"
        case Absent():
            return f"{_quote(fact.text)} is on the page" if _is_there(fact, markdown) else ""
        case Order():
            return _check_order(fact, markdown)
        case CellIs():
            return _check_cell(fact, markdown)
        case Formula():
            return _check_formula(fact, markdown)
        case Sound():
            return _check_sound(fact, markdown)


def normalise(text: str) -> str:
    """NFC, white space folded, quotes, hyphens and dashes as ASCII."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_ASCII).split())


def match_starts(query: str, text: str, max_edits: int) -> list[int]:
    """Every index at which a stretch of `text` within `max_edits` edits of `query` begins.

    Sellers' algorithm on both strings reversed, one numpy row a query character.
    """
    if not query:
        return []
    if max_edits <= 0:
        found, at = [], text.find(query)
        while at >= 0:
            found.append(at)
            at = text.find(query, at + 1)
        return found
    letters = np.frombuffer(text[::-1].encode("utf-32-le"), dtype=np.uint32)
    steps = np.arange(len(letters) + 1, dtype=np.int64)
    row = np.zeros(len(letters) + 1, dtype=np.int64)  # a match may begin anywhere at no cost
    for i, letter in enumerate(reversed(query)):
        new = np.empty_like(row)
        new[0] = i + 1
        new[1:] = np.minimum(row[:-1] + (letters != ord(letter)), row[1:] + 1)
        # an inserted character costs one more than its left neighbour: a running minimum
        row = np.minimum.accumulate(new - steps) + steps
    ends = np.flatnonzero(row <= max_edits)
    return sorted(int(len(letters) - end) for end in ends if end > 0)


def _is_there(fact: Present | Absent, markdown: str) -> bool:
    return any(_is_in(fact, text) for text in _pages(markdown, fact.text))


def _pages(markdown: str, *queries: str) -> list[str]:
    """The page's text to look in; also as it was written, for what reads like markup ("- milk")."""
    pages = [normalise(plain_text(markdown))]
    if any(normalise(plain_text(query)) != normalise(query) for query in queries):
        pages.append(normalise(markdown))
    return pages


def _is_in(fact: Present | Absent, text: str) -> bool:
    query = normalise(fact.text)
    if not fact.is_case_sensitive:
        query, text = query.casefold(), text.casefold()
    if fact.first_n or fact.last_n:
        head = text[: fact.first_n] if fact.first_n else ""
        tail = text[-fact.last_n :] if fact.last_n else ""
        return bool(_starts(query, head, fact) or _starts(query, tail, fact))
    return bool(_starts(query, text, fact))


def _starts(query: str, text: str, fact: Present | Absent) -> list[int]:
    # An allowance as long as the query would find it everywhere.
    return match_starts(query, text, min(fact.max_edits, len(query) - 1))


def _check_order(fact: Order, markdown: str) -> str:
    tried = [_order_in(fact, text) for text in _pages(markdown, fact.before, fact.after)]
    return min(tried, key=bool)  # a way in which it holds, if there is one


def _order_in(fact: Order, text: str) -> str:
    before = match_starts(normalise(fact.before), text, fact.max_edits)
    after = match_starts(normalise(fact.after), text, fact.max_edits)
    if not before:
        return f"{_quote(fact.before)} is not on the page"
    if not after:
        return f"{_quote(fact.after)} is not on the page"
    if before[0] < after[-1]:
        return ""
    return f"{_quote(fact.before)} does not come before {_quote(fact.after)}"


def _check_cell(fact: CellIs, markdown: str) -> str:
    tables = find_tables(markdown)
    if not tables:
        return "there is no table on the page"
    complaint = f"no cell reads {_quote(fact.cell)}"
    for table in tables:
        grid = table.grid()
        headings = _heading_texts(table)
        for r, row in enumerate(grid):
            for c, text in enumerate(row):
                if text is None or not _same_cell(fact.cell, text, fact.max_edits):
                    continue
                wrong = _wrong_neighbour(fact, grid, headings, r, c)
                if not wrong:
                    return ""
                complaint = wrong
    return complaint


def _wrong_neighbour(
    fact: CellIs, grid: list[list[str | None]], headings: set[str], r: int, c: int
) -> str:
    column = [row[c] for row in grid]
    asked: tuple[tuple[str, str, Callable[[], list[str | None]]], ...] = (
        ("above", fact.up, lambda: _next_different(column[:r][::-1], grid[r][c])),
        ("below", fact.down, lambda: _next_different(column[r + 1 :], grid[r][c])),
        ("left of", fact.left, lambda: _next_different(grid[r][:c][::-1], grid[r][c])),
        ("right of", fact.right, lambda: _next_different(grid[r][c + 1 :], grid[r][c])),
        ("heading", fact.top_heading, lambda: _headings(column[:r], headings)),
        ("heading", fact.left_heading, lambda: _headings(grid[r][:c], headings)),
    )
    for word, expected, candidates in asked:
        if not expected:
            continue
        found = [text for text in candidates() if text is not None]
        if not any(_same_cell(expected, text, fact.max_edits) for text in found):
            seen = f", found {_quote(found[0])}" if found else ", found nothing"
            return f"{_quote(expected)} is not {word} {_quote(fact.cell)}{seen}"
    return ""


def _next_different(line: list[str | None], own: str | None) -> list[str | None]:
    """The neighbour in a line of the grid; a spanning cell repeats, so step over its copies."""
    neighbour = line[:1]
    beyond = next((text for text in line if text != own), None)
    return [*neighbour, beyond]


def _headings(line: list[str | None], headings: set[str]) -> list[str | None]:
    marked = [text for text in line if text in headings]
    outermost = next((text for text in line if text), None)
    return [*marked, outermost]


def _heading_texts(table: Table) -> set[str]:
    return {cell.text for row in table.rows for cell in row if cell.is_heading}


def _same_cell(expected: str, text: str, max_edits: int) -> bool:
    from rapidfuzz.distance import Levenshtein

    a, b = normalise(plain_text(expected)), normalise(plain_text(text))
    return int(Levenshtein.distance(a, b)) <= min(max_edits, max(len(a) - 1, 0))


_FORMULAS = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$([^$\n]+?)\$", re.DOTALL
)
_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|limits|nolimits|left|right|[bB]ig[glrm]?|,|;|:|!|quad|qquad"
    r"|mathrm|mathit|operatorname|text|rm|ensuremath)(?![A-Za-z])|[{}\s~]|\\ "
)


def _check_formula(fact: Formula, markdown: str) -> str:
    wanted = canonical_latex(fact.latex)
    for groups in _FORMULAS.findall(markdown):
        if wanted and wanted in canonical_latex("".join(groups)):
            return ""
    return f"the formula {_quote(fact.latex)} is not on the page"


def canonical_latex(latex: str) -> str:
    """LaTeX without what does not change the formula: spaces, braces, sizes, fonts."""
    text = latex.strip().strip("$")
    text = re.sub(r"\\(le|ge|ne)q(?![A-Za-z])", r"\\\1", text)
    text = re.sub(r"\\to(?![A-Za-z])", r"\\rightarrow", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    return _STYLE.sub("", text)


_CJK = re.compile("[\u3040-\u30ff\u4e00-\u9fff\U0001f300-\U0001f64f\U0001f680-\U0001f6ff]")


def _check_sound(fact: Sound, markdown: str) -> str:
    letters = sum(character.isalnum() for character in plain_text(markdown))
    if fact.max_length >= 0:
        is_short = letters <= fact.max_length
        return "" if is_short else f"{letters} letters on a page that should be blank"
    if not letters:
        return "the page has no text"
    repeats = end_repeats(markdown)
    if repeats > fact.max_repeats:
        return f"the page ends in {repeats} repeats of the same characters"
    if not fact.allows_cjk and (strange := _CJK.search(markdown)):
        return f"the page holds {strange.group()!r}, a script it cannot hold"
    return ""


def end_repeats(text: str, max_period: int = 5) -> int:
    """How often the last 1 to `max_period` characters stand in a row at the end of the text."""
    text = text.rstrip()
    best = 0
    for period in range(1, min(max_period, len(text)) + 1):
        tail, count = text[-period:], 0
        while text[: len(text) - count * period].endswith(tail):
            count += 1
        best = max(best, count)
    return best


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return f'"{text[:57]}..."' if len(text) > 60 else f'"{text}"'
