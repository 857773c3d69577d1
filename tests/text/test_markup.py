"""Page text shows as text: it loads nothing and runs nothing."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr2cli.output.html_text import text_html
from ocr2cli.output.plain import plain_lines
from ocr2cli.text.markup import literal, neutralise, pipe_cells, safe_html, without_tags

TABLE = '<table><tr><td rowspan="2">a &amp; b</td><td colspan=3>1 < 2</td></tr></table>'


@pytest.mark.parametrize(
    "text",
    [TABLE, "a<b and c>d", "x < y", "\\( a<b \\)", "<b>bold</b>", "[link](x.html)", "n!"],
)
def test_tables_formulas_and_plain_signs_stay_untouched(text: str) -> None:
    assert neutralise(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![x](/etc/passwd)", "&#33;[x](/etc/passwd)"),
        ("\\![x](y)", "\\&#33;[x](y)"),
        ("![x][1]\n\n[1]: file:///y", "&#33;[x][1]\n\n[1]: file:///y"),
        ("<img src=x>", "&lt;img src=x>"),
        ("<IMG\nsrc=x>", "&lt;IMG\nsrc=x>"),
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("<iframe src='//x'", "&lt;iframe src='//x'"),
        ("<td onclick=x>", "&lt;td onclick=x>"),
        ("<td style='background:url(x)'>", "&lt;td style='background:url(x)'>"),
        ("<td a=<b onclick=x>", "&lt;td a=&lt;b onclick=x>"),
        ('<td title=">" onclick=x>', '&lt;td title=">" onclick=x>'),
        ("<a href=javascript:x>", "&lt;a href=javascript:x>"),
        ("<!-- page: 9 -->", "&lt;!-- page: 9 -->"),
        ("<?xml", "&lt;?xml"),
    ],
)
def test_what_would_load_or_run_becomes_text(text: str, expected: str) -> None:
    assert neutralise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![](http://x/y.png)", "&#33;[](http://x/y.png)"),
        ("vector<int> v; <b>, </table> and <!-- page: 9 -->",
         "vector&lt;int> v; &lt;b>, &lt;/table> and &lt;!-- page: 9 -->"),
        ("&lt; is written for <", "&amp;lt; is written for <"),
        ("if (a < b && c <= d) x = y->z & R&D;", "if (a < b && c <= d) x = y->z & R&D;"),
        ("2 * 3 * 4 is __init__, `x_y`!", "2 * 3 * 4 is __init__, `x_y`!"),
        ("-5, *a*, #tag, 3.14\n1987 was\n=> x\n: y", "-5, *a*, #tag, 3.14\n1987 was\n=> x\n: y"),
    ],
)  # fmt: skip
def test_plain_text_becomes_markdown_that_shows_all_of_it(text: str, expected: str) -> None:
    assert literal(text) == expected
    assert without_tags(expected) == text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("# horizontal line", "\\# horizontal line"),
        ("> quoted", "\\> quoted"),
        ("- a", "\\- a"),
        ("+ b", "\\+ b"),
        ("* c", "\\* c"),
        ("1. one", "1\\. one"),
        ("12) twelve", "12&#41; twelve"),
        ("```", "\\```"),
        ("~~~", "\\~~~"),
        ("| a | b |", "\\| a | b |"),
        ("---|---", "\\---|---"),
        ("* * *", "\\* * *"),
        ("_ _ _", "\\_ _ _"),
        ("====", "&#61;==="),
        (":--|--:", "&#58;--|--:"),
    ],
)
def test_no_line_of_plain_text_begins_a_heading_a_list_or_a_table(line: str, expected: str) -> None:
    assert literal(line) == expected
    assert literal(f"a\n{line}\nb") == f"a\n{expected}\nb"
    (words,) = plain_lines(literal(line))
    assert words.split() == line.replace("|", " ").split()
    shown = text_html(literal(f"a\n{line}"))
    assert shown == f"<p>a\n{html.escape(line)}</p>"


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ("| a | b |", ["a", "b"]),
        ("| | b | |", ["", "b", ""]),
        ("|||", ["", ""]),
        (r"| a \| b | c |", ["a | b", "c"]),
        (r"a | b \|", ["a", "b |"]),
        ("  a|b  ", ["a", "b"]),
        ("|", [""]),
    ],
)
def test_a_row_between_pipes_keeps_its_empty_cells_and_its_pipes(
    line: str, cells: list[str]
) -> None:
    assert pipe_cells(line) == cells


def test_safe_html_keeps_tables_and_escapes_the_rest() -> None:
    assert safe_html('<table><tr><td rowspan="2">1 < 2</td></tr></table>') == (
        '<table><tr><td rowspan="2">1 &lt; 2</td></tr></table>'
    )
    assert safe_html("<center>Figure 1</center>") == "<center>Figure 1</center>"
    assert safe_html("<td onclick=x>&<br/>") == "&lt;td onclick=x&gt;&amp;<br/>"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


SIGNS = ("<", ">", "=", '"', "'", "/", "\n", " ", "&lt;", "&gt;", "<!--")
WORDS = ("img", "td", "script", "x", "2", "table", "style", "src", " onclick", " rowspan")
PIECES = st.sampled_from((*SIGNS, *WORDS, "<td", "<img"))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_browser_finds_only_allowed_tags_in_safe_html(text: str) -> None:
    parser = _Tags()
    parser.feed(safe_html(text))
    parser.close()
    for tag, attributes in parser.found:
        assert tag in ("td", "table", "s")
        assert {name for name, _ in attributes} <= {"rowspan", "colspan"}


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_browser_finds_no_active_tag_in_neutralised_text(text: str) -> None:
    parser = _Tags()
    parser.feed(neutralise(text))
    parser.close()
    for tag, attributes in parser.found:
        assert tag not in ("img", "script", "style")
        assert not {name for name, value in attributes if value} & {"onclick", "src", "style"}


@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_browser_finds_no_tag_in_literal_text_and_shows_what_was_written(text: str) -> None:
    parser = _Tags()
    parser.feed(literal(text))
    parser.close()
    assert parser.found == [] and neutralise(literal(text)) == literal(text)
    assert re.sub(r"^\\(?=>)", "", without_tags(literal(text)), flags=re.MULTILINE) == text


@given(st.lists(PIECES, max_size=20).map("".join))
def test_neutralising_twice_changes_nothing_more(text: str) -> None:
    assert neutralise(neutralise(text)) == neutralise(text)
