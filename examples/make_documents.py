"""Draw the example documents: `python examples/make_documents.py`. The texts are our own.

letter.pdf       three pages of large print: a title page, a letter, a list
notice.png       a scanned notice: grey paper, a slight slant, noise
two-columns.pdf  one page, two columns, a heading over both

Nothing here is in the bundled model's training set.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pymupdf
from PIL import Image, ImageFilter

OUT = Path(__file__).parent / "documents"

TITLE = ["The Harbour Ledger", "An account of one quiet year", "Kept by Marta Ilves"]
LETTER = """Dear Tomas,

the boat came in late on Monday, and the
nets were still wet when we hung them up.
Forty two crates of herring went to the
market before noon. The rest we salted.

Please send the blue rope and two lamps.
The old lamp broke in the storm, and the
evenings are dark now. I will pay you when
you come in March.

With kind regards,
Marta"""
LIST = [
    "Things to bring",
    "- blue rope, 30 metres",
    "- two brass lamps",
    "- salt, six sacks",
    "- a new ledger",
    "- tea and sugar",
]
NOTICE = """NOTICE

The reading room is closed
on Friday afternoon. Books
may be returned at the desk
in the hall.

Opening hours
Monday to Thursday 9 to 17
Saturday 10 to 14"""
LEFT = """Rain fell on the hills
for nine days. The river
rose above the old mark
and took the lower road.
Nobody was hurt, and the
bridge held. By Sunday
the water was brown and
slow again."""
RIGHT = """The mill stood in the
flood to its second
step. The miller moved
his flour to the loft
and waited. When the
sun came out he opened
every door and let the
wind dry the floor."""


def letter() -> None:
    """Three A4 pages, 18 pt and up."""
    pdf = pymupdf.open()
    page = pdf.new_page(width=595, height=842)
    for text, size, y in zip(TITLE, (40, 24, 20), (260, 340, 420), strict=True):
        width = pymupdf.get_text_length(text, "tibo" if size == 40 else "tiro", size)
        page.insert_text(((595 - width) / 2, y), text, fontsize=size,
                         fontname="tibo" if size == 40 else "tiro")  # fmt: skip
    page = pdf.new_page(width=595, height=842)
    _lines(page, LETTER.split("\n"), x=72, y=110, size=22, font="tiro")
    page = pdf.new_page(width=595, height=842)
    page.insert_text((72, 120), LIST[0], fontsize=34, fontname="hebo")
    _lines(page, LIST[1:], x=72, y=200, size=26, font="helv", pitch=1.7)
    _save(pdf, "letter.pdf")


def two_columns() -> None:
    """One A4 page: a heading over two columns of 20 pt."""
    pdf = pymupdf.open()
    page = pdf.new_page(width=595, height=842)
    page.insert_text((60, 110), "After the Flood", fontsize=38, fontname="hebo")
    _lines(page, LEFT.split("\n"), x=60, y=190, size=20, font="helv", pitch=1.5)
    _lines(page, RIGHT.split("\n"), x=320, y=190, size=20, font="helv", pitch=1.5)
    _save(pdf, "two-columns.pdf")


def notice() -> None:
    """A page as a flatbed scanner gives it: 1.2 degrees aslant, grey, noisy, soft."""
    pdf = pymupdf.open()
    page = pdf.new_page(width=595, height=842)
    lines = NOTICE.split("\n")
    page.insert_text((72, 120), lines[0], fontsize=48, fontname="hebo")
    _lines(page, lines[2:], x=72, y=220, size=28, font="tiro", pitch=1.5)
    pixmap = page.get_pixmap(matrix=pymupdf.Matrix(1.6, 1.6), alpha=False)
    image = Image.open(io.BytesIO(pixmap.tobytes("png"))).convert("L")
    image = image.rotate(-1.2, Image.Resampling.BICUBIC, fillcolor=255)
    image = image.filter(ImageFilter.GaussianBlur(0.6))
    rng = np.random.default_rng(7)
    grey = np.asarray(image, np.float32) * 0.86 + 22 + rng.normal(0, 5, (image.height, image.width))
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(OUT / "notice.png", optimize=True)


def _lines(
    page: pymupdf.Page, lines: list[str], *, x: float, y: float, size: float, font: str,
    pitch: float = 1.4,
) -> None:  # fmt: skip
    for number, line in enumerate(lines):
        page.insert_text((x, y + number * size * pitch), line, fontsize=size, fontname=font)


def _save(pdf: pymupdf.Document, name: str) -> None:
    pdf.save(OUT / name, garbage=4, deflate=True, no_new_id=True)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    letter()
    two_columns()
    notice()
