"""Hebrew and Arabic in a searchable PDF: in a reader's order, on paper as Unicode has it."""

from __future__ import annotations

from pathlib import Path

import pymupdf
import pytest
from page_factory import grounded, write

from ocr2cli.output.bidi import visual
from ocr2cli.output.searchable_pdf import spread

# Hebrew and Arabic, as they are read: words, then numbers, marks and brackets between them.
RTL = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"
RTL_MIXED = f"{RTL} 123 (\u05de\u05d7\u05d9\u05e8) $5 \u05d0\u05d5 10% \u05d4\u05e0\u05d7\u05d4"


@pytest.mark.parametrize("text", [RTL, ARABIC, "plain (Latin) 1-2"])
def test_text_from_right_to_left_is_found_in_a_searchable_pdf(tmp_path: Path, text: str) -> None:
    """Readers turn it round, as it stands on paper: it was written in the order of reading."""
    write(tmp_path, grounded("d", 0, ("text", [100, 100, 900, 130], text)), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        assert pdf[0].get_text().strip() == text
        assert pdf[0].search_for(text.split()[-1])


@pytest.mark.parametrize("text", [RTL, ARABIC, RTL_MIXED])
def test_pdfium_reads_text_from_right_to_left_with_its_numbers(tmp_path: Path, text: str) -> None:
    pdfium = pytest.importorskip("pypdfium2")
    write(tmp_path, grounded("d", 0, ("text", [100, 100, 900, 130], text)), formats=("pdf",))
    pdf = pdfium.PdfDocument(tmp_path / "d.ocr.pdf")
    words = pdf[0].get_textpage().get_text_range()
    pdf.close()
    assert words.split() == text.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (Latin)", "plain (Latin)"),
        ("\u05d0\u05d1 12.5 (\u05d2)", "(\u05d2) 12.5 \u05d1\u05d0"),
        ("\u05d0\u05d1\u05d2 A b \u05d3", "\u05d3 A b \u05d2\u05d1\u05d0"),
        ("In \u05d0\u05d1 \u05d2, Latin", "In \u05d2 \u05d1\u05d0, Latin"),
        ("A \u05d0\u05d1\u05d2\u05d3.", ".\u05d3\u05d2\u05d1\u05d0 A"),
        ("\u0645\u0631 12-3 \u0661\u0662", "\u0661\u0662 3-12 \u0631\u0645"),
        ("\u0645\u0631 \u0661,\u0662", "\u0661,\u0662 \u0631\u0645"),
        ("\u0645\u0631 A.", ".A \u0631\u0645"),
        ("\u05d0\u05d1 AB.", "\u05d1\u05d0 AB."),
        ("\u05d0\u0301\u05d1", "\u05d1\u0301\u05d0"),
        ("\u05d0\u05d1 1\u0301", "1\u0301 \u05d1\u05d0"),
        ("\u05d0\u05d1 1,5-2 \u05d2", "\u05d2 1,5-2 \u05d1\u05d0"),
        ("\u05d0\u05d1 $5 \u05d2 10%", "10% \u05d2 $5 \u05d1\u05d0"),
        ("ABC \u05d0\u05d1 12", "ABC 12 \u05d1\u05d0"),
        ("ABC 12 \u05d0\u05d1", "ABC 12 \u05d1\u05d0"),
    ],
    ids=[
        "latin", "number", "foreign words", "in Latin text", "foreign first", "Arabic numbers",
        "comma in an Arabic number", "Arabic letters", "as many of either", "mark on a letter",
        "mark on a number", "comma and minus", "money and share", "number after Hebrew",
        "number after Latin",
    ],
)
def test_a_line_stands_on_paper_as_unicode_has_it(text: str, expected: str) -> None:
    assert visual(text) == expected


def test_lines_from_right_to_left_end_at_the_right_of_their_block() -> None:
    long, short = spread([f"{RTL} {RTL}", RTL], (100, 0, 200, 20))
    assert long.x == pytest.approx(100) and long.x + long.width == pytest.approx(200)
    assert short.width < 60 and short.x + short.width == pytest.approx(200)
