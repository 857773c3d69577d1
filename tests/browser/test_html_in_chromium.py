"""The file that `--format html` writes, on paper and on a screen.

Needs Chromium. Where CI is set a missing one is a failure, elsewhere the tests say what to install.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import numpy as np
import pymupdf
import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "browser"), str(TESTS / "output")]
from chromium import Chromium  # noqa: E402
from page_factory import job, page  # noqa: E402

from ocr2cli.output.assembly import OutputSettings  # noqa: E402
from ocr2cli.output.writer import Writer  # noqa: E402
from ocr2cli.pages import PageImage, PageJob, PageResult  # noqa: E402
from ocr2cli.text.grounding import parse, to_markdown  # noqa: E402

WIDTH, HEIGHT = 600, 850
CELLS = "".join(f"<td>Column {number}</td>" for number in range(30))
SENTENCE = "\n\nThe boat came in late on Monday, and the nets were still wet."


def scan(job: PageJob) -> PageImage:
    rgb = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    rgb[60:800:20, 60:540] = 0
    return PageImage(job.key, rgb, 72.0)


def read_page(number: int, text: str) -> PageResult:
    raw = f"<|ref|>text<|/ref|><|det|>[[60, 60, 900, 900]]<|/det|>\n{text}"
    parsed = parse(raw)
    markdown = to_markdown(parsed.blocks, lambda n: f"figure:{n + 1}")
    size = (WIDTH, HEIGHT)
    return page("d", number, markdown, raw=raw, boxes=parsed.boxes, page_size=size)


def open_html(chromium: Chromium, out: Path, *texts: str) -> None:
    """A document of pages that hold these texts."""
    writer = Writer(out, OutputSettings(("html",), "f"), render=scan)
    for number, text in enumerate(texts):
        writer.expect(job("d", number, len(texts)))
        writer.add(read_page(number, text))
    writer.close()
    chromium.open((out / "d.html").as_uri())


@pytest.mark.parametrize(("num_sentences", "num_sheets"), [(4, 2), (25, 4)])
def test_a_page_and_its_text_are_printed_side_by_side(
    chromium, tmp_path, num_sentences, num_sheets
) -> None:
    """Two pages took nine sheets, most of them empty."""
    texts = [f"Number {number}" + SENTENCE * num_sentences for number in (1, 2)]
    open_html(chromium, tmp_path / "out", *texts)
    sheets = chromium.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]
    with pymupdf.open(stream=base64.b64decode(sheets)) as pdf:
        assert len(pdf) == num_sheets
        for number, sheet in ((1, pdf[0]), (2, pdf[num_sheets // 2])):
            (head,), (text,) = map(sheet.search_for, (f"Page {number}", f"Number {number}"))
            (picture,) = (sheet.get_image_rects(image[0])[0] for image in sheet.get_images())
            assert head.y1 < text.y0 < picture.y1 and head.y1 < picture.y0
            assert picture.x1 < text.x0 and picture.height > 200


def test_a_wide_table_is_moved_sideways_and_keeps_its_words_whole(chromium, tmp_path) -> None:
    """Its columns were as narrow as a letter."""
    table = f"<table><tr>{CELLS}</tr></table>" + "x" * 500
    open_html(chromium, tmp_path / "out", table)
    page_width = "document.documentElement.scrollWidth <= innerWidth"
    assert chromium.evaluate(page_width)
    assert chromium.evaluate("document.querySelector('td').clientHeight") < 60
    block = "document.querySelector('.block')"
    assert chromium.evaluate(f"{block}.scrollWidth > {block}.clientWidth")


def test_hebrew_begins_at_the_right(chromium, tmp_path) -> None:
    open_html(chromium, tmp_path / "out", "\u05e9\u05dc\u05d5\u05dd\n\nLatin")
    left = (
        "[...document.querySelectorAll('.block p')].map(p => { const all = "
        "document.createRange(); all.selectNodeContents(p); const box = p.getBoundingClientRect();"
        " return all.getBoundingClientRect().left > box.left + box.width / 2; })"
    )
    assert chromium.evaluate(left) == [True, False]
