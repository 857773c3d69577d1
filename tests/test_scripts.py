"""Scripts that people run by hand still find what they import from the package."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
FOLDERS = (
    "tests/proofs", "tests/soak", "tests/load", "tests/parity_llama", "examples",
    "models/nano/recipe/nanotrain",
)  # fmt: skip
SCRIPTS = sorted(path for folder in FOLDERS for path in (REPO / folder).glob("*.py"))


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of each `from ocr2cli... import name`, inside functions too."""
    tree = ast.parse(path.read_text("utf-8"))
    return [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ocr2cli"
        for alias in node.names
        if node.module
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_run_by_hand_finds_what_it_imports(path: Path) -> None:
    for module, name in imported(path):
        held = importlib.import_module(module)
        if not hasattr(held, name):
            importlib.import_module(f"{module}.{name}")


def test_the_scripts_are_seen() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"drafts.py", "full_size.py", "soak.py", "run.py"} <= names
    assert any(imported(path) for path in SCRIPTS)
