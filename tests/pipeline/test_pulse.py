"""Whether a process makes progress: told of what stands still, moves, or cannot be looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ocr2cli.pipeline.pulse import pulse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks under /proc")


def soon(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def test_a_process_that_computes_moves_and_a_stopped_one_does_not() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        first = pulse(busy.pid)
        assert first and soon(lambda: pulse(busy.pid) != first)
        os.kill(busy.pid, signal.SIGSTOP)
        os.waitpid(busy.pid, os.WUNTRACED)
        still = pulse(busy.pid)
        time.sleep(0.05)
        assert pulse(busy.pid) == still
    finally:
        busy.kill()
        busy.wait()


def test_a_process_that_reads_moves_and_one_that_waits_for_more_does_not() -> None:
    """Reading alone: it has one thread, and what it is given costs it no tick of the clock."""
    script = "import os\nwhile os.read(0, 1): os.write(1, b'a')"
    reader = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert reader.stdin and reader.stdout
    try:
        for _ in range(2):
            reader.stdin.write(b"a")
            assert reader.stdout.read(1) == b"a"
            # It has answered, and is on its way into its next read.
            assert soon(lambda: _stands_still(reader.pid))
            first = pulse(reader.pid)
            reader.stdin.write(b"a")
            assert reader.stdout.read(1) == b"a" and pulse(reader.pid) != first
    finally:
        reader.kill()
        reader.communicate()


def _stands_still(pid: int) -> bool:
    before = pulse(pid)
    time.sleep(0.05)
    return before is not None and pulse(pid) == before


def test_a_process_that_waits_for_one_it_started_moves_with_it() -> None:
    """A compiler, say."""
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    waiting = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        assert soon(lambda: (pulse(waiting.pid) or "").count("rchar") == 2)
        first = pulse(waiting.pid)
        assert soon(lambda: pulse(waiting.pid) != first)
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.wait()


def process(folder: Path, name: str = "a b) c", **changes: str) -> None:
    """As /proc shows it; the fields are numbered as in proc(5)."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {**{str(place): "0" for place in range(3, 53)}, **changes}
    line = " ".join(fields[str(place)] for place in range(3, 53))
    (folder / "stat").write_text(f"7 ({name}) {line}\n")
    (folder / "io").write_text(f"rchar: {changes.get('rchar', '5')}\nwchar: 0\n")


@pytest.mark.parametrize("moving", ["12", "14", "15", "rchar"])
def test_each_sign_of_progress_counts(tmp_path: Path, moving: str) -> None:
    process(tmp_path / "7")
    first = pulse(7, tmp_path)
    assert first is not None and pulse(7, tmp_path) == first
    process(tmp_path / "7", **{moving: "6"})
    assert pulse(7, tmp_path) != first


def test_what_changes_without_progress_is_none(tmp_path: Path) -> None:
    """A process that is stopped, moved to another core, or swapped out."""
    process(tmp_path / "7")
    first = pulse(7, tmp_path)
    process(tmp_path / "7", **{"3": "T", "10": "9", "24": "4", "39": "1"})
    assert pulse(7, tmp_path) == first


def test_where_the_system_does_not_tell_nothing_is_told(tmp_path: Path) -> None:
    assert pulse(7, tmp_path) is None
    process(tmp_path / "7")
    (tmp_path / "7" / "io").unlink()
    assert pulse(7, tmp_path) is None
    process(tmp_path / "7")
    (tmp_path / "7" / "stat").write_text("7 (cut) T")
    assert pulse(7, tmp_path) is None
