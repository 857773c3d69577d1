"""What every process that is started is given; what needs a real worker is in tests/pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocr2cli.children import child_environment, step_back

_STEP_BACK_TWICE = """
import os
from pathlib import Path
from ocr2cli.children import step_back
root = Path({root!r})
for _ in range(2):
    step_back(3, root)
print(os.getpriority(os.PRIO_PROCESS, 0))
"""


def _priority_after(root: Path) -> int:
    script = _STEP_BACK_TWICE.format(root=str(root))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout) - os.getpriority(os.PRIO_PROCESS, 0)


def test_a_process_steps_back_where_no_threads_are_listed_as_on_a_mac(tmp_path: Path) -> None:
    room = 19 - os.getpriority(os.PRIO_PROCESS, 0)  # these tests may run far back themselves
    assert _priority_after(tmp_path / "nowhere") == min(6, room)


def test_a_session_of_its_own_steps_back_as_well(tmp_path: Path) -> None:
    """Else `nice` means nothing where the system shares the processor between sessions."""
    (tmp_path / "autogroup").write_text("/autogroup-9 nice 0\n")
    (tmp_path / "task").mkdir()
    assert _priority_after(tmp_path) == 0
    assert (tmp_path / "autogroup").read_text() == "3"


def test_a_thread_that_has_just_ended_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "task" / "999999999").mkdir(parents=True)
    step_back(3, tmp_path)


def test_a_child_finds_the_folder_that_the_empty_path_means_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    assert child_environment()["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"


_CHILD = """
import time
from ocr2cli.children import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
_PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the end of a pipe tells")
def test_a_child_ends_with_its_parent_whatever_it_is_doing() -> None:
    """Also where it holds no pipe, or a library holds Python's lock."""
    done = subprocess.run([sys.executable, "-c", _PARENT], capture_output=True, check=True)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
