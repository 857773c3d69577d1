"""Tables in model text: HTML and markdown to grids of cells, and TEDS between two tables.

Knows nothing about suites or gates. TEDS is the tree edit distance similarity of Zhong et al.,
"Image-based table recognition: data, model, and evaluation" (2020), on normalised cell text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any

from rapidfuzz.distance import Levenshtein

from ocr2cli.errors import UsageError, extra_hint
from ocr2cli.text.markup import pipe_cells

# A span that lies (rowspan="99999") must not make a grid of a million cells.
MAX_SPAN = 100
# The distance takes time and memory with the square of this: a table that loops to the token limit
# must not take minutes.
MAX_NODES = 800

_MARKDOWN_RULE = re.compile(r"^\s*(?:\|\s*)?:?-+:?\s*(?:\|\s*:?-+:?\s*)*(?:\|\s*)?$")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell as written. is_heading: `<th>`, or the first row of a markdown table."""

    text: str
    rowspan: int = 1
    colspan: int = 1
    is_heading: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells in writing order; a spanning cell stands once, where it begins."""

    rows: tuple[tuple[Cell, ...], ...]

    def grid(self) -> list[list[str | None]]:
        """Rectangular grid of texts; a spanning cell fills every place it covers; None: no cell."""
        places: dict[tuple[int, int], str] = {}
        for r, row in enumerate(self.rows):
            c = 0
            for cell in row:
                while (r, c) in places:
                    c += 1
                for dr in range(cell.rowspan):
                    for dc in range(cell.colspan):
                        places.setdefault((r + dr, c + dc), cell.text)
                c += cell.colspan
        num_rows = len(self.rows)
        num_columns = 1 + max((c for _, c in places), default=-1)
        return [[places.get((r, c)) for c in range(num_columns)] for r in range(num_rows)]


def find_tables(text: str) -> list[Table]:
    """Every HTML table of the text, then every markdown table, each kind in text order."""
    return _html_tables(text) + _markdown_tables(text)


def teds(truth: Table, output: Table) -> float:
    """1.0: same structure and text; 0.0: nothing in common.

    Raises: UsageError when the package `apted` is not installed.
    """
    try:
        from apted import APTED, Config
    except ImportError as error:
        raise UsageError(f"TEDS needs the package apted. {extra_hint('tables')}") from error

    class Costs(Config):  # type: ignore[misc]
        def rename(self, node1: _Node, node2: _Node) -> float:
            return node1.distance(node2)

        def children(self, node: _Node) -> Sequence[_Node]:
            return node.children

    a, b = _tree(truth), _tree(output)
    size = max(a.size, b.size)
    # rows beyond the limit are not compared but counted as wrong
    beyond = max(_cut_rows(a), _cut_rows(b))
    distance = beyond + float(APTED(a, b, Costs()).compute_edit_distance())
    return max(0.0, 1.0 - distance / size)


def page_teds(truth: Sequence[Table], output: Sequence[Table]) -> float | None:
    """Mean TEDS over the truth's tables, each against its best unused table of the output.

    A truth table that finds none scores 0. None when the truth has no table.
    """
    if not truth:
        return None
    unused = list(output)
    total = 0.0
    for table in truth:
        scores = [teds(table, other) for other in unused]
        if not scores:
            break
        best = max(range(len(scores)), key=scores.__getitem__)
        total += scores[best]
        unused.pop(best)
    return total / len(truth)


@dataclass(slots=True)
class _Node:
    """A tree of table > row > cell, as the distance sees it."""

    tag: str
    text: str = ""
    spans: tuple[int, int] = (1, 1)
    children: list[_Node] = field(default_factory=list)

    @property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)

    def distance(self, other: _Node) -> float:
        if self.tag != other.tag or self.spans != other.spans:
            return 1.0
        if self.tag != "td":
            return 0.0
        return float(Levenshtein.normalized_distance(self.text, other.text))


def _tree(table: Table) -> _Node:
    # Heading cells count as cells: whether a model writes <th> or <td> is style, not structure.
    rows = [
        _Node("tr", children=[_Node("td", c.text, (c.rowspan, c.colspan)) for c in row])
        for row in table.rows
    ]
    return _Node("table", children=rows)


def _cut_rows(tree: _Node) -> int:
    """Drop rows from the end until MAX_NODES are left; returns how many nodes went."""
    excess = tree.size - MAX_NODES
    dropped = 0
    while dropped < excess and tree.children:
        dropped += tree.children.pop().size
    return dropped


class _TableParser(HTMLParser):
    """Collects tables; unclosed rows and cells end where the next one begins."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[Table] = []
        self._rows: list[list[Cell]] | None = None
        self._cell: list[str] | None = None
        self._cell_of: tuple[int, int, bool] = (1, 1, False)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.end_table()
            self._rows = []
        elif tag == "tr" and self._rows is not None:
            self._end_cell()
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._end_cell()
            if not self._rows:
                self._rows.append([])
            spans = dict(attrs)
            self._cell = []
            self._cell_of = (_span(spans, "rowspan"), _span(spans, "colspan"), tag == "th")
        elif tag == "br" and self._cell is not None:
            self._cell.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr"):
            self._end_cell()
        elif tag == "table":
            self.end_table()

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def end_table(self) -> None:
        self._end_cell()
        if self._rows is not None:
            rows = tuple(tuple(row) for row in self._rows if row)
            if rows:
                self.tables.append(Table(rows))
        self._rows = None

    def _end_cell(self) -> None:
        if self._cell is not None and self._rows:
            self._rows[-1].append(Cell(_fold("".join(self._cell)), *self._cell_of))
        self._cell = None


def _html_tables(text: str) -> list[Table]:
    parser = _TableParser()
    parser.feed(text)
    parser.close()
    parser.end_table()
    return parser.tables


def _markdown_tables(text: str) -> list[Table]:
    tables: list[Table] = []
    lines = text.splitlines()
    i = 1
    while i < len(lines):
        if "|" not in lines[i - 1] or "|" not in lines[i] or not _MARKDOWN_RULE.match(lines[i]):
            i += 1
            continue
        rows = [tuple(Cell(t, is_heading=True) for t in _pipe_cells(lines[i - 1]))]
        i += 1
        while i < len(lines) and "|" in lines[i]:
            rows.append(tuple(Cell(t) for t in _pipe_cells(lines[i])))
            i += 1
        tables.append(Table(tuple(rows)))
        i += 1
    return tables


def _pipe_cells(line: str) -> list[str]:
    return [_fold(unescape(cell)) for cell in pipe_cells(line)]


def _span(attributes: dict[str, Any], name: str) -> int:
    value = attributes.get(name) or "1"
    return min(max(int(value), 1), MAX_SPAN) if str(value).isdecimal() else 1


def _fold(text: str) -> str:
    return " ".join(text.split())
