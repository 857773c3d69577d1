"""Telling that a device or the host has no more memory.

Knows nothing about models.
"""

from __future__ import annotations

import torch

# torch's allocator on a CPU and oneDNN; CUDA outside torch's allocator: a graph that is made
# ready, a kernel that is loaded when it is first used.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own class on a device; elsewhere a RuntimeError that only its text tells apart."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
