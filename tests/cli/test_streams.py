"""stdout and stderr that are closed, full or not there: no traceback, and the exit code stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ocr2cli.errors import ExitCode


def test_a_stdout_that_nobody_reads_is_no_bug() -> None:
    command = f"{sys.executable} -m ocr2cli info --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_closed_stdout_is_a_quiet_end() -> None:
    command = f"{sys.executable} -m ocr2cli --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("Usage")


@pytest.mark.parametrize("words", ["2>&1 | true", "2>&1 >/dev/null | true", "2>&-"])
def test_streams_that_nobody_reads_leave_the_exit_code_as_it_is(words: str, tmp_path) -> None:
    """It was 0: a wrapper script took a run that had failed for a good one."""
    line = f"{sys.executable} -m ocr2cli run {tmp_path}/gone.pdf -o {tmp_path}/o {words}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INPUT, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("line", "code"),
    [("info --size 100x100 --json > /dev/full", ExitCode.ENGINE),
     ("--help > /dev/full", ExitCode.ENGINE),
     ("run gone.pdf -o {out} --json > /dev/full", ExitCode.ENGINE),
     ("run gone.pdf -o {out} 2> /dev/full", ExitCode.INPUT),
     ("run 2> /dev/full", ExitCode.USAGE),
     ("models list --json 2> /dev/full", ExitCode.OK)],
)  # fmt: skip
def test_a_full_disk_behind_a_stream_is_no_bug(line: str, code: int, tmp_path) -> None:
    """What cannot be said on stderr changes nothing; a result that cannot be written is lost."""
    command = f"{sys.executable} -m ocr2cli {line.format(out=tmp_path / 'o')}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    if code == ExitCode.ENGINE:
        assert "cannot write to stdout" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_progress_is_not_put_on_a_stdout_that_holds_results(monkeypatch, capsys) -> None:
    """Without a stderr Python's `print` takes stdout instead."""
    from ocr2cli.cli import progress
    from ocr2cli.pages import PageKey, PageResult, Status

    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    progress.LineProgress().page(PageResult(PageKey("a", 0), Status.OK))
    assert capsys.readouterr().out == ""
