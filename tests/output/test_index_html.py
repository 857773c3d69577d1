"""The list of a folder's documents: complete, in order, and never in another file's place."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from page_factory import failed, job, page, write, writer

from ocr2cli.output.bucket import Bucket
from ocr2cli.pages import Status

ROW = re.compile(r'<tr class="(\w+)"><td><a href="([^"]*)">(.*?)</a></td>')


def listed(out: Path) -> list[tuple[str, ...]]:
    return ROW.findall((out / "index.html").read_text())


def test_every_document_is_listed_and_what_needs_a_look_comes_first(tmp_path: Path) -> None:
    write(
        tmp_path, page("a"), page("b", confidence=0.45), page("c", 0, confidence=0.9),
        page("c", 1, status=Status.BLANK, confidence=None), failed("d/e & f"),
        page("z", confidence=0.3), formats=("html",),
    )  # fmt: skip
    assert listed(tmp_path) == [
        ("bad", "d/e%20%26%20f.html#least-sure", "d/e &amp; f"),
        ("unsure", "z.html#least-sure", "z"),
        ("unsure", "b.html#least-sure", "b"),
        ("fine", "a.html", "a"),
        ("fine", "c.html", "c"),
    ]
    text = (tmp_path / "index.html").read_text()
    assert "5 documents" in text and "3 to look at" in text
    assert '<td class="number">2</td><td>1 ok, 1 blank</td><td class="number">0.90</td>' in text
    assert "<script" not in text and "src=" not in text and "default-src &#x27;none&#x27;" in text


def test_a_document_is_as_sure_as_the_least_sure_of_its_pages_that_were_read(
    tmp_path: Path,
) -> None:
    write(
        tmp_path, page("a"), page("b", 0, confidence=0.95), page("b", 1, confidence=0.91),
        replace(failed("b", 2), confidence=0.2), formats=("html",),
    )  # fmt: skip
    assert '<td class="number">0.91</td>' in (tmp_path / "index.html").read_text()


def test_a_rerun_lists_what_earlier_runs_wrote(tmp_path: Path) -> None:
    write(tmp_path, page("a"), formats=("html",))
    assert not (tmp_path / "index.html").exists()
    write(tmp_path, page("b"), formats=("html",))
    write(tmp_path, page("c"), formats=("md",))
    assert [row[2] for row in listed(tmp_path)] == ["a", "b"]
    before = (tmp_path / "index.html").stat()
    write(tmp_path, page("b"), formats=("html",))
    assert (tmp_path / "index.html").stat().st_mtime_ns == before.st_mtime_ns
    (tmp_path / "a.html").unlink()
    write(tmp_path, page("d", confidence=0.1), formats=("html",))
    assert [row[2] for row in listed(tmp_path)] == ["d", "b"]


def test_other_formats_write_no_list(tmp_path: Path) -> None:
    write(tmp_path, page("a"), page("b"), formats=("md", "jsonl"))
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_list_of_ours_stays(tmp_path: Path, kind: str, caplog) -> None:
    mine = tmp_path / "index.html"
    if kind == "file":
        mine.write_text("my own page")
    elif kind == "link":
        mine.symlink_to("elsewhere")
    else:
        mine.mkdir()
    with caplog.at_level(logging.WARNING, "ocr2"):
        write(tmp_path, page("a"), page("b"), formats=("html",))
    assert [record.getMessage() for record in caplog.records] == [
        "index.html is another file: no list of the documents was written"
    ]
    assert kind != "file" or mine.read_text() == "my own page"
    assert (tmp_path / "b.html").exists() and mine.is_symlink() == (kind == "link")


def test_a_document_named_index_keeps_its_file(tmp_path: Path) -> None:
    write(tmp_path, page("a"), page("b"), formats=("html",))
    write(tmp_path, page("index", markdown="words"), page("b"), formats=("html",))
    assert "words" in (tmp_path / "index.html").read_text()
    write(tmp_path, page("c"), formats=("html",))
    assert "words" in (tmp_path / "index.html").read_text()


def test_no_list_is_written_where_a_disk_might_take_it_for_a_documents_file(tmp_path) -> None:
    write(tmp_path, page("a"), page("Index"), formats=("html",))
    assert (tmp_path / "Index.html").exists() and not (tmp_path / "index.html").exists()


def test_no_list_takes_the_place_of_an_input(tmp_path: Path) -> None:
    one = writer(tmp_path, "html")
    one.spare([str(tmp_path / "index.html")])
    for name in ("a", "b"):
        one.expect(job(name))
        one.add(page(name))
    one.close()
    assert not (tmp_path / "index.html").exists()


def test_a_bucket_gets_the_list_too(tmp_path: Path) -> None:
    offered: dict[str, dict[str, str]] = {}
    one = writer(tmp_path, "html")
    one._on_document = lambda document, name, files, _: offered.update({name: dict(files)})
    for name in ("a", "b"):
        one.expect(job(name))
        one.add(page(name))
    one.close()
    bucket = Bucket("memory://ocr2-index/out", tmp_path)
    for name, files in offered.items():
        bucket.offer(name, name, files)
    bucket.close()
    assert bucket.faults == [] and bucket.num_uploaded == 3
    assert bucket._system.exists("/ocr2-index/out/index.html")
