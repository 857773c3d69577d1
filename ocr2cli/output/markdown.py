"""Document -> markdown: page markers, visible notes for failed pages, page text kept in its page.

The text comes from a model that read a stranger's page: it may not load anything, pretend to be
a page marker, or swallow the pages after it. Knows nothing about how figures are cut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby

from ocr2cli.output.assembly import Assembly
from ocr2cli.pages import Document, PageResult, Status
from ocr2cli.printing import printable
from ocr2cli.text.markup import SAFE_TAGS, neutralise

# The place of a figure: `text/grounding.to_markdown` puts each on a line of its own, and no other
# image survives it. The k-th line is the k-th figure; what it points to is decided here.
FIGURE_PLACE = re.compile(r"^!\[\]\([^\n]*\)$", re.MULTILINE)

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_OPEN_OR_CLOSE = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]*)(?![A-Za-z0-9-])[^<>]*>")
_VOID_TAGS = frozenset({"br", "hr", "col", "wbr", "area"})
_CODE_SPAN = r"(?<!`)(`{1,3})(?!`)[^`\n]+\1(?!`)"
# A variable in a formula stays as it is: "\( 0<x \)".
_STRANGE_TAG = re.compile(
    rf"{_CODE_SPAN}|<(?=/?[a-z])(?!/?(?:{SAFE_TAGS})(?![a-z0-9-]))"
    r"(?!(?:(?:https?|ftp)://|mailto:|[a-z0-9._+-]{1,64}@)[^\s<>]+>)"
    r"(?![a-z](?![a-z0-9-])[^>\n]{0,200}\\[)\]])",
    re.IGNORECASE,
)
_CODE_OR_TAG = re.compile(rf"{_CODE_SPAN}|<(?=/?(?:{SAFE_TAGS})(?![a-z0-9-]))", re.IGNORECASE)
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)$")

_CUT = {
    Status.LOOP: "<!-- the model repeated itself here: the rest of this page is missing -->",
    Status.TRUNCATED: "<!-- the token limit was reached here: the rest of this page is missing -->",
}


def write_markdown(assembly: Assembly) -> None:
    """Stages `<stem>.md`, page by page."""
    with assembly.new_file(".md") as stream:
        for text in _pages(assembly.pages(), assembly.links, has_markers=assembly.is_multi_page):
            stream.write(text.encode())


def document_markdown(document: Document) -> str:
    """The document's `.md` as one string; figures leave a comment, for no file holds them."""
    pages = document.pages
    has_markers = len(pages) > 1 or any(page.key.page > 0 for page in pages)
    return "".join(_pages(iter(pages), {}, has_markers=has_markers))


def _pages(
    pages: Iterator[PageResult], links: Mapping[int, Mapping[int, str]], *, has_markers: bool
) -> Iterator[str]:
    for index, result in enumerate(pages):
        marker = f"<!-- page: {result.key.page + 1} -->\n" if has_markers else ""
        body = page_body(result, links.get(result.key.page, {}))
        page = "\n".join(part for part in (marker, body) if part)
        yield ("\n" if index else "") + page


def page_body(result: PageResult, links: Mapping[int, str]) -> str:
    """One page without its marker; ends in a newline unless it is empty."""
    if result.status is Status.FAILED:
        return failure_note(result)
    text = "\n\n".join(
        part for part in (page_text(result.markdown, links), _CUT.get(result.status)) if part
    )
    return text and text + "\n"


def failure_note(result: PageResult) -> str:
    """The visible note in the place of a page that failed."""
    code = result.error.code if result.error else "internal"
    message = result.error.message if result.error else "no reason was recorded"
    reason = escape_inline(f"{message} ({code})")
    return f"> **{what_failed(result)}:** {reason}\n"


def what_failed(result: PageResult) -> str:
    """The words before the reason."""
    if result.is_of_no_page:
        return "No page was read"
    return f"Page {result.key.page + 1} could not be read"


def escape_inline(text: str) -> str:
    """Any text as literal markdown on one line."""
    return re.sub(r"([\\`*\[\]<>#!|~&$])", r"\\\1", printable(text))


def page_text(text: str, links: Mapping[int, str]) -> str:
    """The page's markdown made safe to stand in a document with others; no newline at its ends.

    links: figure number (from 1) -> link target. A place without one keeps a comment. Control
    characters become U+FFFD; code fences and tags that the page leaves open are closed. A tag that
    formats nothing is a word in pointed brackets, and shows as one.
    """
    text = _CONTROL.sub("\ufffd", _LINE_ENDS.sub("\n", text))
    # NUL stands for a figure while the text is made safe as a whole: none is left in it.
    pieces = neutralise(FIGURE_PLACE.sub("\0", text)).split("\0")
    safe = pieces[0] + "".join(
        figure_link(number, links) + piece for number, piece in enumerate(pieces[1:], 1)
    )
    return _close(safe).strip("\n")


def figure_link(number: int, links: Mapping[int, str]) -> str:
    """Never empty: what stands left and right of it must not join to new markup."""
    return f"![]({links[number]})" if number in links else f"<!-- figure {number} was not cut -->"


def _close(text: str) -> str:
    """Ends an open code fence and open tags, so that the next page is not inside them. What looks
    like a tag and formats nothing becomes text."""
    pieces, has_tags = [], False
    lines = list(_fenced(text))
    for is_code, run in groupby(lines, key=lambda line: line[0]):
        piece = "\n".join(line for *_, line in run)
        if not is_code:
            piece = _STRANGE_TAG.sub(lambda found: found[0] if found[1] else "&lt;", piece)
            has_tags = has_tags or any(not found[1] for found in _CODE_OR_TAG.finditer(piece))
        pieces.append(piece)
    text = "\n".join(pieces)
    if fence := lines[-1][1]:
        text = text.rstrip("\n") + f"\n{fence}\n"
    # Code beside tags may be no code: markdown does not look into HTML.
    return text + _end_tags(text) if has_tags else text


def _end_tags(text: str) -> str:
    open_tags = OpenTags()
    for slash, name in _OPEN_OR_CLOSE.findall(text):
        if slash:
            open_tags.close(name.lower())
        elif name.lower() not in _VOID_TAGS:
            open_tags.open(name.lower())
    return open_tags.close_all()


class OpenTags:
    """Tags that are open at a place in a text; constant time a tag, for a page holds thousands."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._counts: Counter[str] = Counter()

    def open(self, name: str) -> None:
        self._stack.append(name)
        self._counts[name] += 1

    def close(self, name: str) -> str:
        """The end tags that close `name` and what is open inside it; "" when it is not open."""
        closing = ""
        while self._counts[name] and not closing.endswith(f"</{name}>"):
            last = self._stack.pop()
            self._counts[last] -= 1
            closing += f"</{last}>"
        return closing

    def close_all(self) -> str:
        return "".join(f"</{name}>" for name in reversed(self._stack))


def _fenced(text: str) -> Iterator[tuple[bool, str, str]]:
    """(whether it is code or its fence, the fence that is open after it, the line) of each line."""
    fence = ""
    for line in text.split("\n"):
        was_open = bool(fence)
        if found := _FENCE.match(line):
            mark, rest = found.groups()
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and not rest.strip():
                fence = ""
        yield was_open or bool(fence), fence, line
