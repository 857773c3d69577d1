"""In which precision a device trains: bfloat16 where it has products for it, else float32.

A CPU without them (AVX2 only) falls back to plain loops in bfloat16, twenty times slower.
"""

from __future__ import annotations

import torch

from ocr2cli.model.processor import has_bf16_products


def has_bf16(device: str) -> bool:
    """device: 'cpu' or 'cuda', an index behind it or not."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_bf16_products()


def autocast(device: str) -> torch.autocast:
    """bfloat16 for the products where the device has it, else nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_bf16(device))
