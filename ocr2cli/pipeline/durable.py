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

_TEMP_NAME = re.compile(rb"\..*\.ocr2-\d+-\d+\.tmp\Z", re.DOTALL)
# A name may hold 255 bytes; the temporary's own parts need up to 40 of them.
_MAX_STEM_BYTES = 200
_serials = itertools.count()


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
