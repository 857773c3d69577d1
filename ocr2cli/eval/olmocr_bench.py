"""olmOCR-bench as the user holds it on disk: `pdfs/` and JSONL files of facts, to cases.

The format is the one its README describes. Its formulas are compared there as rendered by KaTeX
and here as LaTeX source, which is stricter. Knows nothing about scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ocr2cli.errors import InputError
from ocr2cli.eval.cases import Case, NamedFact, Suite
from ocr2cli.eval.facts import Absent, CellIs, Fact, Formula, Order, Present, Sound


def is_olmocr_bench(folder: Path) -> bool:
    """True when the folder looks like the benchmark's `bench_data`."""
    return (folder / "pdfs").is_dir() and any(folder.glob("*.jsonl"))


def load_olmocr_bench(folder: Path) -> Suite:
    """One case a page that has facts; each case also gets the benchmark's soundness fact.

    Raises: InputError when a line is damaged or no PDF is there.
    """
    facts: dict[tuple[str, int], list[NamedFact]] = {}
    notes: dict[str, int] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                _read_line(line, file, number, facts, notes)
    cases = [_case(folder, pdf, page, known) for (pdf, page), known in sorted(facts.items())]
    if not cases or all(case.not_run for case in cases):
        raise InputError(f"{folder}: none of its PDFs is below {folder / 'pdfs'}. Put them there.")
    return Suite(
        name="olmocr-bench",
        folder=folder,
        cases=tuple(cases),
        about="olmOCR-bench facts; formulas are compared as LaTeX source, not as rendered.",
        facts_gate=False,
        is_benchmark=True,
        notes=tuple(
            f"{count} facts of type {kind!r} are not scored" for kind, count in notes.items()
        ),
    )


def _read_line(
    line: str, file: Path, number: int, facts: dict[tuple[str, int], list[NamedFact]],
    notes: dict[str, int],
) -> None:  # fmt: skip
    where = f"{file}:{number}"
    try:
        row = json.loads(line)
        kind, pdf, page = str(row["type"]), str(row["pdf"]), int(row["page"])
        fact = _MAKERS[kind](row) if kind in _MAKERS else None
        name = f"{file.stem}:{row['id']}"
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: not in olmOCR-bench's format ({error!r}).") from error
    if row.get("checked") == "rejected":
        return
    known = facts.setdefault((pdf, page), [])
    if fact is None:
        notes[kind] = notes.get(kind, 0) + 1
    else:
        known.append(NamedFact(name, fact))


def _case(folder: Path, pdf: str, page: int, facts: list[NamedFact]) -> Case:
    path = folder / "pdfs" / pdf
    if not any(isinstance(named.fact, Sound) for named in facts):
        facts = [*facts, NamedFact(f"baseline:{pdf}", Sound())]
    return Case(
        id=f"{Path(pdf).with_suffix('')} p{page}",
        suite="olmocr-bench",
        path=path,
        page=page - 1,
        has_truth=False,
        facts=tuple(facts),
        prompt="markdown",
        not_run="" if path.is_file() else f"image missing: {pdf}",
    )


def _presence(kind: type[Present] | type[Absent]) -> Callable[[Mapping[str, Any]], Fact]:
    def make(row: Mapping[str, Any]) -> Fact:
        return kind(
            text=str(row["text"]),
            max_edits=int(row.get("max_diffs") or 0),
            first_n=int(row.get("first_n") or 0),
            last_n=int(row.get("last_n") or 0),
            is_case_sensitive=bool(row.get("case_sensitive", True)),
        )

    return make


def _order(row: Mapping[str, Any]) -> Fact:
    return Order(str(row["before"]), str(row["after"]), int(row.get("max_diffs") or 0))


def _cell(row: Mapping[str, Any]) -> Fact:
    neighbours = ("up", "down", "left", "right", "top_heading", "left_heading")
    texts = {name: str(row.get(name) or "") for name in neighbours}
    return CellIs(str(row["cell"]), max_edits=int(row.get("max_diffs") or 0), **texts)


def _sound(row: Mapping[str, Any]) -> Fact:
    length = row.get("max_length")
    return Sound(
        max_length=-1 if length is None else int(length),
        max_repeats=int(row.get("max_repeats") or 30),
        allows_cjk=not row.get("check_disallowed_characters", True),
    )


_MAKERS: dict[str, Callable[[Mapping[str, Any]], Fact]] = {
    "present": _presence(Present),
    "absent": _presence(Absent),
    "order": _order,
    "table": _cell,
    "math": lambda row: Formula(str(row["math"])),
    "baseline": _sound,
}
