"""Pages to pixels: PDFs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pymupdf
import pytest

from ocr2cli.config import RasterConfig
from ocr2cli.document import files, raster
from ocr2cli.document.raster import page_estimate, render_page, text_layer
from ocr2cli.document.source import find_jobs
from ocr2cli.errors import PageFault
from ocr2cli.pages import Ask, PageError, PageImage, PageJob, PageKey

MakePdf = Callable[..., Path]
CFG = RasterConfig()


def _jobs(path: Path, cfg: RasterConfig = CFG) -> list[PageJob]:
    return list(find_jobs([str(path)], "", cfg, is_isolated=False))


def _render(path: Path, cfg: RasterConfig = CFG) -> PageImage:
    return render_page(_jobs(path, cfg)[0], cfg)


def _has_ink(rgb: object) -> bool:
    return bool(np.asarray(rgb).min() < 128)


def test_a_page_is_rendered_as_the_reference_does_it(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", size=(612, 792))
    image = _render(path)
    with pymupdf.open(path) as document:
        pixmap = document[0].get_pixmap(matrix=pymupdf.Matrix(2, 2), alpha=False)
    expected = np.frombuffer(pixmap.samples, np.uint8).reshape(1584, 1224, 3)
    assert image.rgb.shape == (1584, 1224, 3) and image.rgb.dtype == np.uint8
    assert np.array_equal(image.rgb, expected) and _has_ink(image.rgb)
    assert image.dpi == 144 and image.warnings == ()


@pytest.mark.parametrize(
    ("points", "pixels"),
    [((595, 842), (1190, 1684)), ((595.276, 841.89), (1191, 1684)), ((612, 792), (1224, 1584))],
)
def test_page_sizes_at_144_dpi(
    make_pdf: MakePdf, points: tuple[float, float], pixels: tuple[int, int]
) -> None:
    path = make_pdf("a.pdf", size=points)
    image = _render(path)
    assert (image.rgb.shape[1], image.rgb.shape[0]) == pixels
    width, height, num_characters = page_estimate(_jobs(path)[0], CFG)
    assert (width, height) == pixels and num_characters > 5


def test_a_width_that_is_no_multiple_of_four_keeps_its_rows(make_pdf: MakePdf) -> None:
    image = _render(make_pdf("a.pdf", size=(101.5, 60)))
    assert image.rgb.shape == (120, 203, 3) and image.rgb.flags.c_contiguous


def test_a_huge_page_is_rendered_below_the_pixel_limit_and_says_so(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", size=(14400, 14400))
    cfg = RasterConfig(max_pixels=1_000_000)
    image = _render(path, cfg)
    assert 900_000 < image.rgb.shape[0] * image.rgb.shape[1] <= 1_000_000
    assert image.dpi == pytest.approx(5, rel=0.01)
    assert "rendered at 4.995 dpi instead of 144" in image.warnings[0]
    assert page_estimate(_jobs(path)[0], cfg)[:2] == (image.rgb.shape[1], image.rgb.shape[0])


def test_a_strip_stays_below_the_pixel_limit(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", size=(14400, 3))
    image = _render(path, RasterConfig(max_pixels=10_000))
    assert image.rgb.shape[0] * image.rgb.shape[1] <= 10_000


def test_a_page_turned_by_the_pdf_is_upright(make_pdf: MakePdf, tmp_path: Path) -> None:
    with pymupdf.open(make_pdf("a.pdf", size=(200, 100))) as document:
        document[0].set_rotation(90)
        document.save(tmp_path / "b.pdf")
    assert _render(tmp_path / "b.pdf").rgb.shape == (400, 200, 3)


def test_pages_of_one_file_share_one_opening(
    make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [*_jobs(make_pdf("a.pdf", pages=5)), *_jobs(make_pdf("b.pdf", pages=5))]
    opened: list[str] = []
    real = raster.open_document
    monkeypatch.setattr(
        raster, "open_document", lambda *args: opened.append(args[0].path) or real(*args)
    )
    for page in range(5):
        for job in (jobs[page], jobs[page + 5]):
            render_page(job, CFG)
    assert [os.path.basename(path) for path in opened] == ["a.pdf", "b.pdf"]


def test_no_more_than_two_files_stay_open(make_pdf: MakePdf) -> None:
    for n in range(6):
        _render(make_pdf(f"{n}.pdf"))
    assert len(raster._open_documents._opened) == 2


def test_the_right_password_opens_a_file(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="pass", owner_pw="o")
    cfg = RasterConfig(password="pass")
    assert _jobs(path, cfg)[0].error is None and _has_ink(_render(path, cfg).rgb)


def test_a_jobs_own_password_opens_its_file_and_shows_nowhere(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="s3cret-word")
    (job,) = _jobs(path, RasterConfig(password="s3cret-word"))
    own = replace(job, ask=Ask(password="s3cret-word"))
    assert _has_ink(render_page(own, CFG).rgb) and "s3cret" not in repr(own)
    # The next request for the same file does not profit from it.
    with pytest.raises(PageFault, match="needs a password"):
        render_page(job, CFG)


@pytest.mark.parametrize("password", ["", "s3cret-word"])
def test_a_wrong_or_missing_password_is_one_clear_error(make_pdf: MakePdf, password: str) -> None:
    path = make_pdf("a.pdf", pages=3, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="pass")
    (job,) = _jobs(path, RasterConfig(password=password))
    assert job.error is not None and job.error.code == "encrypted" and job.sha256
    assert "--password-file" in job.error.message
    assert "s3cret" not in job.error.message and "a.pdf" in job.error.message
    reason = "does not open it" if password else "needs a password"
    assert reason in job.error.message
    with pytest.raises(PageFault, match="password") as caught:
        render_page(replace(job, error=None), RasterConfig(password=password))
    assert caught.value.code == "encrypted"


def test_a_file_with_only_an_owner_password_is_read(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="", owner_pw="o")
    assert _has_ink(_render(path).rgb)


def test_a_damaged_file_that_can_be_repaired_says_so(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", pages=2)
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"startxref")])
    jobs = _jobs(path)
    assert len(jobs) == 2
    for job in jobs:
        image = render_page(job, CFG)
        assert "the PDF is damaged and was repaired on opening" in image.warnings
        assert any("MuPDF: trying to repair" in warning for warning in image.warnings)


def test_warnings_of_one_file_do_not_show_in_the_next(make_pdf: MakePdf) -> None:
    broken, good = make_pdf("broken.pdf"), make_pdf("good.pdf")
    broken.write_bytes(broken.read_bytes().replace(b"startxref", b"startxxxx"))
    assert _render(broken).warnings and _render(good).warnings == ()


def test_warnings_of_one_page_do_not_show_on_the_next(make_pdf: MakePdf, tmp_path: Path) -> None:
    with pymupdf.open(make_pdf("a.pdf", pages=3)) as document:
        document.update_stream(document[1].get_contents()[0], b"/None Do")
        document.save(tmp_path / "b.pdf")
    jobs = _jobs(tmp_path / "b.pdf")
    for job in jobs:
        text_layer(job, CFG)
    warnings = [render_page(job, CFG).warnings for job in jobs]
    assert warnings[0] == warnings[2] == () and "MuPDF: " in warnings[1][0]


@pytest.mark.parametrize("num_files", [1, 3])
def test_files_inside_a_pdf_are_told_of_on_its_first_page(
    make_pdf: MakePdf, num_files: int
) -> None:
    path = make_pdf("a.pdf", pages=2)
    with pymupdf.open(path) as document:
        for number in range(num_files):
            document.embfile_add(f"{number}.pdf", b"%PDF-1.4 an invoice")
        path.write_bytes(document.tobytes())
    first, second = (render_page(job, CFG).warnings for job in _jobs(path))
    files = "1 embedded file, which is" if num_files == 1 else "3 embedded files, which are"
    assert first == (f"the PDF holds {files} not read",) and second == ()


def test_files_inside_a_pdf_that_are_listed_in_branches_are_told_of(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf")
    with pymupdf.open(path) as document:
        branch = document.get_new_xref()
        document.update_object(branch, "<</Names[(a) null]>>")
        document.xref_set_key(
            document.pdf_catalog(), "Names", f"<</EmbeddedFiles<</Kids[{branch} 0 R]>>>>"
        )
        path.write_bytes(document.tobytes())
    assert _render(path).warnings == ("the PDF holds embedded files, which are not read",)


def test_a_page_count_that_lies_is_one_error(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf")
    content = path.read_bytes()
    assert b"/Count 1" in content
    path.write_bytes(content.replace(b"/Count 1", b"/Count 9"))
    (job,) = _jobs(path)
    assert job.error is not None and job.error.code == "unreadable"
    assert "cannot be counted" in job.error.message and "qpdf" in job.error.message


def test_a_file_without_pages_is_one_error(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf")
    content = path.read_bytes().replace(b"/Count 1", b"/Count 0")
    start = content.index(b"/Kids[")
    end = content.index(b"]", start)
    path.write_bytes(content[: start + 6] + b" " * (end - start - 6) + content[end:])
    (job,) = _jobs(path)
    assert job.error is not None and job.error.code in ("empty", "unreadable")
    assert "a.pdf" in job.error.message


def test_a_cut_pdf_of_which_no_page_is_found_is_damaged_and_not_empty(tmp_path: Path) -> None:
    """The pages stood in an object stream, at the end that was lost."""
    path = tmp_path / "a.pdf"
    with pymupdf.open() as document:
        for number in range(10):
            document.new_page(width=300, height=200).insert_text((20, 50), f"Page {number} " * 5)
        content = document.tobytes(use_objstms=1, deflate=True)
    path.write_bytes(content[: len(content) * 6 // 10])
    (job,) = _jobs(path)
    assert job.error is not None and job.error.code == "unreadable"
    assert "is damaged: none of its pages was found" in job.error.message
    assert "qpdf IN OUT" in job.error.message


def test_a_page_that_is_not_there_is_a_fault_of_that_page(make_pdf: MakePdf) -> None:
    job = _jobs(make_pdf("a.pdf"))[0]
    with pytest.raises(PageFault, match=r"has no page 8, only 1\. Give a smaller") as caught:
        render_page(replace(job, key=PageKey("a", 7)), CFG)
    assert caught.value.code == "unreadable"


def test_the_error_of_a_job_is_its_fault() -> None:
    error = PageError("encrypted", "needs a password")
    with pytest.raises(PageFault, match="needs a password") as caught:
        render_page(PageJob(PageKey("a", 0), "/a.pdf", "", 1, error=error), CFG)
    assert caught.value.code == "encrypted"


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\n%")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b" ")
    os.replace(other, path)


def _cut(path: Path) -> None:
    os.truncate(path, 20)


CHANGES = [_append, _replace, _cut]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_changed_after_listing_is_an_error(
    make_pdf: MakePdf, change: Callable[[Path], None]
) -> None:
    path = make_pdf("a.pdf")
    job = _jobs(path)[0]
    change(path)
    with pytest.raises(PageFault, match="was changed") as caught:
        render_page(job, CFG)
    assert caught.value.code == "changed"


def test_a_file_whose_disk_fails_while_it_is_read_again_is_away(
    make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share that hung up was an internal fault of the page, which reruns kept."""

    def fail(_: files.InputFile) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    job = _jobs(make_pdf("a.pdf"))[0]
    monkeypatch.setattr(files.InputFile, "sha256", fail)
    with pytest.raises(PageFault, match="cannot be read: Stale file handle") as caught:
        render_page(job, CFG)
    assert caught.value.code == "away"


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_changed_between_two_pages_is_an_error(
    make_pdf: MakePdf, change: Callable[[Path], None]
) -> None:
    path = make_pdf("a.pdf", pages=2)
    first, second = _jobs(path)
    render_page(first, CFG)
    change(path)
    with pytest.raises(PageFault, match="was changed"):
        render_page(second, CFG)


def test_a_file_that_is_only_touched_is_read_on(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", pages=2)
    first, second = _jobs(path)
    render_page(first, CFG)
    os.utime(path, (1, 1))
    assert _has_ink(render_page(second, CFG).rgb)


def test_a_file_that_is_gone_is_an_error(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", pages=2)
    first, second = _jobs(path)
    render_page(first, CFG)
    path.unlink()
    with pytest.raises(PageFault, match="is not there"):
        render_page(second, CFG)


def test_a_large_file_is_read_from_disk_and_watched(
    make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES_IN_MEMORY", 100)
    path = make_pdf("a \udcff.pdf", pages=2)
    first, second = _jobs(path)
    assert _has_ink(render_page(first, CFG).rgb)
    with raster._open_documents.borrow(second, CFG) as document:
        assert document.num_pages == 2
    with (
        pytest.raises(PageFault, match="was changed"),
        raster._open_documents.borrow(second, CFG),
    ):
        _append(path)


def test_the_text_layer_is_given_page_by_page(make_pdf: MakePdf) -> None:
    jobs = _jobs(make_pdf("a.pdf", pages=2))
    assert [text_layer(job, CFG).strip() for job in jobs] == ["Page 1", "Page 2"]


def test_nothing_is_printed_about_a_broken_file(
    make_pdf: MakePdf, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_pdf("a.pdf")
    path.write_bytes(path.read_bytes().replace(b"startxref", b"startxxxx"))
    _render(path)
    path.write_bytes(b"%PDF-1.7 nonsense")
    _jobs(path)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
