"""Which characters of a text layer can be checked, and which mean nothing to any reader?"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from ocr2cli.document.letters import ALPHABET
from ocr2cli.document.text_layer.nouns import TextCharacter

BULLET = "\u2022"
KNOWN = frozenset(ALPHABET)

_MIN_CHECKABLE_SHARE = 0.6
_MAX_UNKNOWN_SHARE = 0.1


def is_meaningful(written: Sequence[TextCharacter]) -> bool:
    # A row of dots, as in a table of contents, is one mark.
    marks = [
        now for before, now in pairwise(["", *(character.text for character in written)])
        if now.isalnum() or before != now
    ]  # fmt: skip
    num_checkable = sum(text in KNOWN and text.isalnum() for text in marks)
    num_unknown = sum(text not in KNOWN and not is_meaningless(text) for text in marks)
    return num_checkable >= _MIN_CHECKABLE_SHARE * len(marks) and (
        num_unknown <= _MAX_UNKNOWN_SHARE * len(marks)
    )


def is_meaningless(character: str) -> bool:
    # Private use, unassigned, control and surrogate codes: no one can read them.
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs")
