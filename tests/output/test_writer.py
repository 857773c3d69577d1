"""Documents: whole or absent, the same bytes in any order, assembled again where they differ."""

from __future__ import annotations

import errno
import json
import os
import random
import tracemalloc
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from page_factory import failed, figure_page, files, gradient, job, page, write, writer

from ocr2cli.document.naming import OUTPUT_ENDINGS
from ocr2cli.errors import ExitCode, OutputError, UsageError
from ocr2cli.output.assembly import OutputSettings, listed_documents, written_files
from ocr2cli.output.canonical import canonical_bytes, canonical_tree
from ocr2cli.output.folder import STATE
from ocr2cli.output.formats import FORMATS
from ocr2cli.output.parts import part_path
from ocr2cli.output.writer import Writer
from ocr2cli.pages import PageImage, PageJob, PageKey, PageResult


def test_who_is_told_of_a_document_hears_where_its_pictures_lie_also_when_nothing_is_new(
    tmp_path: Path,
) -> None:
    heard: list[tuple[str, list[str], list[str]]] = []

    def told(
        document: str, name: str, files: Mapping[str, str], pictures: Collection[str]
    ) -> None:
        assert name == document
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
