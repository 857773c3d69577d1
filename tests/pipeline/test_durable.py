"""A file is whole or absent, and a symlink is never written through."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ocr2cli.errors import OutputError
from ocr2cli.pipeline.durable import atomic_write, fsync_dir, sweep_temps
from ocr2cli.pipeline.lock import OutputLock

REPO = Path(__file__).parents[2]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    atomic_write(path, b"one")
    atomic_write(path, b"two" * 100_000)
    assert path.read_bytes() == b"two" * 100_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(precious)
    atomic_write(link, b"new")
    assert precious.read_bytes() == b"precious"
    assert not link.is_symlink() and link.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["x" * 255, "\udcff\udcfe", "a\nb", "-x", "\u00e9" * 127])
def test_hostile_names_are_written(tmp_path: Path, name: str) -> None:
    atomic_write(tmp_path / name, b"data")
    assert os.listdir(tmp_path) == [name]


def test_a_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    atomic_write(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_the_name_appears_only_after_the_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace, fsync = os.replace, os.fsync

    def seen_fsync(fd: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def seen_replace(old: Path, new: Path) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    atomic_write(tmp_path / "a", b"x")
    assert events == ["file", "rename", "folder"]


def test_a_file_system_that_cannot_sync_a_folder_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems say EINVAL; they were refused as an output folder."""
    fsync = os.fsync

    def no_folders(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", no_folders)
    with OutputLock(tmp_path / "out"):
        atomic_write(tmp_path / "out" / "a.md", b"text")
    assert (tmp_path / "out" / "a.md").read_bytes() == b"text"


def test_a_folder_on_a_broken_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match="Input/output error"):
        OutputLock(tmp_path / "out").__enter__()
    with pytest.raises(OSError, match="Input/output error"):
        fsync_dir(tmp_path)


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from ocr2cli.pipeline import durable
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
durable.atomic_write(Path({str(tmp_path)!r}) / "a.md", b"half")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "a.md").exists()
    for name in (".hidden.tmp", "a.tmp", ".a.ocr2-x.tmp"):
        (tmp_path / name).write_bytes(b"mine")
    assert sweep_temps(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [".a.ocr2-x.tmp", ".hidden.tmp", "a.tmp"]
