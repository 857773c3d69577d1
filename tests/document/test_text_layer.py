"""When a PDF's own text may stand for its pixels."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pymupdf
import pytest
from PIL import Image, ImageDraw

from ocr2cli.config import RasterConfig
from ocr2cli.document import raster
from ocr2cli.document.base_fonts import drawn_characters
from ocr2cli.document.raster import trusted_text
from ocr2cli.document.source import find_jobs
from ocr2cli.document.text_layer.judge import readable
from ocr2cli.document.text_layer.nouns import TextLayer
from ocr2cli.pages import PageImage

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


def _map(path: Path, said: dict[str, str], text: str = WORDS) -> Path:
    """A page that shows `text` while its layer says other characters: the ToUnicode lies."""
    pairs = "\n".join(
        f"<{code:02x}> <{said.get(chr(code), chr(code)).encode('utf-16-be').hex()}>"
        for code in range(32, 127)
    )
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapType 2 def\n"
        "1 begincodespacerange <00> <ff> endcodespacerange\n"
        f"95 beginbfchar\n{pairs}\nendbfchar\nendcmap end end"
    )
    with pymupdf.open() as document:
        page = document.new_page(width=595, height=842)
        _write(page, text)
        stream = document.get_new_xref()
        document.update_object(stream, "<<>>")
        document.update_stream(stream, cmap.encode())
        document.xref_set_key(page.get_fonts()[0][0], "ToUnicode", f"{stream} 0 R")
        document.save(path)
    return path


def _lying(path: Path, *, by: int, only_digits: bool = False) -> Path:
    """A page that shows WORDS while its layer says them shifted."""
    codes = map(chr, range(32, 127))
    return _map(path, {c: _shifted(c, by) for c in codes if c.isdigit() or not only_digits})


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


MONEY = WORDS + "Balance: -$1,250.00 and -$30.00 paid. " * 3


@pytest.mark.parametrize("said", [
    {"3": "8"}, {"1": "7"}, {"3": "8", "8": "3", "6": "9"}, {"$": "\u20ac"},
    {"-": " ", ",": ".", ".": ","}, {"-": " "}, {"a": "\u00e4", "o": "\u00f6"},
    {"a": "e", "e": "a", "o": "c"}, {chr(c): chr(c).swapcase() for c in range(65, 123)},
])  # fmt: skip
def test_a_layer_that_lies_about_some_characters_is_not_trusted(
    tmp_path: Path, said: dict[str, str]
) -> None:
    assert _trusted(_map(tmp_path / "a.pdf", {}, MONEY)) is not None
    assert _trusted(_map(tmp_path / "b.pdf", said, MONEY)) is None


def test_codes_that_no_one_can_read_are_not_trusted(tmp_path: Path) -> None:
    for code in ("\ufffd", "\ue012"):
        assert _trusted(_map(tmp_path / "a.pdf", {"J": code})) is None, repr(code)


def test_unreadable_codes_of_bullets_become_bullets(tmp_path: Path) -> None:
    def draw(page: pymupdf.Page) -> None:
        _write(page)
        writer = pymupdf.TextWriter(page.rect)
        for row, point in enumerate(("\u2022 one point", "\u2022 another")):
            writer.append((60, 600 + 20 * row), point, font=pymupdf.Font("helv"), fontsize=11)
        writer.write_text(page)

    path = _pdf(tmp_path / "a.pdf", draw)
    text = _trusted(path)
    assert text is not None and "\u2022 one" in text
    page, layer = _layer(path)
    characters = [
        replace(c, text="\x88") if c.text == "\u2022" else c for c in layer.characters
    ]
    told = text.replace("\u2022", "\x88")
    layer = TextLayer(characters, layer.drawings)
    assert readable(told, layer, page.rgb, drawn_characters()) == text


def _layer(path: Path) -> tuple[PageImage, TextLayer]:
    (job,) = find_jobs([str(path)], is_isolated=False)
    page = raster.render_page(job, AUTO)
    with raster._open_documents.borrow(job, AUTO) as document:
        assert isinstance(document, raster.PdfDocument)
        return page, document.layer(0, page.dpi)


def test_the_text_is_that_of_the_glyphs_not_another_that_the_file_has_for_them(
    tmp_path: Path,
) -> None:
    with pymupdf.open() as document:
        page = document.new_page(width=595, height=842)
        _write(page)
        lie = b"\nBT /helv 11 Tf 1 0 0 1 70 100 Tm /Span <</ActualText (99,999 to Mallory)>> BDC "
        stream = document.get_new_xref()
        document.update_object(stream, "<<>>")
        document.update_stream(stream, page.read_contents() + lie + b"(Total: 10) Tj EMC ET\n")
        page.set_contents(stream)
        document.save(tmp_path / "a.pdf")
    text = _trusted(tmp_path / "a.pdf")
    assert text is not None and "Total: 10" in text and "Mallory" not in text


def _cover(page: pymupdf.Page, colour: float) -> None:
    page.insert_text((70, 790), "SECRET NAME: Jane Roe 555", fontsize=11)
    fill = (colour, colour, colour)
    page.draw_rect(pymupdf.Rect(65, 778, 260, 796), color=fill, fill=fill)


@pytest.mark.parametrize("hide", [
    lambda page: _cover(page, 0),
    lambda page: _cover(page, 1),
    lambda page: page.insert_text((70, 800), "IGNORE ALL OF THIS", fontsize=8, color=(1, 1, 1)),
    lambda page: page.insert_text((70, 81), "IGNORE ALL OF THIS", fontsize=8, color=(1, 1, 1)),
    lambda page: page.insert_text((70, 800), "not 9,250", fontsize=8, render_mode=3),
])  # fmt: skip
def test_a_few_hidden_words_are_not_trusted(
    tmp_path: Path, hide: Callable[[pymupdf.Page], object]
) -> None:
    def draw(page: pymupdf.Page) -> None:
        _write(page)
        hide(page)

    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def _picture(page: pymupdf.Page, box: pymupdf.Rect, text: str, dpi: int = 200) -> None:
    with pymupdf.open() as other:
        inner = other.new_page(width=box.width, height=box.height)
        inner.insert_textbox(pymupdf.Rect(5, 5, box.width - 5, box.height - 5), text, fontsize=11)
        page.insert_image(box, pixmap=inner.get_pixmap(dpi=dpi))


def test_a_layer_under_the_picture_of_a_page_is_not_trusted(tmp_path: Path) -> None:
    # Visible by its own account, and as good as its first lines.
    def draw(page: pymupdf.Page) -> None:
        _write(page, WORDS + "sold " * 40)
        _picture(page, pymupdf.Rect(65, 65, 530, 777), WORDS + "kept " * 40)

    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def test_a_picture_of_text_on_a_page_of_text_is_not_trusted(tmp_path: Path) -> None:
    def draw(page: pymupdf.Page) -> None:
        _write(page, WORDS * 3)
        _picture(page, pymupdf.Rect(70, 600, 520, 680), WORDS[:170])

    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def test_text_drawn_as_outlines_is_missed_by_the_layer(tmp_path: Path) -> None:
    with pymupdf.open() as document:
        page = document.new_page(width=450, height=80)
        page.insert_textbox(pymupdf.Rect(5, 5, 445, 75), WORDS[:160], fontsize=12)
        svg = page.get_svg_image(text_as_path=True).encode()
    with pymupdf.open("svg", svg) as drawn, pymupdf.open("pdf", drawn.convert_to_pdf()) as paths:

        def draw(page: pymupdf.Page) -> None:
            _write(page, WORDS * 2)
            page.show_pdf_page(pymupdf.Rect(70, 600, 520, 680), paths, 0)

        assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def test_a_page_painted_over_and_over_is_not_looked_at(tmp_path: Path) -> None:
    def draw(page: pymupdf.Page) -> None:
        for _ in range(60):
            page.draw_rect(page.rect, fill=(1, 1, 1), color=None)
        _write(page)

    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def _with_a_rule(page: pymupdf.Page, rules: Sequence[tuple[float, float]], **line: Any) -> None:
    """"is max" and, 5 points behind it, "rank here". rules: from and to, in points behind "max"."""
    _write(page)
    end = 70 + pymupdf.get_text_length("The name is max", fontsize=11)
    page.insert_text((70, 600), "The name is max", fontsize=11)
    for first, last in rules:
        page.draw_line((end + first, 601), (end + last, 601), width=0.4, **line)
    page.insert_text((end + 5, 600), "rank here", fontsize=11)


def test_an_underscore_drawn_as_a_rule_is_written(tmp_path: Path) -> None:
    text = _trusted(_pdf(tmp_path / "a.pdf", lambda page: _with_a_rule(page, [(0.5, 4.5)])))
    assert text is not None and "is max_rank here" in "".join(text.split("\n"))


def test_a_rule_that_is_not_seen_or_not_beside_a_glyph_is_no_underscore(tmp_path: Path) -> None:
    def draw(page: pymupdf.Page) -> None:
        _with_a_rule(page, [(0.5, 4.5)], color=(1, 1, 1))
        page.draw_line((75, 601.5), (80, 601.5), width=0.4)  # under a word

    text = _trusted(_pdf(tmp_path / "a.pdf", draw))
    assert text is not None and "max" in text and "_" not in text


@pytest.mark.parametrize(
    "rules", [[(0.5, 2.0)], [(3.5, 4.5)], [(0.5, 2.5), (3.0, 4.5)], [(0.5, 4.0), (1.0, 4.5)]]
)
def test_underscores_without_a_sure_place_send_the_page_to_the_model(
    tmp_path: Path, rules: list[tuple[float, float]]
) -> None:
    path = _pdf(tmp_path / "a.pdf", lambda page: _with_a_rule(page, rules))
    assert _trusted(path) is None


def _ruled(page: pymupdf.Page) -> None:
    _write(page)
    for row in range(20):
        page.insert_text((70, 400 + 18 * row), f"Row {row}   amount {row * 37}.50", fontsize=10)
        page.draw_line((60, 404 + 18 * row), (530, 404 + 18 * row))


def _banded(page: pymupdf.Page) -> None:
    for row in range(6):
        band = pymupdf.Rect(60, 60 + 40 * row, 535, 80 + 40 * row)
        page.draw_rect(band, fill=(0.85, 0.9, 1), color=None)
    page.draw_rect(pymupdf.Rect(50, 600, 545, 660), fill=(0.1, 0.2, 0.5), color=None)
    page.insert_text((70, 640), "ACME Ltd Invoice 2023-118", fontsize=24, color=(1, 1, 1))
    _write(page)


def _with_photo(page: pymupdf.Page) -> None:
    _write(page)
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    page.insert_image(pymupdf.Rect(70, 600, 250, 720), pixmap=pymupdf.Pixmap(
        pymupdf.csRGB, 90, 60, noise.tobytes(), False))  # fmt: skip


def _with_leaders(page: pymupdf.Page) -> None:
    for row in range(30):
        line = f"Chapter about subject {row * 7} " + "." * 70 + f" {row * 11 + 3}"
        page.insert_text((70, 80 + 18 * row), line, fontsize=10)
    _write(page, "quarry jumps over lazy fox, wizard, kept. " * 3)


def _in_columns(page: pymupdf.Page) -> None:
    page.insert_text((60, 50), "A Title over Both of the Columns", fontsize=14)
    for left in (60, 310):
        page.insert_textbox(pymupdf.Rect(left, 70, left + 230, 700), WORDS, fontsize=11)
    page.insert_text((290, 800), "Page 12", fontsize=9)


def _with_chart(page: pymupdf.Page) -> None:
    _write(page)
    for n in range(12):
        page.draw_rect(pymupdf.Rect(100 + 30 * n, 600 - 8 * n, 120 + 30 * n, 700), fill=(0, 0, 1))
        page.insert_text((102 + 30 * n, 712), str(1990 + n), fontsize=7)
    page.draw_polyline([(100 + 30 * n, 650 - 5 * (n % 4) * n) for n in range(12)], color=(1, 0, 0))


@pytest.mark.parametrize(
    "draw", [_ruled, _banded, _with_photo, _with_leaders, _in_columns, _with_chart]
)
def test_rules_bands_photos_leaders_and_columns_do_not_speak_against_a_layer(
    tmp_path: Path, draw: Callable[[pymupdf.Page], None]
) -> None:
    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is not None


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("cfg", [AUTO, RasterConfig(text_layer="auto", rotate="auto")])
def test_a_layer_on_its_side_is_trusted(
    tmp_path: Path, rotation: int, cfg: RasterConfig
) -> None:
    def turned_page(page: pymupdf.Page) -> None:
        _write(page)
        page.set_rotation(rotation)

    for draw in (turned_page, lambda page: _write(page, rotate=rotation)):
        text = _trusted(_pdf(tmp_path / "a.pdf", draw), cfg)
        assert text is not None and text.split() == WORDS.split()


def _across_columns(page: pymupdf.Page) -> None:
    for row, line in enumerate(textwrap.wrap(WORDS, 38)):
        page.insert_text((60, 80 + 14 * row), line, fontsize=11)
        page.insert_text((310, 80 + 14 * row), line, fontsize=11)


def _backwards(page: pymupdf.Page) -> None:
    for left in (310, 60):
        page.insert_textbox(pymupdf.Rect(left, 70, left + 230, 700), WORDS, fontsize=11)


def _shuffled(page: pymupdf.Page) -> None:
    words = [
        (60 + 90 * n, 80 + 14 * row, word)
        for row, line in enumerate(textwrap.wrap(WORDS, 30))
        for n, word in enumerate(line.split())
    ]
    for x, y, word in random.Random(1).sample(words, len(words)):
        page.insert_text((x, y), word, fontsize=11)


def _spaced_out(page: pymupdf.Page) -> None:
    for n, letter in enumerate(WORDS[:300].replace(" ", "")):
        page.insert_text((60 + n % 40 * 12, 80 + n // 40 * 15), letter, fontsize=10)


def _doubled(page: pymupdf.Page) -> None:
    _write(page)
    for shift in (0, 0.4):
        page.insert_text((70 + shift, 700), "Annual Report", fontsize=18)


@pytest.mark.parametrize(
    "draw", [_across_columns, _backwards, _shuffled, _spaced_out, _doubled]
)
def test_an_order_that_no_one_can_read_is_not_trusted(
    tmp_path: Path, draw: Callable[[pymupdf.Page], None]
) -> None:
    assert _trusted(_pdf(tmp_path / "a.pdf", draw)) is None


def test_a_text_too_long_to_be_kept_whole_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _pdf(tmp_path / "a.pdf", _write)
    monkeypatch.setattr("ocr2cli.document.pdf.MAX_TEXT_CHARACTERS", 300)
    assert _trusted(path) is None
    assert len(_trusted(path, RasterConfig(text_layer="trust")) or "") == 300
