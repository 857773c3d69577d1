"""Figures and pictures from a real PDF through the document room, as a run takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pymupdf
import pytest
from page_factory import failed, page
from PIL import Image

from ocr2cli.config import RasterConfig
from ocr2cli.document.raster import render_page
from ocr2cli.document.source import find_jobs
from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.formats import FORMATS
from ocr2cli.output.writer import Writer
from ocr2cli.pages import Box, PageJob, PageResult

RASTER = RasterConfig(dpi=72)
RED, BLUE = (1, 0, 0), (0, 0, 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two pages of 200 x 100 points with a square at (50, 20)-(100, 70), red, then blue."""
    path = tmp_path / "in" / "two.pdf"
    path.parent.mkdir()
    with pymupdf.open() as pdf:
        for colour in (RED, BLUE):
            sheet = pdf.new_page(width=200, height=100)
            sheet.draw_rect((50, 20, 100, 70), color=None, fill=colour)
        pdf.save(path)
    return path


def result_of(job: PageJob) -> PageResult:
    if job.error:
        return failed(job.key.document, job.key.page, job.error.code, job.error.message)
    rgb = render_page(job, RASTER).rgb
    box = Box("image", (250, 200, 500, 700))
    return page(
        job.key.document, job.key.page, "![](figure:1)", boxes=(box,),
        page_size=(rgb.shape[1], rgb.shape[0]), pixels_sha256=pixels_sha256(rgb),
    )  # fmt: skip


def run(out: Path, source: Path, pages: str = "") -> Writer:
    one = Writer(out, OutputSettings(tuple(FORMATS)), raster=RASTER)
    jobs = list(find_jobs([str(source)], pages, RASTER, out=out))
    results = [result_of(job) for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        one.expect(job)
        one.add(result)
    one.close()
    return one


def colour_of(path: Path) -> list[int]:
    with Image.open(path) as image:
        return [int(value) for value in np.asarray(image).reshape(-1, 3).mean(axis=0).round()]


def test_each_page_gives_its_own_figure(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    assert run(out, source).summary.exit_code == 0
    first, second = (colour_of(out / f"two.images/000{n}-1.png") for n in (1, 2))
    assert first[0] > 240 > 60 > first[2] and second[2] > 240 > 60 > second[0]
    with pymupdf.open(out / "two.ocr.pdf") as pdf:
        assert len(pdf) == 2 and pdf[0].rect.width == pytest.approx(200)


def test_chosen_pages_keep_their_numbers_in_figures(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run(out, source, "2")
    assert colour_of(out / "two.images/0002-1.png")[2] > 240
    assert "two.images/0002-1.png" in (out / "two.md").read_text()
    assert not (out / "two.images/0001-1.png").exists()


def test_a_figure_is_never_cut_from_a_file_that_changed(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    one = Writer(out, OutputSettings(("md",)), raster=RASTER)
    jobs = list(find_jobs([str(source)], "", RASTER, out=out))
    results = [result_of(job) for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        one.expect(job)
        one.add(result)
    with pymupdf.open() as pdf:
        for _ in range(2):
            pdf.new_page(width=200, height=100)
        pdf.save(source.parent / "new.pdf")
    (source.parent / "new.pdf").replace(source)
    assert one.close().exit_code == 0
    assert (out / "two.md").read_text().count("was not cut") == 2
    assert not (out / "two.images").exists()


def test_out_among_the_inputs_leaves_the_inputs_alone(tmp_path: Path, source: Path) -> None:
    before = source.read_bytes()
    run(source.parent, source)
    assert source.read_bytes() == before
    names = sorted(path.name for path in source.parent.iterdir() if path.is_file())
    assert names == [
        "two.html", "two.json", "two.jsonl", "two.layout.pdf", "two.md", "two.mmd", "two.ocr.pdf",
        "two.pdf", "two_det.mmd", "two_layouts.pdf",
    ]  # fmt: skip
