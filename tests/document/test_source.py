"""From inputs as people give them to PageJobs."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ocr2cli.config import RasterConfig
from ocr2cli.document import files, listing
from ocr2cli.document.listing import Listing
from ocr2cli.document.source import find_jobs, find_sources
from ocr2cli.errors import PageFault, UsageError
from ocr2cli.pages import PageJob

MakePdf = Callable[..., Path]


def _jobs(*inputs: Path | str, pages: str = "", out: Path | None = None) -> list[PageJob]:
    given = [str(item) for item in inputs]
    return list(find_jobs(given, pages, out=out, is_isolated=False))


def _ids(sources: Sequence[object]) -> list[str]:
    return [source.id for source in sources]  # type: ignore[attr-defined]


def _image(path: Path, **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), "white").save(path, **save)
    return path


def test_every_page_becomes_a_job_with_digest_dpi_and_count(make_pdf: MakePdf) -> None:
    path = make_pdf("report.pdf", pages=3)
    jobs = list(find_jobs([str(path)], "", RasterConfig(dpi=200), is_isolated=False))
    assert [(job.key.document, job.key.page) for job in jobs] == [("report", n) for n in range(3)]
    assert {job.sha256 for job in jobs} == {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert {(job.num_pages, job.dpi, job.path) for job in jobs} == {(3, 200, str(path))}


def test_page_ranges_pick_pages_and_count_only_those(make_pdf: MakePdf) -> None:
    jobs = _jobs(make_pdf("report.pdf", pages=9), pages="2-3,8-")
    assert [job.key.page for job in jobs] == [1, 2, 7, 8]
    assert {job.num_pages for job in jobs} == {4}


def test_a_range_that_selects_nothing_is_one_error_that_tells_the_page_count(
    make_pdf: MakePdf,
) -> None:
    (job,) = _jobs(make_pdf("report.pdf", pages=3), pages="9,5 - 7")
    assert job.error is not None and job.error.code == "empty"
    told = "/report.pdf has 3 pages; --pages 5-7,9 asks for none of them. "
    assert job.error.message.endswith(f"{told}Give a smaller page number.")
    (job,) = _jobs(make_pdf("letter.pdf", pages=1), pages="2-")
    assert job.error is not None
    assert "/letter.pdf has 1 page; --pages 2- does not ask for it. " in job.error.message


def test_a_bad_range_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(UsageError):
        find_jobs(["/nonexistent"], "x")


def test_every_kind_of_file_is_found_in_a_folder(tmp_path: Path, make_pdf: MakePdf) -> None:
    for ending in ("png", "jpg", "tif", "webp", "bmp", "gif"):
        _image(tmp_path / f"a_{ending}.{ending.upper()}")
    make_pdf("sub/deep/b.PDF", pages=2)
    (tmp_path / "notes.txt").write_text("no document")
    (tmp_path / ".hidden.png").write_bytes(b"")
    _image(tmp_path / ".git/c.png")
    jobs = _jobs(tmp_path)
    assert all(job.error is None for job in jobs)
    names = [str(job.key) for job in jobs]
    endings = ("bmp", "gif", "jpg", "png", "tif", "webp")
    assert names == [f"a_{e} page 1" for e in endings] + [
        "sub/deep/b page 1",
        "sub/deep/b page 2",
    ]


def test_every_frame_of_a_tiff_is_a_page_and_one_of_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green", "blue")]
    for name in ("a.tif", "b.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    jobs = _jobs(tmp_path / "a.tif", tmp_path / "b.gif")
    assert [str(job.key) for job in jobs] == ["a page 1", "a page 2", "a page 3", "b page 1"]


def test_a_name_used_twice_keeps_its_ending(tmp_path: Path, make_pdf: MakePdf) -> None:
    make_pdf("report.pdf")
    _image(tmp_path / "report.png")
    _image(tmp_path / "other.png")
    assert _ids(find_sources([str(tmp_path)])) == ["other", "report.pdf", "report.png"]


def test_files_of_two_folders_are_named_from_their_common_root(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    inputs = [str(make_pdf("x/a.pdf")), str(make_pdf("y/a.pdf"))]
    assert _ids(find_sources(inputs)) == ["x/a", "y/a"]
    assert _ids(find_sources([str(tmp_path / "x"), str(tmp_path / "y/a.pdf")])) == ["x/a", "y/a"]
    assert _ids(find_sources([str(tmp_path / "x")])) == ["a"]


def test_a_file_given_in_three_ways_is_listed_once(
    tmp_path: Path, make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pdf("sub/a.pdf")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    monkeypatch.chdir(tmp_path)
    sources = find_sources(["sub/a.pdf", "./sub/../sub/a.pdf", "link/a.pdf", "sub", "sub/*.pdf"])
    assert len(sources) == 1 and sources[0].path == str(tmp_path / "sub/a.pdf")


def test_a_link_and_its_target_are_two_documents(tmp_path: Path, make_pdf: MakePdf) -> None:
    (tmp_path / "b.pdf").symlink_to(make_pdf("a.pdf"))
    assert _ids(find_sources([str(tmp_path)])) == ["a", "b"]


def test_a_folder_that_links_to_itself_ends(tmp_path: Path, make_pdf: MakePdf) -> None:
    make_pdf("a.pdf")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert _ids(find_sources([str(tmp_path)])) == ["a"]


def test_links_to_folders_are_named_as_what_they_are(tmp_path: Path, make_pdf: MakePdf) -> None:
    make_pdf("in/a.pdf")
    (tmp_path / "in/2023").symlink_to(tmp_path)
    (tmp_path / "in/2024").symlink_to(tmp_path)
    (tmp_path / "in/notes").symlink_to(tmp_path / "in/notes.txt")
    (tmp_path / "in/notes.txt").write_text("no document")
    said: list[str] = []
    assert _ids(find_sources([str(tmp_path / "in")], tell=said.append)) == ["a"]
    others, links = said
    assert "2 files were left out" in others and "2023" not in others
    assert "2 links to folders were not followed" in links and "2023" in links and "2024" in links
    assert "name them as inputs" in links


def test_hidden_files_and_folders_are_left_out_with_a_line(
    tmp_path: Path, make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.pdf", ".h.pdf", "d/.dir/q.pdf", "d/.dir/r.pdf", "d/b.pdf"):
        make_pdf(f"in/{name}")
    said: list[str] = []
    assert _ids(find_sources([str(tmp_path / "in")], tell=said.append)) == ["a", "d/b"]
    (line,) = said
    told = "1 hidden file and 1 hidden folder with documents in it were left out; "
    assert f"{told}name them as inputs to read them" in line
    assert ".h.pdf" in line and "d/.dir/)" in line and "q.pdf" not in line
    said.clear()
    monkeypatch.chdir(tmp_path)
    find_sources(["in"], tell=said.append)
    assert said[0].endswith("(in/.h.pdf, in/d/.dir/)")

    said.clear()
    named = [str(tmp_path / name) for name in ("in", "in/.h.pdf", "in/d/.dir")]
    assert len(find_sources(named, tell=said.append)) == 5
    assert said == []


def test_a_folder_that_holds_hidden_documents_alone_says_so(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    make_pdf("in/.h.pdf")
    make_pdf("in2/.d/a.pdf")
    said: list[str] = []
    given = [str(tmp_path / name) for name in ("in", "in2")]
    assert find_sources(given, tell=said.append) == []
    file, folder = said
    assert "in holds no document but hidden ones: 1 hidden file was left out; name it" in file
    told = "in2 holds no document but hidden ones: 1 hidden folder with documents in it was left"
    assert told in folder


def test_hidden_things_that_are_no_documents_are_worth_no_line(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    """ocr2's own folders, other programs' and what a Mac keeps of each file beside it."""
    make_pdf("in/a.pdf")
    names = (
        ".DS_Store", "._a.pdf", ".ocr2/x.pdf", ".earlier/.ocr2/x", ".earlier/x.pdf",
        ".git/HEAD", ".venv/lib/x.png", ".Spotlight-V100/x", ".stfolder/.x.pdf", ".app/x.pdf/x",
        ".Trash-1000/x.pdf", ".Trashes/x.pdf", ".AppleDouble/a.pdf", ".thumbnails/1.jpg",
    )  # fmt: skip
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "in/.loop").symlink_to(tmp_path / "in/.loop")
    make_pdf("in/.out/b.pdf")
    said: list[str] = []
    given, out = [str(tmp_path / "in")], tmp_path / "in/.out"
    assert _ids(find_sources(given, out=out, tell=said.append)) == ["a"]
    assert said == []
    make_pdf("in/._b.pdf")  # of no other file
    assert _ids(find_sources(given, out=out, tell=said.append)) == ["a"]
    assert "1 hidden file was left out" in said[0]


def test_a_hidden_folder_of_which_the_run_reads_or_writes_is_not_told_as_left_out(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    for name in ("in/a.pdf", "in/.d/x.pdf", "in/.d/y.pdf", "in/.d/e/z.pdf"):
        make_pdf(name)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "in/.latest").symlink_to(tmp_path / "in")
    folder = str(tmp_path / "in")
    said: list[str] = []
    for more in ("in/.d/x.pdf", "in/.d/e/z.pdf", "in/.[d]/*.pdf", "link/.d", "link/.d/e"):
        find_sources([folder, str(tmp_path / more)], tell=said.append)
        assert said == [], more
    find_sources([folder], out=tmp_path / "in/.d/out", tell=said.append)
    find_sources([str(tmp_path / "link")], out=tmp_path / "link/.d/out", tell=said.append)
    assert said == []
    find_sources([folder], out=tmp_path / "in/.d2", tell=said.append)
    assert "in/.d/)" in said[0]


def test_hidden_files_that_runs_wrote_are_told_as_that(tmp_path: Path, make_pdf: MakePdf) -> None:
    made = {str(make_pdf(f"o/{name}")) for name in (".h.ocr.pdf", ".d/x.ocr.pdf", ".d/e/y.ocr.pdf")}
    (tmp_path / "o/.ocr2").mkdir()
    find = partial(find_sources, [str(tmp_path)], written=lambda out: frozenset(made))
    said: list[str] = []
    assert find(tell=said.append) == []
    (line,) = said
    assert "1 file was left out, which runs of ocr2 wrote there" in line and ".h.ocr.pdf" in line


def test_a_walk_asks_the_disk_about_no_ordinary_file(
    tmp_path: Path, make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.pdf", "._a.pdf", ".h.pdf", ".DS_Store", "notes.txt", ".d/x.pdf"):
        make_pdf(f"in/{name}")
    asked: list[str] = []
    real = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: asked.append(path) or real(path))
    said: list[str] = []
    assert _ids(find_sources([str(tmp_path / "in")], tell=said.append)) == ["a"]
    assert asked == [str(tmp_path / "in")] and len(said) == 2
    # Where nobody is told, no hidden folder is looked into.
    looked: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scan(path))
    find_sources([str(tmp_path / "in")])
    find_sources([str(tmp_path / "in/**")], tell=said.append)
    assert set(looked) == {str(tmp_path / "in")} and len(said) == 2


def test_a_tree_deeper_than_pythons_stack_is_walked_in_order(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    deepest = "d/" * 300  # and not the 1,500 that it takes by default: pytest's clean-up calls, too
    for name in ("0", "d/a", f"{deepest}a", f"{deepest}x", "d/x", "e"):
        make_pdf(f"{name}.pdf")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        found = _ids(find_sources([str(tmp_path)]))
    finally:
        sys.setrecursionlimit(limit)
    assert found == ["0", "d/a", f"{deepest}a", f"{deepest}x", "d/x", "e"]


def test_a_quoted_glob_is_expanded_in_order(tmp_path: Path, make_pdf: MakePdf) -> None:
    for name in ("b/2.pdf", "b/1.pdf", "a/3.pdf", "a/deep/4.pdf"):
        make_pdf(name)
    _image(tmp_path / "a/5.png")
    assert _ids(find_sources([str(tmp_path / "*/*.pdf")])) == ["a/3", "b/1", "b/2"]
    everything = ["a/3", "a/5", "a/deep/4", "b/1", "b/2"]
    assert _ids(find_sources([str(tmp_path / "**")])) == everything
    assert _ids(find_sources([str(tmp_path / "*")])) == everything


def test_a_glob_follows_no_link_to_a_folder_as_a_walk_does(
    tmp_path: Path, make_pdf: MakePdf
) -> None:
    """Two links to their own folder doubled the paths at every level: such a run never began."""
    make_pdf("in/a.pdf")
    (tmp_path / "in/x").symlink_to(".")
    (tmp_path / "in/y").symlink_to(".")
    said: list[str] = []
    assert _ids(find_sources([str(tmp_path / "in/**/*.pdf")], tell=said.append)) == ["a"]
    (links,) = said
    assert "2 links to folders were not followed" in links
    assert _ids(find_sources([str(tmp_path / "in/x/**")])) == ["a"]  # named as an input


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("**", ["a", "d/a", "d/e/a", "d/e/b"]),
        ("**/", ["a", "d/a", "d/e/a", "d/e/b"]),
        ("**/a.pdf", ["a", "d/a", "d/e/a"]),
        ("d/**/a.pdf", ["d/a", "d/e/a"]),
        ("?/**/[!a].pdf", ["d/e/b"]),
        ("**/e/*", ["d/e/a", "d/e/b"]),
        ("**/d/**/e/**/b.*", ["d/e/b"]),
        ("**/f/*", ["**/f/*"]),
    ],
)
def test_two_stars_stand_for_any_number_of_folders(
    pattern: str, ids: list[str], tmp_path: Path, make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "d/a", "d/e/a", "d/e/b"):
        make_pdf(f"{name}.pdf")
    monkeypatch.chdir(tmp_path)
    for given in (pattern, str(tmp_path / pattern)):
        found = [os.path.relpath(source.path) for source in find_sources([given])]
        assert [name.removesuffix(".pdf") for name in found] == ids


def test_a_name_with_glob_signs_is_taken_as_it_is(tmp_path: Path, make_pdf: MakePdf) -> None:
    path = make_pdf("[1]*.pdf")
    make_pdf("1.pdf")
    assert _ids(find_sources([str(path)])) == ["[1]*"]


def test_a_glob_that_matches_nothing_is_one_error(tmp_path: Path) -> None:
    (job,) = _jobs(tmp_path / "*.pdf")
    assert job.error is not None and job.error.code == "unreadable"
    assert "*.pdf is not there" in job.error.message


def test_the_output_folder_is_not_read_as_input(tmp_path: Path, make_pdf: MakePdf) -> None:
    make_pdf("a.pdf")
    _image(tmp_path / "out/a.images/0001-1.png")
    assert _ids(find_sources([str(tmp_path)], out=tmp_path / "out")) == ["a"]
    assert _ids(find_sources([str(tmp_path / "**")], out=tmp_path / "out")) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        b"-x.pdf",
        b"a b.pdf",
        b"line\nbreak.pdf",
        b"\x1b[31mred.pdf",
        b"latin1-\xe4\xff.pdf",
        b"n" * 251 + b".pdf",
        "\u202egnp.pdf".encode(), "\u200ea\ufeff.pdf".encode(),
    ],
)
def test_hostile_names_are_read_and_shown_on_one_line(
    name: bytes, tmp_path: Path, make_pdf: MakePdf
) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    os.rename(make_pdf("plain.pdf"), path)
    (job,) = find_jobs([path])
    assert job.error is None and job.path == path
    with open(path, "wb") as file:
        file.write(b"no pdf any more")
    (job,) = _jobs(path)
    assert job.error is not None
    assert job.error.message.isprintable()


def test_non_files_are_errors_within_a_second(tmp_path: Path) -> None:
    (tmp_path / "folder.pdf").mkdir()
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "dangling.pdf").symlink_to(tmp_path / "nothing")
    (tmp_path / "device.pdf").symlink_to("/dev/zero")
    (tmp_path / "loop.pdf").symlink_to(tmp_path / "loop.pdf")
    with open(tmp_path / "sparse.pdf", "wb") as file:
        file.write(b"%PDF-1.7\n")
        file.truncate(6 << 30)
    start = time.perf_counter()
    jobs = {job.key.document: job for job in _jobs(tmp_path)}
    assert time.perf_counter() - start < 3
    reasons = {
        "device": "is a device",
        "dangling": "is a link to a file that is not there",
        "folder": "is a folder",
        "loop": "cannot be opened",
        "pipe": "is a pipe",
        "sparse": "is a sparse file",
    }
    assert set(jobs) == set(reasons)
    for name, reason in reasons.items():
        error = jobs[name].error
        assert error is not None and reason in error.message, error
        assert f"{name}.pdf" in error.message and jobs[name].num_pages == 1


def test_a_scan_whose_paper_is_zeros_may_be_stored_with_holes(tmp_path: Path) -> None:
    """`cp` keeps them, so that a copy of the file is no better."""
    path = tmp_path / "a.tif"
    side = 8400
    tags = ((256, side), (257, side), (258, 8), (259, 1), (262, 0), (273, 4096), (277, 1),
            (278, side), (279, side * side))  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    with open(path, "wb") as file:
        file.write(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
        file.truncate(4096 + side * side)
    assert path.stat().st_blocks * 512 * 8 < path.stat().st_size
    (job,) = _jobs(path)
    assert job.error is None


def test_a_file_of_which_the_disk_does_not_tell_what_it_stores_is_not_sparse() -> None:
    """File systems that compress, and some over a network, count no blocks."""
    untold = os.stat_result((0o100644, 1, 1, 1, 0, 0, 6 << 30, 0, 0, 0), {"st_blocks": 0})
    files._refuse_sparse("a.tif", untold)
    with pytest.raises(PageFault, match="cp --sparse=never"):
        files._refuse_sparse("a.tif", os.stat_result(untold[:10], {"st_blocks": 8}))


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (b"", "empty", "is empty"),
        (b"<!DOCTYPE html><html><body>%</body></html>", "unsupported", "web page"),
        (b"PK\x03\x04\x14\x00", "unsupported", "ZIP"),
        (b"just text", "unsupported", "plain text"),
        (b"\0" * 5000, "unsupported", "zeros"),
        (b"%PDF-1.7\nnonsense", "unreadable", "damaged"),
        (b"\x89PNG\r\n\x1a\nnonsense", "unreadable", "cannot be decoded"),
    ],
)
def test_what_is_no_document_gives_one_clear_line(
    tmp_path: Path, content: bytes, code: str, reason: str
) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(content)
    (job,) = _jobs(path)
    assert job.error is not None and job.error.code == code
    assert reason in job.error.message and "report.pdf" in job.error.message
    assert (job.key.page, job.num_pages) == (0, 1)


def test_the_kind_is_told_by_the_content_not_by_the_name(tmp_path: Path, make_pdf: MakePdf) -> None:
    os.rename(make_pdf("a.pdf", pages=2), tmp_path / "a.png")
    _image(tmp_path / "b.png")
    os.rename(tmp_path / "b.png", tmp_path / "b.pdf")
    assert [str(job.key) for job in _jobs(tmp_path)] == ["a page 1", "a page 2", "b page 1"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif"])
def test_an_image_that_speaks_of_a_pdf_is_an_image(tmp_path: Path, name: str) -> None:
    """Converters put the name and the head of what they converted into a comment."""
    notes = PngInfo()
    notes.add_text("Comment", "%PDF-1.4")
    how = {"a.png": {"pnginfo": notes}, "a.tif": {"tiffinfo": {270: "%PDF-1.4"}}}
    _image(tmp_path / name, **how.get(name, {"comment": b"%PDF-1.4"}))
    assert b"%PDF-1.4" in (tmp_path / name).read_bytes()[:1024]
    (job,) = _jobs(tmp_path / name)
    assert job.error is None


def test_a_pdf_behind_a_few_bytes_of_something_else_is_a_pdf(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", pages=2)
    path.write_bytes(b"BM\r\nbound by mail\r\n" + path.read_bytes())
    assert [job.error for job in _jobs(path)] == [None, None]


def test_an_unreadable_file_says_so(tmp_path: Path, make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf")
    path.chmod(0)
    (job,) = _jobs(path)
    # root may read everything
    assert job.error is None if os.geteuid() == 0 else "may not be read" in str(job.error)


def test_jobs_are_made_as_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        _image(tmp_path / f"{n}.png")
    opened: list[str] = []

    def inspect(path: str, cfg: RasterConfig) -> Listing:
        opened.append(os.path.basename(path))
        return Listing("digest", 10**9)

    monkeypatch.setattr(listing, "inspect", inspect)
    tracemalloc.start()
    jobs = find_jobs([str(tmp_path)], is_isolated=False)
    assert opened == []
    num_jobs = sum(1 for _ in itertools.islice(jobs, 20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_jobs == 20_000 and opened == ["0.png"]
    assert peak < 1_000_000, "pages must not pile up in memory"


def test_a_pipe_that_takes_the_name_at_the_last_moment_does_not_hang(
    make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_pdf("a.pdf")
    real = files._require_regular

    def swap(path_checked: str, status: os.stat_result) -> None:
        real(path_checked, status)
        if path.is_file():
            path.unlink()
            os.mkfifo(path)

    monkeypatch.setattr(files, "_require_regular", swap)
    (job,) = _jobs(path)
    assert job.error is not None and "is a pipe" in job.error.message
