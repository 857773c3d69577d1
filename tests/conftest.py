"""What every test may rely on: few threads, no network, the reference folder when it is there."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two cores: one thread a test process keeps spawned workers from fighting over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell starts jobs in the background, and nohup all it starts, deaf to these, which tests send.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

REPO = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process leaves its handler behind, on a stderr that pytest
    closes; the next test's words would end in an error about it."""
    logger = logging.getLogger("ocr2")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


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
