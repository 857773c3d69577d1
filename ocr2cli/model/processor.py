"""What the processor or the card at hand multiplies fast. Knows nothing about models."""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import cache

import torch


def has_bf16_products() -> bool:
    """True on a CPU that multiplies bf16 through oneDNN; others take plain loops, some six times
    slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def nvidia_generation(device: torch.device) -> int | None:
    """The first number of a card's compute capability: 7 Volta and Turing, 8 Ampere and Ada, 9
    Hopper, 10 Blackwell. None for any other device."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    return torch.cuda.get_device_capability(device)[0]


def has_masked_gqa(device: torch.device) -> bool:
    """False on NVIDIA cards where fused attention with a mask wants as many key heads as heads:
    only cuDNN's takes fewer, and torch takes it on Hopper (and would on Blackwell, see below)."""
    return nvidia_generation(device) in (None, 9)


def has_faulty_cudnn_attention(device: torch.device) -> bool:
    """True on Blackwell, where cuDNN 9.19 and 9.20, which torch 2.11 to 2.13 brings and prefers,
    gave wrong answers for a single query (pytorch/pytorch#193893)."""
    return nvidia_generation(device) in (10, 11)


@cache
def has_amx() -> bool:
    """True on a CPU with matrix tiles, for bf16 and for signed bytes."""
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def host_features() -> frozenset[str]:
    """What this processor can, in LLVM's words, for code that numba compiles here. Empty where the
    user has numba compile for another one or not at all (NUMBA_DISABLE_JIT=1), or where LLVM cannot
    tell. Raises: ImportError without numba."""
    from llvmlite import binding
    from numba import config

    if config.DISABLE_JIT or config.CPU_NAME or config.CPU_FEATURES:
        return frozenset()
    try:
        return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)
    except RuntimeError:
        return frozenset()


def can_run(needed: Iterable[Set[str]], features: Set[str]) -> bool:
    """True if `features` have all of any of the sets."""
    return any(each <= features for each in needed)
