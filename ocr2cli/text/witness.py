"""How much of a PDF's own text stands in what was read of its page.

Knows nothing about PDFs or models.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from ocr2cli.text.markup import without_tags

# A text layer of fewer letters (a page number, a stamp) does not tell what is printed.
_FEWEST_LETTERS = 100


def share_found(own_text: str, markdown: str) -> float | None:
    """How much of a PDF's own text is in what was read, 0..1, wherever it stands there; None where
    the PDF has too little of its own to tell.

    By runs of three letters, each as often as it stands there: a wrong letter costs three of them,
    a line left out all of its own, another order of the blocks nearly none.
    """
    own = _letters(own_text)
    if len(own) < _FEWEST_LETTERS:
        return None
    runs = _runs(own)
    found = (runs & _runs(_letters(without_tags(markdown)))).total()
    return round(found / runs.total(), 2)


def _letters(text: str) -> str:
    """Letters and digits, compared without regard to case, ligatures and breaks."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _runs(letters: str) -> Counter[str]:
    return Counter(map("".join, zip(letters, letters[1:], letters[2:], strict=False)))
