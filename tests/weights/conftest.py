"""Fixtures of the weights tests: toy checkpoints of both versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_checkpoint import (
    V1_CONFIG,
    V2_CONFIG,
    original_shapes,
    random_tensors,
    write_checkpoint,
)


@pytest.fixture(params=["v2", "v1"])
def toy(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The config of a toy model, once as v2 and once as v1."""
    return V2_CONFIG if request.param == "v2" else V1_CONFIG


@pytest.fixture
def toy_tensors(toy: dict[str, Any]) -> dict[str, torch.Tensor]:
    return random_tensors(original_shapes(toy))


@pytest.fixture
def toy_folder(
    tmp_path: Path, toy: dict[str, Any], toy_tensors: dict[str, torch.Tensor]
) -> Path:
    """A toy checkpoint in the original form, bf16, one file."""
    return write_checkpoint(tmp_path / "toy", toy, toy_tensors)


@pytest.fixture
def v2_folder(tmp_path: Path) -> Path:
    return write_checkpoint(
        tmp_path / "v2", V2_CONFIG, random_tensors(original_shapes(V2_CONFIG))
    )
