"""Markdown -> HTML, as far as the model writes it: headings, lists, tables, formulas, code.

Everything is escaped first; only tags of an allow-list come back, with no attributes but spans.
Knows nothing about pages or images.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ocr2cli.output.markdown import OpenTags, page_text
from ocr2cli.text.markup import pipe_cells, safe_html, unescape

_HEADING = re.compile(r" {0,3}(#{1,6})\s+(\S.*)$")
# The model writes some of a list's bullets as they are printed.
_MARKS = "[-*+\u2022\u2023\u25aa\u25cf\u25e6]"
_ITEM = re.compile(rf"\s*(?:{_MARKS}|([0-9]{{1,9}})([.)]))(\s+)(?=\S)")
# Lists deeper inside each other are shown as text.
_MAX_DEPTH = 8
_FENCE = re.compile(r" {0,3}(?:`{3,}|~{3,})")
_ROW = re.compile(r"\s*\|.*\|\s*$")
_RULE_ROW = re.compile(r"\s*\|\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|\s*$")
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)[^<>]*>")
_BOLD = re.compile(r"\*\*(?=\S)(.{1,500}?)(?<=\S)\*\*")
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]{1,500}?)(?<=\S)\*(?![\w*])")
_ESCAPED_MARK = re.compile(r"^(?:\\(?=[#*+|`~_-]|&gt;)|([0-9]{1,9})\\(?=\.))", re.MULTILINE)
_FORMULA = re.compile(r"(\\\[.{1,2000}?\\\]|\\\(.{1,1000}?\\\))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Item:
    """number: None of a bullet. lines: as they would stand outside of the list."""

    number: int | None
    lines: list[str]


def text_html(markdown: str) -> str:
    """HTML of a block's text; every tag in it is closed in it."""
    return _nested("\n".join(_elements(page_text(markdown, {}).split("\n"))))


def _nested(text: str) -> str:
    """Tags in pairs, none crossing another: an open table would swallow the pages after it."""
    pieces, end = [], 0
    open_tags = OpenTags()
    for tag in _TAG.finditer(text):
        slash, name = tag.group(1), tag.group(2).lower()
        pieces.append(text[end : tag.start()])
        end = tag.end()
        if slash:
            pieces.append(open_tags.close(name))
        else:
            pieces.append(tag.group())
            if name != "br":
                open_tags.open(name)
    return "".join([*pieces, text[end:], open_tags.close_all()])


def _elements(lines: list[str], depth: int = 0) -> Iterator[str]:
    """Runs of lines of one kind, each as one element. depth: of the list that they stand in."""
    position = 0
    while position < len(lines):
        kind = _kind(lines[position])
        if kind == "list":
            items, position = _items(lines, position)
            yield _list(items, depth)
            continue
        end = _table_end(lines, position) if kind == "table" else position + 1
        while end < len(lines) and _goes_on(kind, lines, position, end):
            end += 1
        run = lines[position:end]
        if any(line.strip() for line in run):
            yield _MAKERS[kind](run)
        position = end


def _kind(line: str) -> str:
    if _FENCE.match(line):
        return "code"
    if "<table" in line.lower():
        return "table"
    if not line.strip():
        return "blank"
    for kind, pattern in (("heading", _HEADING), ("rows", _ROW), ("list", _ITEM)):
        if pattern.match(line):
            return kind
    return "paragraph"


def _goes_on(kind: str, lines: list[str], start: int, end: int) -> bool:
    """Whether line `end` belongs to the run that began at `start`."""
    if kind == "code":
        return end == start + 1 or not _FENCE.match(lines[end - 1])
    if kind == "paragraph" and (item := _ITEM.match(lines[end])):
        # As in CommonMark: a line of the paragraph may begin with the number of a year.
        return _number(item) not in (None, 1)
    return kind in ("paragraph", "rows") and _kind(lines[end]) == kind


def _table_end(lines: list[str], start: int) -> int:
    """Where the table that begins in line `start` has closed, and those inside it."""
    num_open = 0
    for position in range(start, len(lines)):
        line = lines[position].lower()
        num_open += line.count("<table") - line.count("</table")
        if num_open <= 0:
            return position + 1
    return len(lines)


def _heading(lines: list[str]) -> str:
    marks, text = _HEADING.findall(lines[0])[0]
    level = min(len(marks) + 2, 6)  # h1 and h2 are the document and the page
    return f"<h{level}>{_inline(text.rstrip().rstrip('#').rstrip())}</h{level}>"


def _code(lines: list[str]) -> str:
    body = lines[1:-1] if len(lines) > 1 and _FENCE.match(lines[-1]) else lines[1:]
    # References mean themselves in code, but for those that `neutralise` made of marks.
    text = "\n".join(body).replace("&lt;", "<").replace("&#33;", "!")
    return f"<pre>{html.escape(text, quote=False)}</pre>"


def _items(lines: list[str], start: int) -> tuple[list[_Item], int]:
    """The items of the list that begins in line `start`, and where it ends: as in CommonMark, but
    that it goes on whichever bullet follows."""
    items: list[_Item] = []
    mark, width, position = None, 0, start
    while position < len(lines):
        following = position
        while following < len(lines) and not lines[following].strip():
            following += 1
        if following == len(lines):
            break
        line = lines[following].expandtabs(4)
        item = _ITEM.match(line) if _kind(line) == "list" else None
        own = items[-1].lines if items else []
        if items and len(line) - len(line.lstrip(" ")) >= width:
            own += [""] * (following - position)
            own.append(line[width:])
        elif item and (not items or item[2] == mark):
            mark, num_spaces = item[2], len(item[3])
            width = item.end() - (num_spaces - 1 if num_spaces > 4 else 0)
            items.append(_Item(_number(item), [line[item.end() :]]))
        elif (
            following == position
            and _kind(line) == "paragraph"
            and _kind(own[-1]) in ("paragraph", "list")
        ):
            own.append(line)
        else:
            break
        position = following + 1
    return items, position


def _number(item: re.Match[str]) -> int | None:
    return int(item[1]) if item[1] else None


def _list(items: list[_Item], depth: int) -> str:
    expected = items[0].number
    tag = "ul" if expected is None else "ol"
    opening = tag if expected in (None, 1) else f'{tag} start="{expected}"'
    pieces = []
    for item in items:
        value = "" if item.number == expected else f' value="{item.number}"'
        pieces.append(f"<li{value}>{_item(item.lines, depth)}</li>")
        expected = None if item.number is None else item.number + 1
    return f"<{opening}>{''.join(pieces)}</{tag}>"


def _item(lines: list[str], depth: int) -> str:
    if depth == _MAX_DEPTH:
        return _inline("\n".join(lines))
    first, *others = _elements(lines, depth + 1)
    if _kind(lines[0]) == "paragraph":
        first = first.removeprefix("<p>").removesuffix("</p>")
    return "\n".join([first, *others])


def _rows(lines: list[str]) -> str:
    rows = []
    for line in lines:
        if not _RULE_ROW.match(line):
            rows.append("".join(f"<td>{_inline(cell)}</td>" for cell in pipe_cells(line)))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _paragraph(lines: list[str]) -> str:
    text = _inline("\n".join(lines))
    # A caption: a browser ends a paragraph before this tag.
    is_centred = text.startswith("<center>") and text.endswith("</center>")
    return text if is_centred else f"<p>{text}</p>"


def _inline(text: str) -> str:
    """Escaped text with emphasis; formulas as they are written, in a typewriter face."""
    pieces = _FORMULA.split(text)
    return "".join(
        _formula(piece) if index % 2 else _emphasis(piece) for index, piece in enumerate(pieces)
    )


def _formula(text: str) -> str:
    return f"<code>{html.escape(unescape(text), quote=False)}</code>"


def _emphasis(text: str) -> str:
    text = _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", safe_html(text)))
    return _ESCAPED_MARK.sub(r"\1", text)


_MAKERS: dict[str, Callable[[list[str]], str]] = {
    "heading": _heading,
    "code": _code,
    "rows": _rows,
    "table": lambda lines: _inline("\n".join(lines)),
    "paragraph": _paragraph,
}
