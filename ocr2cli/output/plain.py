"""Markdown -> the words a reader sees, line by line.

Knows nothing about where the words stand on the page.
"""

from __future__ import annotations

import re

from ocr2cli.text.markup import unescape

_CELL_END = re.compile(r"</t[dh]>\s*", re.IGNORECASE)
_ROW_END = re.compile(r"</tr>|</p>|</li>|</table>|<br\s*/?>|</caption>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|td|th|p|b|i|u|s|em|strong|sub|sup|ul|ol|li|center"
    r"|code|pre|span|div|br)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"!\[[^\[\]\n]*\]\([^()\n]*\)")
_LINK = re.compile(r"\[([^\[\]\n]+)\]\([^()\n]*\)")
_LINE_START = re.compile(r"^[ \t]{0,3}(?:#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+(?=\S))", re.MULTILINE)
# Here, as in all patterns for page text, no two neighbours may match the same run of characters:
# how a hostile run is shared out between them would be tried in all ways.
_RULE = re.compile(
    r"^[ \t]*(?:[-*_][ \t]*){3,}$|^[ \t]*(?:\|[ \t]*)?:?--[-:| \t]*$|^[ \t]*(?:```|~~~).*$",
    re.MULTILINE,
)
_EMPHASIS = re.compile(r"(\*\*|__|\*|(?<!\w)_)(?=\S)([^\n]{1,500}?)(?<=\S)\1")
# A backslash takes the character after it along: `\\[2pt]` in a formula begins none.
_FORMULA = re.compile(
    r"\\\[(?:[^\\<]|<(?!/)|\\[^\[\]])*+\\\]|\\\((?:[^\\<]|<(?!/)|\\[^()])*+\\\)"
)
_SET_ASIDE = re.compile("\0([0-9]+)\0")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]<>#+\-.!|~&$])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain_lines(markdown: str) -> list[str]:
    """The lines without markup; empty ones are left out. Formulas stay as they are written."""
    formulas: list[str] = []

    def set_aside(formula: re.Match[str]) -> str:
        formulas.append(unescape(formula[0]))
        return f"\0{len(formulas) - 1}\0"

    text = _FORMULA.sub(set_aside, _CONTROL.sub("", markdown))
    text = _IMAGE.sub("", _LINK.sub(r"\1", text))
    text = _ROW_END.sub("\n", _CELL_END.sub(" ", text))
    text = _RULE.sub("", _LINE_START.sub("", _TAG.sub("", text)))
    text = _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text))  # twice: one may stand in another
    text = unescape(_ESCAPE.sub(r"\1", text)).replace("|", " ")
    text = _SET_ASIDE.sub(lambda place: formulas[int(place[1])], text)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return [line for line in lines if line]
