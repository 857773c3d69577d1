"""A page of a damaged PDF does not depend on the pages its worker had before, at a bounded cost."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from ocr2cli.config import RasterConfig
from ocr2cli.document import pdf, raster
from ocr2cli.document.raster import page_estimate, render_page, text_layer
from ocr2cli.document.source import find_jobs
from ocr2cli.pages import PageJob

CFG = RasterConfig()


def _jobs(path: Path, cfg: RasterConfig = CFG) -> list[PageJob]:
    return list(find_jobs([str(path)], "", cfg, is_isolated=False))


def _shared_picture(path: Path) -> None:
    """Four pages show one JPEG without its first bytes; MuPDF keeps what it has decoded."""
    picture = io.BytesIO()
    Image.new("L", (64, 64), 128).save(picture, "JPEG")
    with pymupdf.open() as document:
        for _ in range(4):
            document.new_page(width=100, height=100).insert_image(
                (0, 0, 100, 100), stream=picture.getvalue()
            )
        content = document.tobytes()
    at = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:at] + bytes(8) + content[at + 8 :])


def _page_tree(path: Path) -> None:
    """The second page's object is none of a page."""
    _four_pages(path, b"/Type/Page/", b"/Type/Cage/", 2)


def _objects(path: Path) -> None:
    """The first two contents are no objects, so that MuPDF repairs the file in mid-run."""
    _four_pages(path, b" 0 obj\n<</Length", b" 0 obx\n<</Length", 1, 2)


def _unknown_operators(path: Path) -> None:
    """An intact file whose pages MuPDF speaks of, each time that it draws them."""
    _shared_streams(path, lambda document, page: _draw(document, page, b"q foo Q"))


def _fonts(path: Path) -> None:
    """All pages use one embedded font that is none; MuPDF keeps what it puts in its place."""

    def use(document: pymupdf.Document, page: pymupdf.Page) -> None:
        if page.number == 0:
            for body in (
                "<</Type/Font/Subtype/TrueType/BaseFont/A/FirstChar 65/LastChar 65/Widths[900]"
                f"/FontDescriptor {document.xref_length() + 1} 0 R>>",
                "<</Type/FontDescriptor/FontName/A/Flags 4"
                f"/FontFile2 {document.xref_length() + 2} 0 R>>",
                "<<>>",
            ):
                document.update_object(document.get_new_xref(), body)
            document.update_stream(document.xref_length() - 1, b"garbage")
        font = _xref_where(document, "Subtype", "/TrueType")
        document.xref_set_key(page.xref, "Resources", f"<</Font<</F1 {font} 0 R>>>>")
        _draw(document, page, b"BT /F1 40 Tf 20 40 Td (A) Tj ET")

    _shared_streams(path, use)


def _profiles(path: Path) -> None:
    """All pages use one colour profile that is none."""

    def use(document: pymupdf.Document, page: pymupdf.Page) -> None:
        if page.number == 0:
            document.update_object(document.get_new_xref(), "<</N 3>>")
            document.update_stream(document.xref_length() - 1, b"garbage")
        profile = _xref_where(document, "N", "3")
        document.xref_set_key(
            page.xref, "Resources", f"<</ColorSpace<</C[/ICCBased {profile} 0 R]>>>>"
        )
        _draw(document, page, b"/C cs 1 0 0 sc 9 9 50 50 re f")

    _shared_streams(path, use)


def _patterns(path: Path) -> None:
    """All pages are filled with one pattern that holds an unknown operator; MuPDF keeps tiles."""

    def use(document: pymupdf.Document, page: pymupdf.Page) -> None:
        if page.number == 0:
            document.update_object(
                document.get_new_xref(),
                "<</PatternType 1/PaintType 1/TilingType 1/BBox[0 0 9 9]/XStep 10/YStep 10"
                "/Resources<<>>>>",
            )
            document.update_stream(document.xref_length() - 1, b"foo 0 0 5 5 re f")
        pattern = _xref_where(document, "PatternType", "1")
        document.xref_set_key(page.xref, "Resources", f"<</Pattern<</P {pattern} 0 R>>>>")
        _draw(document, page, b"/Pattern cs /P scn 9 9 90 90 re f")

    _shared_streams(path, use)


def _lexical(path: Path) -> None:
    """All pages share resources with a stray sign in them, which MuPDF reads but once a file."""

    resources = 0

    def use(document: pymupdf.Document, page: pymupdf.Page) -> None:
        nonlocal resources
        if page.number == 0:
            resources = document.get_new_xref()
            document.update_object(resources, "<</A(AB)>>")
        document.xref_set_key(page.xref, "Resources", f"{resources} 0 R")
        _draw(document, page, b"/GS0 gs 9 9 50 50 re f")

    _shared_streams(path, use)
    content = path.read_bytes()
    assert content.count(b"(AB)") == 1
    path.write_bytes(content.replace(b"(AB)", b"<xx>"))


def _xref_where(document: pymupdf.Document, key: str, value: str) -> int:
    return next(
        xref
        for xref in range(1, document.xref_length())
        if document.xref_get_key(xref, key)[1] == value
    )


def _draw(document: pymupdf.Document, page: pymupdf.Page, content: bytes) -> None:
    xref = document.get_new_xref()
    document.update_object(xref, "<<>>")
    document.update_stream(xref, content, compress=False)
    document.xref_set_key(page.xref, "Contents", f"{xref} 0 R")


def _shared_streams(
    path: Path, use: Callable[[pymupdf.Document, pymupdf.Page], None]
) -> None:
    with pymupdf.open() as document:
        for _ in range(4):
            document.new_page(width=100, height=100)
        # What pages share comes first: its number is the last when the first page asks.
        for page in document:
            use(document, page)
        path.write_bytes(document.tobytes(garbage=0))


def _four_pages(path: Path, old: bytes, new: bytes, *numbers: int) -> None:
    with pymupdf.open() as document:
        for number in range(4):
            page = document.new_page(width=100, height=100)
            page.insert_text((10, 40), f"Page {number + 1}")
        pieces = document.tobytes().split(old)
    assert len(pieces) == 5
    joined = pieces[0]
    for number, piece in enumerate(pieces[1:], 1):
        joined += (new if number in numbers else old) + piece
    path.write_bytes(joined)


def _forget_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker that has read nothing yet."""
    pymupdf.TOOLS.store_shrink(100)
    monkeypatch.setattr(raster, "_open_documents", raster._OpenDocuments())


DAMAGES = [_shared_picture, _page_tree, _objects]
ODDITIES = [_unknown_operators, _fonts, _profiles, _patterns, _lexical]


@pytest.mark.parametrize("damage", [*DAMAGES, *ODDITIES])
def test_a_page_of_a_damaged_pdf_is_the_same_whichever_pages_its_worker_had_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "a.pdf")
    jobs = _jobs(tmp_path / "a.pdf")
    alone = []
    texts = []
    for job in jobs:
        _forget_all(monkeypatch)
        alone.append(render_page(job, CFG))
        _forget_all(monkeypatch)
        texts.append(text_layer(job, CFG))
    assert any(image.warnings for image in alone)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 2, 0, 3]):
        _forget_all(monkeypatch)
        for n in order:
            assert text_layer(jobs[n], CFG) == texts[n]
            image = render_page(jobs[n], CFG)
            assert image.warnings == alone[n].warnings, f"page {n + 1} in {order}"
            assert image.damage == alone[n].damage
            assert np.array_equal(image.rgb, alone[n].rgb)


def _openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    real = pdf._open_pdf
    monkeypatch.setattr(
        pdf, "_open_pdf", lambda source: opened.append(source.path) or real(source)
    )
    return opened


@pytest.mark.parametrize("oddity", ODDITIES)
def test_a_pdf_with_odd_pages_that_have_lost_nothing_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oddity: Callable[[Path], None]
) -> None:
    oddity(tmp_path / "a.pdf")
    jobs = _jobs(tmp_path / "a.pdf")
    opened = _openings(monkeypatch)
    for job in jobs:
        text_layer(job, CFG)
        assert not render_page(job, CFG).damage
        text_layer(job, CFG)
    assert len(opened) == 1


@pytest.mark.parametrize("damage", [_shared_picture, _objects])
def test_a_damaged_pdf_is_opened_anew_to_draw_but_not_to_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "a.pdf")
    jobs = _jobs(tmp_path / "a.pdf")
    opened = _openings(monkeypatch)
    render_page(jobs[0], CFG)
    for job in jobs:
        page_estimate(job, CFG)
        text_layer(job, CFG)
    assert len(opened) == 1
    for job in jobs:
        text_layer(job, CFG)
        render_page(job, CFG)
    # Once a page at the most, whatever was said while its text was taken.
    assert 1 < len(opened) <= 5
