"""The command line with the stub in it, and small documents, for fault tests and soak."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymupdf

REPO = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub.py"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def write_pdf(path: Path, num_pages: int, words: str = "") -> Path:
    pdf = pymupdf.open()
    for number in range(num_pages):
        pdf.new_page(width=100, height=100).insert_text((9, 50), f"{words}{number + 1}")
    pdf.save(path)
    return path


def environment(plan: dict[str, str] | None = None, **more: str) -> dict[str, str]:
    paths = f"{REPO}:{STUB.parent}"
    return {**os.environ, "PYTHONPATH": paths, "STUB_PLAN": json.dumps(plan or {}), **more}


def complaints(stderr: str) -> str:
    """stderr without the lines of progress, which a slow machine has time to write."""
    line = r"^\d+(/~?\d+)? pages after \d+ s(, [\d.]+/min)?\n"
    return re.sub(line, "", stderr, flags=re.MULTILINE)


def command(*arguments: Any) -> list[str]:
    return [sys.executable, str(STUB), "run", *map(str, arguments)]
