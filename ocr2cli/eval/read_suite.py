"""Suites as they lie on a disk: folders of pages with truth, prompt, settings and facts.

A suite is a folder with `suite.toml`, or a plain folder in which every page has its truth beside it
(`letter.png`, `letter.txt` or `letter.md`). Knows nothing about models, or how a page is scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ocr2cli.config import DRAFT_MODES, DecodeConfig, DryConfig, RasterConfig
from ocr2cli.document.files import ENDINGS
from ocr2cli.errors import InputError, UsageError
from ocr2cli.eval.cases import (
    Case,
    NamedFact,
    Suite,
    Tolerance,
    file_sha256,
    page_ids,
    suites_folder,
)
from ocr2cli.eval.facts import Absent, CellIs, Order, Present, normalise
from ocr2cli.eval.metrics import METRICS, Scores
from ocr2cli.eval.schema import check_keys, nearest, read_toml, take, take_fields, take_tables

MODEL_KINDS = ("", "v1", "v2", "unlimited-ocr")


def find_suite_folder(name: str) -> Path:
    """The folder of a suite by name, or the folder itself. Raises: UsageError."""
    if Path(name).is_dir():
        return Path(name).resolve()
    home = suites_folder()
    known = sorted(p.parent.name for p in home.glob("*/suite.toml"))
    if name in known:
        return home / name
    raise UsageError(
        f"no suite or folder {name!r}.{nearest(name, known)} A path to a folder works too."
    )


def load_suite(folder: Path, *, images: Path | None = None) -> Suite:
    """Read `suite.toml`, or take a plain folder as it is.

    images: where pages that are not part of the suite are looked up by name and digest.
    Raises: UsageError (suite file), InputError (page or truth missing).
    """
    file = folder / "suite.toml"
    if not file.is_file():
        return _plain_suite(folder)
    table = read_toml(file)
    check_keys(table, ("name", "about", "defaults", "overall", "facts_gate", "case"), str(file))
    defaults = take(table, "defaults", dict, str(file), {})
    rows = take_tables(table, "case", str(file))
    if not rows:
        raise UsageError(f"{file}: there is no case in it. Add a [[case]] for each page.")
    name = take(table, "name", str, str(file))
    cases = [_read_case(row, defaults, folder=folder, suite=name, images=images) for row in rows]
    _check_ids([case.id for case in cases], str(file))
    gates = folder / "gates.toml"
    return Suite(
        name=name,
        folder=folder,
        cases=tuple(_with_recorded(cases, folder / "recorded.json")),
        about=take(table, "about", str, str(file), ""),
        overall=_read_tolerance(table.get("overall"), f"{file}: [overall]"),
        gates_file=gates if gates.is_file() else None,
        facts_gate=take(table, "facts_gate", bool, str(file), True),
    )


_CASE_KEYS = (
    "id", "page", "page_number", "sha256", "truth", "truth_sha256", "truth_markdown",
    "covers_page", "is_external", "needs", "prompt", "prompt_text", "mode", "decode", "recorded",
    "tolerance", "fact",
)  # fmt: skip


def _read_case(
    row: Mapping[str, Any], defaults: Mapping[str, Any], *, folder: Path, suite: str,
    images: Path | None,
) -> Case:  # fmt: skip
    where = f"{folder / 'suite.toml'}: case {row.get('id', '?')!r}"
    check_keys(defaults, _CASE_KEYS, f"{folder / 'suite.toml'}: [defaults]")
    check_keys(row, _CASE_KEYS, where)
    table = {**defaults, **row}
    needs = take(table, "needs", str, where, "")
    if needs not in MODEL_KINDS:
        raise UsageError(
            f"{where}: needs = {needs!r} is no kind of model.{nearest(needs, MODEL_KINDS)}"
        )
    case = Case(
        id=take(table, "id", str, where),
        suite=suite,
        path=folder / take(table, "page", str, where),
        page=_page_index(take(table, "page_number", int, where, 1), where),
        covers_page=take(table, "covers_page", bool, where, True),
        prompt=take(table, "prompt", str, where, "ocr"),
        prompt_text=take(table, "prompt_text", str, where, ""),
        mode=take(table, "mode", str, where, ""),
        decode=read_decode(take(table, "decode", dict, where, {}), where),
        needs=needs,
        recorded=_read_recorded(table.get("recorded"), where),
        tolerance=_read_tolerance(table.get("tolerance"), f"{where}: tolerance"),
        facts=_read_facts(take_tables(table, "fact", where, []), where),
    )
    if take(table, "is_external", bool, where, False):
        return _find_external(case, table, where, images)
    return _find_own(case, table, where, folder)


def _find_own(case: Case, table: Mapping[str, Any], where: str, folder: Path) -> Case:
    if not case.path.is_file():
        raise InputError(
            f"{where}: the page {case.path} is missing. Put it there, or drop the case."
        )
    digest = take(table, "sha256", str, where, "")
    if digest and file_sha256(case.path) != digest:
        raise InputError(
            f"{where}: {case.path} is not the page the truth was written for (sha256)."
        )
    truth = folder / take(table, "truth", str, where)
    markdown = take(table, "truth_markdown", str, where, "")
    return replace(
        case,
        truth=_read_truth(truth, where),
        truth_markdown=_read_truth(folder / markdown, where) if markdown else "",
    )


def _find_external(case: Case, table: Mapping[str, Any], where: str, images: Path | None) -> Case:
    truth_name = take(table, "truth", str, where)
    found: dict[str, Path] = {}
    for name, key in ((case.path.name, "sha256"), (truth_name, "truth_sha256")):
        path, why = _look_up(name, take(table, key, str, where), images)
        if path is None:
            return replace(case, not_run=why)
        found[key] = path
    return replace(case, path=found["sha256"], truth=_read_truth(found["truth_sha256"], where))


def _look_up(name: str, digest: str, images: Path | None) -> tuple[Path | None, str]:
    """The file of that name and digest below `images`, or why there is none."""
    if images is None:
        return None, f"image missing: {name}. Give its folder with --images DIR"
    candidates = sorted(images.rglob(name))
    for path in candidates:
        if path.is_file() and file_sha256(path) == digest:
            return path.resolve(), ""
    if candidates:
        return None, f"image missing: {candidates[0]} has another sha256 than the suite's {name}"
    return None, f"image missing: {name} is not below {images}"


def _plain_suite(folder: Path) -> Suite:
    pages = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not pages:
        raise InputError(
            f"{folder}: no suite.toml and no page image. Give a folder with pages and truth."
        )
    ids = page_ids([str(page.relative_to(folder)) for page in pages])
    _check_ids(ids, str(folder))
    cases = [_plain_case(page, name, folder.name) for page, name in zip(pages, ids, strict=True)]
    cases = _with_recorded(cases, folder / "recorded.json")
    return Suite(name=folder.name, folder=folder, cases=tuple(cases))


def _plain_case(page: Path, name: str, suite: str) -> Case:
    text, markdown = page.with_suffix(".txt"), page.with_suffix(".md")
    if not text.is_file() and not markdown.is_file():
        raise InputError(
            f"{page}: no truth. Put {text.name} or {markdown.name} beside it, or move it away."
        )
    marked = _read_truth(markdown, str(page)) if markdown.is_file() else ""
    plain = _read_truth(text, str(page)) if text.is_file() else ""
    _refuse_several_pages(page)
    return Case(
        id=name,
        suite=suite,
        path=page,
        truth=plain,
        truth_markdown=marked,
        prompt="ocr" if plain else "markdown",
    )


def _refuse_several_pages(document: Path) -> None:
    """The truth of a document is no truth of its first page.

    A file that cannot be opened is left to the run, which says so.
    """
    from ocr2cli.document.listing import inspect

    num_pages = inspect(str(document), RasterConfig()).num_pages
    if num_pages > 1:
        raise InputError(
            f"{document} has {num_pages} pages, and a plain folder has one truth for each file. "
            "Write a suite.toml with one case a page, each with its page_number and truth, or "
            "split the file."
        )


def read_decode(table: Mapping[str, Any], where: str) -> DecodeConfig:
    """A `[decode]` table; `dry = {}` turns llama.cpp's sampler on with its usual numbers."""
    where = f"{where}: decode"
    plain = {key: value for key, value in table.items() if key != "dry"}
    decode = DecodeConfig(**take_fields(plain, DecodeConfig, where))
    if decode.draft not in DRAFT_MODES:
        raise UsageError(f"{where}: draft = {decode.draft!r}.{nearest(decode.draft, DRAFT_MODES)}")
    if "dry" not in table:
        return decode
    dry = take(table, "dry", dict, where)
    return replace(decode, dry=DryConfig(**take_fields(dry, DryConfig, f"{where}: dry")))


def _read_recorded(table: Any, where: str) -> Scores | None:
    if table is None:
        return None
    check_keys(table, (*METRICS, "by"), f"{where}: recorded")
    take(table, "by", str, f"{where}: recorded")
    return Scores(**{k: take(table, k, float, where) for k in table if k != "by"})


def _with_recorded(cases: list[Case], file: Path) -> list[Case]:
    """Scores from recorded.json (`ocr2 eval --record`), for cases that state none themselves."""
    rows = read_recorded(file)["scores"]
    known = {name: Scores(**scores) for name, scores in rows.items()}
    return [
        case if case.recorded is not None else replace(case, recorded=known.get(case.id))
        for case in cases
    ]


def read_recorded(file: Path) -> dict[str, Any]:
    """What `ocr2 eval --record` wrote: "scores" by case id, and whose they are.

    Without the file there are no scores. Raises: UsageError when it is damaged.
    """
    if not file.is_file():
        return {"scores": {}}
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for scores in values["scores"].values():
            Scores(**scores)
            if bad := [v for v in scores.values() if type(v) not in (int, float, type(None))]:
                raise ValueError(f"{bad[0]!r} is no score")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file}: not recorded scores ({error}). Delete it, record anew."
        ) from error
    return values


def _read_tolerance(table: Any, where: str) -> Tolerance | None:
    if table is None:
        return None
    check_keys(table, ("cer_tol", "chrf_tol", "reason"), where)
    reason = take(table, "reason", str, where)
    if not reason.strip():
        raise UsageError(f"{where}: 'reason' is empty. Say why the numbers are what they are.")
    return Tolerance(
        take(table, "cer_tol", float, where), take(table, "chrf_tol", float, where), reason
    )


_FACT_KINDS: dict[str, type[Present | Absent | Order | CellIs]] = {
    "present": Present, "absent": Absent, "order": Order, "cell": CellIs,
}  # fmt: skip


def _read_facts(rows: list[dict[str, Any]], where: str) -> tuple[NamedFact, ...]:
    facts = []
    for number, row in enumerate(rows, start=1):
        here = f"{where}: fact {number}"
        kind = take(row, "kind", str, here)
        if kind not in _FACT_KINDS:
            raise UsageError(f"{here}: unknown kind {kind!r}.{nearest(kind, _FACT_KINDS)}")
        shape = _FACT_KINDS[kind]
        check_keys(row, ("kind", "reason", *shape.__dataclass_fields__), here)
        own = {k: v for k, v in row.items() if k not in ("kind", "reason")}
        values = take_fields(own, shape, here)
        if values.get("max_edits") and not take(row, "reason", str, here, "").strip():
            raise UsageError(f"{here}: max_edits needs a 'reason' beside it.")
        try:
            fact = shape(**values)
        except TypeError as error:
            raise UsageError(f"{here}: {error}".replace("__init__() ", "")) from error
        for key in ("text", "before", "after"):  # nothing is everywhere, and nowhere
            if key in values and not normalise(values[key]):
                raise UsageError(f"{here}: {key!r} is empty. Write what is looked for.")
        facts.append(NamedFact(f"{kind} {number}", fact))
    return tuple(facts)


def _read_truth(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{where}: truth {path} is missing. Write it, or drop the case."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: truth {path} is not UTF-8. Save it as UTF-8.") from error


def _page_index(number: int, where: str) -> int:
    if number < 1:
        raise UsageError(f"{where}: page_number is {number}; pages count from 1.")
    return number - 1


def _check_ids(ids: list[str], where: str) -> None:
    if "overall" in ids:  # so the verdicts on the mean of all pages are called
        raise UsageError(f"{where}: a page cannot have the id 'overall'. Rename it.")
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UsageError(f"{where}: two cases have the id {twice[0]!r}. Rename one.")
