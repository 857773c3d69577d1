"""Columns, lists, tables, pictures, worn scans: drawn where the truth says, and said exactly."""

from __future__ import annotations

import re
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw


@pytest.fixture(params=["columns", "lists", "tables", "scan", "sizes"])
def structured(request, two_fonts, plain_words, monkeypatch):
    from nanotrain import layouts, texts

    monkeypatch.setattr(
        texts, "random_words", lambda rng, count, held_out: rng.choices(["12", "Mill", "x."], k=2)
    )
    return layouts.structured_page(Random(7), request.param, two_fonts)


def upright_ink(page) -> np.ndarray:
    from nanotrain import draw

    image = Image.new("L", (page.width, page.height), 255)
    canvas = ImageDraw.Draw(image)
    for line in page.lines():
        draw.draw_line(canvas, line, 0)
    return np.asarray(image) < 128


def test_lines_do_not_cross(structured) -> None:
    boxes = [
        (line.left[0], line.baseline - 0.6 * line.size, line.right[-1], line.baseline)
        for line in structured.lines()
    ]
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        for u0, v0, u1, v1 in boxes[index + 1 :]:
            assert not (x0 < u1 and u0 < x1 and y0 < v1 and v0 < y1)


def test_plain_truth_holds_every_printed_line(structured) -> None:
    from nanotrain import truths

    truth = truths.plain_truth(structured)
    assert len(truth.places) == len(truth.text)
    at = 0
    for line in structured.lines():
        at = truth.text.index(line.text, at) + len(line.text)


def test_marked_places_are_where_the_skewed_drawing_has_ink(structured) -> None:
    from nanotrain import draw, pages

    structured.wear = 0.0
    picture = np.asarray(draw.draw_page(structured, Random(1)).convert("L")).astype(int)
    paper = np.bincount(picture.ravel()).argmax()
    ink = abs(picture - paper) > 60
    glyphs = pages.glyphs_of(structured)
    found = 0
    wanted = np.nonzero((glyphs.label > 4) & (glyphs.size > 20))[0]
    for index in wanted:
        x = (glyphs.x0[index] + glyphs.x1[index]) / 2
        y, size = glyphs.middle[index], glyphs.size[index]
        rows = slice(int(y - 0.6 * size), int(y + 0.6 * size))
        columns = slice(int(x - 0.4 * size), int(x + 0.4 * size) + 1)
        found += bool(ink[rows, columns].any())
    assert found >= 0.99 * len(wanted) > 0


def test_grounded_truth_names_every_block_and_boxes_hold_their_text(structured) -> None:
    from nanotrain import truths

    text = truths.grounded_truth(structured).text
    labels = re.findall(r"<\|ref\|>(\w+)<\|/ref\|>", text)
    assert labels == [block.label for block in structured.blocks]
    boxes = re.findall(r"\[\[(\d+), (\d+), (\d+), (\d+)\]\]", text)
    for block, box in zip(structured.blocks, boxes, strict=True):
        x0, y0, x1, y1 = (int(value) / 999 for value in box)
        for line in block.lines:
            x, y = structured.turned(
                (line.left + line.right) / 2, np.full(len(line.text), line.baseline)
            )
            assert (x / structured.width).min() >= x0 - 2e-3
            assert (x / structured.width).max() <= x1 + 3e-3
            assert y0 - 2e-3 <= (y / structured.height).min()
            assert (y / structured.height).max() <= y1 + 3e-3


def test_a_table_is_rows_in_both_truths(two_fonts) -> None:
    from nanotrain import pages, truths
    from nanotrain.measure import without_grounding

    page = pages.Page("letter", 1190, 1684, pages.view_scale(1190, 1684))
    cells = ["Year", "Flour, t", "1911", "84"]
    lines = [
        pages.make_line(
            cell, two_fonts[0], 30, x=100 + 300 * (at % 2), baseline=200 + 50 * (at // 2)
        )
        for at, cell in enumerate(cells)
    ]
    page.blocks.append(pages.Block("table", lines, columns=2))
    assert truths.plain_truth(page).text == "Year Flour, t\n1911 84"
    grounded = truths.grounded_truth(page).text
    assert grounded.endswith(
        "<table><tr><td>Year</td><td>Flour, t</td></tr><tr><td>1911</td><td>84</td></tr></table>"
    )
    assert without_grounding(grounded).split() == truths.plain_truth(page).text.split()


def test_a_broken_word_is_printed_broken_and_made_whole_in_markdown(two_fonts) -> None:
    from nanotrain import layouts, pages, truths

    words = ["an", "extraordinarily", "long", "word"]
    usable = float(pages.advances_em(two_fonts[0], "an extraordinar-").sum()) * 40
    rows, broken = layouts.hyphenate(words, two_fonts[0], 40, usable, True)
    assert rows[0] == "an extraordinar-" and 0 in broken
    page = pages.Page("letter", 1190, 1684, pages.view_scale(1190, 1684))
    lines = [
        pages.make_line(row, two_fonts[0], 40, x=90, baseline=200 + 60 * at)
        for at, row in enumerate(rows)
    ]
    for at in broken:
        lines[at].is_hyphenated = True
    page.blocks.append(pages.Block("text", lines))
    assert "extraordinar-\nily" in truths.plain_truth(page).text
    assert "extraordinarily" in truths.grounded_truth(page).text


def test_a_picture_is_a_block_without_text(two_fonts) -> None:
    from nanotrain import draw, pages, truths

    page = pages.Page("slide", 1280, 720, pages.view_scale(1280, 720), wear=0.0)
    page.blocks.append(pages.Block("image", [], area=(128, 72, 640, 360)))
    line = pages.make_line("Below", two_fonts[0], 60, x=128, baseline=500)
    page.blocks.append(pages.Block("text", [line]))
    assert truths.plain_truth(page).text == "Below"
    assert truths.grounded_truth(page).text.startswith(
        "<|ref|>image<|/ref|><|det|>[[99, 99, 499, 499]]<|/det|>\n"
    )
    picture = np.asarray(draw.draw_page(page, Random(2)).convert("L")).astype(int)
    assert picture[80:350, 140:630].std() > 5
