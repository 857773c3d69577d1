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


def test_every_feature_names_an_example_and_a_test_that_exist() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|$", text.split("| feature |", 1)[1].split("\n\n", 1)[0], re.M)[1:]
    assert len(rows) >= 10
    known = {
        name
        for path in (REPO / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    shown = set()
    for row in rows:
        *_, example, test = row.strip("|").split("|")
        shown |= (examples := set(re.findall(r"`(\d\d_\w+\.\w+)`", example)))
        assert all((REPO / "examples" / name).exists() for name in examples), row
        assert (named := set(re.findall(r"test_\w+", test))) and named <= known, row
    assert shown == {path.name for path in REPO.glob("examples/[0-9]*")}
