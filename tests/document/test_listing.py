"""Counting pages in a process that may hang or die."""

from __future__ import annotations

import hashlib
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocr2cli.config import RasterConfig
from ocr2cli.document import listing
from ocr2cli.document.listing import (
    Listing,
    PageEstimates,
    estimate,
    inspect,
    list_documents,
)
from ocr2cli.pages import PageJob, PageKey

MakePdf = Callable[..., Path]


def listed(paths: Sequence[str], cfg: RasterConfig | None = None) -> Iterator[Listing]:
    return (each for each in list_documents(paths, cfg or RasterConfig()) if each is not None)


def test_the_child_finds_the_same_as_this_process(tmp_path: Path, make_pdf: MakePdf) -> None:
    good = make_pdf("good.pdf", pages=4)
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nonsense")
    paths = [str(good), str(tmp_path / "bad.pdf"), str(tmp_path / "gone.pdf"), str(good)]
    isolated = list(listed(paths))
    assert isolated == [inspect(path, RasterConfig()) for path in paths]
    assert isolated[0].num_pages == 4
    assert isolated[0].sha256 == hashlib.sha256(good.read_bytes()).hexdigest()


def test_more_files_than_are_named_ahead_keep_their_order(make_pdf: MakePdf) -> None:
    paths = [str(make_pdf(f"{n}.pdf", pages=n % 3 + 1)) for n in range(11)]
    found = [entry.num_pages for entry in listed(paths)]
    assert found == [n % 3 + 1 for n in range(11)]


@pytest.fixture
def hostile_opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the child, opening a file whose name says so hangs in C, or ends the process."""
    folder = tmp_path / "child"
    folder.mkdir()
    (folder / "hostile_opener.py").write_text(
        textwrap.dedent("""
        import ctypes, os
        from ocr2cli.document import listing

        listing.BASE_DEADLINE_S = 3
        real = listing.inspect

        def inspect(path, cfg):
            if os.path.basename(path).startswith("hang"):
                ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock, like MuPDF
            if os.path.basename(path).startswith("die"):
                os._exit(3)
            if os.path.basename(path).startswith("unlucky") and not os.path.exists(path + ".was"):
                open(path + ".was", "w").close()
                os.kill(os.getpid(), 9)
            return real(path, cfg)

        listing.inspect = inspect
        """)
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    monkeypatch.setattr(listing, "_BOOT", f"import hostile_opener; {listing._BOOT}")


@pytest.mark.usefixtures("hostile_opener")
def test_a_file_that_hangs_or_kills_its_opener_is_one_error(make_pdf: MakePdf) -> None:
    names = ["1.pdf", "hang.pdf", "2.pdf", "die.pdf", "die_too.pdf", "3.pdf"]
    paths = [str(make_pdf(name, pages=2)) for name in names]
    start = time.perf_counter()
    found = list(listed(paths))
    assert time.perf_counter() - start < 200
    codes = [entry.error.code if entry.error else entry.num_pages for entry in found]
    assert codes == [2, "timeout", 2, "worker_died", "worker_died", 2]
    assert found[1].error is not None and "hang.pdf took too long" in found[1].error.message
    assert found[3].error is not None and "status 3" in found[3].error.message


@pytest.mark.usefixtures("hostile_opener")
def test_a_kill_of_the_process_that_opens_files_costs_no_document(make_pdf: MakePdf) -> None:
    """The system killed it for memory, say: it is tried once more in another one."""
    names = ["1.pdf", "unlucky.pdf", "unlucky_too.pdf", "4.pdf", "unlucky_last.pdf"]
    found = list(listed([str(make_pdf(name, pages=2)) for name in names]))
    assert [(entry.error, entry.num_pages) for entry in found] == [(None, 2)] * 5


@pytest.mark.usefixtures("hostile_opener")
def test_what_repairs_a_pdf_is_advised_for_pdfs_only(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("die.png", "die.PDF", "hang.tif")]
    png, pdf, tif = (entry.error.message for entry in listed(paths) if entry.error)
    assert "a second time (status 3). It may be damaged; copy it again or leave it out." in png
    assert "try `qpdf` to repair it." in pdf
    assert "took too long" in tif and "qpdf" not in png + tif


@pytest.mark.usefixtures("hostile_opener")
def test_the_caller_is_not_kept_while_a_file_is_being_opened(make_pdf: MakePdf) -> None:
    """Results that came in meanwhile were journalled only when the file was open."""
    paths = [str(make_pdf(name)) for name in ("1.pdf", "hang.pdf", "2.pdf")]
    entries = list_documents(paths, RasterConfig())
    first = next(each for each in entries if each is not None)
    assert first.num_pages == 1
    start = time.perf_counter()
    assert [next(entries) for _ in range(20)] == [None] * 20
    assert time.perf_counter() - start < 2
    entries.close()  # type: ignore[attr-defined]
    assert _children() == []


def test_the_child_sees_pages_as_this_process_does(tmp_path: Path, make_pdf: MakePdf) -> None:
    good, cfg = make_pdf("good.pdf", pages=3), RasterConfig()
    sha256 = hashlib.sha256(good.read_bytes()).hexdigest()
    jobs = [PageJob(PageKey("good", page), str(good), sha256, 3, dpi=100) for page in (2, 0, 7)]
    jobs.append(PageJob(PageKey("other", 0), str(good), "0" * 64, 1))
    with PageEstimates(cfg) as pages:
        seen = [pages.of(job) for job in jobs]
    assert seen == [estimate(job, cfg) for job in jobs]
    assert seen[0].width > 0 and seen[0].num_characters > 0 and seen[0].error is None
    codes = [each.error.code for each in seen if each.error is not None]
    assert codes == ["unreadable", "changed"] and _children() == []


def test_the_child_is_gone_when_the_listing_is_dropped(make_pdf: MakePdf) -> None:
    entries = listed([str(make_pdf("a.pdf"))] * 3)
    next(entries)
    child = _children()
    entries.close()  # type: ignore[attr-defined]
    assert child and not set(child) & set(_children())


def _children() -> list[int]:
    task = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    return [int(pid) for pid in Path(task).read_text().split()]


def test_a_password_reaches_the_child_but_not_its_command_line(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    import pymupdf

    path = make_pdf("a.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="s3cret-word")
    entries = listed([str(path), str(path)], RasterConfig(password="s3cret-word"))
    assert next(entries).num_pages == 1
    for pid in _children():
        assert b"s3cret-word" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"s3cret-word" not in Path(f"/proc/{pid}/environ").read_bytes()
    entries.close()  # type: ignore[attr-defined]
