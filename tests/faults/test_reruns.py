"""What a rerun must not cost: text that was read, and the truth about what was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from stub import stub_stages
from stub_runs import Run, write_pdf
from stub_worker import StubReader

from ocr2cli.batch import run_batch
from ocr2cli.config import EngineConfig, RasterConfig, RunConfig, TileConfig
from ocr2cli.document import listing
from ocr2cli.engines.raster import RasterWorker, guarded
from ocr2cli.errors import EngineError, ExitCode, ModelError
from ocr2cli.output.summary import Summary
from ocr2cli.pages import PageResult, Status, Unchanged
from ocr2cli.pipeline.journal import Journal
from ocr2cli.pipeline.stage import Emit, Inbox, Stage


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout)


def write_locked(path: Path, password: str) -> Path:
    pdf = pymupdf.open()
    pdf.new_page(width=100, height=100).insert_text((9, 50), "secret")
    pdf.save(path, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw=password)
    return path


@pytest.mark.parametrize("read", ["", "truncated", "loop"])
@pytest.mark.parametrize("fault", ["no password", "other pages", "gone"])
def test_a_document_that_cannot_be_opened_any_more_keeps_what_was_read(
    fault: str, read: str, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    source = write_locked(tmp_path / "one.pdf", "hunter2")
    first = run(source, "-o", out, "--password", "hunter2", plan={"*": read})
    assert first.returncode == (ExitCode.PAGES_FAILED if read else ExitCode.OK)
    before = {name: (out / name).read_bytes() for name in ("one.md", "one.jsonl")}
    moved = tmp_path / "moved.pdf"
    flags = ["--password", "hunter2"] if fault != "no password" else []
    if fault == "other pages":
        flags += ["--pages", "7"]
    if fault == "gone":
        source.rename(moved)
    again = run(source, "-o", out, "--json", *flags)
    assert again.returncode == ExitCode.INPUT, "as without what an earlier run read"
    if fault != "other pages":
        pymupdf.Pixmap(pymupdf.csGRAY, (0, 0, 60, 60), 0).save(tmp_path / "fine.png")
        mixed = run(source, tmp_path / "fine.png", "-o", out, *flags)
        assert mixed.returncode == ExitCode.PAGES_FAILED
    again = run(source, "-o", out, "--json", *flags)
    (note,) = summary(again)["document_errors"]
    assert note["document"] == "one" and "is kept" in note["message"]
    assert {name: (out / name).read_bytes() for name in before} == before
    if fault == "gone":
        moved.rename(source)
    last = run(source, "-o", out, "--json", "--password", "hunter2")
    assert (last.returncode, summary(last)["pages_resumed"]) == (first.returncode, 1)


@pytest.mark.parametrize(
    ("before", "after", "flag"),
    [
        ("truncated", "nan", "--retry-failed"),
        ("loop", "nan", "--no-resume"),
        ("", "nan", "--no-resume"),
        ("", "truncated", "--no-resume"),
    ],
)
def test_a_page_that_is_read_worse_when_it_is_read_again_keeps_what_was_read(
    before: str, after: str, flag: str, tmp_path: Path, run: Run
) -> None:
    source, out = write_pdf(tmp_path / "a.pdf", 3), tmp_path / "out"
    first = run(source, "-o", out, "--json", plan={"a:2": before})
    files = {name: (out / name).read_bytes() for name in ("a.md", "a.jsonl")}
    again = run(source, "-o", out, "--json", flag, plan={"a:2": after})
    assert again.returncode == ExitCode.PAGES_FAILED
    told = summary(again)
    assert told["pages_by_status"] == summary(first)["pages_by_status"]
    (note,) = told["document_errors"]
    assert note["document"] == "a" and "page 2" in note["message"] and "is kept" in note["message"]
    assert {name: (out / name).read_bytes() for name in files} == files
    last = run(source, "-o", out, "--json")
    assert (last.returncode, summary(last)["pages_resumed"]) == (first.returncode, 3)
    assert {name: (out / name).read_bytes() for name in files} == files


def test_a_page_number_that_no_document_has_is_no_page_that_could_not_be_read(
    tmp_path: Path, run: Run
) -> None:
    """Of three pages page 1 was said to be unreadable, and nobody had asked for it."""
    source, out = write_pdf(tmp_path / "doc.pdf", 3), tmp_path / "out"
    reason = "doc.pdf has 3 pages; --pages 99 asks for none of them. Give a smaller page number."
    flags = ["--pages", "99", "--format", "md,jsonl,html,pdf"]
    done = run(source, "-o", out, *flags, cwd=tmp_path)
    assert done.returncode == ExitCode.INPUT
    assert done.stderr.splitlines()[-1] == f"  doc: failed: {reason} (empty)"
    assert (out / "doc.md").read_text() == f"> **No page was read:** {reason} (empty)\n"
    assert "<h2>No page<" in (out / "doc.html").read_text()
    with pymupdf.open(out / "doc.ocr.pdf") as pdf:
        assert pdf[0].get_text().startswith("No page was read:\n")
    (line,) = (out / "doc.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == {"code": "empty", "message": reason}
    (row,) = (out / ".ocr2" / "journal.jsonl").read_text().splitlines()
    assert json.loads(row)["row"]["error"] == "empty", "one document, one result"

    longer = write_pdf(tmp_path / "longer.pdf", 99)
    mixed = run(source, longer, "-o", out, "--pages", "99", "--json")
    assert mixed.returncode == ExitCode.PAGES_FAILED and summary(mixed)["pages"] == 2
    assert run(source, "-o", out, "--json").returncode == ExitCode.OK
    assert "99" not in (out / "doc.md").read_text()


class Away:
    """Reads pages while their files are away."""

    def run(self, inbox: Inbox, emit: Emit) -> None:
        worker = RasterWorker(RasterConfig(), TileConfig())
        while jobs := inbox.take(1, wait=True):
            path = Path(jobs[0].path)
            path.rename(path.with_suffix(".away"))
            emit(guarded(jobs[0], worker.read))
            path.with_suffix(".away").rename(path)


def test_a_file_that_was_away_for_a_moment_is_read_by_the_next_run(tmp_path: Path) -> None:
    """A share that hangs up in mid-run left failures that every rerun kept."""
    cfg = RunConfig(
        (str(write_pdf(tmp_path / "a.pdf", 2)),), out=tmp_path / "out", runner="inline"
    )
    first = run_batch(cfg, stages=[Stage("stub", Away)])
    assert [page.code for page in first.bad_pages] == ["away"] * 2
    assert "is not there" in first.bad_pages[0].message
    second = run_batch(cfg, stages=stub_stages(cfg))
    assert (second.exit_code, second.by_status["ok"]) == (ExitCode.OK, 2)


@pytest.mark.parametrize("given", ["nothere.pdf", "photos/*.tiff"])
def test_a_name_that_is_not_there_is_told_and_writes_no_document(
    given: str, tmp_path: Path, run: Run
) -> None:
    """`in/*.tiff` left files that are called `*.md` and `*.jsonl`."""
    out, good = tmp_path / "out", write_pdf(tmp_path / "a.pdf", 2)
    done = run(tmp_path / given, "-o", out, "--json")
    assert done.returncode == ExitCode.INPUT and not list(out.glob("*.*l*"))
    with_others = run(tmp_path / given, good, "-o", out, "--json")
    told = summary(with_others)
    assert with_others.returncode == ExitCode.PAGES_FAILED
    assert (told["documents"], told["documents_written"], told["pages"]) == (2, 1, 3)
    (note,) = told["failed_pages"]
    assert "is not there" in note["message"] and note["code"] == "unreadable"
    assert sorted(path.name for path in out.rglob("*.md")) == ["a.md"]


def test_a_name_that_is_there_later_is_read(tmp_path: Path, run: Run) -> None:
    out, source = tmp_path / "out", tmp_path / "a.pdf"
    assert run(source, "-o", out).returncode == ExitCode.INPUT
    write_pdf(source, 1)
    assert run(source, "-o", out).returncode == ExitCode.OK and (out / "a.md").is_file()


def test_a_file_that_is_gone_keeps_what_another_model_read_of_it(tmp_path: Path, run: Run) -> None:
    out, source = tmp_path / "out", write_pdf(tmp_path / "a.pdf", 1)
    assert run(source, "-o", out).returncode == ExitCode.OK
    before = (out / "a.md").read_bytes()
    (out / ".ocr2" / "journal.jsonl").unlink()  # its rows are of the other model
    source.unlink()
    assert run(source, "-o", out).returncode == ExitCode.INPUT
    assert (out / "a.md").read_bytes() == before


def test_a_password_that_is_given_later_is_used(tmp_path: Path, run: Run) -> None:
    source, out = write_locked(tmp_path / "one.pdf", "hunter2"), tmp_path / "out"
    assert run(source, "-o", out).returncode == ExitCode.INPUT
    assert run(source, "-o", out, "--password", "swordfish").returncode == ExitCode.INPUT
    assert run(source, "-o", out, "--password", "hunter2").returncode == ExitCode.OK


@pytest.mark.parametrize("code", ["unsupported", "timeout", "unreadable"])
def test_a_document_that_could_not_be_opened_is_read_once_it_can_be(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .heic stayed failed when the extra for it had been installed: the file was the same."""
    opener = f"""
from dataclasses import replace
from ocr2cli.document import listing
from ocr2cli.pages import PageError
real, error = listing.inspect, PageError({code!r}, "not now")
listing.inspect = lambda path, cfg: replace(real(path, cfg), num_pages=0, error=error)
listing.serve()
"""
    source = write_pdf(tmp_path / "a.pdf", 2)
    cfg = RunConfig(inputs=(str(source),), out=tmp_path / "out", runner="inline")
    with monkeypatch.context() as today:
        today.setattr(listing, "_BOOT", opener)
        first = run_batch(cfg, stages=stub_stages(cfg))
    assert [page.code for page in first.bad_pages] == [code]
    second = run_batch(cfg, stages=stub_stages(cfg))
    assert (second.exit_code, second.by_status["ok"]) == (ExitCode.OK, 2)


def test_files_hold_the_pages_that_the_last_run_asked_for_and_the_journal_all(
    tmp_path: Path, run: Run
) -> None:
    source, out = write_pdf(tmp_path / "a.pdf", 3), tmp_path / "out"
    for asked, held in (("1-2", [1, 2]), ("3", [3]), ("", [1, 2, 3])):
        done = run(source, "-o", out, "--json", *(("--pages", asked) if asked else ()))
        rows = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
        assert [row["page"] for row in rows] == held
    assert summary(done)["pages_resumed"] == 3


def test_pages_that_failed_before_say_how_to_read_them_again(tmp_path: Path, run: Run) -> None:
    source, out = write_pdf(tmp_path / "a.pdf", 3), tmp_path / "out"
    first = run(source, "-o", out, plan={"a:1": "nan"})
    assert first.returncode == ExitCode.PAGES_FAILED
    assert first.stderr.count("another try may mend 1 page") == 1
    assert "run the same command again with --retry-failed" in first.stderr
    second = run(source, "-o", out)
    assert second.returncode == ExitCode.PAGES_FAILED
    assert second.stderr.count("--retry-failed") == 1 and "another try" not in second.stderr
    assert run(source, "-o", out, "--retry-failed").returncode == ExitCode.OK


@pytest.mark.parametrize("how", ["folder", "glob", "above"])
def test_what_a_run_wrote_is_no_input_of_the_next(how: str, tmp_path: Path, run: Run) -> None:
    """Output among the inputs: every run would find the searchable PDFs of the one before."""
    box = tmp_path / "box"
    box.mkdir()
    write_pdf(box / "a.pdf", 1)
    given = {"folder": box, "glob": box / "*.pdf", "above": box}[how]
    out = tmp_path if how == "above" else box
    for _ in range(3):
        done = run(given, "-o", out, "--format", "md,pdf", "--json")
        assert (done.returncode, summary(done)["documents"]) == (ExitCode.OK, 1)
    write_pdf(box / "b.pdf", 1)
    assert summary(run(given, "-o", out, "--format", "md,pdf", "--json"))["documents"] == 2


def test_what_a_run_wrote_in_other_formats_is_no_input_either(tmp_path: Path, run: Run) -> None:
    write_pdf(tmp_path / "a.pdf", 1)
    for formats in ("md,pdf", "md", "md"):
        done = run(tmp_path, "-o", tmp_path, "--format", formats, "--json")
        assert (done.returncode, summary(done)["documents"]) == (ExitCode.OK, 1)
    (tmp_path / "a.ocr.pdf").unlink()
    write_pdf(tmp_path / "a.ocr.pdf", 2)  # a person's own by now
    assert summary(run(tmp_path, "-o", tmp_path, "--json"))["pages"] == 3


def test_what_a_run_wrote_to_another_folder_among_the_inputs_is_no_input(
    tmp_path: Path, run: Run
) -> None:
    """The searchable PDFs of last month's run were read as if they were documents."""
    box = tmp_path / "box"
    box.mkdir()
    write_pdf(box / "a.pdf", 1)
    for out in (box / "ocr", box):
        assert run(box / "a.pdf", "-o", out, "--format", "pdf").returncode == ExitCode.OK
    write_pdf(box / "ocr" / "b.pdf", 1)
    for given, count in ((box, 2), (box / "**" / "*.pdf", 2), (box / "ocr", 1)):
        done = run(given, "-o", tmp_path / "out", "--json", "--dry-run")
        assert summary(done)["documents"] == count, given
    done = run(box, "-o", tmp_path / "out", "--json")
    assert (done.returncode, summary(done)["documents"]) == (ExitCode.OK, 2)
    assert "2 files were left out, which runs of ocr2 wrote there" in done.stderr
    named = run(box / "a.ocr.pdf", "-o", tmp_path / "named", "--json")
    assert (named.returncode, summary(named)["documents"]) == (ExitCode.OK, 1)


def test_a_record_that_is_no_file_holds_up_no_run(tmp_path: Path, run: Run) -> None:
    source, out = write_pdf(tmp_path / "a.pdf", 1), tmp_path / "out"
    assert run(source, "-o", out, "--format", "html").returncode == ExitCode.OK
    os.mkfifo(out / ".ocr2" / "documents" / "x.json")
    again = run(source, "-o", out, "--format", "html", timeout=20)
    assert again.returncode == ExitCode.OK


def test_no_document_is_written_in_the_place_of_another_input(tmp_path: Path, run: Run) -> None:
    box = tmp_path / "box"
    box.mkdir()
    write_pdf(box / "scan.pdf", 1)
    own = write_pdf(box / "scan.ocr.pdf", 1).read_bytes()
    done = run(box, "-o", box, "--format", "md,pdf", "--json")
    assert done.returncode == ExitCode.PAGES_FAILED
    (note,) = summary(done)["document_errors"]
    assert note["document"] == "scan" and "would replace an input" in note["message"]
    assert (box / "scan.ocr.pdf").read_bytes() == own
    assert run(box, "-o", tmp_path / "out", "--format", "md,pdf").returncode == ExitCode.OK


def test_a_metrics_file_that_cannot_be_written_is_told_before_page_one(
    inputs: Path, tmp_path: Path, run: Run
) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--metrics-file", tmp_path / "no" / "x.prom")
    assert done.returncode == ExitCode.USAGE and "there is no folder" in done.stderr
    assert not list((tmp_path / "out").glob("*.md"))
    (tmp_path / "is a folder").mkdir()
    done = run(inputs, "-o", tmp_path / "out", "--json", "--metrics-file", tmp_path / "is a folder")
    assert done.returncode == ExitCode.OK and summary(done)["pages"] == 9
    assert done.stderr.count("--metrics-file") == 1


def test_inputs_that_give_nothing_are_named(tmp_path: Path, run: Run) -> None:
    """An unmounted disk looks like an empty folder; a scan may have no ending."""
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    empty.mkdir()
    mixed.mkdir()
    write_pdf(mixed / "a.pdf", 1)
    for name in ("scan", "notes.txt"):
        (mixed / name).write_bytes(b"?")
    done = run(empty, mixed, "-o", tmp_path / "out")
    assert done.returncode == ExitCode.OK
    assert "empty holds no document" in done.stderr
    assert "2 files were left out" in done.stderr and "notes.txt" in done.stderr
    assert run(empty, mixed, "-o", tmp_path / "out", "-q").stderr == ""
    nothing = run(empty, "-o", tmp_path / "none", "-q")
    assert nothing.returncode == ExitCode.INPUT and "empty holds no document" in nothing.stderr
    no_list = run("-", "-o", tmp_path / "none", "-q", stdin=subprocess.DEVNULL)
    assert (no_list.returncode, no_list.stderr) == (
        ExitCode.INPUT, "ocr2: no path came on stdin, where `-` reads them from\n"
    )  # fmt: skip


def test_a_rerun_in_another_locale_knows_the_files_by_their_bytes(tmp_path: Path, run: Run) -> None:
    """Names are kept as text, and in a C locale no file could be opened by them."""
    source, out = tmp_path / "\xe4 \xf6" / "\xfc.pdf", tmp_path / "out"
    source.parent.mkdir()
    write_pdf(source, 1)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for formats, env in (("md,json", {}), ("md", {}), ("md", plain), ("json", plain), ("md", {})):
        done = run(tmp_path, "-o", out, "--format", formats, env=env)
        assert (done.returncode, "kept as" in done.stderr) == (ExitCode.OK, False), done.stderr
    listed = run("-", "-o", out, env=plain, input=f"{source}\n")
    assert listed.returncode == ExitCode.OK, listed.stderr


def test_a_file_that_may_not_be_read_costs_itself_only(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line itself does not look whether a file may be read: root could read all."""
    from click import Path as ClickPath

    from ocr2cli.cli.run import run as command

    (inputs,) = [each for each in command.params if each.name == "inputs"]
    assert isinstance(inputs.type, ClickPath) and not inputs.type.readable


def test_outputs_that_another_input_of_the_same_name_replaces_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """jan/report.pdf, then feb/report.pdf into one folder: January's text went without a word."""

    def read(path: Path, words: str) -> list[str]:
        path.parent.mkdir(exist_ok=True)
        write_pdf(path, 1, words)
        cfg = RunConfig(inputs=(str(path),), out=tmp_path / "out", runner="inline")
        caplog.clear()
        assert run_batch(cfg, stages=stub_stages(cfg)).exit_code == ExitCode.OK
        return [record.getMessage() for record in caplog.records]

    january, february = tmp_path / "jan" / "report.pdf", tmp_path / "feb" / "report.pdf"
    assert read(january, "one") == []
    assert read(january, "two") == []  # a new version of the same
    (note,) = read(february, "three")
    assert str(january) in note and str(february) in note and "\n" not in note
    # the same content elsewhere, then a new version there
    moved = tmp_path / "mnt" / "report.pdf"
    moved.parent.mkdir()
    moved.write_bytes(february.read_bytes())
    cfg = RunConfig(inputs=(str(moved),), out=tmp_path / "out", runner="inline")
    caplog.clear()
    assert run_batch(cfg, stages=stub_stages(cfg)).documents_unchanged == 1
    assert read(moved, "four") == [] == caplog.records
    # outputs that were taken away are replaced by nothing
    (tmp_path / "out" / "report.md").unlink()
    (tmp_path / "out" / "report.jsonl").unlink()
    assert read(january, "five") == []
    # nor are those of other formats
    cfg = RunConfig((str(february),), out=tmp_path / "out", runner="inline", formats=("html",))
    assert run_batch(cfg, stages=stub_stages(cfg)).documents_written == 1
    assert caplog.records == []
    # a record from before paths were kept
    (record,) = (tmp_path / "out" / ".ocr2" / "documents").iterdir()
    row = json.loads(record.read_bytes())
    del row["path"], row["sha256"]
    record.write_text(json.dumps(row))
    assert read(moved, "six") == []


class Losing:
    """Reads a page, or says that it is what it was when its part has gone meanwhile."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            if jobs[0].known_pixels:
                shutil.rmtree(self.out / ".ocr2" / "parts")
                emit(Unchanged(jobs[0].key, Status.OK))
            else:
                emit(StubReader({}).read(jobs[0]))


def test_a_page_whose_earlier_reading_vanishes_in_mid_run_is_read_again(tmp_path: Path) -> None:
    cfg = RunConfig((str(tmp_path / "a.pdf"),), out=tmp_path / "out", runner="inline")
    stages = [Stage("stub", partial(Losing, cfg.out))]
    write_pdf(tmp_path / "a.pdf", 1)
    assert run_batch(cfg, stages=stages).by_status == {"ok": 1}
    write_pdf(tmp_path / "a.pdf", 2)
    again = run_batch(cfg, stages=stages)
    assert again.by_status == {"ok": 2} and again.pages_reused == 0


def test_a_run_that_an_error_ended_is_no_good_run_to_its_watchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(journal: Journal, result: PageResult, sha256: str) -> None:
        raise EngineError("the card fell off the bus")

    monkeypatch.setattr(Journal, "record", record)
    source, metrics = write_pdf(tmp_path / "a.pdf", 1), tmp_path / "ocr2.prom"
    cfg = RunConfig(
        (str(source),), out=tmp_path / "out", runner="inline", metrics_file=str(metrics)
    )
    told = Summary()
    with pytest.raises(EngineError):
        run_batch(cfg, stages=stub_stages(cfg), summary=told)
    assert told.exit_code == ExitCode.ENGINE
    kept = json.loads((tmp_path / "out" / ".ocr2" / "summary.json").read_text())
    assert kept["exit_code"] == ExitCode.ENGINE
    assert "\nocr2_run_finished 1\n" in metrics.read_text()
    assert "\nocr2_exit_code 6\n" in metrics.read_text()


def test_a_run_whose_model_is_nowhere_is_no_good_run_to_its_watchers(tmp_path: Path) -> None:
    """The file of the night before stayed, and said 0."""
    metrics = tmp_path / "ocr2.prom"
    cfg = RunConfig(
        (str(tmp_path),), out=tmp_path / "out", metrics_file=str(metrics),
        engine=EngineConfig(model="no-such-model"),
    )  # fmt: skip
    with pytest.raises(ModelError):
        run_batch(cfg)
    assert "\nocr2_exit_code 4\n" in metrics.read_text()
