"""What every test may rely on: few threads, no network, the reference folder when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two cores: one thread a test process keeps spawned workers from fighting over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def nano_folder() -> Path:
    """The bundled model."""
    return REPO / "models" / "nano"


@pytest.fixture(scope="session")
def shared_reference() -> Path | None:
    """The real checkpoint's config, index and llama.cpp's pages, where a checkout has them."""
    folder = REPO.parent / "shared" / "reference"
    return folder if folder.is_dir() else None
