"""Names: from a document's id to a path below OUT.

Knows nothing about folders that exist or about what the files hold.
"""

from __future__ import annotations

import hashlib
import os
from urllib.parse import quote_from_bytes

from ocr2cli.errors import OutputError
from ocr2cli.printing import printable

# A file name may have 255 bytes almost everywhere; the longest ending we add is `.layout.pdf`.
MAX_STEM_BYTES = 200


def document_stem(document: str) -> str:
    """The document's path below OUT, without ending. `/`-separated, may hold surrogate escapes.

    Each part longer than 200 bytes is cut and given a digest, so that the endings fit. An input
    folder `.ocr2` becomes `.ocr2~`: the other one holds the state of the run.

    Raises: OutputError for an id that would leave OUT.
    """
    parts = document.split("/")
    for part in parts:
        if part in ("", ".", "..") or "\x00" in part:
            raise OutputError(
                f"the document name {printable(document)!r} is not a path below the output folder. "
                "Rename the input and run again."
            )
    if parts[0] == ".ocr2":
        parts[0] = ".ocr2~"
    return "/".join(_shorten(part) for part in parts)


def _shorten(part: str) -> str:
    raw = os.fsencode(part)
    if len(raw) <= MAX_STEM_BYTES:
        return part
    head = raw[: MAX_STEM_BYTES - 17]
    while head and head[-1] & 0xC0 == 0x80:  # never cut inside a UTF-8 sequence
        head = head[:-1]
    if head and head[-1] >= 0xC0:
        head = head[:-1]
    return os.fsdecode(head) + "~" + hashlib.sha256(raw).hexdigest()[:16]


def name_here(text: str) -> str:
    """A file's name that another run noted, as this one's locale decodes its bytes: one in a C
    locale notes `\\udcc3\\udca4` for `ä`, and cannot open a file by the name `ä`."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def output_name(document: str) -> str:
    """What the names of a document's files begin with, for JSON: exact, so that no two documents
    share it. Raises: OutputError as `document_stem`."""
    return as_utf8(document_stem(document))


def as_utf8(name: str) -> str:
    """A file's name as text that is the same in any locale: bytes that are no UTF-8 are lone
    surrogates, which JSON can hold as escapes."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def document_digest(document: str) -> str:
    """32 hex digits that name the document's folder in OUT/.ocr2, whatever its name holds."""
    return hashlib.sha256(os.fsencode(document)).hexdigest()[:32]


def url_path(relative: str) -> str:
    """A relative path as the target of a markdown or HTML link: percent-escaped bytes."""
    return quote_from_bytes(os.fsencode(relative), safe="/")
