"""What a page's text may do when it is shown: nothing.

Text of a page is untrusted: it can hold image links, scripts and comments that an output's reader
would follow. Tables and simple formatting stay. Knows nothing about grounding or files.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

# Elements that load something, run something or change the page around them.
_ACTIVE = (
    "applet|audio|base|body|button|embed|form|frame|frameset|head|html|iframe|image|img|input|link|"
    "meta|noscript|object|picture|plaintext|script|select|source|style|svg|template|textarea|title|"
    "track|video|xmp"
)
_ACTIVE_TAG = re.compile(rf"</?(?:{_ACTIVE})(?![a-z0-9-])", re.IGNORECASE)
_ACTIVE_ATTRIBUTE = re.compile(
    r"[\s\"'/](?:on[a-z]+|src|srcset|style|background|poster|action|formaction|data|xlink:href|"
    r"srcdoc)\s*=|(?:javascript|vbscript|data):",
    re.IGNORECASE,
)
# What begins a heading, a quotation, an item, a fence, a row or a rule where a line begins with it.
_LINE_MARK = re.compile(
    r"^(?:(?=#{1,6}(?:\s|$)|>|[-+*](?:\s|$)|```|~~~|\||[-*_|][-*_:| \t]*$)"
    r"|([0-9]{1,9})(?=\.(?:\s|$)))",
    re.MULTILINE,
)
# With a backslash they would be taken for the end of a formula, or for nothing by some readers.
_OTHER_MARK = re.compile(
    r"^([0-9]{1,9}(?=\)(?:\s|$))|(?==+[ \t]*$|:-[-:| \t]*$))([=:)])", re.MULTILINE
)
_TAG_OPENS = re.compile(r"<(?=[a-zA-Z/!?])")

SAFE_TAGS = (
    "table|thead|tbody|tfoot|tr|td|th|caption|center|br|b|i|u|s|em|strong|sub|sup|code|pre|p|ul|ol"
    "|li"
)
_SAFE_ATTRIBUTE = r"\s+(?:rowspan|colspan)\s*=\s*(?:\"[0-9]{1,4}\"|'[0-9]{1,4}'|[0-9]{1,4})"
_SAFE_TAG = re.compile(rf"(</?(?:{SAFE_TAGS})(?:{_SAFE_ATTRIBUTE})*\s*/?>)", re.IGNORECASE)
# Whole references only, as in markdown: text has "R&D" and "&copy" of its own. Seven digits are
# plenty, and bound int().
_REFERENCE = re.compile(r"&(?:[a-z][a-z0-9]{1,31}|#[0-9]{1,7}|#x[0-9a-f]{1,6});", re.IGNORECASE)


def neutralise(text: str) -> str:
    """Markdown whose images, active elements and comments are plain text. The rest is untouched.

    This keeps a reader of the markdown from loading or running what a page says. It is no full
    HTML sanitiser: `safe_html` is what an HTML page is made with.
    """
    # As a character reference the mark still shows as "!", but makes no image, whatever escapes
    # stand before it.
    text = text.replace("![", "&#33;[")
    # Even inside a tag: tools that split the markdown look for page comments only.
    text = text.replace("<!--", "&lt;!--")
    return _neutralise_tags(text) if "<" in text else text


def literal(text: str) -> str:
    """Plain text as markdown whose reader sees all of it: no tag, image, reference, heading or list
    was meant.

    Signs inside a line stay, for they hide nothing but themselves, and text is searched.
    """
    text = _REFERENCE.sub(lambda reference: "&amp;" + reference.group()[1:], text)
    text = _LINE_MARK.sub(r"\1\\", _TAG_OPENS.sub("&lt;", text.replace("![", "&#33;[")))
    return _OTHER_MARK.sub(lambda mark: f"{mark[1]}&#{ord(mark[2])};", text)


def safe_html(text: str) -> str:
    """HTML of a text: escaped, except tables (with their spans) and simple formatting.

    A reference means its character, which is text whatever it is: `&lt;td&gt;` makes no cell.
    """
    pieces = _SAFE_TAG.split(text)
    return "".join(
        piece if index % 2 else html.escape(unescape(piece), quote=False)
        for index, piece in enumerate(pieces)
    )


def without_tags(text: str) -> str:
    """What a reader sees of a text with tables and simple formatting."""
    return unescape(_SAFE_TAG.sub(" ", text))


def pipe_cells(line: str) -> list[str]:
    """The cells of a markdown table's row, empty ones included; `\\|` is a pipe in a cell."""
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def unescape(text: str) -> str:
    """Character references as the characters they stand for; unknown ones stay, as in markdown."""
    return _REFERENCE.sub(_character, text)


def _character(reference: re.Match[str]) -> str:
    text = reference.group()
    # `html.unescape` would take the longest known beginning of an unknown name.
    return html.unescape(text) if text[1] == "#" else html5.get(text[1:], text)


def _neutralise_tags(text: str) -> str:
    """Escape each tag that is active. A tag reaches to the next ">", as a browser reads it."""
    pieces: list[str] = []
    position = 0
    while opening := _TAG_OPENS.search(text, position):
        start = opening.start()
        end = text.find(">", start) + 1 or len(text)
        tag = text[start:end]
        pieces.append(text[position:start])
        pieces.append(tag.replace("<", "&lt;") if _is_active(tag) else tag)
        position = end
    pieces.append(text[position:])
    return "".join(pieces)


def _is_active(tag: str) -> bool:
    if tag.startswith(("<!", "<?")):
        return True
    # A ">" inside a quoted value does not end the tag for a browser: what follows would hide.
    has_open_quote = tag.count('"') % 2 or tag.count("'") % 2
    return bool(has_open_quote or _ACTIVE_TAG.search(tag) or _ACTIVE_ATTRIBUTE.search(tag))
