"""Searchable PDFs, opened by readers that are not ours: the scan, and its text over it unseen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from page_factory import HEIGHT, SCRIPTS, WIDTH, failed, job, page, sample, write

from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.searchable_pdf import spread, text_lines
from ocr2cli.output.writer import Writer
from ocr2cli.pages import PageImage, PageJob
from ocr2cli.text.grounding import parse


def test_a_searchable_pdf_opens_and_its_text_extracts_in_every_script(tmp_path: Path) -> None:
    write(tmp_path, sample(0), failed("d", 1, "timeout", "too slow (really)"), formats=("pdf",))
    path = tmp_path / "d.ocr.pdf"
    pymupdf.TOOLS.reset_mupdf_warnings()
    with pymupdf.open(path) as pdf:
        text = pdf[0].get_text()
        note = pdf[1].get_text()
        assert "estimated" in pdf.metadata["subject"] and pdf.metadata["title"] == "d"
        assert pdf[0].rect.width == pytest.approx(WIDTH / 2)  # 144 dpi
    assert pymupdf.TOOLS.mupdf_warnings() == ""
    assert " ".join(text.split()).startswith(f"Head 0 First words {SCRIPTS} and bold last words")
    assert "too slow (really) (timeout)" in note
    if poppler := shutil.which("pdftotext"):
        seen = subprocess.run([poppler, "-raw", path, "-"], capture_output=True, check=True)
        assert seen.stderr == b"" and "\u6f22\u5b57" in seen.stdout.decode()
        assert "\U0001f600" in seen.stdout.decode()


def test_the_text_layer_is_invisible_over_the_scan(tmp_path: Path) -> None:
    write(tmp_path, sample(), page("e"), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as words, pymupdf.open(tmp_path / "e.ocr.pdf") as no:
        seen, bare = words[0].get_pixmap(dpi=144), no[0].get_pixmap(dpi=144)
        assert b"BT 3 Tr " in words[0].read_contents()  # mode 3: neither filled nor stroked
    assert (seen.width, seen.height) == (WIDTH, HEIGHT) and seen.samples == bare.samples
    pixels = np.frombuffer(seen.samples, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert abs(int(pixels[10, 150, 0]) - 150) < 12  # the scan's own colours


def test_words_lie_inside_the_box_of_their_block(tmp_path: Path) -> None:
    write(tmp_path, sample(), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        found = {word[4]: pymupdf.Rect(word[:4]) for word in pdf[0].get_text("words")}
        width, height = pdf[0].rect.width, pdf[0].rect.height
    for word, (x1, y1, x2, y2) in {
        "Head": (100, 50, 900, 100),
        "First": (100, 150, 900, 300),
        "last": (100, 150, 900, 300),
        "two": (100, 750, 900, 900),
    }.items():
        left, top, right, bottom = x1 * width, y1 * height, x2 * width, y2 * height
        box = pymupdf.Rect(left / 999 - 1, top / 999 - 3, right / 999 + 1, bottom / 999 + 3)
        assert box.contains(found[word]), word


def test_lines_are_estimated_from_the_shape_of_the_block() -> None:
    words = "word " * 80
    narrow = list(spread([words], (0, 0, 100, 400)))
    wide = list(spread([words], (0, 0, 400, 100)))
    assert len(narrow) > 2 * len(wide) > 2
    for lines, (width, height) in ((narrow, (100, 400)), (wide, (400, 100))):
        assert " ".join(line.text for line in lines).split() == words.split()
        assert all(line.width <= width + 0.01 and 0 < line.y < height for line in lines)
        assert [line.y for line in lines] == sorted(line.y for line in lines)
    assert [line.text for line in spread(["a", "b", "c"], (0, 0, 9, 9))] == ["a", "b", "c"]
    cjk = list(spread(["\u6f22" * 60], (0, 0, 100, 100)))
    assert len(cjk) > 3 and sum(len(line.text) for line in cjk) == 60


def test_a_page_without_boxes_spreads_its_text_over_the_page(tmp_path: Path) -> None:
    write(tmp_path, page("d", markdown="only words\n\nhere"), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        assert pdf[0].get_text().split() == ["only", "words", "here"]


def _top_third(job: PageJob) -> PageImage:
    """White paper with print from 10 to 30 % of its height, 20 to 80 % of its width."""
    rgb = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for y in range(HEIGHT // 10, HEIGHT * 3 // 10, 6):
        rgb[y : y + 3, WIDTH // 5 : WIDTH * 4 // 5] = 0
    return PageImage(job.key, rgb, 144.0)


def test_text_without_boxes_lies_where_the_page_has_ink(tmp_path: Path) -> None:
    """It was spread over the whole page, though the print fills the top third of it."""
    one = Writer(tmp_path, OutputSettings(("pdf",), "f"), render=_top_third)
    one.expect(job("d"))
    one.add(page("d", markdown="one line\n\nanother line\n\na third line"))
    one.close()
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        width, height = pdf[0].rect.width, pdf[0].rect.height
        ink = pymupdf.Rect(0.19 * width, 0.08 * height, 0.81 * width, 0.32 * height)
        words = pdf[0].get_text("words")
    assert len(words) == 7
    assert all(ink.contains(pymupdf.Rect(word[:4])) for word in words)


@pytest.mark.parametrize("bad", ["[[100, 500, 900, 400]]", "[[1, 2]]", ""])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_block_without_a_box_lies_between_its_neighbours(bad: str, position: int) -> None:
    """It was spread over the whole page, in giant type over all other blocks."""
    boxes = ["[[100, 200, 500, 240]]", "[[100, 400, 900, 440]]", "[[100, 600, 900, 640]]"]
    boxes[position] = bad
    raw = "".join(
        f"<|ref|>text<|/ref|><|det|>{box}<|/det|>\nwords of {number}\n"
        for number, box in enumerate(boxes)
    )
    result = page("d", raw=raw, boxes=parse(raw).boxes)
    lines = list(text_lines(result, (999.0, 999.0), None))
    own = [line for line in lines if line.text == f"words of {position}"]
    others = [line for line in lines if line not in own]
    assert len(own) == 1 and len(others) == 2
    ends = [0.0, *(line.y + 0.2 * line.size for line in others), 999.0]
    assert ends[position] <= own[0].y - 0.8 * own[0].size and own[0].size <= 40
    following = [line.y - 0.8 * line.size for line in others][position:]
    assert all(own[0].y + 0.2 * own[0].size <= top + 0.01 for top in following)


def test_a_block_without_a_box_stays_out_of_the_other_column() -> None:
    blocks = (
        ([50, 100, 480, 300], "left one " * 30),
        (None, "left two"),
        ([520, 100, 950, 900], "right " * 200),
    )
    raw = "".join(
        f"<|ref|>text<|/ref|><|det|>{'' if box is None else [box]}<|/det|>\n{text}\n"
        for box, text in blocks
    )
    lines = text_lines(page("d", raw=raw, boxes=parse(raw).boxes), (999.0, 999.0), None)
    astray = next(line for line in lines if line.text == "left two")
    assert astray.x == 50 and astray.width <= 430 and 300 < astray.y < 950


def test_a_block_without_a_box_keeps_its_words_where_there_is_no_room() -> None:
    blocks = (("[[0, 0, 999, 500]]", "above"), ("", "between"), ("[[0, 500, 999, 999]]", "below"))
    raw = "".join(f"<|ref|>text<|/ref|><|det|>{box}<|/det|>\n{text}\n" for box, text in blocks)
    lines = text_lines(page("d", raw=raw, boxes=parse(raw).boxes), (999.0, 999.0), None)
    found = {line.text: line for line in lines}
    assert list(found) == ["above", "between", "below"]
    assert 499 < found["between"].y < 502 and found["between"].size <= 1


def test_sixty_pages_make_a_pdf_with_sixty_pages(tmp_path: Path) -> None:
    write(tmp_path, *(failed("d", n, "empty", f"number {n}") for n in range(60)), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        assert len(pdf) == 60 and "number 59" in pdf[59].get_text()
