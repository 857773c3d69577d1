"""Figures: cut from their pages, numbered and linked; those that another format links to stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from page_factory import HEIGHT, WIDTH, figure_page, files, gradient, job, page, write
from PIL import Image

from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.errors import ExitCode, PageFault
from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.writer import Writer
from ocr2cli.pages import Box, PageImage, PageJob


def test_figures_are_cut_from_the_page_and_linked(tmp_path: Path) -> None:
    write(tmp_path, page("a/my scan (1)", 0), figure_page("a/my scan (1)", 2))
    assert (
        "\n\n![](my%20scan%20%281%29.images/0003-1.png)\n\n"
        in (tmp_path / "a/my scan (1).md").read_text()
    )
    with Image.open(tmp_path / "a/my scan (1).images/0003-1.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (120, 80, 3)  # 200..600 of 300 px, 100..500 of 200 px, truncated
    assert pixels[0, 0].tolist() == [20, 60, 2] and pixels[-1, -1].tolist() == [99, 179, 2]


def test_figures_are_numbered_by_box_in_reading_order(tmp_path: Path) -> None:
    boxes = tuple(Box("image", (x, 0, x + 100, 100)) for x in (700, 100, 400))
    write(tmp_path, page("d", markdown="![](p)\n\n![](q)\n\nand\n\n![](r)", boxes=boxes))
    lefts = [
        int(np.asarray(Image.open(tmp_path / f"d.images/0001-{k}.png"))[0, 0, 0]) for k in (1, 2, 3)
    ]
    assert lefts == [140, 20, 80]
    text = (tmp_path / "d.md").read_text()
    assert text.index("0001-1.png") < text.index("0001-2.png") < text.index("0001-3.png")


def test_boxes_that_the_text_does_not_place_are_not_cut(tmp_path: Path) -> None:
    write(tmp_path, page("d", markdown="found it", boxes=(Box("image", (0, 0, 9, 9)),)))
    assert files(tmp_path) == ["d.jsonl", "d.md"]


@pytest.mark.parametrize("fault", ["gone", "smaller", "other pixels"])
def test_a_figure_whose_page_went_away_is_said_to_be_missing(tmp_path: Path, fault: str) -> None:
    def render(job: PageJob) -> PageImage:
        if fault == "gone":
            raise PageFault("unreadable", "gone")
        size = (10, 10) if fault == "smaller" else (HEIGHT, WIDTH)
        return PageImage(job.key, np.zeros((*size, 3), np.uint8), 144.0)

    one = Writer(tmp_path, OutputSettings(("md",)), render=render)
    one.expect(job("d"))
    digest = pixels_sha256(gradient(job("d")).rgb)
    one.add(dataclasses.replace(figure_page("d"), pixels_sha256=digest))
    assert one.close().exit_code == ExitCode.OK
    text = (tmp_path / "d.md").read_text()
    assert "<!-- figure 1 was not cut -->" in text and "![]" not in text
    assert files(tmp_path) == ["d.md"]


def test_figures_that_another_format_links_to_stay_when_a_run_writes_none_of_those(
    tmp_path: Path,
) -> None:
    write(tmp_path, figure_page("d"), formats=("md",))
    write(tmp_path, page("d", markdown="new"), formats=("pdf",))
    assert files(tmp_path) == ["d.images/0001-1.png", "d.md", "d.ocr.pdf"]
    write(tmp_path, page("d", markdown="new"), formats=("md",))
    assert files(tmp_path) == ["d.md", "d.ocr.pdf"]
