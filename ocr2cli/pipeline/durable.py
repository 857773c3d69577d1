"""Bytes that survive a power cut: a file is whole or absent, and known to be on the disk.

Knows nothing about what the bytes mean or which folder is allowed; callers check that.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from pathlib import Path

from ocr2cli.errors import OutputError
from ocr2cli.printing import printable

_TEMP_NAME = re.compile(rb"\..*\.ocr2-\d+-\d+\.tmp\Z", re.DOTALL)
# A name may hold 255 bytes; the temporary's own parts need up to 40 of them.
_MAX_STEM_BYTES = 200
_serials = itertools.count()

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

def atomic_write(path: Path, data: bytes) -> None:
    """Replace `path` by a file holding `data`, durably; a symlink at `path` is replaced itself.

    Raises: OSError as the system gives it (no space, read-only, missing folder); then no temporary
    is left and `path` is untouched, unless only the folder's sync failed: the new file is in place.
    """
    temp = path.parent / _temp_name(path.name)
    try:
        _write_new(temp, data)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Make renames and new names in `folder` durable. Raises: OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_folder(fd)
    finally:
        os.close(fd)


def sync_folder(fd: int) -> None:
    """Make new names in an open folder durable; some network file systems cannot, and say EINVAL:
    files are still written whole there. Raises: OSError for any other reason."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def sweep_temps(folder: Path) -> int:
    """Delete what a killed `atomic_write` left in `folder` itself; returns how many files.

    Only under the output folder's lock: a temporary of a live writer looks the same.
    """
    num_swept = 0
    for name in filter(_TEMP_NAME.match, os.listdir(os.fsencode(folder))):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(os.fsencode(folder), name))
            num_swept += 1
    return num_swept


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of `data` to `fd`; `os.write` may stop early. Raises: OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def output_error(path: Path, error: OSError) -> OutputError:
    """What happened, where, and what to type, for a failed write below OUT."""
    number = error.errno or 0
    advice = _ADVICE.get(number, f"{os.strerror(number)}. Run the same command again")
    left = " that are still there" if number in GONE else ""  # part of OUT may have been deleted
    return OutputError(
        f"cannot write {printable(str(path))}: {advice}; finished pages{left} are kept."
    )


def _temp_name(name: str) -> str:
    stem = os.fsencode(name)[:_MAX_STEM_BYTES]
    return os.fsdecode(b".%b.ocr2-%d-%d.tmp" % (stem, os.getpid(), next(_serials)))


def _write_new(temp: Path, data: bytes) -> None:
    # A dead writer may have left this name when pids wrap around; O_EXCL refuses a planted link.
    with contextlib.suppress(FileNotFoundError):
        temp.unlink()
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
