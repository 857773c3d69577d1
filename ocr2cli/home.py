"""Where things of the user's lie that outlive a run: caches, states of runs, settings.

Knows nothing about what is kept there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def user_folder(kind: Literal["cache", "config", "state"]) -> Path:
    """The folder of that kind for this user and this tool; it need not exist.

    Raises: RuntimeError for a user without a home, as in a container that runs under a number of
    its own.
    """
    import platformdirs  # late: --help needs none of it

    try:
        folder = Path(getattr(platformdirs, f"user_{kind}_dir")("ocr2"))
    except RuntimeError:
        folder = Path("~")
    # Older versions give a path that begins with a `~`, which would lie in the working folder.
    if not folder.is_absolute():
        raise RuntimeError("this user has no home folder")
    return folder
