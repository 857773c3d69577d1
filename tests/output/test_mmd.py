"""The `mmd` files: names, separators and pictures as the model's own scripts have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from page_factory import failed, page, sample, write

from ocr2cli.pages import PageKey


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
