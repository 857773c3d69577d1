"""What README and docs promise: each test they name exists, each row names one, links lead on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).parents[1]


def promise_rows() -> list[str]:
    text = (REPO / "docs" / "promises.md").read_text(encoding="utf-8")
    table = text.split("| when |", 1)[1].split("\n\n", 1)[0]
    return [line for line in table.splitlines() if line.startswith("| ")]


def test_every_promise_names_a_test_that_exists() -> None:
    rows = promise_rows()
    assert f"names {len(rows)} such cases" in (REPO / "README.md").read_text(encoding="utf-8")
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


def test_an_extra_is_installed_as_the_readme_has_it_and_never_by_a_name_on_no_index() -> None:
    """Whoever registered the name there would be installed."""
    from ocr2cli.errors import extra_hint

    assert extra_hint("hf,serve").split(": ")[1] in (REPO / "README.md").read_text("utf-8")
    extras = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))
    named = set()
    for path in (REPO / "ocr2cli").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install[^\n]*ocr2cli", text), path
        named |= set(re.findall(r"""extra_hint\(['"](\w+)""", text))
    assert len(named) >= 6 and named <= set(extras["project"]["optional-dependencies"])


def test_every_feature_names_an_example_and_a_test_that_exist() -> None:
    text = (REPO / "docs" / "promises.md").read_text(encoding="utf-8")
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


def test_every_link_leads_to_a_file_that_is_there() -> None:
    pages = [path for path in REPO.rglob("*.md") if not set(path.parts) & {".venv", "node_modules"}]
    for page in pages:
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not re.match(r"\w+:", link):
                assert (page.parent / link).exists(), f"{page.relative_to(REPO)}: {link}"


def test_the_formats_and_fields_are_explained() -> None:
    """docs/output.md is where a user looks for what a file or a field is."""
    from ocr2cli.output.formats import FORMATS
    from ocr2cli.output.jsonl import sidecar_row
    from ocr2cli.pages import PageKey, PageResult, Status

    text = (REPO / "docs" / "output.md").read_text(encoding="utf-8")
    page = PageResult(PageKey("a", 0), Status.OK, extra={"source": "cache"})
    row = sidecar_row(page, markdown="", fingerprint="", has_tokens=True)
    for name in [*FORMATS, *Status, *row]:
        assert f"`{name}`" in text, name
