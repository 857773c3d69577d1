"""A job becomes views, or a result that needs no model: blank pages, and damaged ones."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from ocr2cli.config import RasterConfig, TileConfig
from ocr2cli.document.source import find_jobs
from ocr2cli.engines.raster import RasterWorker, guarded
from ocr2cli.output.blocks import page_blocks
from ocr2cli.output.html_text import text_html
from ocr2cli.output.markdown import page_body
from ocr2cli.output.plain import plain_lines
from ocr2cli.pages import Ask, PageJob, PageResult, Status, Views
from ocr2cli.text.prompt import PROMPTS, prompt_text

PAGE = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]%s>>"
PICTURE = (
    "/Type/XObject/Subtype/Image/Width 100/Height 100/BitsPerComponent 1/ColorSpace/DeviceGray"
)
SPACES = b"BT /F1 12 Tf 20 100 Td (   ) Tj ET"
FONT = "/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>"
SHOWN = "/Contents 4 0 R/Resources<</XObject<</X 5 0 R>>>>"
PROFILE = "/Contents 4 0 R/Resources<</ColorSpace<</C[/ICCBased 5 0 R]>>>>"
EMBEDDED = (
    "<</Type/Font/Subtype/TrueType/BaseFont/A/FirstChar 32/LastChar 32/Widths[9]"
    "/FontDescriptor 6 0 R>>",
    "<</Type/FontDescriptor/FontName/A/Flags 4/FontFile2 7 0 R>>",
)


def _stream(data: bytes, entries: str = "", *, length: int = 0) -> bytes:
    head = f"<<{entries}/Length {length or len(data)}>>stream\n"
    return head.encode() + data + b"\nendstream"


def _pdf(page: str = "", *more: bytes | str, catalog: str = "") -> bytes:
    """A PDF of one page, object by object; a number that none of them has is missing."""
    objects = [f"<</Type/Catalog/Pages 2 0 R{catalog}>>", "<</Type/Pages/Kids[3 0 R]/Count 1>>",
               PAGE % page, *more]  # fmt: skip
    content, table = b"%PDF-1.4\n", b"0000000000 65535 f \n"
    for number, body in enumerate(objects, 1):
        table += b"%010d 00000 n \n" % len(content)
        body = body if isinstance(body, bytes) else body.encode()
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    size = len(objects) + 1
    return content + (
        b"xref\n0 %d\n%strailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
        % (size, table, size, len(content))
    )


DRAWN = _stream(b"q 200 0 0 200 0 0 cm /X Do Q")
DAMAGED = {
    "no content": _pdf("/Contents 99 0 R"),
    "no content in a list": _pdf("/Contents[99 0 R]"),
    "content of zeros": _pdf("/Contents 4 0 R", _stream(bytes(300), "/Filter/FlateDecode")),
    "no picture": _pdf("/Contents 4 0 R/Resources<</XObject<</X 99 0 R>>>>", DRAWN),
    "picture of zeros": _pdf(SHOWN, DRAWN, _stream(bytes(300), PICTURE + "/Filter/FlateDecode")),
    "fax of zeros": _pdf(
        SHOWN, DRAWN, _stream(bytes(300), PICTURE + "/Filter/CCITTFaxDecode/DecodeParms<</K -1>>")
    ),
    "jbig2 of zeros": _pdf(SHOWN, DRAWN, _stream(bytes(300), PICTURE + "/Filter/JBIG2Decode")),
    "no picture beside an unknown operator": _pdf("/Contents 4 0 R", _stream(b"q foo /X Do Q")),
    "too much that is no content": _pdf("/Contents 4 0 R", _stream(b"foo " * 300)),
    "a wrong length": _pdf("/Contents 4 0 R", _stream(b"q Q", length=1)),
    # a picture without a filter may be anything: only its end is missed
    "zeros to the end": _pdf(
        SHOWN, DRAWN, _stream(bytes(1400), PICTURE, length=1300).replace(b"\nend", b"\0end")
    ),
}
EMPTY = {
    "nothing": _pdf(),
    "no content": _pdf("/Contents null"),
    "an empty list": _pdf("/Contents[]"),
    "a font that is nowhere": _pdf(FONT, _stream(SPACES)),
    "a font that is not embedded": _pdf(
        FONT, _stream(SPACES), "<</Type/Font/Subtype/TrueType/BaseFont/Nowhere>>"
    ),
    "a damaged font": _pdf(FONT, _stream(SPACES), *EMBEDDED, _stream(b"garbage")),
    "a font without its file": _pdf(FONT, _stream(SPACES), *EMBEDDED),
    "a damaged profile": _pdf(
        PROFILE, _stream(b"/C cs 1 1 1 sc 0 0 9 9 re f"), _stream(b"garbage", "/N 3")
    ),
    "a damaged output intent": _pdf(
        "", _stream(b"garbage", "/N 4"),
        catalog="/OutputIntents[<</S/GTS_PDFX/DestOutputProfile 4 0 R>>]",
    ),
    "a wrong blending colour": _pdf(
        "/Group<</S/Transparency/CS/No>>/Contents 4 0 R", _stream(b"q Q")
    ),
    "missing notes": _pdf("/Annots[99 0 R(x)<</Type/Annot/Subtype/Link/Rect[0 0 9 9]>>]"),
    "an unknown operator": _pdf("/Contents 4 0 R", _stream(b"q foo Q")),
    "a graphics state that is nowhere": _pdf("/Contents 4 0 R", _stream(b"/GS0 gs q Q")),
    "too many ends": _pdf("/Contents 4 0 R", _stream(b"Q Q EMC q")),
}  # fmt: skip


def _read(path: Path, content: bytes) -> list[PageResult | Views]:
    path.write_bytes(content)
    worker = RasterWorker(RasterConfig(), TileConfig())
    jobs = find_jobs([str(path)], is_isolated=False)
    return [guarded(job, worker.read) for job in jobs]


@pytest.mark.parametrize("what", DAMAGED)
def test_a_page_that_shows_nothing_for_its_damage_has_failed(tmp_path: Path, what: str) -> None:
    (result,) = _read(tmp_path / "a.pdf", DAMAGED[what])
    assert isinstance(result, PageResult) and result.status is Status.FAILED
    assert result.error is not None and result.error.code == "unreadable"
    assert "page 1 of " in result.error.message and "a.pdf" in result.error.message
    assert "qpdf" in result.error.message and result.error.message.isprintable()
    assert result.warnings and result.page_size == (400, 400)


def test_a_fax_that_shows_nothing_for_its_damage_has_failed(tmp_path: Path) -> None:
    fax, path = io.BytesIO(), tmp_path / "a.tif"
    image = Image.new("1", (800, 400), 1)
    image.paste(0, (100, 300, 700, 350))
    image.save(fax, "TIFF", compression="group4")
    (whole,) = _read(path, content := fax.getvalue())
    assert isinstance(whole, Views)
    with Image.open(fax) as tiff:
        start = tiff.tag_v2[273][0]  # type: ignore[attr-defined]
    (result,) = _read(path, content[:start] + b"\xff" + content[start + 1 :])
    assert isinstance(result, PageResult) and result.status is Status.FAILED
    assert result.error is not None and "shows nothing (Fax4Decode: " in result.error.message


@pytest.mark.parametrize("what", EMPTY)
def test_an_empty_page_is_blank_whatever_else_mupdf_says(tmp_path: Path, what: str) -> None:
    (result,) = _read(tmp_path / "a.pdf", EMPTY[what])
    assert isinstance(result, PageResult) and result.status is Status.BLANK, result.error


def test_the_pages_that_a_cut_pdf_has_lost_have_failed_and_the_others_are_read(
    tmp_path: Path,
) -> None:
    with pymupdf.open() as document:
        for number in range(5):
            page = document.new_page(width=200, height=200)
            page.insert_text((20, 40), f"Page {number + 1}", fontsize=20)
        content = document.tobytes()
    results = _read(tmp_path / "a.pdf", content[: len(content) * 6 // 10])
    assert [isinstance(result, Views) for result in results[:3]] == [True] * 3
    assert isinstance(results[4], PageResult) and results[4].status is Status.FAILED
    for result in results[:3]:
        assert "the PDF is damaged and was repaired on opening" in result.warnings


def test_an_empty_page_of_a_pdf_that_was_repaired_on_opening_is_blank(tmp_path: Path) -> None:
    content = _pdf("/Contents 4 0 R", _stream(b"q Q"))
    (result,) = _read(tmp_path / "a.pdf", content.replace(b"startxref", b"startxxxx"))
    assert isinstance(result, PageResult) and result.status is Status.BLANK, result.error
    assert "the PDF is damaged and was repaired on opening" in result.warnings


def test_an_empty_half_of_a_damaged_page_is_blank(tmp_path: Path) -> None:
    """Recovery reads halves of pages that have ink."""
    picture = io.BytesIO()
    Image.new("L", (64, 64), 0).save(picture, "PNG")
    with pymupdf.open(stream=_pdf("/Contents[99 0 R]")) as document:
        document[0].insert_image((20, 20, 60, 60), stream=picture.getvalue())
        document.save(tmp_path / "a.pdf")
    (job,) = find_jobs([str(tmp_path / "a.pdf")], is_isolated=False)
    worker = RasterWorker(RasterConfig(), TileConfig())
    views = worker.read(job)
    assert isinstance(views, Views) and any("content stream" in note for note in views.warnings)
    bottom = PageJob(job.key, job.path, job.sha256, 1, ask=Ask(view="bottom"))
    assert worker.read(bottom).status is Status.BLANK


def test_a_text_layer_that_was_cut_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pymupdf.open() as pdf:
        pdf.new_page().insert_text((72, 100), "The committee met on 14 March 1987 and agreed.")
        pdf.save(tmp_path / "a.pdf")
    (job,) = find_jobs([str(tmp_path / "a.pdf")], is_isolated=False)
    worker = RasterWorker(RasterConfig(text_layer="trust"), TileConfig(), prompt=PROMPTS["ocr"])
    assert not any("cut" in note for note in worker.read(job).warnings)
    monkeypatch.setattr("ocr2cli.document.pdf.MAX_TEXT_CHARACTERS", 20)
    assert any("cut after 20 characters" in note for note in worker.read(job).warnings)


@pytest.mark.parametrize("use", ["trust", "auto"])
def test_a_text_layer_is_text_and_no_markup(tmp_path: Path, use: str) -> None:
    """A line that would be an image was lost, and `page.markdown` held it and the script."""
    lines = ("To show a picture, write:", "![](http://evil.example/track.png)",
             "<script>alert(1)</script> and List<int> x;", "That is all, dear reader.")  # fmt: skip
    pdf = pymupdf.open()
    page = pdf.new_page()
    for number, line in enumerate(lines):
        page.insert_text((72, 100 + 30 * number), line, fontsize=14)
    pdf.save(tmp_path / "a.pdf")
    read = _read_layer(tmp_path / "a.pdf", use)
    assert read.extra == {"source": "text-layer"}
    assert read.raw.splitlines() == list(lines)
    assert read.markdown.split("\n\n") == [
        lines[0], "&#33;[](http://evil.example/track.png)",
        "&lt;script>alert(1)&lt;/script> and List&lt;int> x;", lines[3],
    ]  # fmt: skip
    body = page_body(read, {})
    assert body.splitlines() == read.markdown.splitlines()
    assert plain_lines(read.markdown)[2] == lines[2]
    assert "List&lt;int&gt; x;" in text_html(read.markdown)


def _read_layer(path: Path, use: str = "auto", prompt: str = "markdown", **settings: str) -> Any:
    (job,) = find_jobs([str(path)], is_isolated=False)
    cfg = RasterConfig(text_layer=use, **settings)
    return RasterWorker(cfg, TileConfig(), prompt=prompt_text(prompt)).read(job)


def _two_paragraphs(path: Path) -> None:
    with pymupdf.open() as document:
        page = document.new_page(width=400, height=500)
        lines = ("# Of wells,", "1. not a list", "but two lines and a half, to be sure.")
        page.insert_text((40, 60), lines, fontsize=12)
        page.insert_text((40, 400), "The second paragraph stands far below.", fontsize=12)
        document.save(path)


def test_a_text_layers_paragraphs_stand_apart_and_know_their_places(tmp_path: Path) -> None:
    _two_paragraphs(tmp_path / "a.pdf")
    read = _read_layer(tmp_path / "a.pdf")
    above, below = page_blocks(read)
    assert read.markdown == f"{above.text}\n\n{below.text}"
    assert above.text.splitlines() == [
        "\\# Of wells,  ", "1\\. not a list  ", "but two lines and a half, to be sure.",
    ]  # fmt: skip
    assert below.text == "The second paragraph stands far below."
    ((left, top, right, bottom),) = below.boxes
    assert 95 < left < 105 and 760 < top < 800 < bottom < 820 and right < 700
    assert above.boxes[0][3] < 200 and [box.label for box in read.boxes] == ["text", "text"]
    assert read.raw.splitlines()[:2] == ["# Of wells,", "1. not a list"]


def test_a_text_whose_lines_have_no_places_is_taken_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_paragraphs(tmp_path / "a.pdf")
    monkeypatch.setattr(
        "ocr2cli.document.raster.trusted_text", lambda *_: " a\n    # b\u2028> c"
    )
    read = _read_layer(tmp_path / "a.pdf")
    assert read.markdown == "a\n\\# b\n\\> c" and read.boxes == ()


def test_boxes_of_a_page_that_may_have_been_turned_are_not_told(tmp_path: Path) -> None:
    _two_paragraphs(tmp_path / "a.pdf")
    read = _read_layer(tmp_path / "a.pdf", rotate="auto")
    assert read.boxes == () and len(page_blocks(read)) == 1


@pytest.mark.parametrize("use", ["trust", "auto"])
@pytest.mark.parametrize("prompt", ["describe", "figure", "locate:the total"])
def test_a_text_layer_answers_no_other_question_than_for_the_text(
    tmp_path: Path, use: str, prompt: str
) -> None:
    _two_paragraphs(tmp_path / "a.pdf")
    assert isinstance(_read_layer(tmp_path / "a.pdf", use, prompt), Views)
    for asked in ("markdown", "ocr"):
        assert isinstance(_read_layer(tmp_path / "a.pdf", use, asked), PageResult)
    (job,) = find_jobs([str(tmp_path / "a.pdf")], is_isolated=False)
    worker = RasterWorker(RasterConfig(text_layer=use), TileConfig(), prompt=PROMPTS["ocr"])
    for ask in (Ask(prompt=prompt_text(prompt)), Ask(view="top")):
        assert isinstance(worker.read(replace(job, ask=ask)), Views)


def test_the_time_of_a_page_includes_the_check_of_its_text_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> str | None:
        time.sleep(0.2)
        return found.pop()

    found = [None, "text"]
    monkeypatch.setattr("ocr2cli.document.raster.trusted_text", slow)
    _two_paragraphs(tmp_path / "a.pdf")
    for kind in (PageResult, Views):
        read = _read_layer(tmp_path / "a.pdf")
        assert isinstance(read, kind) and read.seconds["raster"] >= 0.2
