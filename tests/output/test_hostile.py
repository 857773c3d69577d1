"""Hostile names, folders, disks and page text: nothing leaves OUT, is half there or runs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_factory import failed, figure_page, job, page, write, writer

from ocr2cli.errors import ExitCode, OutputError
from ocr2cli.output.bucket import Bucket
from ocr2cli.output.canonical import canonical_tree
from ocr2cli.output.folder import STATE, OutFolder
from ocr2cli.output.formats import FORMATS
from ocr2cli.output.html_text import text_html
from ocr2cli.output.markdown import page_text
from ocr2cli.output.names import document_digest, document_stem
from ocr2cli.output.plain import plain_lines
from ocr2cli.output.searchable_pdf import spread
from ocr2cli.pages import PageResult
from ocr2cli.printing import printable
from ocr2cli.text.grounding import parse, to_markdown

ALL = tuple(FORMATS)


def tree(folder: Path) -> list[bytes]:
    """Every path below a folder as bytes, without the state of the run."""
    root = os.fsencode(folder)
    found = []
    for top, names, files in os.walk(root):
        if top == root:
            names[:] = [name for name in names if name != STATE.encode()]
        found += [os.path.relpath(os.path.join(top, name), root) for name in files]
    return sorted(found)


@pytest.mark.parametrize(
    "document",
    ["../x", "a/../../x", "/etc/x", "", ".", "a//b", "a/.", "a\x00b"],
)
def test_a_name_that_is_no_path_below_out_is_refused(tmp_path: Path, document: str) -> None:
    one = writer(tmp_path / "out")
    with pytest.raises(OutputError, match="Rename the input"):
        one.expect(job(document))
    one.close()
    assert sorted(os.listdir(tmp_path)) == ["out"] and tree(tmp_path / "out") == []


@pytest.mark.parametrize(
    "document",
    [
        "two\nlines",
        "esc\x1b[31mred\x07",
        "-x",
        "--out",
        "sp ace (1) [2] #3 %4 ?5 &6 <b>",
        os.fsdecode(b"caf\xe9 \xff\xfe"),
        "\u202egnp.exe",
        "..hidden",
        "...",
        "\u6f22\u5b57/\u0440\u0443\u0441",
        "a.md/b",
        ".ocr2~/parts/x",
        "~root",
        "$(touch x)",
    ],
)
def test_any_file_name_works_in_every_format_and_prints_on_one_line(
    tmp_path: Path, document: str
) -> None:
    summary = write(
        tmp_path, figure_page(document), failed(document, 1, "unreadable", f"{document} is bad"),
        formats=ALL, path=document,
    ).summary  # fmt: skip
    names = tree(tmp_path)
    base = os.fsencode(document)
    assert base + b".md" in names and base + b".images/0001-1.png" in names
    assert base + b".jsonl" in names
    markdown = (tmp_path / (document + ".md")).read_bytes().decode()
    sidecar = (tmp_path / (document + ".jsonl")).read_bytes().decode()
    for text in (markdown, sidecar, summary.to_text(), json.dumps(summary.to_json())):
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    rows = [json.loads(line) for line in sidecar.splitlines()]
    assert [row["document"] for row in rows] == [document] * 2
    assert json.loads((tmp_path / (document + ".json")).read_bytes())["document"] == document
    assert [row["document"] for row in summary.to_json()["failed_pages"]] == [document]
    assert printable(document) in summary.to_text()
    assert len(summary.to_text().splitlines()) == 3
    link = markdown.split("![](")[1].split(")\n")[0]
    assert link.isascii() and not set(link) & set(" \n()<>[]#?&")


def test_names_that_look_alike_on_one_line_are_told_apart_by_json(tmp_path: Path) -> None:
    """A name with a line break, and one with a backslash and an n, had one `document`."""
    names = ["a\nb", "a\\nb", os.fsdecode(b"caf\xe9"), "caf\\xe9", "n" * 255]
    found = []
    for name in names:
        summary = write(tmp_path, failed(name), formats=("md", "jsonl", "json")).summary
        (stem,) = (path.stem for path in tmp_path.glob("*.md") if path.stem not in found)
        found.append(stem)
        data = (tmp_path / f"{stem}.jsonl").read_bytes()
        assert len(data.decode().splitlines()) == 1
        row, whole = json.loads(data), json.loads((tmp_path / f"{stem}.json").read_bytes())
        (note,) = json.loads(json.dumps(summary.to_json()))["failed_pages"]
        assert row["document"] == whole["document"] == note["document"] == stem
    assert found[:4] == names[:4]


def test_a_fault_names_its_document_exactly_to_a_program_and_on_one_line_to_people(
    tmp_path: Path,
) -> None:
    (tmp_path / "a\nb.md" / "x").mkdir(parents=True)
    summary = write(tmp_path, page("a\nb")).summary
    assert [row["document"] for row in summary.to_json()["document_errors"]] == ["a\nb"]
    assert "  a\\nb: " in summary.to_text()


def test_an_upload_that_fails_names_its_document_as_its_files_are_named(tmp_path: Path) -> None:
    bucket = Bucket("memory://ocr2-hostile/out", tmp_path)
    one = writer(tmp_path, "md")
    one._on_document = bucket.offer
    document = "/".join([".ocr2", *["x" * 240] * 6])
    one.expect(job(document))
    one.add(page(document))
    one.close()
    bucket.close()
    ((name, why),) = bucket.faults
    assert "1,024 bytes" in why
    assert (tmp_path / f"{name}.md").is_file() and name.startswith(".ocr2~/")


@pytest.mark.parametrize("name", ["n" * 255, "\u6f22" * 85, os.fsdecode(b"\xff" * 251)])
def test_a_name_of_255_bytes_leaves_room_for_every_ending(tmp_path: Path, name: str) -> None:
    other = name[:-1] + "m"
    summary = write(tmp_path, figure_page(name), figure_page(other), formats=ALL).summary
    assert summary.exit_code == ExitCode.OK and summary.documents_written == 2
    assert document_stem(name) != document_stem(other)
    assert all(len(os.path.basename(path)) <= 255 for path in tree(tmp_path))
    printable(document_stem(name)).encode()


@pytest.mark.parametrize("char", ["a", "\u00e9", "\u6f22", "\U0001f600"])
def test_a_long_name_is_cut_between_characters(char: str) -> None:
    for num_before in range(5):
        for num_bytes in (199, 200, 201, 255):
            width = len(char.encode())
            name = "x" * num_before + char * ((num_bytes - num_before) // width)
            stem = document_stem("d/" + name).removeprefix("d/")
            assert len(stem.encode()) <= 200  # encodes: no half character is left
            assert (stem == name) == (len(name.encode()) <= 200)
            assert name.startswith(stem.split("~")[0])


# Symlinks


@pytest.mark.parametrize("place", ["dir", "dir/d.images", "dir/d.md", ".ocr2/parts"])
def test_a_symlink_in_out_never_leads_a_write_outside(tmp_path: Path, place: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(outside)
    pages = figure_page("dir/d"), page("other")
    if place == ".ocr2/parts":
        with pytest.raises(Exception, match="symlink"):
            write(out, *pages)
    else:
        summary = write(out, *pages).summary
        is_replaced = place == "dir/d.md"
        assert summary.exit_code == (ExitCode.OK if is_replaced else ExitCode.PAGES_FAILED)
        assert (out / "other.md").exists()
        assert is_replaced or "symlink" in summary.document_faults[0][1]
    assert sorted(os.listdir(outside)) == ["precious"]
    assert (outside / "precious").read_text() == "keep"


@pytest.mark.parametrize("place", [".ocr2", ".ocr2/tmp"])
def test_state_behind_a_symlink_is_refused_before_the_run(tmp_path: Path, place: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(outside)
    with pytest.raises(OutputError, match="symlink"):
        writer(out)
    assert sorted(os.listdir(outside)) == ["precious"]


def test_a_symlink_is_not_taken_for_the_file_it_leads_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, page("d"))
    (out / "d.md").rename(tmp_path / "moved.md")
    (out / "d.md").symlink_to(tmp_path / "moved.md")
    assert write(out, page("d")).summary.documents_written == 1
    assert not (out / "d.md").is_symlink()


def test_out_itself_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", page("d"))
    assert (tmp_path / "real/d.md").exists() and (tmp_path / "link").is_symlink()


def test_a_link_swapped_in_while_the_run_goes_on_is_not_followed(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    one = writer(out)
    one.expect(job("dir/a"))
    one.add(page("dir/a"))
    one.assemble_complete()
    shutil.rmtree(out / "dir")
    (out / "dir").symlink_to(outside)
    one.expect(job("dir/b"))
    one.add(page("dir/b"))
    assert one.close().exit_code == ExitCode.PAGES_FAILED
    assert list(outside.iterdir()) == []


# Things in the way


@pytest.mark.parametrize("place", ["d.md", "d.images"])
def test_something_else_in_the_way_is_that_documents_error(tmp_path: Path, place: str) -> None:
    if place == "d.md":
        (tmp_path / place).mkdir()
    else:
        (tmp_path / place).write_text("a file")
    summary = write(tmp_path, figure_page("d"), page("e")).summary
    assert summary.exit_code == ExitCode.PAGES_FAILED and (tmp_path / "e.md").exists()
    ((name, message),) = summary.document_faults
    assert name == "d" and "Move it away and run again" in message
    assert list((tmp_path / STATE / "tmp").iterdir()) == []


@pytest.mark.parametrize("place", ["d.md", "d.images/0001-1.png"])
def test_a_folder_where_a_finished_file_was_is_that_documents_error(
    tmp_path: Path, place: str
) -> None:
    """It was opened as a file to see whether it had changed: a traceback for the whole batch."""
    write(tmp_path, figure_page("d"), page("e"))
    (tmp_path / place).unlink()
    (tmp_path / place).mkdir()
    (tmp_path / "e.md").unlink()
    num_open = len(os.listdir("/proc/self/fd"))
    summary = write(tmp_path, figure_page("d"), page("e")).summary
    assert summary.exit_code == ExitCode.PAGES_FAILED and (tmp_path / "e.md").exists()
    ((name, message),) = summary.document_faults
    assert name == "d" and "Move it away and run again" in message and "\n" not in message
    assert len(os.listdir("/proc/self/fd")) == num_open


@pytest.mark.parametrize("place", ["summary.json", f"parts/{document_digest('d')}/1.json"])
def test_a_folder_where_the_runs_state_was_ends_it_with_advice(tmp_path: Path, place: str) -> None:
    write(tmp_path, page("d"))
    (tmp_path / STATE / place).unlink()
    (tmp_path / STATE / place).mkdir()
    with pytest.raises(OutputError, match=f"{place} cannot be replaced.*Move it away"):
        write(tmp_path, page("d"), page("e"))
    assert list((tmp_path / STATE / "tmp").iterdir()) == []


def test_the_input_itself_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "d.md"
    source.write_text("the input")
    summary = write(tmp_path, page("d"), path=str(source)).summary
    assert source.read_text() == "the input"
    assert "replace the input" in summary.document_faults[0][1]


# The disk: a fault at every single write, then room again


def run(out: Path) -> None:
    write(out, page("dir/d", 0), figure_page("dir/d", 1))


def fail_at(
    monkeypatch: pytest.MonkeyPatch, name: str, nth: int, fault: BaseException
) -> list[int]:
    calls = [0]
    # Syncing for real would make hundreds of runs wait for the disk and prove nothing more.
    real: Callable[..., object] = (lambda _: None) if name == "fsync" else getattr(os, name)

    def call(*args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == nth:
            raise fault
        return real(*args, **options)

    monkeypatch.setattr(os, name, call)
    return calls


def num_calls(tmp_path: Path, name: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = fail_at(patch, name, -1, OSError())
        run(tmp_path / "count")
    return calls[0]


@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
def test_a_full_disk_at_any_write_leaves_no_half_file_and_a_rerun_completes(
    tmp_path: Path, name: str
) -> None:
    run(tmp_path / "whole")
    whole = canonical_tree(tmp_path / "whole")
    for nth in range(1, num_calls(tmp_path, name) + 1):
        out = tmp_path / f"out{nth}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            fail_at(patch, name, nth, OSError(errno.ENOSPC, "no space"))
            with pytest.raises(OutputError, match=f"cannot write .*out{nth}.*Free some space"):
                run(out)
        if out.exists():
            assert canonical_tree(out).items() <= whole.items()
        run(out)
        assert canonical_tree(out) == whole
        assert list((out / STATE / "tmp").iterdir()) == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs but what the test undoes."""


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_kill_at_any_write_leaves_no_half_file_and_a_rerun_completes(
    tmp_path: Path, name: str
) -> None:
    run(tmp_path / "whole")
    whole = canonical_tree(tmp_path / "whole")
    unlink = OutFolder._unlink
    for nth in count(1):
        out = tmp_path / f"out{nth}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            # An older state of the document, with a figure that the new one has not.
            write(out, figure_page("dir/d", 0), page("dir/d", 1))
            calls = fail_at(patch, name, nth, Killed())
            # A killed run cleans nothing up.
            patch.setattr(
                OutFolder,
                "_unlink",
                lambda *names, calls=calls, nth=nth: calls[0] < nth and unlink(*names),
            )
            is_killed = True
            with contextlib.suppress(Killed):
                run(out)
                is_killed = False
        run(out)
        assert canonical_tree(out) == whole
        assert list((out / STATE / "tmp").iterdir()) == []
        if not is_killed:
            break
    assert nth > 6


def test_a_real_file_size_limit_gives_one_message_and_no_half_file(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from page_factory import page, write\n"
        "from ocr2cli.errors import OutputError\n"
        "try:\n"
        "    write(Path(sys.argv[1]), page('small'), page('big', markdown='word ' * 9000))\n"
        "except OutputError as error:\n"
        "    print(error); sys.exit(6)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(out), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    limit = (16_384, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    limited = subprocess.run(
        command, env=environment, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert limited.returncode == 6, limited.stderr
    assert "ulimit -f" in limited.stdout and str(out) in limited.stdout
    assert tree(out) == [b"small.jsonl", b"small.md"]
    assert list((out / STATE / "tmp").iterdir()) == []
    assert subprocess.run(command, env=environment).returncode == 0
    assert (out / "big.md").stat().st_size > 40_000


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.EDQUOT, "quota")],
)
def test_a_folder_that_cannot_be_written_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    fail_at(monkeypatch, "mkdir", 1, OSError(number, "x"))
    with pytest.raises(OutputError, match=advice):
        writer(tmp_path / "out")


def test_a_picture_that_cannot_be_encoded_is_that_documents_error_not_the_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow raises OSError without a number; it was told as "cannot write ...: Success"."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr("PIL.Image.Image.save", refuse)
    summary = write(tmp_path, figure_page("d"), page("e")).summary
    assert summary.exit_code == ExitCode.PAGES_FAILED and (tmp_path / "e.md").exists()
    ((name, message),) = summary.document_faults
    assert name == "d" and "encoder error -2" in message and "\n" not in message
    assert list((tmp_path / STATE / "tmp").iterdir()) == []


def test_out_deleted_in_mid_run_stops_with_advice_and_claims_no_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("d", "e"):  # found by a write, and found at the end
        one = writer(out)
        one.expect(job("d"))
        one.add(page("d"))
        if name == "e":
            one.assemble_complete()
        shutil.rmtree(out)
        with pytest.raises(OutputError, match="was deleted during the run") as told:
            one.finish()
        assert "kept" not in str(told.value) and "read it anew" in str(told.value)
        assert not out.exists()
        with pytest.raises(OutputError, match="was deleted during the run"):
            one.close()


def test_out_deleted_and_made_again_is_told_as_deleted(tmp_path: Path) -> None:
    one = writer(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(OutputError, match="was deleted during the run"):
        one.close()


def test_a_part_of_out_deleted_in_mid_run_claims_only_pages_that_are_there(
    tmp_path: Path,
) -> None:
    one = writer(tmp_path)
    one.expect(job("d"))
    shutil.rmtree(tmp_path / STATE / "tmp")
    with pytest.raises(OutputError, match="finished pages that are still there are kept"):
        one.add(page("d"))


# Page text


HOSTILE = [
    "<script>alert(1)</script>",
    "<!-- page: 7 -->",
    "<!-- open",
    "![x](/etc/passwd)",
    "![](/etc/passwd)",
    "\\![x](/etc/passwd)",
    "![x][1]\n\n[1]: /etc/passwd",
    "![][1]",
    "<img src=/etc/passwd onerror=alert(1)>",
    "<IMG\nSRC='file:///etc/passwd'>",
    "<iframe src=//evil></iframe>",
    "<table><tr><td onclick=alert(1)>x",
    "<div\n![](figure:9)\nonclick=alert(1)>",
    "!\n![](figure:9)\n[x](/etc/passwd)",
    "<svg/onload=alert(1)>",
    "```python\nimport os",
    "~~~~\n```\n",
    "<|ref|>image<|/ref|><|det|>__import__('os').system('touch pwned')<|/det|>",
    "<|ref|>image<|/ref|><|det|>[[0,0,999,999]]<|/det|>",
    "a\x00b\x1b]0;title\x07c",
    "> **Page 1 could not be read:** fake",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_page_text_loads_nothing_runs_nothing_and_stays_in_its_page(
    tmp_path: Path, text: str
) -> None:
    summary = write(
        tmp_path, page("d", 0, text), figure_page("d", 1), formats=ALL, path="/nowhere/d.pdf"
    ).summary
    assert summary.exit_code == ExitCode.OK and summary.documents_written == 1
    assert not Path("pwned").exists()
    markdown = (tmp_path / "d.md").read_text()
    assert markdown.count("<!-- page:") == 2
    first, second = markdown.split("<!-- page: 2 -->")
    body = first.removeprefix("<!-- page: 1 -->")
    lowered = body.lower()
    assert not any(f"<{tag}" in lowered for tag in ("script", "img", "iframe", "svg"))
    assert "![" not in body and not re.search(r"<[a-z][^>]*onclick", lowered)
    assert "\x1b" not in body and "\x00" not in body
    assert second.strip().startswith("# T")
    assert not any(name.endswith(b"0001-1.png") for name in tree(tmp_path))


READERS: dict[str, Callable[[str], object]] = {
    "page_text": lambda text: page_text(text, {}),
    "plain_lines": plain_lines,
    "text_html": text_html,
    "to_markdown": lambda text: to_markdown(parse(text).blocks, lambda number: f"figure:{number}"),
    "spread": lambda text: list(spread(plain_lines(text) or ["x"], (0, 0, 500, 500))),
}
BOXED = "<|ref|>t<|/ref|><|det|>"
LONG = [
    ("", " ", ""), ("", "\t", "x"), ("|", " ", "x"), ("", "-", "x"), ("|", ":-", "x"),
    ("", "- ", "x"), ("", "|", "x"), ("", "| ", "x"), ("# a", " ", "b"), ("- a", " ", "b"),
    ("- a", "\u3000", "b"), ("- a", " -", "b"), ("1. ", "\t", ""), ("> ", " ", "x"),
    ("", "```\n", ""), ("", "`", "x"), ("<", "a", ""), ("<b", "-", "x"), ("", "<a", ""),
    ("", "<b ", ""), ("", "<br ", ""), ("<br", " ", ""), ("", "</b", ""),
    ("<td", " rowspan=1", ""), ("&lt;td", " ", ""), ("</td>", " ", "x"), ("", "<b>", "</i>"),
    ("<table>", "\n", ""), ("<table>", "x\n", "</table>"), ("", "<table>\n", ""),
    ("", "<table>", ""), ("", "*a ", ""), ("", "_a ", ""), ("", "**a *b ", ""), ("", "\\[", ""),
    ("", "\\(a", ""), ("", "![](", ""), ("", "![](a)\n", ""), ("", "[a](", ""), ("[", "a", ""),
    ("", "&#", ""), ("&#", "1", ""), ("", "&amp;", ""), ("", "&lt;", ""), ("", "<!--", ""),
    ("<b", " on", ""), ("<b ", "src ", "="), ("", "word ", ""), ("", "\u6f22", ""),
    ("", "\n", ""), ("", BOXED, ""), (BOXED, "[1, ", ""), (BOXED + "[[", "1,", "]"),
    ("", "<|ref|>", ""), ("<|det|>", "[", ""),
]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=repr)
def test_a_page_text_takes_time_in_proportion_to_its_length(text: tuple[str, str, str]) -> None:
    """The parent does this work: while it lasts no page is kept and no signal heard."""
    head, unit, tail = text
    for name, read in READERS.items():
        start = time.process_time()
        read(head + unit * (200_000 // len(unit)) + tail)
        # The slowest takes 3 s; in proportion to the square of the length it would be minutes.
        assert time.process_time() - start < 20, name


def test_a_page_closes_what_it_opens() -> None:
    assert page_text("```py\ncode", {}) == "```py\ncode\n```"
    assert page_text("~~~~\n```\n~~~\nx", {}) == "~~~~\n```\n~~~\nx\n~~~~"
    assert page_text("```\nx\n```\n\ny", {}) == "```\nx\n```\n\ny"
    assert page_text("<table><tr><td>1<br>2", {}) == "<table><tr><td>1<br>2</td></tr></table>"
    assert page_text("<table><tr><td>1</table>x", {}) == "<table><tr><td>1</table>x"
    assert page_text("a < b <td", {}) == "a < b <td"
    assert page_text("```\nx\n``` y", {}) == "```\nx\n``` y\n```", "text after it: no end"
    assert page_text("<B><i>x", {}) == "<B><i>x</i></b>"
    assert page_text("~~~\n```\nx", {}) == "~~~\n```\nx\n~~~"
    whole = "<table><tr><td>1</td></tr></table> a<br>b", "<b>x</b></b>", "``` a`b\nx"
    assert [page_text(text, {}) for text in whole] == list(whole)


def test_every_control_character_is_shown_as_one_and_every_line_end_is_a_line_end() -> None:
    odd = "\x00\x08\x0e\x1f\x7f\x84\x86\x9f\udc80"
    assert page_text(f"a{odd}b", {}) == "a" + "\ufffd" * len(odd) + "b"
    assert page_text("a\rb\r\nc\x0bd\x0ce\x85f\u2028g\u2029h", {}) == "a\nb\nc\nd\ne\nf\ng\nh"


def test_a_word_in_pointed_brackets_is_text_and_is_not_closed() -> None:
    """It was taken for an open tag: `</value></option>` ended a page that has no such words."""
    assert page_text("set <option> to <value>,\n</x> or List<int>", {}) == (
        "set &lt;option> to &lt;value>,\n&lt;/x> or List&lt;int>"
    )
    for text in (
        "see <https://example.org/a?b=c> or <me@example.org>", "\\( 0<x \\) and \\( y>0 \\)",
        "`<b>` is bold, `List<int>` a list", "```c\n#include <stdio.h>\n<table>\n```\n\ntext",
        "<center>Figure 1</center>", "a <-> b",
    ):  # fmt: skip
        assert page_text(text, {}) == text
    assert page_text("<p>\n```\n<table>\n```", {}).endswith("</table></p>"), "HTML knows no fence"
    assert "&lt;div" in page_text("<div \\)\n`<table>`", {})
    assert text_html("the <word> and <https://x.org>").count("&gt;") == 2


def test_words_formulas_and_tables_pass_untouched() -> None:
    text = (
        "# Title\n\nA & B < C, a\\_b, 50% *off* [link](https://example.org)\n\n"
        "\\[ x_1 \\leq \\frac{a}{b} \\]\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        '<table><tr><td colspan="2">x<br>y</td></tr></table>\n\nc\u0327a va \u6f22\u5b57'
    )
    assert page_text(text, {}) == text


@given(st.text(st.sampled_from("![](<>-/\\`~ \nfigure:1td=&#;\"'"), max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_text_makes_an_image_of_its_own(text: str) -> None:
    safe = page_text(text, {1: "OURS"})
    assert safe.replace("![](OURS)", "").count("![") == 0
    assert "<!--" not in safe.replace("<!-- figure", "")


def test_results_in_error_tell_their_reason_whatever_it_holds(tmp_path: Path) -> None:
    reasons: list[PageResult] = [
        failed("d", index, "unreadable", text) for index, text in enumerate(HOSTILE)
    ]
    write(tmp_path, *reasons, formats=ALL)
    lines = (tmp_path / "d.md").read_text().splitlines()
    assert sum(line.startswith("> **Page ") for line in lines) == len(HOSTILE)
    assert sum(line.startswith("<!-- page: ") for line in lines) == len(HOSTILE)


def test_an_input_folder_called_like_the_state_folder_stays_out_of_it(tmp_path: Path) -> None:
    write(tmp_path, page(".ocr2/summary"), page(".ocr2"))
    assert tree(tmp_path) == [
        b".ocr2~.jsonl", b".ocr2~.md", b".ocr2~/summary.jsonl", b".ocr2~/summary.md",
    ]  # fmt: skip
