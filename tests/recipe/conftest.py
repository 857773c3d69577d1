"""The recipe's package on the path, and fonts and words that every machine has."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pymupdf
import pytest
import torch

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


@pytest.fixture
def both_stages(tmp_path, two_fonts, plain_words, monkeypatch):
    """A folder with eyes and reader of one untrained model, and one page of a kind to check."""
    from nanotrain import fonts, groups, reading, sizes
    from nanotrain.train_reader import IdealEyes

    monkeypatch.setattr(fonts, "load_fonts", lambda held_out: two_fonts)
    monkeypatch.setattr(groups, "CHECKED_PAGES", 1)
    model = sizes.new_model(seed=5)
    torch.save({"vision": model.vision.state_dict()}, tmp_path / "eyes.pt")
    heads = reading.ReadHeads(256, sizes.NANO.decoder.num_layers).state_dict()
    ideal = IdealEyes(256).state_dict()
    reader = {"decoder": model.decoder.state_dict(), "heads": heads, "ideal": ideal}
    torch.save(reader, tmp_path / "reader.pt")
    words = ["prog", "--state", str(tmp_path), "--codes", str(tmp_path / "reader.pt")]
    words += ["--drawn", str(tmp_path / "drawn"), "--max-characters", "20"]
    return model, words
