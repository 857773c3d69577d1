"""The recipe's package on the path, and fonts and words that every machine has."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pymupdf
import pytest

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "models" / "nano" / "recipe"))

_WORDS = [
    "Quartz",
    "vows",
    "fjord,",
    "42",
    "pygmy",
    "(bold)",
    "jumps;",
    "lazy",
    "dog:",
    "Waltz,",
    "Été!",
    "no",
    "7.5%",
    "of",
    "it",
]


@pytest.fixture(scope="session")
def two_fonts(tmp_path_factory: pytest.TempPathFactory):
    """PyMuPDF's own Helvetica and Times, measured like any font of the recipe."""
    from nanotrain import fonts

    folder = tmp_path_factory.mktemp("fonts")
    found = []
    for name in ("helv", "tiro"):
        path = folder / f"{name}.cff"
        path.write_bytes(pymupdf.Font(name).buffer)
        font = fonts._measure(path)
        assert font is not None
        found.append(font)
    return tuple(found)


@pytest.fixture
def plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words without the text packages."""
    from nanotrain import texts

    def words(rng: Random, count: int, held_out: bool = False) -> list[str]:
        return rng.choices(_WORDS, k=count)

    monkeypatch.setattr(texts, "words", words)
