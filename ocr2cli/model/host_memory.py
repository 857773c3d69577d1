"""Host memory that the system hands out as it is written and gets back when it is no longer used.

Knows nothing about keys, slots or lengths.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from math import prod

import torch
from torch import Tensor

# Elsewhere a process cannot say which memory it is done with, or not so that it takes effect.
IS_LINUX = sys.platform == "linux"


class HostMemory:
    """One tensor of `shape` on the host, uninitialised, for a cache of which most is never written.

    On Linux a page of memory (4 KiB) is taken when it is first written, never a huge one (2 MiB),
    whatever the system prefers: rows that are begun and not filled would be taken whole. Elsewhere
    it is as torch makes it.

    Raises: MemoryError when the system does not have so many addresses.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._map = _map_memory(prod(shape) * dtype.itemsize)
        if self._map is None:
            self.tensor = torch.empty(shape, dtype=dtype)
        else:
            self.tensor = torch.frombuffer(self._map, dtype=dtype).view(shape)

    def give_back(self, part: Tensor) -> None:
        """Forget what a contiguous part of the tensor holds. What lies in whole pages reads as
        zeros on Linux, and takes no memory until it is written again."""
        if self._map is None:
            return
        start = part.data_ptr() - self.tensor.data_ptr()
        stop = (start + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if stop <= start:
            return
        with contextlib.suppress(OSError):  # memory that somebody has locked stays
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _map_memory(num_bytes: int) -> mmap.mmap | None:
    if not IS_LINUX or not num_bytes:
        return None
    try:
        # Private: what is shared is a file to the system, and kept when it is given back.
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes: {error}") from error
    with contextlib.suppress(OSError):  # a kernel that has no huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
