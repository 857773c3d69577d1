"""What each process that this one starts needs: it finds the same modules, and ends with it.

Knows nothing about what they do.
"""

from __future__ import annotations

import os
import signal
import sys


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
