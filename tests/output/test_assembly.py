"""A document on its way to files: which pixels are still the page's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from page_factory import HEIGHT, WIDTH, figure_page, job

from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.output.assembly import Assembly, Expected, OutputSettings
from ocr2cli.output.folder import OutFolder
from ocr2cli.pages import PageImage, PageJob


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


DIGEST = pixels_sha256(white(HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("page_size", "digest", "is_the_pages"),
    [
        ((WIDTH, HEIGHT), DIGEST, True),
        ((WIDTH, HEIGHT), "", True),
        ((0, 0), DIGEST, True),
        ((HEIGHT, WIDTH), "", False),
        ((WIDTH, HEIGHT), "ab" * 32, False),
    ],
)
def test_figures_are_cut_from_the_pixels_that_were_read_as_far_as_that_is_known(
    tmp_path: Path, page_size: tuple[int, int], digest: str, is_the_pages: bool
) -> None:
    asked: list[PageJob] = []

    def render(wanted: PageJob) -> PageImage:
        asked.append(wanted)
        return PageImage(wanted.key, white(HEIGHT, WIDTH), 144.0)

    listed = dataclasses.replace(job("d", 0, 7), dpi=96)
    folder = OutFolder(tmp_path)
    assembly = Assembly(folder, Expected(listed), OutputSettings(("md",)), render)
    page = dataclasses.replace(figure_page("d", 4), page_size=page_size, pixels_sha256=digest)
    assert (assembly.image(page) is not None) is is_the_pages
    assert [(one.key.page, one.path, one.dpi) for one in asked] == [(4, listed.path, 96)]
    folder.close()
