"""Names of devices and dtypes to torch's, with `auto` resolved.

Knows nothing about models.
"""

from __future__ import annotations

import torch

from ocr2cli.engines.host import check_device
from ocr2cli.engines.memory_plan import SMALL_MODEL
from ocr2cli.errors import EngineError
from ocr2cli.model.processor import has_bf16_products, nvidia_generation

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def pick_device(name: str, dtype: str = "auto") -> torch.device:
    """`auto` is the first CUDA device, else Apple's, else the CPU; with int8 it is the CPU.

    Raises: UsageError for an unknown name or a dtype that the device has not, EngineError for a
    device that is not there.
    """
    check_device(name, dtype)
    if dtype == "int8":
        return torch.device("cpu")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"--device {name}: this torch sees {torch.cuda.device_count()} CUDA devices. "
            "Check `nvidia-smi` and that torch is a CUDA build, or use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EngineError("--device mps: not available here; use --device cpu")
    return device


def pick_dtype(name: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """`auto`: bf16 on an accelerator, f16 on an NVIDIA card that is older than bf16; on a CPU f32
    for small models and where the processor has no bf16 products, else bf16.

    For int8 it is the arithmetic of everything but the decoder's matrices.
    """
    if name in DTYPES:
        return DTYPES[name]
    if device.type != "cpu":
        # Before Ampere torch has no fused attention in bf16, and writes every head's scores in
        # float32 instead.
        return torch.float16 if (nvidia_generation(device) or 8) < 8 else torch.bfloat16
    is_fast = num_parameters >= SMALL_MODEL and has_bf16_products()
    return torch.bfloat16 if is_fast else torch.float32


def pick_matrices(name: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """What the weights of products are kept in: the arithmetic's dtype, or bf16 where `auto` had
    to take f32 for a large model, whose memory would double for nothing."""
    dtype = pick_dtype(name, device, num_parameters)
    is_large = num_parameters >= SMALL_MODEL
    had_to = name not in DTYPES and is_large and dtype == torch.float32
    return torch.bfloat16 if had_to else dtype
