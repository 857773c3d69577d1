"""Which pages are blank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pymupdf
import pytest

from ocr2cli.config import RasterConfig
from ocr2cli.document.ink import ink_box, is_blank
from ocr2cli.pages import Uint8Array

SHARE = RasterConfig().blank_ink
HEIGHT, WIDTH = 842, 595


def _paper(level: int, noise: float = 0.0) -> Uint8Array:
    values = np.random.default_rng(3).normal(level, noise, (HEIGHT, WIDTH, 3))
    return np.clip(values, 0, 255).round().astype(np.uint8)


def _typed(text: str, size: float, color: tuple[float, float, float] = (0, 0, 0)) -> Uint8Array:
    with pymupdf.open() as document:
        page = document.new_page(width=595, height=842)
        page.insert_text((70, 400), text, fontsize=size, color=color)
        pixmap = page.get_pixmap(matrix=pymupdf.Matrix(2, 2), alpha=False)
    return np.frombuffer(pixmap.samples, np.uint8).reshape(pixmap.height, pixmap.width, 3)


@pytest.mark.parametrize("level", [0, 127, 200, 255])
@pytest.mark.parametrize("noise", [0.0, 3.0, 6.0])
def test_plain_paper_with_light_noise_is_blank(level: int, noise: float) -> None:
    assert is_blank(_paper(level, noise), SHARE)


def test_dust_on_white_paper_is_blank() -> None:
    page = _paper(250, 4)
    draw = np.random.default_rng(1)
    specks = draw.integers(0, (HEIGHT, WIDTH), (400, 2))
    page[specks[:, 0], specks[:, 1]] = 40
    assert is_blank(page, SHARE)


@pytest.mark.parametrize(
    ("text", "size"), [("Page 7", 6), ("See overleaf.", 7), ("12", 12), ("i i", 24)]
)
def test_a_single_short_line_of_small_text_is_not_blank(text: str, size: float) -> None:
    assert not is_blank(_typed(text, size), SHARE)


def test_light_grey_and_coloured_text_are_ink() -> None:
    for color in ((0.7, 0.7, 0.7), (0, 1, 0), (1, 1, 0), (0, 0, 1)):
        assert not is_blank(_typed("a short line of text", 9, color), SHARE), color


def test_white_text_on_a_dark_ground_is_not_blank() -> None:
    assert not is_blank(255 - _typed("a short line of text", 9), SHARE)


def test_small_text_on_noisy_paper_is_not_blank() -> None:
    noise = np.random.default_rng(5).normal(0, 5, (1684, 1190, 3))
    page = _typed("See overleaf.", 8).astype(np.float64) * 0.9 + 12 + noise
    assert not is_blank(np.clip(page, 0, 255).astype(np.uint8), SHARE)


def test_pure_noise_is_blank() -> None:
    draw = np.random.default_rng(2)
    page = draw.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert is_blank(page, SHARE)
    salt = np.where(draw.random((300, 300, 1)) < 0.3, 0, 255).astype(np.uint8).repeat(3, axis=2)
    assert is_blank(salt, SHARE)


def test_a_photograph_like_picture_is_not_blank() -> None:
    y, x = np.mgrid[0:300, 0:300] / 300
    shade = (127 + 120 * np.sin(9 * x) * np.cos(7 * y)).astype(np.uint8)
    noisy = np.clip(
        shade[:, :, None] + np.random.default_rng(4).normal(0, 12, (300, 300, 3)), 0, 255
    )
    assert not is_blank(noisy.astype(np.uint8), SHARE)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_tiny_pages_are_blank(size: tuple[int, int]) -> None:
    assert is_blank(np.zeros((*size, 3), np.uint8), SHARE)


def test_ink_is_strokes_and_not_single_pixels() -> None:
    page = np.full((10, 10, 3), 255, np.uint8)
    page[2, 2] = 0
    assert is_blank(page, 0.01)
    page[5, 1:9] = 0
    # Six of a hundred pixels: the stroke's two ends have one neighbour.
    assert is_blank(page, 0.065) and not is_blank(page, 0.06)


def test_real_examples_are_not_blank(shared_reference: Path | None) -> None:
    from PIL import Image

    for name in ("test-1.jpeg", "test-1-positive.png") if shared_reference else ():
        assert shared_reference is not None
        with Image.open(shared_reference / "eval-llama-cpp" / name) as image:
            assert not is_blank(np.asarray(image.convert("RGB")), SHARE)


def test_the_box_of_the_ink_is_around_the_print_and_not_around_dust() -> None:
    page = _paper(250, 4)
    page[300:310, 100:400] = 20  # lies in two bands of rows
    page[250:258, 200:210] = 20
    page[800, 500] = 20
    assert ink_box(page) == (100, 250, 400, 310)
    assert ink_box(_paper(250, 4)) is None
