"""The journal never claims a page that is not done, whatever happened to its file."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import broken_job, jobs

from ocr2cli.errors import OutputError
from ocr2cli.pages import (
    Attempt,
    FinishReason,
    PageError,
    PageJob,
    PageKey,
    PageResult,
    Status,
)
from ocr2cli.pipeline import durable
from ocr2cli.pipeline import journal as journal_module
from ocr2cli.pipeline.journal import Journal

REPO = Path(__file__).parents[2]


def job(page: int = 0, sha256: str = "aa" * 32, document: str = "doc") -> PageJob:
    return PageJob(PageKey(document, page), "/in/doc.pdf", sha256, 9)


def result(
    page: int = 0,
    status: Status = Status.OK,
    sha256: str = "aa" * 32,
    document: str = "doc",
    pixels: str = "bb" * 32,
) -> PageResult:
    return PageResult(
        PageKey(document, page),
        status,
        finish_reason=FinishReason.STOP,
        input_sha256=sha256,
        pixels_sha256=pixels,
    )


def reopened(out: Path, fingerprint: str = "f1") -> Journal:
    return Journal.open(out, fingerprint)


def journal_file(out: Path) -> Path:
    return out / ".ocr2" / "journal.jsonl"


@pytest.fixture
def free_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that open thousands of journals cannot wait for a disk each time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_recorded_page_is_found_again_and_no_other(out: Path) -> None:
    journal = reopened(out)
    assert journal.find(job()) is None
    journal.record(result(3), "p3")
    for each in (journal, reopened(out)):
        row = each.find(job(3))
        assert row and (row.part_sha256, row.status, row.finish_reason) == ("p3", "ok", "stop")
        assert each.find(job(2)) is None and each.find(job(3, document="other")) is None


def test_another_input_or_fingerprint_is_not_done(out: Path) -> None:
    reopened(out).record(result(), "p")
    assert reopened(out).find(job(sha256="cc" * 32)) is None
    assert reopened(out, "f2").find(job()) is None


@pytest.mark.parametrize("status", [Status.FAILED, Status.LOOP, Status.TRUNCATED])
def test_a_bad_page_is_settled_until_asked_for(out: Path, status: Status) -> None:
    """Its row still tells, so the exit code stays 5 on a plain rerun."""
    reopened(out).record(result(status=status), "p")
    row = reopened(out).find(job())
    assert row and not row.is_good
    assert reopened(out).find(job(), retry_failed=True) is None
    assert reopened(out, "f2").find(job()) is None


@pytest.mark.parametrize("status", [Status.OK, Status.BLANK, Status.RECOVERED])
def test_a_good_page_is_not_retried(out: Path, status: Status) -> None:
    reopened(out).record(result(status=status), "p")
    row = reopened(out).find(job(), retry_failed=True)
    assert row and row.is_good


def test_success_beats_failure_for_the_same_work_only(out: Path) -> None:
    journal = reopened(out)
    journal.record(result(), "good")
    journal.record(result(status=Status.FAILED), "bad")
    for each in (journal, reopened(out)):
        row = each.find(job())
        assert row and row.part_sha256 == "good"
    journal.record(result(status=Status.FAILED, sha256="cc" * 32), "new input")
    row = reopened(out).find(job(sha256="cc" * 32))
    assert row and row.part_sha256 == "new input"


@pytest.mark.parametrize("code", ["request", "changed", "away"])
def test_a_page_that_failed_for_no_fault_of_its_own_is_not_settled(out: Path, code: str) -> None:
    journal = reopened(out)
    failed = replace(result(status=Status.FAILED), error=PageError(code, "not now"))
    journal.record(failed, "p")
    assert journal.find(job()) is None
    journal.record(replace(failed, error=PageError("unreadable", "damaged")), "p")
    assert journal.find(job()) is not None


def test_text_beats_none_and_whole_text_beats_cut_text_for_the_same_work(out: Path) -> None:
    journal = reopened(out)
    journal.record(result(status=Status.TRUNCATED), "cut")
    journal.record(result(status=Status.FAILED), "none")
    row = journal.find(job())
    assert row and row.part_sha256 == "cut" and journal.better(job(), Status.FAILED) == row
    assert journal.better(job(), Status.LOOP) is None is journal.better(job(), Status.OK)
    assert journal.better(job(sha256="cc" * 32), Status.FAILED) is None
    assert reopened(out, "f2").better(job(), Status.FAILED) is None
    journal.record(result(), "whole")
    row = journal.better(job(), Status.TRUNCATED)
    assert row and row.part_sha256 == "whole"


def test_a_job_that_could_not_be_listed_is_never_settled(out: Path) -> None:
    journal = reopened(out)
    journal.record(PageResult(PageKey("doc", 7), Status.FAILED, error=PageError("x", "y")), "p")
    assert journal.find(broken_job(7)) is None


def test_pixels_of_a_changed_file_are_known_for_good_pages_of_this_fingerprint(out: Path) -> None:
    journal = reopened(out)
    journal.record(result(0), "p0")
    journal.record(result(1, Status.FAILED), "p1")
    journal.record(result(2, pixels=""), "p2")
    row = journal.earlier(PageKey("doc", 0))
    assert row and row.pixels_sha256 == "bb" * 32 and row.part_sha256 == "p0"
    assert journal.earlier(PageKey("doc", 1)) is None
    assert journal.earlier(PageKey("doc", 2)) is None
    assert reopened(out, "f2").earlier(PageKey("doc", 0)) is None


def test_a_document_was_read_if_an_earlier_run_read_a_page_of_it_with_these_settings(
    out: Path,
) -> None:
    reopened(out, "f2").record(result(document="other settings"), "p")
    journal = reopened(out)
    journal.record(result(document="read", sha256="cc" * 32), "p")
    journal.record(result(document="failed", status=Status.FAILED), "p")
    assert not journal.was_read("read"), "an earlier run, not this one"
    names = ("read", "failed", "other settings")
    assert [reopened(out).was_read(name) for name in names] == [True, False, False]


def test_attempts_are_counted(out: Path) -> None:
    tried = replace(result(), attempts=(Attempt("first", None), Attempt("retry", None)))
    journal = reopened(out)
    journal.record(tried, "p")
    row = journal.find(job())
    assert row and row.attempts == 2
    journal.record(result(1), "p")  # a page that says nothing of its tries had one
    row = journal.find(job(1))
    assert row and row.attempts == 1


def test_cut_at_any_byte_it_opens_and_claims_only_whole_lines(out: Path, free_fsync: None) -> None:
    journal = reopened(out)
    # Short rows: each byte costs two openings.
    for page in range(2):
        journal.record(result(page, sha256="a", document="n\udcff", pixels=""), f"p{page}")
    whole = journal_file(out).read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 0x0A]
    for cut in range(len(whole) + 1):
        journal_file(out).write_bytes(whole[:cut])
        journal = reopened(out)
        done = [p for p in range(2) if journal.find(job(p, sha256="a", document="n\udcff"))]
        assert done == list(range(sum(end <= cut for end in ends)))
        journal.record(result(8), "p8")
        journal.close()
        again = reopened(out)
        assert again.find(job(8)) and len(again) == len(done) + 1
        again.close()


def test_a_flipped_bit_anywhere_never_makes_a_false_row() -> None:
    row = a_row()
    line = journal_module._to_line(row)
    for at in range(len(line)):
        for bit in range(8):
            data = bytearray(line)
            data[at] ^= 1 << bit
            assert journal_module._from_line(bytes(data)) in (None, row)


def test_a_flipped_bit_costs_at_most_the_lines_it_touches(out: Path, free_fsync: None) -> None:
    journal = reopened(out)
    for page in range(4):
        journal.record(result(page), f"p{page}")
    whole = journal_file(out).read_bytes()
    rows = [journal.find(job(page)) for page in range(4)]
    for at in range(0, len(whole), 41):
        data = bytearray(whole)
        data[at] ^= 0x08
        journal_file(out).write_bytes(bytes(data))
        damaged = reopened(out)
        found = [damaged.find(job(page)) for page in range(4)]
        assert all(row in (None, right) for row, right in zip(found, rows, strict=True))
        assert sum(row is None for row in found) <= 2
        damaged.close()


def test_a_damaged_line_in_the_middle_costs_its_page_only(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = reopened(out)
    for page in range(3):
        journal.record(result(page), f"p{page}")
    lines = journal_file(out).read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"ok"', b'"no"')
    journal_file(out).write_bytes(b"".join(lines))
    with caplog.at_level(logging.WARNING, "ocr2"):
        again = reopened(out)
    assert [bool(again.find(job(page))) for page in range(3)] == [True, False, True]
    assert "1 damaged line was left out; its page is read again" in caplog.text
    caplog.clear()
    reopened(out)
    assert caplog.text == "", "the damage is gone after the rewrite"


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), tail=st.booleans())
def test_any_bytes_can_be_opened(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, tail: bool
) -> None:
    out = tmp_path_factory.mktemp("fuzz")
    (out / ".ocr2").mkdir()
    journal_file(out).write_bytes(data + b"\n" * tail)
    journal = reopened(out)
    assert len(journal) == 0
    journal.record(result(), "p")
    journal.close()
    assert reopened(out).find(job())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@example("page", -1)
@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from([f.name for f in journal_module.fields(journal_module.Row)]),
       value=json_values)  # fmt: skip
def test_a_row_of_wrong_types_is_damaged_even_with_a_right_checksum(
    field: str, value: object
) -> None:
    plain = json.loads(journal_module._to_line(a_row()))["row"]
    plain[field] = value
    line = journal_module._canonical({"crc": journal_module._crc(plain), "row": plain})
    row = journal_module._from_line(line)
    if row is not None:
        assert type(getattr(row, field)) is type(getattr(a_row(), field))
        assert row.is_good in (True, False) and row.page >= 0


def a_row() -> journal_module.Row:
    return journal_module.Row("d", 0, "ok", "stop", 1, "a", "b", "f", "p")


def test_nested_and_endless_lines_are_damage_not_death(out: Path) -> None:
    reopened(out).record(result(1), "after")
    after = journal_file(out).read_bytes()
    journal_file(out).write_bytes(b"[" * 100_000 + b"\n" + b"x" * 1_000_000 + b"\n" + after)
    journal = reopened(out)
    journal.record(result(), "p")
    assert reopened(out).find(job()) and reopened(out).find(job(1))


def test_a_page_of_the_longest_name_a_path_may_have_is_found_again(out: Path) -> None:
    longest = "\udcff" * 4096
    reopened(out).record(result(document=longest), "p")
    assert reopened(out).find(job(document=longest))


def test_superseded_rows_are_compacted_when_there_are_many(out: Path, free_fsync: None) -> None:
    journal = reopened(out)
    for number in range(300):
        journal.record(result(number % 3), f"p{number}")
    journal.close()
    before = journal_file(out).stat().st_size
    journal = reopened(out)
    assert journal_file(out).stat().st_size < before / 50
    assert [row.part_sha256 for page in range(3) if (row := journal.find(job(page)))] == [
        "p297", "p298", "p299"
    ]  # fmt: skip
    journal.record(result(5), "p5")
    assert reopened(out).find(job(5))


def test_a_journal_of_many_pages_is_not_rewritten_for_as_few_again(
    out: Path, free_fsync: None
) -> None:
    journal = reopened(out)
    for number in range(600):
        journal.record(result(number % 300), f"p{number}")
    journal.close()
    reopened(out).close()
    assert len(journal_file(out).read_bytes().splitlines()) == 600


def test_what_a_killed_rewrite_left_is_swept(out: Path) -> None:
    reopened(out).close()
    left = out / ".ocr2" / durable._temp_name("journal.jsonl")
    left.write_bytes(b"half")
    reopened(out).close()
    assert not left.exists()


def test_rows_of_another_fingerprint_survive_a_rewrite(out: Path, free_fsync: None) -> None:
    reopened(out, "f2").record(result(1), "kept")
    journal = reopened(out)
    for number in range(300):
        journal.record(result(0), f"p{number}")
    reopened(out)
    assert len(journal_file(out).read_bytes().splitlines()) == 2
    assert reopened(out, "f2").find(job(1))


def test_every_line_is_on_the_disk_before_record_returns(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = reopened(out)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    journal.record(result(0), "p")
    journal.record(result(1), "p")
    size = journal_file(out).stat().st_size
    assert synced == [size // 2, size]


def limited(out: Path, num_bytes: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return limit


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_line(out: Path) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(REPO)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from test_journal import Journal, result
from ocr2cli.errors import OutputError
journal = Journal.open(Path({str(out)!r}), "f1")
try:
    for page in range(99):
        journal.record(result(page), "p")
except OutputError as error:
    print(page, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limited(out, 2000),
    )
    page, _, message = done.stdout.partition(" ")
    assert str(out) in message and "(`ulimit -f`). Raise it and run the same command" in message
    data = journal_file(out).read_bytes()
    assert data.endswith(b"\n") and len(data.splitlines()) == int(page) > 0
    journal = reopened(out)
    assert journal.find(job(int(page))) is None and journal.find(job(int(page) - 1))


def test_a_symlinked_journal_is_refused_and_its_target_untouched(out: Path) -> None:
    target = out.parent / "precious"
    target.write_text("precious\n")
    (out / ".ocr2").mkdir(parents=True)
    journal_file(out).symlink_to(target)
    with pytest.raises(OutputError, match=r"cannot be used|not a regular file"):
        reopened(out)
    assert target.read_text() == "precious\n"


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_a_journal_that_is_no_file_is_refused_at_once(out: Path, kind: str) -> None:
    (out / ".ocr2").mkdir(parents=True)
    if kind == "folder":
        journal_file(out).mkdir()
    else:
        os.mkfifo(journal_file(out))
    with pytest.raises(OutputError):
        reopened(out)


@pytest.mark.parametrize("kind", ["folder", "fifo", "symlink"])
def test_looking_at_a_journal_that_is_no_file_finds_none_at_once(out: Path, kind: str) -> None:
    reopened(out).record(result(), "p")
    if kind == "symlink":
        journal_file(out).rename(out / "elsewhere")
        journal_file(out).symlink_to(out / "elsewhere")
    else:
        journal_file(out).unlink()
        (os.mkfifo if kind == "fifo" else os.mkdir)(journal_file(out))
    assert len(Journal.peek(out, "f1")) == 0


def test_ten_thousand_rows_open_fast(out: Path) -> None:
    import time

    journal = reopened(out)
    lines = [
        journal_module._to_line(
            replace(a_row(), document="doc", page=page, fingerprint="f1", input_sha256="i")
        )
        for page in range(10_000)
    ]
    journal_file(out).write_bytes(b"".join(lines))
    started = time.perf_counter()
    journal = reopened(out)
    assert len(journal) == 10_000 and journal.find(job(9_000, sha256="i"))
    assert time.perf_counter() - started < 5


def test_a_disk_that_goes_away_under_a_row_is_one_clear_error(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    journal = reopened(out)
    for name in ("fsync", "ftruncate"):
        monkeypatch.setattr(os, name, gone)
    with pytest.raises(OutputError, match="its folder went away during the run"):
        journal.record(result(), "p")
    assert journal.find(job()) is None


def test_a_journal_goes_on_with_the_new_file_when_the_disk_fails_after_its_rewrite(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows went into the old file, which had no name any more: the next run read them again."""
    reopened(out).record(result(0), "p0")
    journal_file(out).write_bytes(b"damaged\n" + journal_file(out).read_bytes())
    fails = [OSError(errno.EIO, "Input/output error")]

    def failing(folder: Path) -> None:
        if fails:
            raise fails.pop()

    monkeypatch.setattr(durable, "fsync_dir", failing)
    journal = reopened(out)
    assert not fails, "the rewrite was under test"
    journal.record(result(1), "p1")
    again = reopened(out)
    assert again.find(job(0)) and again.find(job(1))


def test_the_runner_and_the_journal_fit_together(out: Path) -> None:
    """An interrupted run, then a second one: nothing twice, nothing lost."""
    from toys import Recipe, stage

    from ocr2cli.pipeline import inline

    stages = [stage(Recipe("a", is_last=True))]
    first, second = [], []
    journal = reopened(out)
    for done in inline.run(stages, jobs(10)):
        journal.record(done, "p")
        first.append(done.key.page)
        if len(first) == 4:
            break
    journal.close()
    journal = reopened(out)
    for done in inline.run(stages, (each for each in jobs(10) if not journal.find(each))):
        second.append(done.key.page)
    assert first + second == list(range(10))
