"""One run per output folder: a lock the system drops when its owner dies, with the owner's pid.

Knows nothing about what is written into the folder.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from pathlib import Path
from types import TracebackType

from ocr2cli.errors import OutputError, OutputInUse
from ocr2cli.pipeline.channel import above_standard
from ocr2cli.pipeline.durable import sync_folder

logger = logging.getLogger("ocr2")

_STATE = ".ocr2"
_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# The owner writes its pid right after it has the lock; whoever comes between waits this long.
_PID_WAIT_S = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class OutputLock:
    """Holds OUT for this process, as a context manager; makes OUT and OUT/.ocr2 where missing.

    A lock whose owner is dead counts for nothing. The lock file stays: deleting it would let two
    runs lock two files of one name.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._fd = -1

    def __enter__(self) -> OutputLock:
        """Raises: OutputInUse naming the owner; OutputError when OUT cannot be used."""
        self._fd = open_state_file(self.out, "lock")
        try:
            self._lock()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BaseException as error:
            os.close(self._fd)
            if isinstance(error, OSError):
                raise _cannot_use(self.out, error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # An empty file: whoever meets the next owner in its first moment must not read ours.
            os.ftruncate(self._fd, 0)
        finally:
            os.close(self._fd)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputInUse(
                f"{self.out} is in use by another run of ocr2 (process {self._owner()}). "
                "Wait for it to end, or choose another folder with `-o`."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: no locks on this file system; see to it that runs do not overlap",
                           self.out)  # fmt: skip

    def _owner(self) -> str:
        """The owner's pid as it wrote it; "unknown" if it does not in time."""
        deadline = time.monotonic() + _PID_WAIT_S
        while time.monotonic() < deadline:
            text = os.pread(self._fd, 32, 0).strip()
            if text.isdigit() and _is_alive(int(text)):
                return text.decode()
            time.sleep(0.01)
        return "unknown"


def open_state_file(out: Path, name: str) -> int:
    """Descriptor of OUT/.ocr2/`name` for reading and writing, made where missing.

    OUT itself may be a symlink; nothing below it is followed.
    Raises: OutputError when OUT or .ocr2 is no folder, or the file is no regular file.
    """
    try:
        real = os.path.realpath(out)
        os.makedirs(os.path.join(real, _STATE), exist_ok=True)
        folder = os.open(
            os.path.join(real, _STATE), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            fd = above_standard(os.open(name, _FILE_FLAGS, 0o666, dir_fd=folder))
            sync_folder(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _cannot_use(out, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OutputError(f"{out}/{_STATE}/{name} is not a regular file. Move it away.")
    return fd


def _cannot_use(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{out} cannot be used as output folder: {error.strerror}"
        f"{f' ({error.filename})' if error.filename else ''}. Choose another one with `-o`."
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
