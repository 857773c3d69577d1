"""What each process that this one starts needs: it finds the same modules, ends with it, and steps
back for the others.

Knows nothing about what they do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path


def child_environment() -> dict[str, str]:
    """This process's, so that a child finds with `-P` what this one finds: what was pickled here
    could not be unpickled there otherwise."""
    return dict(os.environ, PYTHONPATH=os.pathsep.join(path or os.getcwd() for path in sys.path))


def end_with_parent() -> None:
    """Of the own process, whatever a library is doing then. To Linux the parent is the thread that
    made this process."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def step_back(niceness: int, root: Path = Path("/proc/self")) -> None:
    """Lower the priority of this process for good, by so many steps of `nice`; where the system
    does not let it, nothing happens."""
    # A system with autogroups shares the processor between sessions, and only within one by
    # `nice`. A worker is a session of its own, whose share is set here.
    with contextlib.suppress(OSError):
        (root / "autogroup").write_text(str(niceness), "ascii")
    # To Linux a priority is a thread's own, and torch's threads are there already.
    try:
        threads = [int(name) for name in os.listdir(root / "task")]
    except OSError:
        threads = [0]
    for thread in threads:
        with contextlib.suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, own + niceness)
