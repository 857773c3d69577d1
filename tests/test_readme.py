"""The README's promises: every test it names exists, and every row names one."""

from __future__ import annotations

import re
from pathlib import Path

REPO = Path(__file__).parents[1]


def promise_rows() -> list[str]:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    section = text.split("## What is promised", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def test_every_promise_names_a_test_that_exists() -> None:
    rows = promise_rows()
    assert len(rows) >= 15
    known = set()
    for path in (REPO / "tests").rglob("test_*.py"):
        known |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    for row in rows:
        named = re.findall(r"test_\w+", row.rsplit("|", 2)[1])
        assert named, f"no test in the row: {row}"
        assert set(named) <= known, f"unknown: {set(named) - known}"


def test_every_command_of_the_readme_exists() -> None:
    from ocr2cli.cli.main import COMMANDS

    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`ocr2 ([a-z]+)", text)) <= set(COMMANDS)
