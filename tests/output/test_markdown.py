"""A document's markdown: its pages, their numbers, and a note where one is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from page_factory import failed, files, job, page, rows, write, writer

from ocr2cli.output.markdown import document_markdown
from ocr2cli.pages import Document, Status


def test_a_single_page_is_its_text_alone(tmp_path: Path) -> None:
    write(tmp_path, page("scan", markdown="# Title\n\nbody"))
    assert (tmp_path / "scan.md").read_text() == "# Title\n\nbody\n"
    assert files(tmp_path) == ["scan.jsonl", "scan.md"]


def test_each_page_of_several_begins_with_its_number(tmp_path: Path) -> None:
    write(tmp_path, page("d", 1, "two"), page("d", 2, "", status=Status.BLANK), page("d", 0, "one"))
    expected = "<!-- page: 1 -->\n\none\n\n<!-- page: 2 -->\n\ntwo\n\n<!-- page: 3 -->\n"
    assert (tmp_path / "d.md").read_text() == expected


@pytest.mark.parametrize(("index", "of_pages", "is_numbered"), [
    (0, 3, True), (2, 3, True), (0, 1, False), (0, 0, False),
])  # fmt: skip
def test_one_page_taken_out_of_several_begins_with_its_number(
    tmp_path: Path, index: int, of_pages: int, is_numbered: bool
) -> None:
    """`--pages 2` had it and `--pages 1` had not."""
    one = writer(tmp_path)
    one.expect(dataclasses.replace(job("d", index), of_pages=of_pages))
    one.add(page("d", index, "text"))
    one.close()
    marker = f"<!-- page: {index + 1} -->\n\n" if is_numbered else ""
    assert (tmp_path / "d.md").read_text() == f"{marker}text\n"


def test_a_page_whose_document_has_grown_gets_its_number(tmp_path: Path) -> None:
    for of_pages in (1, 3):
        one = writer(tmp_path)
        one.expect(dataclasses.replace(job("d"), of_pages=of_pages))
        one.add(page("d", 0, "text"))
        one.close()
    assert (tmp_path / "d.md").read_text() == "<!-- page: 1 -->\n\ntext\n"


def test_a_later_page_alone_keeps_its_number(tmp_path: Path) -> None:
    write(tmp_path, page("d", 6, "seven"))
    assert (tmp_path / "d.md").read_text() == "<!-- page: 7 -->\n\nseven\n"
    alone = Document("d", "/in/x.pdf", (page("d", 6, "seven"),))
    assert document_markdown(alone) == "<!-- page: 7 -->\n\nseven\n"


def test_a_failed_page_leaves_a_note_with_the_reason_in_its_place(tmp_path: Path) -> None:
    message = "no page came in 600 s <b>\n<!-- page: 9 -->"
    write(tmp_path, page("d", 0, "one"), failed("d", 1, "timeout", message), page("d", 2, "three"))
    text = (tmp_path / "d.md").read_text()
    assert text.count("<!-- page:") == 3 and "page: 9 -->" not in text.replace("\\", "\\ ")
    note = text.split("<!-- page: 2 -->\n\n")[1].split("\n\n<!-- page: 3")[0]
    assert note.startswith("> **Page 2 could not be read:** no page came in 600 s")
    assert "(timeout)" in note and "\n" not in note
    error = rows(tmp_path / "d.jsonl")[1]["error"]
    assert error == {"code": "timeout", "message": message.replace("\n", "\\n")}


@pytest.mark.parametrize(
    ("status", "words"), [(Status.LOOP, "repeated"), (Status.TRUNCATED, "token limit")]
)
def test_a_page_cut_short_says_so_in_the_markdown(
    tmp_path: Path, status: Status, words: str
) -> None:
    write(tmp_path, page("d", markdown="half a", status=status))
    text = (tmp_path / "d.md").read_text()
    assert text.startswith("half a\n\n<!-- ") and words in text
