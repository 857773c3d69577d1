"""What the truth says is what is drawn, where it is drawn."""

from __future__ import annotations

import re
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

KINDS = ("note", "slide", "poster", "letter", "dense", "clip")


@pytest.fixture(params=KINDS)
def page(request, two_fonts, plain_words):
    from nanotrain import pages

    return pages.random_page(Random(KINDS.index(request.param)), request.param, two_fonts)


def ink_of(page) -> np.ndarray:
    from nanotrain import draw

    image = Image.new("L", (page.width, page.height), 255)
    canvas = ImageDraw.Draw(image)
    for line in page.lines():
        draw.draw_line(canvas, line, 0)
    return np.asarray(image) < 128


def test_plain_truth_is_the_lines_as_laid_out(page) -> None:
    from nanotrain import truths

    truth = truths.plain_truth(page)
    assert [line for line in truth.text.split("\n") if line] == [line.text for line in page.lines()]
    assert len(truth.places) == len(truth.text)


def test_every_character_but_space_has_ink_in_its_own_box(page) -> None:
    ink = ink_of(page)
    bare = 0
    for line in page.lines():
        rows = slice(round(line.baseline - line.size), round(line.baseline + 0.4 * line.size))
        for char, left, right in zip(line.text, line.left, line.right, strict=True):
            has_ink = bool(ink[rows, round(left) : max(round(right), round(left) + 1)].any())
            if char == " ":
                continue
            bare += not has_ink
    assert bare == 0


def test_no_ink_lies_outside_the_blocks(page) -> None:
    ink = ink_of(page).copy()
    for block in page.blocks:
        x0, y0, x1, y1 = block.box
        slack = 0.25 * block.lines[0].size
        ink[
            max(0, int(y0 - slack)) : int(y1 + slack), max(0, int(x0 - slack)) : int(x1 + slack)
        ] = False
    assert not ink.any()


def test_grounded_boxes_are_ordered_and_inside_the_page(page) -> None:
    from nanotrain import truths

    text = truths.grounded_truth(page).text
    boxes = re.findall(r"<\|det\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|/det\|>", text)
    assert len(boxes) == len(page.blocks)
    for box in boxes:
        x0, y0, x1, y1 = map(int, box)
        assert 0 <= x0 < x1 <= 999 and 0 <= y0 < y1 <= 999


def test_grounded_text_is_the_plain_text_with_markup(page) -> None:
    from nanotrain import truths
    from nanotrain.measure import without_grounding

    assert (
        without_grounding(truths.grounded_truth(page).text).split()
        == truths.plain_truth(page).text.split()
    )


def test_slots_read_row_by_row_give_the_line_back(two_fonts) -> None:
    from nanotrain import cells, pages
    from nanotrain.characters import READABLE

    page = pages.Page("note", 768, 300, pages.view_scale(768, 300))
    page.blocks.append(
        pages.Block(
            "text", [pages.make_line("Large type, 42 px!", two_fonts[0], 48, x=60, baseline=150)]
        )
    )
    view = cells.page_windows(768, 300)[1]
    slots = cells.slot_labels(pages.glyphs_of(page), view)
    n = view.side // 64
    fine = slots.reshape(n, n, 2, 8).transpose(0, 2, 1, 3).reshape(2 * n, 8 * n)
    read = "".join(READABLE[c - 4] for row in fine for c in row if c > 3)
    assert read == "Large type, 42 px!"


def test_the_windows_are_the_programs_views(two_fonts, plain_words) -> None:
    from nanotrain import cells

    from ocr2cli.config import TileConfig
    from ocr2cli.document.tiles import view_layout

    for width, height in ((640, 480), (500, 767), (1920, 1080), (1190, 1684), (1224, 1584)):
        layout = view_layout(width, height, TileConfig())
        tiles, view = cells.page_windows(width, height)
        assert len(tiles) == layout.num_tiles
        assert (-view.left, -view.top) == layout.global_offset
        assert (round(view.sx * width), round(view.sy * height)) == layout.global_size


def test_a_place_is_found_in_the_cell_that_shows_it() -> None:
    from nanotrain import cells

    windows = cells.page_windows(1190, 1684)
    places = np.array([[1, 1], [1189, 1], [1, 1683], [1189, 1683]], np.float32)
    assert cells.token_of(places, windows).tolist() == [0, 144 + 11, 4 * 144 + 132, 5 * 144 + 143]


def test_a_character_is_looked_for_in_the_slot_that_names_it(page) -> None:
    from nanotrain import cells, pages, truths
    from nanotrain.characters import CLASS_OF

    truth = truths.plain_truth(page)
    tiles, view = windows = cells.page_windows(page.width, page.height)
    glyphs = pages.glyphs_of(page)
    labels = np.concatenate([cells.slot_labels(glyphs, window) for window in [*tiles, view]])
    found = labels[cells.token_of(truth.places, windows), cells.slot_of(truth.places, windows)]
    wanted = np.array([CLASS_OF.get(char, -1) for char in truth.text])
    # A narrow character that shares a slot is named by the next one.
    assert (found == wanted)[wanted >= 0].mean() > 0.95


def test_lines_of_a_dense_page_share_cells_but_never_a_slot(two_fonts, plain_words) -> None:
    from nanotrain import cells, pages

    shared = []
    for seed in range(40):
        kind = ("dense", "clip")[seed % 2]
        dense = pages.random_page(Random(seed), kind, two_fonts, max_characters=450)
        middle = np.array([line.baseline - 0.3 * line.size for line in dense.lines()])
        rows = (middle * dense.scale[1] // cells.SLOT_H).astype(int)
        assert len(set(rows.tolist())) == len(rows)
        shared += [int((rows // 2 == row // 2).sum() == 2) for row in rows]
    assert np.mean(shared) > 0.2


def test_tokens_are_those_of_the_bundled_tokenizer(nano_folder) -> None:
    from nanotrain import vocabulary
    from nanotrain.characters import READABLE

    from ocr2cli.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(nano_folder / "tokenizer.json")
    boxes = "<|ref|>text<|/ref|><|det|>[[1, 22, 333, 999]]<|/det|>"
    text = f"{boxes}\n# A1\n\n{READABLE} it's 2026, ok..."
    ids, _ = vocabulary.encode(text)
    assert list(tokenizer.encode(text)) == ids
    assert vocabulary.decode(ids) == text
