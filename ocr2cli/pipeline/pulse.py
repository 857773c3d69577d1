"""Whether a process makes any progress, by what Linux tells of it under /proc.

Knows nothing about what the process does.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

# Of the fields of /proc/PID/stat after the name: majflt, utime, stime, each of all its threads.
_MOVING = (9, 11, 12)
# A process that starts others without an end would be looked at for as long.
_MAX_PROCESSES = 64


def pulse(pid: int, root: Path = Path("/proc")) -> str | None:
    """What changes while the process, or one that it started and may be waiting for, computes,
    reads or writes. None where the system does not tell."""
    own = _pulse_of(root / str(pid))
    if own is None:
        return None
    told, waiting = [own], _children(root / str(pid))
    while waiting and len(told) < _MAX_PROCESSES:
        folder = root / waiting.pop()
        told.append(f"{folder.name} {_pulse_of(folder)}")
        waiting += _children(folder)
    return "\n".join(told)


def _pulse_of(folder: Path) -> str | None:
    """Both files add up a process's threads, those that have ended too."""
    try:
        facts = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return " ".join(facts[place] for place in _MOVING) + (folder / "io").read_text("ascii")
    except (OSError, IndexError):
        return None


def _children(folder: Path) -> list[str]:
    """Nothing where the system does not tell, or the process has just ended."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for thread in (folder / "task").iterdir():
            found += (thread / "children").read_text("ascii").split()
    return found
