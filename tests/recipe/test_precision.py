"""The trainers use bfloat16 where the device multiplies it, and float32 elsewhere."""

from __future__ import annotations

import pytest
import torch
from nanotrain import optim, precision


@pytest.mark.parametrize("has_products", [True, False])
def test_products_are_bf16_only_where_the_device_has_them(
    has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: has_products)
    left, right = torch.randn(4, 8), torch.randn(8, 4)
    with precision.autocast("cpu"):
        product = left @ right
    assert product.dtype == (torch.bfloat16 if has_products else torch.float32)


@pytest.mark.parametrize("has_products", [True, False])
def test_muon_orthogonalises_in_either_precision(
    has_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "has_bf16", lambda device: has_products)
    generator = torch.Generator().manual_seed(3)
    found = optim.newton_schulz(torch.randn(1, 16, 32, generator=generator)).float()
    assert found.dtype == torch.float32
    singular = torch.linalg.svdvals(found)
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.5
