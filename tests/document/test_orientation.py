"""Sideways and upside-down scans."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image, ImageDraw, ImageFont

from ocr2cli.config import RasterConfig
from ocr2cli.document.base_fonts import drawn_letters
from ocr2cli.document.orientation import rotation_to_upright, turned
from ocr2cli.document.raster import render_page
from ocr2cli.document.source import find_jobs
from ocr2cli.pages import Uint8Array

WORDS = (
    "It was late in the year when the surveyors came back with their figures. Nobody had asked "
    "for 1874 copies, yet the printer delivered them, bound in grey cloth, to every parish from "
    "Kilbride to Fyvie. What they said about rents, wells and bridges was quickly forgotten; the "
    "maps, however, hung in school rooms for the next forty years. "
)


@functools.cache
def _page(font: str = "helv", size: float = 11, columns: int = 1) -> Uint8Array:
    width = (455 - 20 * (columns - 1)) / columns
    with pymupdf.open() as document:
        page = document.new_page(width=595, height=842)
        for column in range(columns):
            left = 70 + column * (width + 20)
            text = WORDS * 3
            box = pymupdf.Rect(left, 70, left + width, 780)
            while page.insert_textbox(box, text, fontsize=size, fontname=font) < 0:
                text = text[: len(text) * 9 // 10]
        pixmap = page.get_pixmap(matrix=pymupdf.Matrix(2, 2), alpha=False)
    return np.frombuffer(pixmap.samples, np.uint8).reshape(1684, 1190, 3).copy()


def _needed(page: Uint8Array, degrees: int) -> int:
    """The rotation found for a page that was turned clockwise by so many degrees."""
    return rotation_to_upright(turned(page, degrees), drawn_letters())


TURNS = [(0, 0), (90, 270), (180, 180), (270, 90)]


@pytest.mark.parametrize(("degrees", "needed"), TURNS)
@pytest.mark.parametrize(
    ("font", "size", "columns"), [("helv", 9, 1), ("tiro", 11, 2), ("cour", 12, 1), ("tibi", 14, 1)]
)
def test_turned_pages_are_set_upright(
    font: str, size: float, columns: int, degrees: int, needed: int
) -> None:
    assert _needed(_page(font, size, columns), degrees) == needed


@pytest.mark.parametrize(("degrees", "needed"), TURNS)
def test_a_font_that_the_references_do_not_show(degrees: int, needed: int) -> None:
    image = Image.new("RGB", (900, 1200), "white")
    font = ImageFont.load_default(26)
    for line in range(24):
        start = line * 41 % len(WORDS)
        text = (WORDS * 2)[start : start + 58]
        ImageDraw.Draw(image).text((60, 60 + line * 44), text, fill="black", font=font)
    assert _needed(np.asarray(image), degrees) == needed


@pytest.mark.parametrize(("degrees", "needed"), TURNS)
def test_a_skewed_noisy_scan_is_set_upright(degrees: int, needed: int) -> None:
    scan = Image.fromarray(_page("tiro", 11)).rotate(1.2, fillcolor="white")
    noise = np.random.default_rng(0).normal(0, 6, (1684, 1190, 1))
    rgb = np.clip(np.asarray(scan) * 0.85 + 25 + noise, 0, 255).astype(np.uint8)
    assert _needed(rgb, degrees) == needed


def test_a_page_without_text_stays_as_it_is() -> None:
    y, x = np.mgrid[0:800, 0:600] / 600
    picture = (127 + 120 * np.sin(9 * x) * np.cos(7 * y)).astype(np.uint8)
    blank = np.full((800, 600), 255, np.uint8)
    tiny = np.zeros((3, 3), np.uint8)
    for page in (picture, blank, tiny):
        assert rotation_to_upright(page[:, :, None].repeat(3, axis=2), drawn_letters()) == 0


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turning_is_clockwise_and_can_be_undone(degrees: int) -> None:
    page = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    expected = np.asarray(Image.fromarray(page).rotate(-degrees, expand=True))
    assert np.array_equal(turned(page, degrees), expected)
    assert np.array_equal(turned(turned(page, degrees), 360 - degrees), page)


def test_only_rotate_auto_turns_a_page_and_it_says_so(tmp_path: Path) -> None:
    Image.fromarray(turned(_page(), 90)).save(tmp_path / "a.png")
    (job,) = find_jobs([str(tmp_path / "a.png")], is_isolated=False)
    as_it_is = render_page(job, RasterConfig())
    upright = render_page(job, RasterConfig(rotate="auto"))
    assert as_it_is.rgb.shape == (1190, 1684, 3) and as_it_is.warnings == ()
    assert np.array_equal(upright.rgb, _page())
    assert upright.warnings == ("turned by 270 degrees clockwise",)
