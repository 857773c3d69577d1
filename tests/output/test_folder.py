"""The folder that outputs go to: what is on the disk when, what lies in it, where it went."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from page_factory import gradient, job, page, writer

from ocr2cli.errors import OutputError
from ocr2cli.output.folder import OutFolder


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


def test_output_errors_say_what_where_and_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file: .*`-o`"):
        writer(tmp_path / "file")
    with pytest.raises(OutputError, match=r"cannot write .*file/below: .*`-o`"):
        writer(tmp_path / "file" / "below")
    assert gradient(job("d")).rgb.shape == (300, 200, 3)
