"""One weight file on disk, read by position, and the table entry of a tensor in it.

Knows bytes and bounds; knows nothing about formats, names or torch.
Reads are positional (`preadv`) rather than through a memory map: they are as lazy, and a file cut
short under a running process is a clean error here where a map ends the process with SIGBUS.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ocr2cli.errors import ModelError

# One preadv moves at most 2 GiB on Linux.
_MOST_PER_CALL = 1 << 30


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies. shape: row-major, as PyTorch says it. dtype: BF16, F32, Q8_0, ...

    begin, num_bytes: the data's place in the file, already checked against its size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    num_bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class WeightFile:
    """An open regular file. Its size and times are remembered; a change is an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Before opening: a FIFO would block, a device would answer for ever.
            if not stat.S_ISREG(path.stat().st_mode):
                raise ModelError(f"{path} is not a regular file. Give a model folder or a .gguf.")
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ModelError(f"{path} cannot be opened: {error.strerror}.") from error
        self._before = self._stamp()
        self.size = self._before[0]

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def read(self, begin: int, count: int, what: str = "data") -> bytes:
        """Exactly `count` bytes. Raises: ModelError naming `what` when the file is too short."""
        if count > self.size - begin:
            raise self._short(what)
        data = bytearray(count)
        self.read_into(memoryview(data), begin, what)
        return bytes(data)

    def read_into(self, buffer: memoryview, begin: int, what: str = "data") -> None:
        """Fill `buffer` (contiguous bytes) from `begin` on."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done : done + _MOST_PER_CALL]], begin + done)
            except OSError as error:
                raise ModelError(f"{self.path}: {what}: {error.strerror}.") from error
            if count == 0:
                raise self._short(what)
            done += count

    def check_unchanged(self) -> None:
        """Raises: ModelError when the file was written to since it was opened."""
        if self._stamp() != self._before:
            raise ModelError(
                f"{self.path} changed while it was being read. Wait for the download or copy to "
                "end, then run again."
            )

    def _stamp(self) -> tuple[int, int]:
        now = os.fstat(self._fd)
        return now.st_size, now.st_mtime_ns

    def _short(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path}: {what}: the file ends too early ({self.size:,} bytes). "
            "Download it again."
        )
