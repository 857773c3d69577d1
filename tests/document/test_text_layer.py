"""When a PDF's own text may stand for its pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pymupdf
import pytest
from PIL import Image, ImageDraw

from ocr2cli.config import RasterConfig
from ocr2cli.document import raster
from ocr2cli.document.raster import trusted_text
from ocr2cli.document.source import find_jobs
from ocr2cli.document.text_layer import TextCharacter, is_trustworthy

AUTO = RasterConfig(text_layer="auto")
WORDS = (
    "The committee met on 14 March 1987 and agreed, by 23 votes to 6, that the bridge over the "
    "quarry should be kept. Just two members objected: Mr Fox and Ms Vale, whose yard lies below "
    "it. Repairs will cost 9,250 pounds and take until October. Zinc and oak are being ordered. "
) * 2


def _pdf(path: Path, draw: Callable[[pymupdf.Page], None]) -> Path:
    with pymupdf.open() as document:
        draw(document.new_page(width=595, height=842))
        document.save(path)
    return path


def _write(page: pymupdf.Page, text: str = WORDS, **how: object) -> None:
    box = pymupdf.Rect(70, 70, 520, 780)
    assert page.insert_textbox(box, text, **{"fontsize": 11, **how}) >= 0


def _trusted(path: Path, cfg: RasterConfig = AUTO) -> str | None:
    (job,) = find_jobs([str(path)], is_isolated=False)
    return trusted_text(job, cfg)


@pytest.mark.parametrize("font", ["helv", "tiro", "cour", "hebo", "tiit"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_an_honest_layer_is_trusted(tmp_path: Path, font: str, rotation: int) -> None:
    def draw(page: pymupdf.Page) -> None:
        # Drawn on its side and turned back by the page, as landscape pages are.
        _write(page, fontname=font, rotate=rotation)
        page.set_rotation(rotation)

    text = _trusted(_pdf(tmp_path / "a.pdf", draw))
    assert text is not None and text.split() == WORDS.split()


def _shifted(text: str, by: int) -> str:
    """Letters moved along the alphabet and digits along the row of digits."""

    def move(character: str) -> str:
        for first, count in (("a", 26), ("A", 26), ("0", 10)):
            place = ord(character) - ord(first)
            if 0 <= place < count:
                return chr(ord(first) + (place + by) % count)
        return character

    return "".join(map(move, text))


def _lying(path: Path, *, by: int, only_digits: bool = False) -> Path:
    """A page that shows WORDS while its layer says them shifted: the font's ToUnicode lies."""
    codes = range(32, 127)
    said = {
        c: _shifted(chr(c), by) if chr(c).isdigit() or not only_digits else chr(c) for c in codes
    }
    pairs = "\n".join(f"<{c:02x}> <{ord(said[c]):04x}>" for c in codes)
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapType 2 def\n"
        "1 begincodespacerange <00> <ff> endcodespacerange\n"
        f"{len(said)} beginbfchar\n{pairs}\nendbfchar\nendcmap end end"
    )
    with pymupdf.open() as document:
        page = document.new_page(width=595, height=842)
        _write(page)
        font = page.get_fonts()[0][0]
        stream = document.get_new_xref()
        document.update_object(stream, "<<>>")
        document.update_stream(stream, cmap.encode())
        document.xref_set_key(font, "ToUnicode", f"{stream} 0 R")
        document.save(path)
    return path


def test_a_shifted_encoding_is_not_trusted(tmp_path: Path) -> None:
    path = _lying(tmp_path / "a.pdf", by=1)
    with pymupdf.open(path) as document:
        assert _shifted(WORDS, 1).split()[:5] == document[0].get_text().split()[:5]
    assert _trusted(path) is None
    assert _trusted(path, RasterConfig(text_layer="trust")) is not None, "trust asks no questions"


def test_a_layer_that_lies_about_digits_only_is_not_trusted(tmp_path: Path) -> None:
    assert _trusted(_lying(tmp_path / "a.pdf", by=4, only_digits=True)) is None


def test_an_honest_unicode_map_is_trusted(tmp_path: Path) -> None:
    assert _trusted(_lying(tmp_path / "a.pdf", by=0)) is not None


def test_invisible_text_is_not_trusted(tmp_path: Path) -> None:
    def hidden_over_other_text(page: pymupdf.Page) -> None:
        _write(page, "Something else altogether stands here in ink. " * 12)
        _write(page, render_mode=3)

    assert _trusted(_pdf(tmp_path / "a.pdf", lambda page: _write(page, render_mode=3))) is None
    assert _trusted(_pdf(tmp_path / "b.pdf", hidden_over_other_text)) is None


def test_another_ocr_programs_layer_under_a_scan_is_not_trusted(tmp_path: Path) -> None:
    def draw(page: pymupdf.Page) -> None:
        with pymupdf.open(_pdf(tmp_path / "visible.pdf", _write)) as visible:
            page.insert_image(page.rect, pixmap=visible[0].get_pixmap(dpi=144))
        _write(page, render_mode=3)

    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def test_white_text_is_not_trusted(tmp_path: Path) -> None:
    assert _trusted(_pdf(tmp_path / "a.pdf", lambda page: _write(page, color=(1, 1, 1)))) is None


def test_a_layer_beside_a_scanned_picture_is_not_trusted(tmp_path: Path) -> None:
    scan = Image.new("L", (900, 600), "white")
    for line in range(20):
        ImageDraw.Draw(scan).text((10, 30 * line), WORDS[line : line + 90], fill="black")
    scan.save(tmp_path / "scan.png")

    def draw(page: pymupdf.Page) -> None:
        page.insert_image(pymupdf.Rect(70, 250, 520, 700), filename=tmp_path / "scan.png")
        page.insert_text((70, 60), WORDS[:70], fontsize=9)

    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def test_too_little_text_is_not_trusted(tmp_path: Path) -> None:
    assert _trusted(_pdf(tmp_path / "a.pdf", lambda page: _write(page, "Page 1 of 2"))) is None


def test_a_script_that_cannot_be_checked_is_not_trusted(tmp_path: Path) -> None:
    cyrillic = "\u0414\u043e\u043a\u0443\u043c\u0435\u043d\u0442 " * 40
    path = _pdf(tmp_path / "a.pdf", lambda page: _write(page, cyrillic, fontname="china-s"))
    assert _trusted(path) is None


def test_layers_are_off_by_default_and_images_have_none(tmp_path: Path) -> None:
    assert _trusted(_pdf(tmp_path / "a.pdf", _write), RasterConfig()) is None
    Image.new("RGB", (50, 50), "white").save(tmp_path / "b.png")
    assert _trusted(tmp_path / "b.png") is None


def test_unreadable_codes_are_not_trusted(tmp_path: Path) -> None:
    path = _pdf(tmp_path / "a.pdf", _write)
    (job,) = find_jobs([str(path)], is_isolated=False)
    page = raster.render_page(job, AUTO)
    with raster._open_documents.borrow(job, AUTO) as document:
        assert isinstance(document, raster.PdfDocument)
        honest = document.characters(0, page.dpi)
    assert is_trustworthy(honest, page.rgb, raster._letters())
    for code in ("\ufffd", "\ue012", "\x07"):
        broken = [
            TextCharacter(code if n % 20 == 0 else c.text, c.box, c.is_visible)
            for n, c in enumerate(honest)
        ]
        assert not is_trustworthy(broken, page.rgb, raster._letters()), repr(code)
