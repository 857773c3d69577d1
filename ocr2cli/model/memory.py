"""Telling that a device or the host has no more memory, and giving back what is only kept.

Knows nothing about models.
"""

from __future__ import annotations

import torch

# torch's allocator on a CPU and oneDNN; CUDA and its driver outside torch's allocator (a graph made
# ready, a kernel loaded when it is first used, Triton); Apple's, which has no class for it.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "[CUDA]: out of memory",
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """torch's own class on a device; elsewhere a RuntimeError that only its text tells apart."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def empty_cache() -> None:
    """Give back what torch keeps of a device's memory for later; on a CPU it keeps nothing."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
