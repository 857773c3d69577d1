"""Documents: whole or absent, the same bytes in any order, assembled again where they differ."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import stat
import tracemalloc
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_factory import HEIGHT, WIDTH, failed, figure_page, gradient, job, page, write, writer
from PIL import Image

from ocr2cli.document.naming import OUTPUT_ENDINGS
from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.errors import ExitCode, OutputError, PageFault, UsageError
from ocr2cli.output.assembly import OutputSettings, listed_documents, written_files
from ocr2cli.output.canonical import canonical_bytes, canonical_tree
from ocr2cli.output.folder import STATE, OutFolder
from ocr2cli.output.formats import FORMATS
from ocr2cli.output.markdown import document_markdown
from ocr2cli.output.parts import part_path
from ocr2cli.output.writer import Writer
from ocr2cli.pages import Box, Document, PageImage, PageJob, PageKey, PageResult, Status


def files(out: Path) -> list[str]:
    return sorted(str(p.relative_to(out)) for p in out.rglob("*")
                  if p.is_file() and p.relative_to(out).parts[0] != STATE)  # fmt: skip


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


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


def test_who_is_told_of_a_document_hears_where_its_pictures_lie_also_when_nothing_is_new(
    tmp_path: Path,
) -> None:
    heard: list[tuple[str, list[str], list[str]]] = []

    def told(document: str, files: Mapping[str, str], pictures: Collection[str]) -> None:
        heard.append((document, sorted(files), sorted(pictures)))

    for formats in (("md", "mmd"), ("md", "mmd"), ("html",)):
        one = Writer(tmp_path, OutputSettings(formats), render=gradient, on_document=told)
        one.expect(job("x/d"))
        one.add(figure_page("x/d"))
        one.close()
    first, again, other = heard
    assert first == again and first[2] == ["x/d.images", "x/images/d"]
    assert {"x/d.images/0001-1.png", "x/images/d/0_0.jpg"} < set(first[1])
    assert other == ("x/d", ["x/d.html"], [])


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


def test_the_sidecar_has_the_contracts_fields(tmp_path: Path) -> None:
    write(tmp_path, page("dir/d", 1, boxes=(Box("text", (1, 2, 3, 4)),), token_ids=(5, 6)))
    (row,) = rows(tmp_path / "dir/d.jsonl")
    assert " ".join(row) == (
        "document page status finish_reason markdown raw boxes grid visual_tokens prompt_tokens "
        "new_tokens confidence seconds attempts input_sha256 fingerprint warnings error"
    )
    assert row["document"] == "dir/d" and row["page"] == 2 and row["status"] == "ok"
    assert row["boxes"] == [{"label": "text", "box": [1, 2, 3, 4]}]
    assert row["grid"] == [1, 1] and row["finish_reason"] == "stop" and row["error"] is None
    assert row["confidence"] == 0.9877 and row["seconds"] == {"decode": 2.5, "raster": 0.25}
    assert row["fingerprint"] == "f" * 8 and row["input_sha256"] == "ab" * 32


def test_a_row_has_no_text_of_a_failed_page_and_no_number_that_json_has_not(tmp_path: Path) -> None:
    odd = page("d", 0, confidence=float("nan"), seconds={"decode": float("inf")},
               warnings=("dark\x1b[m",))  # fmt: skip
    write(tmp_path, odd, dataclasses.replace(failed("d", 1), markdown="half a page"))
    read, bad = rows(tmp_path / "d.jsonl")
    assert read["confidence"] is None and read["seconds"] == {"decode": None}
    assert bad["markdown"] == "" and read["warnings"] == ["dark\\x1b[m"]
    assert b"NaN" not in (tmp_path / "d.jsonl").read_bytes()


def test_token_ids_are_written_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path, page("d", token_ids=(5, 6)), save_tokens=True)
    assert rows(tmp_path / "d.jsonl")[0]["token_ids"] == [5, 6]


def test_a_row_is_one_line_whatever_a_reader_calls_a_line(tmp_path: Path) -> None:
    nasty = "a\u2028b\u2029c\x85d\x0be\x0cf\x1b[31mg\ud800h\x00i\u202ej"
    write(tmp_path, page("d", 0, nasty, warnings=(nasty,)), page("d", 1))
    data = (tmp_path / "d.jsonl").read_bytes()
    text = data.decode()  # valid UTF-8
    assert len(text.splitlines()) == 2 and "\x1b" not in text and "\u202e" not in text
    assert rows(tmp_path / "d.jsonl")[0]["raw"] == nasty


def test_the_sidecars_text_is_the_markdowns(tmp_path: Path) -> None:
    write(tmp_path, figure_page("d"))
    (row,) = rows(tmp_path / "d.jsonl")
    assert f"{row['markdown']}\n" == (tmp_path / "d.md").read_text()


def test_figures_are_cut_from_the_page_and_linked(tmp_path: Path) -> None:
    write(tmp_path, page("a/my scan (1)", 0), figure_page("a/my scan (1)", 2))
    assert (
        "\n\n![](my%20scan%20%281%29.images/0003-1.png)\n\n"
        in (tmp_path / "a/my scan (1).md").read_text()
    )
    with Image.open(tmp_path / "a/my scan (1).images/0003-1.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (120, 80, 3)  # 200..600 of 300 px, 100..500 of 200 px, truncated
    assert pixels[0, 0].tolist() == [20, 60, 2] and pixels[-1, -1].tolist() == [99, 179, 2]


def test_figures_are_numbered_by_box_in_reading_order(tmp_path: Path) -> None:
    boxes = tuple(Box("image", (x, 0, x + 100, 100)) for x in (700, 100, 400))
    write(tmp_path, page("d", markdown="![](p)\n\n![](q)\n\nand\n\n![](r)", boxes=boxes))
    lefts = [
        int(np.asarray(Image.open(tmp_path / f"d.images/0001-{k}.png"))[0, 0, 0]) for k in (1, 2, 3)
    ]
    assert lefts == [140, 20, 80]
    text = (tmp_path / "d.md").read_text()
    assert text.index("0001-1.png") < text.index("0001-2.png") < text.index("0001-3.png")


def test_boxes_that_the_text_does_not_place_are_not_cut(tmp_path: Path) -> None:
    write(tmp_path, page("d", markdown="found it", boxes=(Box("image", (0, 0, 9, 9)),)))
    assert files(tmp_path) == ["d.jsonl", "d.md"]


@pytest.mark.parametrize("fault", ["gone", "smaller", "other pixels"])
def test_a_figure_whose_page_went_away_is_said_to_be_missing(tmp_path: Path, fault: str) -> None:
    def render(job: PageJob) -> PageImage:
        if fault == "gone":
            raise PageFault("unreadable", "gone")
        size = (10, 10) if fault == "smaller" else (HEIGHT, WIDTH)
        return PageImage(job.key, np.zeros((*size, 3), np.uint8), 144.0)

    one = Writer(tmp_path, OutputSettings(("md",)), render=render)
    one.expect(job("d"))
    digest = pixels_sha256(gradient(job("d")).rgb)
    one.add(dataclasses.replace(figure_page("d"), pixels_sha256=digest))
    assert one.close().exit_code == ExitCode.OK
    text = (tmp_path / "d.md").read_text()
    assert "<!-- figure 1 was not cut -->" in text and "![]" not in text
    assert files(tmp_path) == ["d.md"]


def many_pages() -> list[PageResult]:
    pages = [page(f"dir/{name}", index) for name in "abc" for index in range(4)]
    return [*pages, figure_page("dir/d", 0), failed("dir/d", 1), page("e")]


def test_any_order_of_arrival_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = many_pages()
    write(tmp_path / "0", *pages, formats=tuple(FORMATS))
    for seed in range(1, 4):
        random.Random(seed).shuffle(pages)
        write(tmp_path / str(seed), *pages, formats=tuple(FORMATS))
    trees = [
        {p: (tmp_path / str(seed) / p).read_bytes() for p in files(tmp_path / str(seed))}
        for seed in range(4)
    ]
    assert len(trees[0]) > 10 and all(tree == trees[0] for tree in trees)


def test_only_seconds_differ_between_two_runs_and_the_canonical_tree_drops_them(
    tmp_path: Path,
) -> None:
    formats = tuple(FORMATS)
    write(tmp_path / "a", page("d", seconds={"decode": 1.0}), formats=formats)
    write(tmp_path / "b", page("d", seconds={"decode": 2.0}), formats=formats)
    assert canonical_tree(tmp_path / "a") == canonical_tree(tmp_path / "b")
    differing = [
        name
        for name in files(tmp_path / "a")
        if (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()
    ]
    assert differing == ["d.json", "d.jsonl"]
    write(tmp_path / "c", page("d", markdown="other"), formats=formats)
    tree = canonical_tree(tmp_path / "c")
    assert all(canonical_tree(tmp_path / "a")[name] != tree[name] for name in ("d.md", "d.jsonl"))
    assert canonical_bytes("x.md", b'{"seconds": 1}') == b'{"seconds": 1}'


def run_again(out: Path, pages: list[PageResult], done: dict[PageKey, str]) -> Writer:
    """A second run: pages in `done` are restored, the others read again."""
    one = writer(out)
    for result in pages:
        count = sum(p.key.document == result.key.document for p in pages)
        one.expect(job(result.key.document, result.key.page, count))
        if not (result.key in done and one.restore(result.key, done[result.key])):
            one.add(result)
    one.close()
    return one


def first_run(out: Path, pages: list[PageResult]) -> dict[PageKey, str]:
    one = writer(out)
    done = {}
    for result in pages:
        count = sum(p.key.document == result.key.document for p in pages)
        one.expect(job(result.key.document, result.key.page, count))
        done[result.key] = one.add(result)
    one.close()
    return done


def test_a_second_run_leaves_whole_documents_alone(tmp_path: Path) -> None:
    pages = many_pages()
    done = first_run(tmp_path, pages)
    before = {p: (tmp_path / p).stat().st_mtime_ns for p in files(tmp_path)}
    summary = run_again(tmp_path, pages, done).summary
    assert before == {p: (tmp_path / p).stat().st_mtime_ns for p in files(tmp_path)}
    assert (summary.documents_unchanged, summary.documents_written) == (5, 0)
    assert summary.pages_resumed == summary.pages == len(pages)
    assert summary.by_status["failed"] == 1 and summary.exit_code == ExitCode.PAGES_FAILED


@pytest.mark.parametrize("name", ["dir/d.md", "dir/d.jsonl", "dir/d.images/0001-1.png"])
@pytest.mark.parametrize("damage", ["deleted", "edited", "symlink"])
def test_a_file_that_differs_is_assembled_again_from_parts(
    tmp_path: Path, name: str, damage: str
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    pages = many_pages()
    done = first_run(out, pages)
    whole = (out / name).read_bytes()
    outside.write_bytes(b"not ours")
    (out / name).unlink()
    if damage == "edited":
        (out / name).write_bytes(whole + b" ")
    elif damage == "symlink":
        (out / name).symlink_to(outside)
    summary = run_again(out, pages, done).summary
    assert (out / name).read_bytes() == whole and not (out / name).is_symlink()
    assert outside.read_bytes() == b"not ours"
    assert (summary.documents_written, summary.documents_unchanged) == (1, 4)


def test_a_file_that_ocr2_did_not_write_or_that_was_changed_is_kept_beside_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d.md").write_text("notes")
    write(tmp_path, page("d", markdown="one"))
    assert (tmp_path / "d.md").read_text() == "one\n"
    assert (tmp_path / "d.md~").read_text() == "notes"
    (tmp_path / "d.md").write_text("corrected by hand")
    (tmp_path / "d.jsonl").write_text("and this")
    caplog.clear()
    write(tmp_path, page("d", markdown="one"))
    assert (tmp_path / "d.md").read_text() == "one\n"
    assert (tmp_path / "d.md~2").read_text() == "corrected by hand"
    assert (tmp_path / "d.jsonl~").read_text() == "and this"
    assert [record.getMessage() for record in caplog.records] == [
        "d.jsonl, d.md: not written by ocr2, or changed since; kept as d.jsonl~, d.md~2"
    ]


def test_what_ocr2_wrote_and_what_it_would_write_anyway_is_not_kept(tmp_path: Path) -> None:
    write(tmp_path, page("d", markdown="one"), figure_page("d", 1))
    write(tmp_path, page("d", markdown="two"), formats=("md",))
    write(tmp_path, page("d", markdown="three"), formats=("md", "jsonl"))
    assert files(tmp_path) == ["d.jsonl", "d.md"]
    shutil.rmtree(tmp_path / STATE)
    write(tmp_path, page("d", markdown="three"), formats=("md", "jsonl"))
    assert files(tmp_path) == ["d.jsonl", "d.md"]


def test_what_another_document_wrote_is_not_taken_for_a_persons(tmp_path: Path) -> None:
    write(tmp_path, page("d"), formats=("mmd",))
    write(tmp_path, page("d_det", markdown="other"), formats=("mmd",))
    assert not [name for name in files(tmp_path) if "~" in name]
    write(tmp_path, page("e"), formats=("mmd",))
    write(tmp_path, page("e"), formats=("md",))  # that run's e_det.mmd is an earlier one's now
    write(tmp_path, page("e_det", markdown="other"), formats=("mmd",))
    assert not [name for name in files(tmp_path) if "~" in name]


def test_other_settings_write_a_document_anew_and_the_same_ones_do_not(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"save_tokens": True}, {"min_confidence": 0.5}]
    for setting in (*settings, {}):
        for num_written in (1, 0):
            summary = write(tmp_path, page("d"), **setting).summary
            assert summary.documents_written == num_written
    other = Writer(tmp_path, OutputSettings(("md", "jsonl"), "other"), render=gradient)
    other.expect(job("d"))
    other.add(page("d"))
    assert other.close().documents_written == 1


def test_a_document_that_has_moved_is_itself_also_when_it_changes_there_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read(path: str, sha256: str, markdown: str) -> None:
        one = writer(tmp_path)
        one.expect(PageJob(PageKey("d", 0), path, sha256, 1))
        one.add(page("d", markdown=markdown))
        one.close()

    read("https://name:secret@host/d.pdf", "aa" * 32, "one")
    assert b"secret" not in b"".join(
        path.read_bytes() for path in (tmp_path / STATE / "documents").iterdir()
    )
    read("/there/d.pdf", "aa" * 32, "one")
    read("/there/d.pdf", "bb" * 32, "two")
    assert caplog.text == ""
    read("/elsewhere/d.pdf", "cc" * 32, "three")
    assert "takes the place of /there/d.pdf" in caplog.text


def test_a_pipe_among_the_records_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, page("d"), formats=("html",))
    os.mkfifo(tmp_path / STATE / "documents" / "x.json")
    assert [one.id for one in listed_documents(tmp_path)] == ["d"]
    assert written_files(str(tmp_path)) == {str(tmp_path / "d.html")}
    write(tmp_path, page("d"), formats=("md",))
    (tmp_path / "d.html").write_text("another's by now")
    assert written_files(str(tmp_path)) == {str(tmp_path / "d.md")}


@pytest.mark.parametrize("kill_at", range(1, 9))
def test_a_kill_at_any_rename_loses_no_file_and_takes_none_of_our_own_for_a_persons(
    kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two renames of a document whose text, figures and sidecar are all new."""
    write(tmp_path, figure_page("d"))
    (tmp_path / "d.md").write_text("by hand")
    real, left = os.rename, [kill_at]

    def rename(*names: Any, **folders: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(*names, **folders)

    one = writer(tmp_path)
    one.expect(job("d"))
    one.add(page("d", markdown="killed"))
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "rename", rename)
        one.close()
    kept = [(tmp_path / name).read_text() for name in files(tmp_path) if name.startswith("d.md")]
    assert "by hand" in kept
    write(tmp_path, page("d", markdown="last"))
    assert files(tmp_path) == ["d.jsonl", "d.md", "d.md~"]
    assert (tmp_path / "d.md").read_text() == "last\n"
    assert (tmp_path / "d.md~").read_text() == "by hand"


def test_a_damaged_part_is_refused_and_its_page_read_again(tmp_path: Path) -> None:
    pages = [page("d", 0), page("d", 1)]
    done = first_run(tmp_path, pages)
    path = tmp_path / part_path(PageKey("d", 1))
    path.write_bytes(path.read_bytes()[:-5])
    summary = run_again(tmp_path, pages, done).summary
    assert summary.pages_resumed == 1
    assert summary.documents_unchanged == 1  # the page read again has the same part


def test_a_part_lost_before_assembly_is_a_document_error(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.expect(job("d", 0, 2))
    one.add(page("d", 0))
    (tmp_path / part_path(PageKey("d", 0))).unlink()
    one.add(page("d", 1))
    summary = one.close()
    assert files(tmp_path) == [] and summary.exit_code == ExitCode.PAGES_FAILED
    assert "missing" in summary.document_faults[0][1]
    assert list((tmp_path / STATE / "tmp").iterdir()) == []


def test_a_document_that_finds_no_memory_for_its_figures_costs_no_other(tmp_path: Path) -> None:
    """The run ended with a traceback; a rerun has the memory that its workers took."""
    has_memory = False

    def render(job: PageJob) -> PageImage:
        if not has_memory:
            raise MemoryError
        return gradient(job)

    def run() -> Writer:
        one = Writer(tmp_path, OutputSettings(("md",)), render=render)
        for result in (figure_page("big"), page("small")):
            one.expect(job(result.key.document))
            one.add(result)
        return one

    summary = run().close()
    assert files(tmp_path) == ["small.md"] and summary.exit_code == ExitCode.PAGES_FAILED
    ((name, why),) = summary.document_faults
    assert name == "big" and "no memory" in why
    assert list((tmp_path / STATE / "tmp").iterdir()) == []
    has_memory = True
    assert run().close().exit_code == ExitCode.OK
    assert files(tmp_path) == ["big.images/0001-1.png", "big.md", "small.md"]


def test_a_changed_page_changes_its_document_and_drops_its_old_figures(tmp_path: Path) -> None:
    first_run(tmp_path, [figure_page("d", 0), page("d", 1)])
    assert "d.images/0001-1.png" in files(tmp_path)
    first_run(tmp_path, [page("d", 0, "new"), page("d", 1)])
    assert files(tmp_path) == ["d.jsonl", "d.md"] and not (tmp_path / "d.images").exists()
    assert "new" in (tmp_path / "d.md").read_text()


def test_figures_that_another_format_links_to_stay_when_a_run_writes_none_of_those(
    tmp_path: Path,
) -> None:
    write(tmp_path, figure_page("d"), formats=("md",))
    write(tmp_path, page("d", markdown="new"), formats=("pdf",))
    assert files(tmp_path) == ["d.images/0001-1.png", "d.md", "d.ocr.pdf"]
    write(tmp_path, page("d", markdown="new"), formats=("md",))
    assert files(tmp_path) == ["d.md", "d.ocr.pdf"]


def test_an_interrupted_run_writes_no_half_document(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.expect(job("d", 0, 2))
    one.add(page("d", 0))
    summary = one.close()
    assert files(tmp_path) == [] and summary.documents_incomplete == 1
    assert (tmp_path / part_path(PageKey("d", 0))).exists()


def test_a_document_at_whose_files_the_disk_failed_is_counted_as_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    one = writer(tmp_path)
    one.expect(job("d"))
    one.add(page("d"))
    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr(os, "fsync", no_room)
        one.assemble_complete()
    assert one.close().documents_incomplete == 1


def test_the_names_of_documents_reckon_with_every_file_that_a_format_writes(tmp_path: Path) -> None:
    write(tmp_path, page("d"), formats=tuple(FORMATS))
    assert {name.removeprefix("d") for name in files(tmp_path)} == set(OUTPUT_ENDINGS)


def test_the_last_pages_part_is_there_before_its_document(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.expect(job("d"))
    one.add(page("d"))
    assert files(tmp_path) == []  # the journal's line comes first
    one.assemble_complete()
    assert files(tmp_path) == ["d.jsonl", "d.md"]
    one.close()


def test_a_page_never_arrives_twice(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.expect(job("d", 0, 2))
    one.add(page("d", 0))
    with pytest.raises(AssertionError, match="twice"):
        one.add(page("d", 0))
    one.close()


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    write(tmp_path, page("d"))
    (tmp_path / STATE / "tmp" / "77-1").write_bytes(b"half")
    write(tmp_path, page("d"))
    assert list((tmp_path / STATE / "tmp").iterdir()) == []


def test_a_file_its_folder_and_its_name_are_on_the_disk_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int | str] = []

    def fsync(fd: int) -> None:
        facts = os.fstat(fd)
        synced.append("folder" if stat.S_ISDIR(facts.st_mode) else facts.st_size)

    with OutFolder(tmp_path) as folder:
        monkeypatch.setattr(os, "fsync", fsync)
        folder.write("new/d.md", b"text")
        assert synced == [4, "folder", "folder"], "its bytes, the new folder's name, its own"
        synced.clear()
        assert folder.set_aside("new/d.md") == "new/d.md~" and synced == ["folder"]


def test_a_large_file_is_compared_by_all_its_bytes_and_a_pipe_is_no_file(tmp_path: Path) -> None:
    with OutFolder(tmp_path) as folder:
        large = folder.write("large", b"x" * (1 << 20) + b"end")
        assert folder.sha256("large") == large != folder.write("other", b"x" * (1 << 20))
        os.mkfifo(tmp_path / "pipe")
        assert folder.sha256("pipe") is None and folder.read("pipe") is None


def test_an_input_lies_in_out_by_its_real_folder_and_not_by_how_its_name_begins(
    tmp_path: Path,
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with OutFolder(tmp_path / "out") as folder:
        paths = [str(tmp_path / name) for name in ("out/a", "link/b", "out2/c", "d")]
        assert folder.holds(paths) == {"a", "b"}


def test_an_unknown_format_is_a_usage_error_that_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'docx'.*md, jsonl"):
        Writer(tmp_path, OutputSettings(("md", "docx")))
    with pytest.raises(UsageError):
        Writer(tmp_path, OutputSettings(()))


def test_a_long_document_is_not_held_in_memory(tmp_path: Path) -> None:
    big = "word " * 20_000  # 100 kB a page
    one = writer(tmp_path)
    tracemalloc.start()
    for index in range(40):
        one.expect(job("d", index, 40))
        one.add(page("d", index, big))
    one.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "d.md").stat().st_size > 40 * 99_000
    assert peak < 2_500_000


def test_a_folder_that_was_moved_in_mid_run_is_named_with_where_it_is_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Exit code 0, and nothing at `-o`."""
    one = writer(tmp_path / "out")
    one.expect(job("d"))
    (tmp_path / "out").rename(tmp_path / "moved")
    one.add(page("d"))
    with pytest.raises(OutputError, match=r"/out is gone.*/moved now"):
        one.finish()
    one.close()
    assert (tmp_path / "moved" / "d.md").exists() and not (tmp_path / "out").exists()
    one = writer(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "aside")
    (tmp_path / "out").mkdir()
    one.close()
    (note,) = [record.getMessage() for record in caplog.records]
    assert "/out is another folder than" in note and "/aside now" in note


def test_a_run_that_begins_takes_away_how_the_one_before_it_ended(tmp_path: Path) -> None:
    """Killed, it left the summary of the night before, which said 0."""
    write(tmp_path, page("d"))
    assert (tmp_path / STATE / "summary.json").exists()
    one = writer(tmp_path)
    assert not (tmp_path / STATE / "summary.json").exists()
    one.close()
    assert (tmp_path / STATE / "summary.json").exists()


def test_summary_json_is_always_written(tmp_path: Path) -> None:
    write(tmp_path, page("d", 0), failed("d", 1, "timeout", "slow"))
    row = json.loads((tmp_path / STATE / "summary.json").read_text())
    assert row["exit_code"] == 5 and row["pages"] == 2 and row["documents"] == 1
    assert row["pages_by_status"] == {
        "ok": 1, "recovered": 0, "blank": 0, "loop": 0, "truncated": 0, "failed": 1,
    }  # fmt: skip
    (bad,) = row["failed_pages"]
    assert (bad["document"], bad["page"]) == ("d", 2)
    assert (bad["code"], bad["message"]) == ("timeout", "slow")


def test_output_errors_say_what_where_and_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file: .*`-o`"):
        writer(tmp_path / "file")
    with pytest.raises(OutputError, match=r"cannot write .*file/below: .*`-o`"):
        writer(tmp_path / "file" / "below")
    assert gradient(job("d")).rgb.shape == (300, 200, 3)
