"""What a failed write below OUT means, and what to type next.

Knows nothing about what was written.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ocr2cli.errors import OutputError
from ocr2cli.printing import printable

# What the system says of a write into an open folder that was deleted.
GONE = (errno.ENOENT, errno.ESTALE)
_ADVICE = {
    errno.ENOSPC: "the disk is full. Free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up. Free some space and run the same command again",
    errno.EFBIG: "the file would pass the size limit (`ulimit -f`). Raise it and run the same "
                 "command again",
    errno.EROFS: "the file system is read-only. Choose another folder with `-o`",
    errno.EACCES: "permission denied. Choose another folder with `-o` or change its owner",
    errno.EPERM: "permission denied. Choose another folder with `-o` or change its owner",
    errno.ENOENT: "its folder went away during the run. Run the same command again",
    errno.ESTALE: "its folder went away during the run. Run the same command again",
    errno.EEXIST: "it is not a folder. Choose another one with `-o`",
    errno.ENOTDIR: "it is not a folder. Choose another one with `-o`",
}  # fmt: skip


def output_error(path: Path, error: OSError) -> OutputError:
    """What happened, where, and what to type, for a failed write below OUT."""
    number = error.errno or 0
    advice = _ADVICE.get(number, f"{os.strerror(number)}. Run the same command again")
    left = " that are still there" if number in GONE else ""  # part of OUT may have been deleted
    return OutputError(
        f"cannot write {printable(str(path))}: {advice}; finished pages{left} are kept."
    )
