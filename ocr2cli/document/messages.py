"""What MuPDF says while it opens and draws, and what of it tells of lost content.

Knows nothing about documents and pages: MuPDF keeps one list of messages a process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

_MAX_NOTES = 12

# What MuPDF says of content that it could not have, and so did not draw. A scan in zeros may have
# no other sign than the end of its stream, which MuPDF looks for further on.
_LOST = re.compile(
    "error: |PDF stream Length incorrect|premature end|truncated|is not a stream|"
    "non-page object|invalid page object|unknown filter|ignoring rest of page"
)
# What it passes over in a page's content: nothing that would have been drawn hangs on it by itself.
# Where most of a content is noise, MuPDF gives up and says so, and that is a loss.
_PASSED_OVER = re.compile(
    "^syntax error: (?:unknown keyword: |cannot find ExtGState resource )"
)
# What it says next when it went on another way, and nothing was lost but a font or a colour.
_MENDED = re.compile(
    "loading embedded font|ToUnicode|broken ICC profile|blending colorspace|color conversion|"
    "structure tree broken|broken Optional Content"
)
# What it says when it reads an object, once a file, and which is no loss: the first page that a
# worker draws would have it, and the same page in another worker not. So no page has it.
_ONCE_A_FILE = re.compile("invalid character in hex string")
_REPEATED = re.compile(r"^\.\.\. repeated \d+ times")


def messages(*, keep: bool = False) -> list[str]:
    """MuPDF's messages since the last call, line by line. keep: the next call has them too."""
    import pymupdf

    said = pymupdf.TOOLS.mupdf_warnings(reset=not keep)
    return [line for line in said.splitlines() if line.strip()]


def lost_content(said: Sequence[str]) -> str:
    """The first message that tells of lost content, or ""."""
    for line, following in pairwise((*said, "")):
        is_lost = _LOST.search(line) and not _PASSED_OVER.search(line)
        if is_lost and not _MENDED.search(following):
            return line[:200]
    return ""


def notes_of(said: Sequence[str], is_repaired: bool = False) -> list[str]:
    """MuPDF's messages for people, each once; first whether the file was repaired."""
    told = [
        line
        for before, line in pairwise(("", *said))
        if not _ONCE_A_FILE.search(before if _REPEATED.search(line) else line)
    ]
    notes = [f"MuPDF: {line[:200]}" for line in dict.fromkeys(told)]
    if len(notes) > _MAX_NOTES:
        notes = [*notes[:_MAX_NOTES], f"MuPDF: {len(notes) - _MAX_NOTES} more messages"]
    if is_repaired:
        notes.insert(0, "the PDF is damaged and was repaired on opening")
    return notes
