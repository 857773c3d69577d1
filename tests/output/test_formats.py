"""The formats beside markdown: each opened by a reader that is not ours."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from page_factory import HEIGHT, WIDTH, failed, gradient, job, page, write
from PIL import Image

from ocr2cli.errors import ExitCode
from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.bidi import visual
from ocr2cli.output.figures import encode
from ocr2cli.output.html_text import text_html
from ocr2cli.output.layout import draw_boxes, label_colour
from ocr2cli.output.plain import plain_lines
from ocr2cli.output.searchable_pdf import spread, text_lines
from ocr2cli.output.writer import Writer
from ocr2cli.pages import PageImage, PageJob, PageKey, PageResult, Status
from ocr2cli.printing import printable
from ocr2cli.text.grounding import parse, to_markdown

SCRIPTS = "na\u00efve \u6f22\u5b57 \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f600"


def grounded(document: str, index: int, *blocks: tuple[str, list[int], str], **fields: object,
             ) -> PageResult:  # fmt: skip
    raw = "".join(
        f"<|ref|>{label}<|/ref|><|det|>[{box}]<|/det|>\n{text}\n" for label, box, text in blocks
    )
    parsed = parse(raw)
    markdown = to_markdown(parsed.blocks, lambda n: f"figure:{n + 1}")
    return page(document, index, markdown, raw=raw, boxes=parsed.boxes, **fields)


def sample(index: int = 0, **fields: object) -> PageResult:
    return grounded(
        "d", index,
        ("title", [100, 50, 900, 100], f"# Head {index}"),
        ("text", [100, 150, 900, 300], f"First words {SCRIPTS} and <b>bold</b> last words"),
        ("image", [100, 400, 500, 700], ""),
        ("table", [100, 750, 900, 900], "<table><tr><td>1</td><td>two</td></tr></table>"),
        **fields,
    )  # fmt: skip


# Searchable PDF


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


# Hebrew and Arabic, as they are read: words, then numbers, marks and brackets between them.
RTL = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"
RTL_MIXED = f"{RTL} 123 (\u05de\u05d7\u05d9\u05e8) $5 \u05d0\u05d5 10% \u05d4\u05e0\u05d7\u05d4"


@pytest.mark.parametrize("text", [RTL, ARABIC, "plain (Latin) 1-2"])
def test_text_from_right_to_left_is_found_in_a_searchable_pdf(tmp_path: Path, text: str) -> None:
    """Readers turn it round, as it stands on paper: it was written in the order of reading."""
    write(tmp_path, grounded("d", 0, ("text", [100, 100, 900, 130], text)), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        assert pdf[0].get_text().strip() == text
        assert pdf[0].search_for(text.split()[-1])


@pytest.mark.parametrize("text", [RTL, ARABIC, RTL_MIXED])
def test_pdfium_reads_text_from_right_to_left_with_its_numbers(tmp_path: Path, text: str) -> None:
    pdfium = pytest.importorskip("pypdfium2")
    write(tmp_path, grounded("d", 0, ("text", [100, 100, 900, 130], text)), formats=("pdf",))
    pdf = pdfium.PdfDocument(tmp_path / "d.ocr.pdf")
    words = pdf[0].get_textpage().get_text_range()
    pdf.close()
    assert words.split() == text.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (Latin)", "plain (Latin)"),
        ("\u05d0\u05d1 12.5 (\u05d2)", "(\u05d2) 12.5 \u05d1\u05d0"),
        ("\u05d0\u05d1\u05d2 A b \u05d3", "\u05d3 A b \u05d2\u05d1\u05d0"),
        ("In \u05d0\u05d1 \u05d2, Latin", "In \u05d2 \u05d1\u05d0, Latin"),
        ("A \u05d0\u05d1\u05d2\u05d3.", ".\u05d3\u05d2\u05d1\u05d0 A"),
        ("\u0645\u0631 12-3 \u0661\u0662", "\u0661\u0662 3-12 \u0631\u0645"),
        ("\u0645\u0631 \u0661,\u0662", "\u0661,\u0662 \u0631\u0645"),
        ("\u0645\u0631 A.", ".A \u0631\u0645"),
        ("\u05d0\u05d1 AB.", "\u05d1\u05d0 AB."),
        ("\u05d0\u0301\u05d1", "\u05d1\u0301\u05d0"),
        ("\u05d0\u05d1 1\u0301", "1\u0301 \u05d1\u05d0"),
        ("\u05d0\u05d1 1,5-2 \u05d2", "\u05d2 1,5-2 \u05d1\u05d0"),
        ("\u05d0\u05d1 $5 \u05d2 10%", "10% \u05d2 $5 \u05d1\u05d0"),
        ("ABC \u05d0\u05d1 12", "ABC 12 \u05d1\u05d0"),
        ("ABC 12 \u05d0\u05d1", "ABC 12 \u05d1\u05d0"),
    ],
    ids=[
        "latin", "number", "foreign words", "in Latin text", "foreign first", "Arabic numbers",
        "comma in an Arabic number", "Arabic letters", "as many of either", "mark on a letter",
        "mark on a number", "comma and minus", "money and share", "number after Hebrew",
        "number after Latin",
    ],
)
def test_a_line_stands_on_paper_as_unicode_has_it(text: str, expected: str) -> None:
    assert visual(text) == expected


def test_lines_from_right_to_left_end_at_the_right_of_their_block() -> None:
    long, short = spread([f"{RTL} {RTL}", RTL], (100, 0, 200, 20))
    assert long.x == pytest.approx(100) and long.x + long.width == pytest.approx(200)
    assert short.width < 60 and short.x + short.width == pytest.approx(200)


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


def _photocopy(job: PageJob) -> PageImage:
    """The same page without its colours."""
    return replace(gradient(job), rgb=np.repeat(gradient(job).rgb[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("name", ["pdf", "html"])
@pytest.mark.parametrize(("render", "mode"), [(gradient, "RGB"), (_photocopy, "L")])
def test_a_page_without_colour_is_a_grey_jpeg(
    tmp_path: Path, name: str, render: Callable[[PageJob], PageImage], mode: str
) -> None:
    one = Writer(tmp_path, OutputSettings((name,), "f"), render=render)
    one.expect(job("d"))
    one.add(page("d"))
    one.close()
    if name == "html":
        (data,) = re.findall(r"base64,([^\"]+)", (tmp_path / "d.html").read_text())
        jpeg = base64.b64decode(data)
    else:
        with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
            jpeg = pdf.extract_image(pdf[0].get_images()[0][0])["image"]
            seen = pdf[0].get_pixmap(dpi=144)
        assert abs(seen.pixel(150, 10)[0] - 150) < 12
        assert mode == "RGB" or len({*seen.pixel(150, 10)}) == 1
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.mode == mode


def test_sixty_pages_make_a_pdf_with_sixty_pages(tmp_path: Path) -> None:
    write(tmp_path, *(failed("d", n, "empty", f"number {n}") for n in range(60)), formats=("pdf",))
    with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
        assert len(pdf) == 60 and "number 59" in pdf[59].get_text()


@pytest.mark.parametrize(
    ("markdown", "lines"),
    [
        ("# Head\n\n- item **bold** *it*\n> quote", ["Head", "item bold it", "quote"]),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c<br>d</td></tr></table>",
         ["a b", "c", "d"]),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", ["a b", "1 2"]),
        ("![](x.png)\n\n[link](u) &lt;b> a\\_b 2 < 3", ["link <b> a_b 2 < 3"]),
        ("```py\nx = a*b*c\n```", ["x = a*b*c".replace("*b*", "b")]),
        ("AT&amp;T &#65;&#x42; &eacute; R&D &copy &notes", ["AT&T AB \u00e9 R&D &copy &notes"]),
        ("a &#" + "1" * 5000 + "; b", ["a &#" + "1" * 5000 + "; b"]),
        ("<script>x</script> 5 * 3 * 2 a_b_c", ["<script>x</script> 5 * 3 * 2 a_b_c"]),
        ("***a*** **b *c* d** __e__", ["a b c d e"]),
        ("<center>Figure 1: *x*</center>", ["Figure 1: x"]),
        ("\\[ E = mc^2 \\]\n\n\\[\n|x| \\\\[2pt]\n\\]",
         ["\\[ E = mc^2 \\]", "\\[", "|x| \\\\[2pt]", "\\]"]),
        ("*a* \\(x*y \\) - \\(\\{z*2\\}\\) b*c*d",
         ["a \\(x*y \\) - \\(\\{z*2\\}\\) bcd"]),
        ("<td>\\(</td><td>a &lt; \\(b&lt;c\\)</td>", ["\\( a < \\(b<c\\)"]),
        ("[l](\\(u\\)) \\(a\\) \\[1, \\_\\[2\\]", ["l \\(a\\) [1, _\\[2\\]"]),
    ],
)  # fmt: skip
def test_plain_lines_are_what_a_reader_sees(markdown: str, lines: list[str]) -> None:
    assert plain_lines(markdown) == lines


# Layout


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


# Strips longer than a JPEG can be


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


# mmd


def test_mmd_has_the_file_names_and_separators_of_the_models_own_scripts(tmp_path: Path) -> None:
    write(tmp_path, sample(0), failed("d", 1, "timeout", "slow"), sample(2), formats=("mmd",))
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert [name for name in names if not name.startswith(".ocr2")] == [
        "d.mmd", "d_det.mmd", "d_layouts.pdf", "images/d/0_0.jpg", "images/d/2_0.jpg",
    ]  # fmt: skip
    clean, det = (tmp_path / "d.mmd").read_text(), (tmp_path / "d_det.mmd").read_text()
    for text in (clean, det):
        pages = text.split("\n\n<--- Page Split --->\n")
        assert len(pages) == 4 and pages[3] == "" and "could not be read" in pages[1]
    assert "![](images/d/2_0.jpg)" in clean and "<|ref|>" not in clean
    assert det.startswith("<|ref|>title<|/ref|><|det|>[[100, 50, 900, 100]]<|/det|>\n# Head 0\n")


@pytest.mark.parametrize("document", ["d", "dir/d"])
@pytest.mark.parametrize("between", [(), ("md",)])
def test_pictures_that_a_new_version_has_not_are_removed_from_mmds_folder(
    tmp_path: Path, document: str, between: tuple[str, ...]
) -> None:
    def read(num_pages: int, *formats: str) -> list[str]:
        pages = [replace(sample(n), key=PageKey(document, n)) for n in range(num_pages)]
        write(tmp_path, *pages, formats=formats)
        return sorted(path.name for path in tmp_path.rglob("images/d/*"))

    assert read(4, "mmd") == ["0_0.jpg", "1_0.jpg", "2_0.jpg", "3_0.jpg"]
    (edited,) = tmp_path.rglob("2_0.jpg")
    edited.write_bytes(b"a person's own by now")
    if between:  # what other formats write is no new version of mmd's
        assert len(read(2, *between)) == 4
    assert read(2, "mmd") == ["0_0.jpg", "1_0.jpg", "2_0.jpg"]
    edited.unlink()
    other = edited.parent.parent / "other"
    other.mkdir()
    (other / "0_0.jpg").write_bytes(b"another document's")
    write(tmp_path, page(document), formats=("mmd",))
    assert not edited.parent.exists() and other.exists()


def test_a_page_holding_the_separator_stays_one_page(tmp_path: Path) -> None:
    write(tmp_path, page("d", 0, "a\n\n<--- Page Split --->\nb"), page("d", 1), formats=("mmd",))
    for name in ("d.mmd", "d_det.mmd"):
        assert (tmp_path / name).read_text().count("<--- Page Split --->") == 2


def test_the_text_with_tags_loads_nothing_either(tmp_path: Path) -> None:
    raw = "<|ref|>text<|/ref|><|det|>[[1, 1, 9, 9]]<|/det|>\n![x](/etc/passwd) <script>"
    write(tmp_path, page("d", markdown="x", raw=raw), formats=("mmd",))
    text = (tmp_path / "d_det.mmd").read_text()
    assert text.startswith(raw.split("\n")[0]) and "![" not in text and "<script" not in text


@pytest.mark.parametrize(
    ("one", "other"), [("a", "a_det"), ("a", "A_det"), ("\u00e9", "e\u0301_det")]
)
def test_two_documents_that_meet_in_one_file_are_told_apart(
    tmp_path: Path, one: str, other: str
) -> None:
    """Also where case or the spelling of accents tells them apart: some disks hold one of them."""
    summary = write(tmp_path, page(one), page(other), formats=("mmd",)).summary
    ((name, message),) = summary.document_faults
    assert name == other and f"already belongs to {one}" in message and summary.exit_code == 5


# JSON


def test_json_is_one_object_with_the_documents_facts_said_once(tmp_path: Path) -> None:
    write(tmp_path, sample(0), failed("d", 1), formats=("json", "jsonl"), path="/in/d.pdf")
    row = json.loads((tmp_path / "d.json").read_text())
    assert (row["document"], row["source"], row["num_pages"]) == ("d", "d.pdf", 2)
    assert [p["page"] for p in row["pages"]] == [1, 2]
    first = row["pages"][0]
    assert first["figures"] == ["d.images/0001-1.png"] and first["page_size"] == [WIDTH, HEIGHT]
    assert not {"document", "fingerprint", "input_sha256"} & set(first)
    sidecar = json.loads((tmp_path / "d.jsonl").read_text().splitlines()[0])
    assert first["markdown"] == sidecar["markdown"] and first["boxes"] == sidecar["boxes"]


# HTML


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "input", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read_html(path: Path) -> Reader:
    reader = Reader(path.read_text())
    reader.close()
    assert reader.open == []
    return reader


def test_html_shows_each_page_beside_its_text_and_asks_for_nothing(tmp_path: Path) -> None:
    good, low = sample(0, confidence=0.9), sample(1, confidence=0.4)
    bad = failed("d", 2, message="x < y. Try `qpdf IN OUT`.")
    blank = page("d", 3, "", status=Status.BLANK)
    write(tmp_path, good, low, bad, blank, formats=("html",))
    html = read_html(tmp_path / "d.html")
    sections = html.all("section")
    assert [s["id"] for s in sections] == ["page-1", "page-2", "page-3", "page-4"]
    assert [s["class"] for s in sections] == ["fine", "unsure", "bad", "fine"]
    order = sorted(range(4), key=lambda n: float(sections[n]["data-rank"] or 0))
    assert order[:3] == [2, 1, 0]  # failed first, then the least sure
    assert all((img["src"] or "").startswith("data:image/jpeg;base64,") for img in html.all("img"))
    assert len(html.all("img")) == 3 + 2  # pages that were read, and figures
    assert len(html.all("rect")) == 8
    assert not any(key in ("href", "srcset", "style") for _, attrs in html.tags for key in attrs)
    assert "Head 0" in html.text and SCRIPTS in html.text
    assert html.text.count("low: check the text against the picture") == 1
    assert "4 pages, 1 blank, 1 failed, 1 of low confidence" in html.text
    assert "\nx < y. Try qpdf IN OUT. (timeout)\n" in html.text
    assert html.text.count("No picture") == 0 and len(html.all("code")) == 1


def test_html_marks_pages_below_min_confidence_too(tmp_path: Path) -> None:
    write(tmp_path, sample(0, confidence=0.7), formats=("html",), min_confidence=0.8)
    assert [s["class"] for s in read_html(tmp_path / "d.html").all("section")] == ["unsure"]


def test_a_box_and_its_text_share_a_number(tmp_path: Path) -> None:
    write(tmp_path, sample(), formats=("html",))
    html = read_html(tmp_path / "d.html")
    rects = {r["class"]: r["data-block"] for r in html.all("rect")}
    blocks = [d["data-block"] for d in html.all("div") if d.get("class") == "block"]
    assert sorted(rects.values(), key=str) == sorted(blocks, key=str)
    text = (tmp_path / "d.html").read_text()
    assert f'data-block="{rects["title"]}"><h3>Head 0</h3>' in text


def test_the_policy_names_the_digests_of_the_style_and_script_that_are_there(
    tmp_path: Path,
) -> None:
    write(tmp_path, sample(), formats=("html",))
    text = (tmp_path / "d.html").read_text()
    policy = next(
        m["content"] for m in read_html(tmp_path / "d.html").all("meta") if "content" in m
    )
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<table><tr><td>&lt;script&gt;alert(1)&lt;/script&gt;&lt;td onclick=alert(1)&gt;</table>",
        "&lt;<b>script&gt;</b>alert(1)&lt;<i>/script&gt;</i>",
        "</div></section></main><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<table><tr><td onclick=alert(1)><b>x",
        "<b><i></b></i></table></p>",
        "[x](javascript:alert(1))",
        "![](https://evil.example/x.png)",
        "# <svg onload=alert(1)>",
        "```\n</pre><script>alert(1)</script>\n```",
        "| <iframe src=//evil> | b |",
        "- <a href=//evil>x</a>",
        "\\( <script>alert(1)</script> \\)",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&#60;script>alert(1)</script>",
        "<table><tr><td>\\( </td></tr></table> \\)",
        "<b><table><tr><td></b><i>x</table>",
    ],
)
@pytest.mark.parametrize("place", ["text", "label", "message", "name"])
def test_html_escapes_whatever_a_page_says(tmp_path: Path, text: str, place: str) -> None:
    pages = {
        "text": page("d", 0, text),
        "label": grounded("d", 0, (text.replace("|", ""), [1, 1, 9, 9], "words")),
        "message": failed("d", 0, text, text),
        "name": page(text.replace("/", "_"), 0),
    }
    write(tmp_path, pages[place], formats=("html",), path=text)
    (path,) = tmp_path.glob("*.html")
    html = Reader(path.read_text())
    names = [tag for tag, _ in html.tags]
    assert names.count("script") == 1 and names.count("style") == 1
    assert not {"iframe", "object", "embed", "link", "base", "a"} & set(names)
    for tag, attributes in html.tags:
        assert not any(key.startswith("on") or key == "href" for key in attributes), tag
    assert html.open == []
    assert all((img["src"] or "").startswith("data:") for img in html.all("img"))
    assert len(html.all("section")) == 1 and names.count("main") == 1
    if place == "name":
        assert printable(path.name.removesuffix(".html")) in html.text


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# A\n\ntext", "<h3>A</h3>\n<p>text</p>"),
        ("a **b** *c* 2*3*4 <sub>2</sub>",
         "<p>a <strong>b</strong> <em>c</em> 2*3*4 <sub>2</sub></p>"),
        ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
        ("- 5 - 3", "<ul><li>5 - 3</li></ul>"),
        ("\u2022 a\n\n- b\n\n\u2022 c\n\ntext",
         "<ul><li>a</li><li>b</li><li>c</li></ul>\n<p>text</p>"),
        ("- a\n\n\n1. b", "<ul><li>a</li></ul>\n<ol><li>b</li></ol>"),
        ("<table>\n<tr><td>1</td></tr>\n</table>\ntext",
         "<table>\n<tr><td>1</td></tr>\n</table>\n<p>text</p>"),
        ("1. a\n2. b\n\n3. c", "<ol><li>a</li><li>b</li><li>c</li></ol>"),
        ("7) a\n8) b\n9. c",
         '<ol start="7"><li>a</li><li>b</li></ol>\n<ol start="9"><li>c</li></ol>'),
        # What was read is shown, also where a number was left out.
        ("1. a\n3. b\n4. c", '<ol><li>a</li><li value="3">b</li><li>c</li></ol>'),
        ("1. a\n   - b\n     - c\n   - d\n2. e",
         "<ol><li>a\n<ul><li>b\n<ul><li>c</li></ul></li><li>d</li></ul></li><li>e</li></ol>"),
        ("- a\n\t1. b\n\t2. c", "<ul><li>a\n<ol><li>b</li><li>c</li></ol></li></ul>"),
        ("1. a\nb\n2. c\n\n   d\n\ne",
         "<ol><li>a\nb</li><li>c\n<p>d</p></li></ol>\n<p>e</p>"),
        ("1. a\n   ```\n   b\n   ```\n# c", "<ol><li>a\n<pre>b</pre></li></ol>\n<h3>c</h3>"),
        ("written in\n1984. No list", "<p>written in\n1984. No list</p>"),
        ("1984. A list\n\n1234567890. none",
         '<ol start="1984"><li>A list</li></ol>\n<p>1234567890. none</p>'),
        ("first\n1. a", "<p>first</p>\n<ol><li>a</li></ol>"),
        ("1.5 m\n2.5 m", "<p>1.5 m\n2.5 m</p>"),
        ("| a | b |\n|---|---|\n| 1 | 2 |",
         "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"),
        ("| | b |\n|---|---|\n| 1 \\| 2 | |",
         "<table><tr><td></td><td>b</td></tr><tr><td>1 | 2</td><td></td></tr></table>"),
        ('<table><tr><td colspan="2">x</td></tr></table>',
         '<table><tr><td colspan="2">x</td></tr></table>'),
        ("```\n# a < b\n```", "<pre># a &lt; b</pre>"),
        ("\\( a_1 < b \\) & c", "<p><code>\\( a_1 &lt; b \\)</code> &amp; c</p>"),
        ("<table><tr><td>AT&amp;T</td><td>&lt; 5 &#937;</td></tr></table>",
         "<table><tr><td>AT&amp;T</td><td>&lt; 5 \u03a9</td></tr></table>"),
        ("&lt;td&gt; &lt;b&gt;x&lt;/b&gt; &#60;td>",
         "<p>&lt;td&gt; &lt;b&gt;x&lt;/b&gt; &lt;td&gt;</p>"),
        ("<b>&lt;script&gt;</b> &amp;lt; &lt;script>",
         "<p><b>&lt;script&gt;</b> &amp;lt; &lt;script&gt;</p>"),
        ("R&D &copy; &copy &section; &#" + "1" * 5000 + ";",
         "<p>R&amp;D \u00a9 &amp;copy &amp;section; &amp;#" + "1" * 5000 + ";</p>"),
        ("```\n&lt;script> a&#33;[b] &copy;\n```", "<pre>&lt;script&gt; a![b] &amp;copy;</pre>"),
        ("\\( a &lt; b \\)", "<p><code>\\( a &lt; b \\)</code></p>"),
        # As the model writes captions; a browser ends a paragraph before this tag.
        ("<center>Figure 1: *a* < b</center>", "<center>Figure 1: <em>a</em> &lt; b</center>"),
        ("<center>a\nb\n\nc", "<p><center>a\nb</center></p>\n<p>c</p>"),
        ("text <center>a</center>", "<p>text <center>a</center></p>"),
        ("a < b <script> ![x](y)", "<p>a &lt; b &lt;script&gt; ![x](y)</p>"),
        ("", ""),
    ],
)  # fmt: skip
def test_markdown_becomes_html(markdown: str, expected: str) -> None:
    assert text_html(markdown) == expected


@pytest.mark.parametrize(
    "text",
    [
        "# a" + " " * 100_000 + "b",
        "-\n" * 40_000 + "x",
        "|" * 60_000 + "x",
        "- " * 50_000 + "x",
        "1. a\n\n" * 20_000 + "\n" * 50_000,
        "\n".join(" " * 2 * n + "- x" for n in range(300)),
        "*" * 60_000,
        "a " * 60_000,
        "\u6f22" * 60_000,
        "<table>" * 8_000,
        "<" * 100_000,
        "![](" * 20_000,
        "\\[" * 40_000,
        "\\(\\\\" * 20_000,
        "`" * 100_000,
        "[" * 100_000,
        "<b>" * 15_000 + "</i>" * 15_000,
    ],
    ids=lambda text: text[:4] + "...",
)
def test_no_page_text_takes_long_to_write(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    raw = f"<|ref|>text<|/ref|><|det|>[[1, 1, 500, 999]]<|/det|>\n{text}"
    boxes = parse(raw).boxes
    write(tmp_path, page("d", 0, text, raw=raw, boxes=boxes), formats=("md", "pdf", "html"))
    assert time.process_time() - start < 8
