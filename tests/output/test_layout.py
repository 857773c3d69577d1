"""The layout PDF: every page, its boxes in the colour of their label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pymupdf
from page_factory import HEIGHT, WIDTH, failed, sample, write

from ocr2cli.output.layout import draw_boxes, label_colour


def test_boxes_are_drawn_in_the_colour_of_their_label() -> None:
    drawn = draw_boxes(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), sample())
    for label, bottom in (("title", 100), ("text", 300), ("image", 700), ("table", 900)):
        row = drawn[int(bottom / 999 * HEIGHT), 30:90]
        assert (row == label_colour(label)).all(), label
    labels = "title sub_title text image image_caption table table_caption equation"
    assert len({label_colour(label) for label in labels.split()}) == 8
    assert label_colour("odd") == label_colour("odd") != label_colour("text")


def test_the_layout_has_every_page_also_the_failed(tmp_path: Path) -> None:
    write(tmp_path, sample(), failed("d", 1, "timeout", "slow"), formats=("layout",))
    with pymupdf.open(tmp_path / "d.layout.pdf") as pdf:
        assert len(pdf) == 2 and "slow (timeout)" in pdf[1].get_text()
        assert pdf[0].get_images() and not pdf[1].get_images()
