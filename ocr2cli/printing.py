"""Any text as one line for people: what a name or a page holds breaks no line and steers no
terminal.

Knows nothing about where it is shown.
"""

from __future__ import annotations

import re

# For a class of a pattern: what is above ASCII's control characters and ends a line, turns the
# direction of what follows, or is no text.
ODD = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"

_UNPRINTABLE = re.compile(f"[\x00-\x1f{ODD}]")


def printable(text: str) -> str:
    """`text` on one line: control characters, bidi overrides and raw bytes as backslash escapes."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    named = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}
    return named.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
