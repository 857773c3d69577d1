"""A small library of inputs, and a way to run the command line with the stub in it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from stub_runs import Run, command, environment, write_pdf


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three documents: 5, 1 and 3 pages."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    write_pdf(folder / "a.pdf", 5)
    write_pdf(folder / "b.pdf", 1)
    write_pdf(folder / "sub" / "c.pdf", 3)
    return folder


@pytest.fixture
def run() -> Run:
    """run(ARGUMENT..., plan={}, env={}) -> the finished process."""

    def go(*arguments: Any, plan: dict[str, str] | None = None, timeout: float = 120,
           env: dict[str, str] | None = None, **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), env=environment(plan, **(env or {})), text=True,
            capture_output=True, timeout=timeout, check=False, **how,
        )  # fmt: skip

    return go
