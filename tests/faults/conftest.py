"""A small library of inputs, and a way to run the command line with the stub in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymupdf
import pytest

REPO = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub.py"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def write_pdf(path: Path, num_pages: int, words: str = "") -> Path:
    pdf = pymupdf.open()
    for number in range(num_pages):
        pdf.new_page(width=100, height=100).insert_text((9, 50), f"{words}{number + 1}")
    pdf.save(path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three documents: 5, 1 and 3 pages."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    write_pdf(folder / "a.pdf", 5)
    write_pdf(folder / "b.pdf", 1)
    write_pdf(folder / "sub" / "c.pdf", 3)
    return folder


def environment(plan: dict[str, str] | None = None, **more: str) -> dict[str, str]:
    paths = f"{REPO}:{STUB.parent}"
    return {**os.environ, "PYTHONPATH": paths, "STUB_PLAN": json.dumps(plan or {}), **more}


def command(*arguments: Any) -> list[str]:
    return [sys.executable, str(STUB), "run", *map(str, arguments)]


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
