"""Engines for the tests of this folder: one that reads, one that waits to be told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stub_server
from stub_server import Gate, make_engine

from ocr2cli.serve.engine import ServeEngine


@pytest.fixture
def engine() -> Iterator[ServeEngine]:
    engine = make_engine()
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeEngine]:
    """An engine for four pages whose only worker holds its first until `Gate.may_read` is set."""
    monkeypatch.setattr(stub_server, "Reader", Gate)
    Gate.may_read.clear()
    Gate.keys.clear()
    engine = make_engine()
    engine.start()
    yield engine
    Gate.may_read.set()
    engine.close()
