"""Imports point down only: the table of the house, enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ocr2cli"

FLOOR = {
    "cli": 9,
    "bench": 8,
    "serve": 7, "eval": 7,
    "api": 7,
    "batch": 6, "forecast": 6,
    "runners": 5, "engines": 4, "output": 4,
    "generate": 3, "weights": 3,
    "model": 2, "document": 2, "text": 2, "pipeline": 2,
    "config": 1,
    "pages": 0, "errors": 0, "home": 0, "printing": 0, "children": 0,
}  # fmt: skip
# `model/config.py` holds sizes only and is read by everything that needs them, torch-free.
FREE_MODULES = {"ocr2cli.model.config"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def type_checking_lines(tree: ast.Module) -> set[int]:
    """Lines under `if TYPE_CHECKING:`: they import nothing at run time."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def imports(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    hidden = type_checking_lines(tree)
    found = []
    for node in ast.walk(tree):
        if getattr(node, "lineno", 0) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write absolute imports"
            base = node.module or ""
            found.append((node.lineno, base))
            if base == "ocr2cli":
                found += [(node.lineno, f"ocr2cli.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    wrong = []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "ocr2cli" or len(parts) < 2 or name in FREE_MODULES:
            continue
        target = parts[1]
        if target == room or target not in FLOOR:
            continue
        if FLOOR[target] >= FLOOR[room]:
            wrong.append(f"{path.name}:{line}: {room} (floor {FLOOR[room]}) imports {name}")
    assert not wrong, "imports must point to a lower floor:\n" + "\n".join(wrong)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR), f"give a floor to {sorted(rooms - set(FLOOR))}"


@pytest.mark.parametrize("room", ["document", "text", "pipeline", "output"])
def test_torch_stays_out_of_the_parents_rooms(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for line, name in imports(path):
            assert name.split(".")[0] != "torch", f"{path}:{line} imports torch"


def test_pymupdf_stays_behind_the_document_room() -> None:
    for path in modules():
        for line, name in imports(path):
            if name.split(".")[0] in ("pymupdf", "fitz"):
                assert room_of(path) == "document", f"{path}:{line} imports {name}"


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\n"
        "from ocr2cli.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pymupdf', 'transformers'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
