"""Pictures of characters in the fonts that every PDF has, drawn once a process."""

from __future__ import annotations

from functools import cache

import numpy as np

from ocr2cli.document.letters import FloatArray, Reference, reference, reference_pictures

# PDF's own sans, serif, italic serif, bold italic serif and typewriter.
_LETTER_FONTS = ("helv", "tiro", "tiit", "tibi", "cour")
_FONTS = (
    "helv", "heit", "hebo", "hebi", "tiro", "tiit", "tibo", "tibi", "cour", "coit", "cobo", "cobi",
)  # fmt: skip


@cache
def drawn_characters() -> Reference:
    """Pictures of all that a text layer may claim, in the built-in fonts. See `letters.py`."""
    return reference(_draw_characters, _FONTS, em=40, baseline=48)


def _draw_characters(font: str, characters: str) -> list[FloatArray | None]:
    """Each in a cell of 72 x 72 pixels, at the baseline 48 and in the size 40."""
    import pymupdf

    side, columns = 72, 16
    typeface = pymupdf.Font(font)
    with pymupdf.open() as document:
        page = document.new_page(width=side * columns, height=side * -(-len(characters) // columns))
        writer = pymupdf.TextWriter(page.rect)
        for n, character in enumerate(characters):
            if typeface.has_glyph(ord(character)):
                place = (n % columns * side + 12, n // columns * side + 48)
                writer.append(place, character, font=typeface, fontsize=40)
        writer.write_text(page)
        pixmap = page.get_pixmap(colorspace=pymupdf.csGRAY, alpha=False)
    grey = np.frombuffer(pixmap.samples_mv, np.uint8).reshape(pixmap.height, pixmap.stride)
    ink = 1 - grey[:, : pixmap.width].astype(np.float32) / np.float32(255)
    cells: list[FloatArray | None] = []
    for n, character in enumerate(characters):
        top, left = n // columns * side, n % columns * side
        cell = ink[top : top + side, left : left + side]
        cells.append(cell if typeface.has_glyph(ord(character)) else None)
    return cells


@cache
def drawn_letters() -> FloatArray:
    """Reference pictures of letters in the built-in fonts. See `letters.py`."""
    return reference_pictures(_draw_letter, _LETTER_FONTS)


def _draw_letter(font: str, letter: str) -> FloatArray:
    import pymupdf

    with pymupdf.open() as document:
        page = document.new_page(width=96, height=96)
        page.insert_text((24, 66), letter, fontname=font, fontsize=48)
        pixmap = page.get_pixmap(colorspace=pymupdf.csGRAY, alpha=False)
    grey = np.frombuffer(pixmap.samples_mv, np.uint8).reshape(pixmap.height, pixmap.stride)
    return 1 - grey[:, : pixmap.width].astype(np.float32) / np.float32(255)
