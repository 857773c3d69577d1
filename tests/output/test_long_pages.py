"""Strips longer than a JPEG can be or a PDF allows, in every format that holds pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from page_factory import grounded, job, write
from PIL import Image

from ocr2cli.errors import ExitCode
from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.figures import encode
from ocr2cli.output.writer import Writer
from ocr2cli.pages import PageImage


def write_strip(out: Path, *formats: str, **fields: object) -> Writer:
    """A document of one page, 70,000 pixels high, whose lower half is a figure."""
    rgb = np.full((70_000, 3, 3), 200, np.uint8)
    one = Writer(out, OutputSettings(formats), render=lambda job: PageImage(job.key, rgb, 144.0))
    one.expect(job("d"))
    one.add(
        grounded(
            "d", 0,
            ("text", [0, 0, 999, 300], "words"),
            ("image", [0, 0, 999, 999], ""),
            page_size=(3, 70_000), **fields,
        )
    )  # fmt: skip
    return one


@pytest.mark.parametrize("name", ["pdf", "html", "layout", "mmd"])
def test_a_strip_longer_than_a_jpeg_can_be_is_written_smaller(tmp_path: Path, name: str) -> None:
    summary = write_strip(tmp_path, name).close()
    assert (summary.exit_code, summary.documents_written) == (ExitCode.OK, 1)
    for path in tmp_path.glob("*.pdf"):
        with pymupdf.open(path) as pdf:
            (image,) = pdf[0].get_images()
            xref, _, width, height = image[:4]
            inside = Image.open(io.BytesIO(pdf.extract_image(xref)["image"]))
            assert inside.size == (width, height) == (3, 65_500)


@pytest.mark.parametrize(
    ("size", "smaller"),
    [((70_000, 7), (65_500, 7)), ((131_000, 10), (65_500, 5)), ((65_500, 2), (65_500, 2))],
)
def test_a_jpeg_keeps_the_shape_of_what_is_too_long_for_it(
    size: tuple[int, int], smaller: tuple[int, int]
) -> None:
    for turn in (1, -1):
        rgb = np.zeros((*size[::turn], 3), np.uint8)
        with Image.open(io.BytesIO(encode(rgb, "JPEG"))) as image:
            assert image.size == smaller[::-turn]


@pytest.mark.parametrize("name", ["pdf", "layout", "mmd"])
def test_a_page_longer_than_a_pdf_allows_keeps_its_shape(tmp_path: Path, name: str) -> None:
    """One side alone was cut to 14,400 pt: text placed for the whole length lay off the page."""
    write_strip(tmp_path, name).close()
    (path,) = tmp_path.glob("*.pdf")
    with pymupdf.open(path) as pdf:
        width, height = pdf[0].rect[2:]
        assert (width, height) == (3, 14_400)  # 35,000 pt by 1.5, of which no side may be below 3
        (picture,) = pdf[0].get_image_info()
        assert picture["bbox"] == (0, 0, width, height)
        for word in pdf[0].get_text("words"):
            assert word[1] < 0.301 * height and word[3] < 0.301 * height


def test_both_sides_of_a_long_page_are_made_smaller_by_one_factor(tmp_path: Path) -> None:
    result = grounded("d", 0, ("text", [0, 900, 999, 999], "words"), page_size=(3_000, 60_000))
    write(tmp_path, result, formats=("pdf", "layout"))
    for path in tmp_path.glob("*.pdf"):
        with pymupdf.open(path) as pdf:
            assert tuple(pdf[0].rect) == (0, 0, 720, 14_400)
            words = pdf[0].get_text("words")
            assert all(0.89 < word[1] / 14_400 < word[3] / 14_400 <= 1 for word in words)
            assert bool(words) == path.name.endswith(".ocr.pdf")
