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
    "non-page object|invalid page object|unknown filter"
)
# What it says next when it went on another way, and nothing was lost but a font or a colour.
_MENDED = re.compile(
    "loading embedded font|ToUnicode|broken ICC profile|blending colorspace|color conversion|"
    "structure tree broken|broken Optional Content"
)


def messages() -> list[str]:
    """MuPDF's messages since the last call, line by line."""
    import pymupdf

    return [line for line in pymupdf.TOOLS.mupdf_warnings().splitlines() if line.strip()]


def lost_content(said: Sequence[str]) -> str:
    """The first message that tells of lost content, or ""."""
    for line, following in pairwise((*said, "")):
        if _LOST.search(line) and not _MENDED.search(following):
            return line[:200]
    return ""


def notes_of(said: Sequence[str], is_repaired: bool = False) -> list[str]:
    """MuPDF's messages for people, each once; first whether the file was repaired."""
    notes = [f"MuPDF: {line[:200]}" for line in dict.fromkeys(said)]
    if len(notes) > _MAX_NOTES:
        notes = [*notes[:_MAX_NOTES], f"MuPDF: {len(notes) - _MAX_NOTES} more messages"]
    if is_repaired:
        notes.insert(0, "the PDF is damaged and was repaired on opening")
    return notes
