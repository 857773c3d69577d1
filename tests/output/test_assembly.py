"""A document on its way to files: whose pixels, in whose place, and what is left of half of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from page_factory import HEIGHT, WIDTH, figure_page, job, page, write, writer

from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.output.assembly import Assembly, Expected, OutputSettings, listed_documents
from ocr2cli.output.folder import OutFolder
from ocr2cli.pages import PageImage, PageJob, PageKey


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


DIGEST = pixels_sha256(white(HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("page_size", "digest", "is_the_pages"),
    [
        ((WIDTH, HEIGHT), DIGEST, True),
        ((WIDTH, HEIGHT), "", True),
        ((0, 0), DIGEST, True),
        ((HEIGHT, WIDTH), "", False),
        ((WIDTH, HEIGHT), "ab" * 32, False),
    ],
)
def test_figures_are_cut_from_the_pixels_that_were_read_as_far_as_that_is_known(
    tmp_path: Path, page_size: tuple[int, int], digest: str, is_the_pages: bool
) -> None:
    asked: list[PageJob] = []

    def render(wanted: PageJob) -> PageImage:
        asked.append(wanted)
        return PageImage(wanted.key, white(HEIGHT, WIDTH), 144.0)

    listed = dataclasses.replace(job("d", 0, 7), dpi=96)
    folder = OutFolder(tmp_path)
    assembly = Assembly(folder, Expected(listed), OutputSettings(("md",)), render)
    page = dataclasses.replace(figure_page("d", 4), page_size=page_size, pixels_sha256=digest)
    assert (assembly.image(page) is not None) is is_the_pages
    assert [(one.key.page, one.path, one.dpi) for one in asked] == [(4, listed.path, 96)]
    folder.close()


def read(out: Path, path: str, sha256: str, *formats: str) -> None:
    one = writer(out, *formats)
    one.expect(PageJob(PageKey("d", 0), path, sha256, 1))
    one.add(page("d", markdown=path + sha256))
    one.close()


@pytest.mark.parametrize(
    ("path", "sha256", "formats", "gone", "is_told"),
    [
        ("/b/d.pdf", "bb" * 32, ("md", "jsonl"), (), True),
        ("/b/d.pdf", "bb" * 32, ("md", "jsonl"), ("d.jsonl",), True),
        ("/b/d.pdf", "bb" * 32, ("md",), ("d.jsonl",), True),
        ("/b/d.pdf", "bb" * 32, ("md", "jsonl"), ("d.md", "d.jsonl"), False),
        ("/b/d.pdf", "bb" * 32, ("html",), (), False),
        ("/b/d.pdf", "aa" * 32, ("md", "jsonl"), (), False),
        ("/a/d.pdf", "bb" * 32, ("md", "jsonl"), (), False),
    ],
    ids=["all", "one left", "one wanted", "none left", "another format", "moved", "changed"],
)
def test_files_of_another_input_are_replaced_with_a_word_and_only_where_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, sha256: str,
    formats: tuple[str, ...], gone: tuple[str, ...], is_told: bool,
) -> None:  # fmt: skip
    read(tmp_path, "/a/d.pdf", "aa" * 32)
    for name in gone:
        (tmp_path / name).unlink()
    read(tmp_path, path, sha256, *formats)
    assert ("takes the place of /a/d.pdf" in caplog.text) is is_told


def test_what_was_staged_and_not_published_leaves_nothing(tmp_path: Path) -> None:
    def files() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if path.is_file())

    folder = OutFolder(tmp_path)
    before = files()
    assembly = Assembly(folder, Expected(job("d")), OutputSettings(("md",)), lambda _: None)
    with assembly.new_file(".md") as stream:
        stream.write(b"half a document")
    assert len(files()) == len(before) + 1
    assembly.drop()
    assert files() == before
    folder.close()


def test_figures_that_a_killed_run_did_not_remove_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other files are as the record says by then."""
    write(tmp_path, figure_page("d"))

    plain = OutFolder.remove

    def killed(self: OutFolder, relative: str) -> None:
        if relative.endswith(".png"):
            raise KeyboardInterrupt
        plain(self, relative)

    figure = tmp_path / "d.images" / "0001-1.png"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OutFolder, "remove", killed)
        write(tmp_path, page("d"))
    assert figure.exists() and (tmp_path / "d.md").read_text() == "text\n"
    write(tmp_path, page("d"))
    assert not figure.exists()


def test_only_documents_that_were_written_as_html_are_listed(tmp_path: Path) -> None:
    write(tmp_path, page("d"), formats=("html",))
    write(tmp_path, page("e"), formats=("md",))
    assert [one.id for one in listed_documents(tmp_path)] == ["d"]
