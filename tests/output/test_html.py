"""The HTML page of a document: each page beside its text, and nothing of it that runs or loads."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_factory import SCRIPTS, failed, grounded, page, sample, write

from ocr2cli.pages import Status
from ocr2cli.printing import printable


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "input", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read_html(path: Path) -> Reader:
    reader = Reader(path.read_text())
    reader.close()
    assert reader.open == []
    return reader


def test_html_shows_each_page_beside_its_text_and_asks_for_nothing(tmp_path: Path) -> None:
    good, low = sample(0, confidence=0.9), sample(1, confidence=0.4)
    bad = failed("d", 2, message="x < y. Try `qpdf IN OUT`.")
    blank = page("d", 3, "", status=Status.BLANK)
    write(tmp_path, good, low, bad, blank, formats=("html",))
    html = read_html(tmp_path / "d.html")
    sections = html.all("section")
    assert [s["id"] for s in sections] == ["page-1", "page-2", "page-3", "page-4"]
    assert [s["class"] for s in sections] == ["fine", "unsure", "bad", "fine"]
    order = sorted(range(4), key=lambda n: float(sections[n]["data-rank"] or 0))
    assert order[:3] == [2, 1, 0]  # failed first, then the least sure
    assert all((img["src"] or "").startswith("data:image/jpeg;base64,") for img in html.all("img"))
    assert len(html.all("img")) == 3 + 2  # pages that were read, and figures
    assert len(html.all("rect")) == 8
    assert not any(key in ("href", "srcset", "style") for _, attrs in html.tags for key in attrs)
    assert "Head 0" in html.text and SCRIPTS in html.text
    assert html.text.count("low: check the text against the picture") == 1
    assert "4 pages, 1 blank, 1 failed, 1 of low confidence" in html.text
    assert "\nx < y. Try qpdf IN OUT. (timeout)\n" in html.text
    assert html.text.count("No picture") == 0 and len(html.all("code")) == 1


def test_html_marks_pages_below_min_confidence_too(tmp_path: Path) -> None:
    write(tmp_path, sample(0, confidence=0.7), formats=("html",), min_confidence=0.8)
    assert [s["class"] for s in read_html(tmp_path / "d.html").all("section")] == ["unsure"]


def test_a_box_and_its_text_share_a_number(tmp_path: Path) -> None:
    write(tmp_path, sample(), formats=("html",))
    html = read_html(tmp_path / "d.html")
    rects = {r["class"]: r["data-block"] for r in html.all("rect")}
    blocks = [d["data-block"] for d in html.all("div") if d.get("class") == "block"]
    assert sorted(rects.values(), key=str) == sorted(blocks, key=str)
    text = (tmp_path / "d.html").read_text()
    assert f'data-block="{rects["title"]}"><h3>Head 0</h3>' in text


def test_the_policy_names_the_digests_of_the_style_and_script_that_are_there(
    tmp_path: Path,
) -> None:
    write(tmp_path, sample(), formats=("html",))
    text = (tmp_path / "d.html").read_text()
    policy = next(
        m["content"] for m in read_html(tmp_path / "d.html").all("meta") if "content" in m
    )
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<table><tr><td>&lt;script&gt;alert(1)&lt;/script&gt;&lt;td onclick=alert(1)&gt;</table>",
        "&lt;<b>script&gt;</b>alert(1)&lt;<i>/script&gt;</i>",
        "</div></section></main><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<table><tr><td onclick=alert(1)><b>x",
        "<b><i></b></i></table></p>",
        "[x](javascript:alert(1))",
        "![](https://evil.example/x.png)",
        "# <svg onload=alert(1)>",
        "```\n</pre><script>alert(1)</script>\n```",
        "| <iframe src=//evil> | b |",
        "- <a href=//evil>x</a>",
        "\\( <script>alert(1)</script> \\)",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&#60;script>alert(1)</script>",
        "<table><tr><td>\\( </td></tr></table> \\)",
        "<b><table><tr><td></b><i>x</table>",
    ],
)
@pytest.mark.parametrize("place", ["text", "label", "message", "name"])
def test_html_escapes_whatever_a_page_says(tmp_path: Path, text: str, place: str) -> None:
    pages = {
        "text": page("d", 0, text),
        "label": grounded("d", 0, (text.replace("|", ""), [1, 1, 9, 9], "words")),
        "message": failed("d", 0, text, text),
        "name": page(text.replace("/", "_"), 0),
    }
    write(tmp_path, pages[place], formats=("html",), path=text)
    (path,) = tmp_path.glob("*.html")
    html = Reader(path.read_text())
    names = [tag for tag, _ in html.tags]
    assert names.count("script") == 1 and names.count("style") == 1
    assert not {"iframe", "object", "embed", "link", "base", "a"} & set(names)
    for tag, attributes in html.tags:
        assert not any(key.startswith("on") or key == "href" for key in attributes), tag
    assert html.open == []
    assert all((img["src"] or "").startswith("data:") for img in html.all("img"))
    assert len(html.all("section")) == 1 and names.count("main") == 1
    if place == "name":
        assert printable(path.name.removesuffix(".html")) in html.text
