"""A Chromium of its own for each test that looks at a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chromium import INSTALL, Chromium, find_chromium


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        missing = f"no Chromium on the PATH; install it: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with Chromium(program, tmp_path / "profile") as started:
        yield started
