"""One run per output folder; a dead owner's lock counts for nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocr2cli.errors import ExitCode, OutputError, OutputInUse
from ocr2cli.pipeline.lock import OutputLock

REPO = Path(__file__).parents[2]

HOLD = """
import sys, time
sys.path.insert(0, {repo!r})
from pathlib import Path
from ocr2cli.errors import OutputInUse
from ocr2cli.pipeline.lock import OutputLock
while time.time() < {at!r}:
    pass
try:
    with OutputLock(Path({out!r})):
        print("held", flush=True)
        time.sleep({hold_s})
except OutputInUse as error:
    print("refused", error, flush=True)
"""


def start(out: Path, hold_s: float, at: float = 0.0) -> subprocess.Popen[str]:
    code = HOLD.format(repo=str(REPO), out=str(out), hold_s=hold_s, at=at)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_second_run_is_refused_and_told_the_owner(tmp_path: Path) -> None:
    owner = start(tmp_path / "out", 30)
    assert owner.stdout and owner.stdout.readline() == "held\n"
    with pytest.raises(OutputInUse, match=rf"process {owner.pid}\)") as caught:
        OutputLock(tmp_path / "out").__enter__()
    assert caught.value.exit_code == ExitCode.IN_USE == 75
    owner.kill()
    owner.communicate()


def test_the_lock_of_a_killed_owner_is_taken_over(tmp_path: Path) -> None:
    owner = start(tmp_path / "out", 30)
    assert owner.stdout and owner.stdout.readline() == "held\n"
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    lock = tmp_path / "out" / ".ocr2" / "lock"
    assert lock.read_text() == f"{owner.pid}\n"
    with OutputLock(tmp_path / "out"):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert lock.read_text() == ""


def test_a_pid_left_by_a_dead_run_is_never_shown_as_the_owner(tmp_path: Path) -> None:
    """The next owner has the lock but has not written its pid yet."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".ocr2").mkdir()
    with open(tmp_path / ".ocr2" / "lock", "w") as owner:
        owner.write(f"{dead.pid}\n")
        owner.flush()
        fcntl.flock(owner, fcntl.LOCK_EX)
        with pytest.raises(OutputInUse, match=r"process unknown\)"):
            OutputLock(tmp_path).__enter__()


def test_of_two_that_race_one_wins_and_the_other_names_it(tmp_path: Path) -> None:
    for number in range(3):
        out = tmp_path / str(number)
        at = time.time() + 0.4
        both = [start(out, 1.5, at), start(out, 1.5, at)]
        said = [process.communicate()[0] for process in both]
        (winner,) = (p for p, words in zip(both, said, strict=True) if words == "held\n")
        (refusal,) = (words for words in said if words.startswith("refused"))
        assert f"process {winner.pid})" in refusal


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        with OutputLock(tmp_path / "a" / "b"):
            assert (tmp_path / "a" / "b").is_dir()


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with OutputLock(tmp_path), pytest.raises(OutputInUse, match=str(os.getpid())):
        OutputLock(tmp_path).__enter__()


def test_worker_processes_do_not_keep_the_lock(tmp_path: Path) -> None:
    """A child that outlives the owner must not lock the next run out."""
    with OutputLock(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    with OutputLock(tmp_path):
        pass
    child.kill()
    child.wait()


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match=r"out cannot be used as output folder: .*-o"):
        OutputLock(tmp_path / "out").__enter__()
    assert (tmp_path / "out").read_text() == "mine"


def test_a_symlinked_state_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".ocr2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError):
        OutputLock(tmp_path / "out").__enter__()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_symlinked_lock_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "out" / ".ocr2").mkdir(parents=True)
    (tmp_path / "out" / ".ocr2" / "lock").symlink_to(precious)
    with pytest.raises(OutputError):
        OutputLock(tmp_path / "out").__enter__()
    assert precious.read_text() == "precious"


def test_an_output_folder_behind_a_symlink_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with OutputLock(tmp_path / "link"), pytest.raises(OutputInUse):
        OutputLock(tmp_path / "real").__enter__()
