"""The outcome as a table for people and as JSON for machines.

Knows how numbers are written; judges nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ocr2cli.errors import InputError, OutputError
from ocr2cli.eval.cases import file_sha256
from ocr2cli.eval.gates import State, group_failed, without_case
from ocr2cli.eval.metrics import METRICS, Scores, bootstrap_interval, chrf_signature
from ocr2cli.eval.report_html import html_report
from ocr2cli.eval.run import CaseOutcome, EvalOutcome, SuiteOutcome, mean_scores
from ocr2cli.pipeline.durable import atomic_write
from ocr2cli.printing import printable
from ocr2cli.text.prompt import prompt_text

SCHEMA = 1

# metric -> (heading, format). Shown when any case has it.
COLUMNS = {
    "cer": ("CER", "{:.4f}"),
    "chrf": ("chrF", "{:.2f}"),
    "whole_cer": ("page CER", "{:.4f}"),
    "whole_chrf": ("page chrF", "{:.2f}"),
    "word_recall": ("words", "{:.3f}"),
    "length_ratio": ("length", "{:.2f}"),
    "teds": ("TEDS", "{:.3f}"),
    "block_distance": ("blocks", "{:.4f}"),
    "order": ("order", "{:.3f}"),
    "facts": ("facts", "{:.3f}"),
}


def text_report(outcome: EvalOutcome) -> str:
    """The whole outcome in plain lines, at most about 110 columns wide."""
    model = outcome.model
    lines = [
        f"model {model.name} ({model.kind}, {model.num_parameters / 1e6:,.1f} M parameters, "
        f"{model.digest[:12] or 'no digest'}), {model.device} {model.dtype}, "
        f"ref {outcome.options.ref}"
    ]
    if not model.is_published_size:
        lines.append("the weights are not of the published size: recorded scores are not theirs")
    for suite in outcome.suites:
        lines += ["", *_suite_lines(suite)]
    lines += ["", *_verdict_lines(outcome)]
    lines.append(f"chrF {chrf_signature()}; pages read in {outcome.seconds:.1f} s")
    # What a page says may be in a fact's reason.
    return "".join(f"{printable(line)}\n" for line in lines)


def write_report(outcome: EvalOutcome, folder: Path) -> None:
    """report.json and report.html into `folder`. Raises: OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(json_report(outcome), indent=1) + "\n"
        atomic_write(folder / "report.json", text.encode())
        atomic_write(folder / "report.html", html_report(outcome).encode())
    except OSError as error:
        raise OutputError(
            f"the report cannot be written to {folder} ({error.strerror}). Give another --report."
        ) from error


def json_report(outcome: EvalOutcome) -> dict[str, Any]:
    """Everything but pixels: provenance, scores, verdicts, texts. passed: gates were checked, and
    none failed."""
    counts = _counts(outcome)
    return {
        "schema": SCHEMA,
        "passed": not outcome.failed and counts[State.PASSED] > 0,
        "gates": {state.value: count for state, count in counts.items()},
        "model": {**asdict(outcome.model)},
        "reference": {"name": outcome.options.ref, **dict(outcome.reference_identity)},
        "settings": {
            "engine": {k: v for k, v in asdict(outcome.options.engine).items() if k != "api_key"},
            "raster": {k: v for k, v in asdict(outcome.options.raster).items() if k != "password"},
        },
        "chrf_signature": chrf_signature(),
        "seconds": round(outcome.seconds, 3),
        "suites": [_suite_json(suite) for suite in outcome.suites],
    }


def interval_of(
    cases: Sequence[CaseOutcome], metric: str = "whole_cer"
) -> tuple[float, float] | None:
    """95 % interval of the mean over the cases that have the metric; None for none."""
    values = [v for case in cases if (v := case.ours.scores.get(metric)) is not None]
    return bootstrap_interval(values) if values else None


def fact_groups(cases: Sequence[CaseOutcome]) -> dict[str, tuple[int, int]]:
    """(held, all) of every group of facts whose ids read `group:id`."""
    groups: dict[str, tuple[int, int]] = {}
    for case in cases:
        for fact in case.ours.facts:
            name, colon, _ = fact.id.partition(":")
            if colon:
                held, total = groups.get(name, (0, 0))
                groups[name] = (held + fact.holds, total + 1)
    return groups


def _suite_lines(suite: SuiteOutcome) -> list[str]:
    lines = [f"suite {suite.suite.name}: {len(suite.cases)} run, {len(suite.not_run)} not run"]
    metrics = [m for m in COLUMNS if any(c.ours.scores.get(m) is not None for c in suite.cases)]
    has_reference = any(case.reference for case in suite.cases)
    header = ["case", "", *(COLUMNS[m][0] for m in metrics)]
    rows = [_row(case, metrics) for case in suite.cases]
    if len(suite.cases) > 1:
        rows.append(["mean", "", *_cells(mean_scores(suite.cases), metrics)])
    if has_reference:
        header += ["ref CER", "ref chrF"]
        for row, case in zip(rows, suite.cases, strict=False):
            row += _cells(case.reference.scores if case.reference else Scores(), ("cer", "chrf"))
        if len(suite.cases) > 1:
            means = mean_scores(suite.cases, of_reference=True)
            rows[-1] += _cells(means, ("cer", "chrf"))
    lines += _aligned([header, *rows])
    for metric in ("cer", "whole_cer"):
        if (interval := interval_of(suite.cases, metric)) and len(suite.cases) > 1:
            low, high = interval
            lines.append(
                f"mean {COLUMNS[metric][0]} 95 % interval {low:.4f} to {high:.4f} (bootstrap)"
            )
    lines += _group_lines(suite.cases)
    lines += [f"not run: {case.id}: {case.not_run}" for case in suite.not_run]
    return [*lines, *(f"note: {note}" for note in suite.suite.notes)]


def _group_lines(cases: Sequence[CaseOutcome]) -> list[str]:
    groups = fact_groups(cases)
    lines = [f"{name}: {held}/{total} facts hold" for name, (held, total) in groups.items()]
    if groups:
        overall = sum(held / total for held, total in groups.values()) / len(groups)
        lines.append(f"mean over the groups: {overall:.3f}")
    return lines


def _row(case: CaseOutcome, metrics: Sequence[str]) -> list[str]:
    state = case.result.status.value if case.result else "missing"
    return [case.case.id, state, *_cells(case.ours.scores, metrics)]


def _cells(scores: Scores, metrics: Sequence[str]) -> list[str]:
    values = ((m, scores.get(m)) for m in metrics)
    return ["-" if v is None else COLUMNS[m][1].format(v) for m, v in values]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            f"{c:<{w}}" if i < 2 else f"{c:>{w}}"
            for i, (c, w) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _verdict_lines(outcome: EvalOutcome) -> list[str]:
    lines = []
    for group in group_failed(outcome.verdicts):
        where = ", ".join(v.where if v.value is None else f"{v.where} {v.value:.4f}" for v in group)
        lines.append(f"FAILED {group[0].metric} {group[0].rule}: {where}")
        lines.append(f"       why this limit: {group[0].reason}")
    for verdict in without_case(outcome.verdicts):
        lines.append(
            f"not checked: {verdict.metric} {verdict.rule} for {verdict.where!r}: {verdict.note}"
        )
    counts = _counts(outcome)
    not_run = sum(len(suite.not_run) for suite in outcome.suites)
    lines.append(
        f"gates: {counts[State.PASSED]} passed, {counts[State.FAILED]} failed, "
        f"{counts[State.UNCHECKED]} not checked; cases not run: {not_run}"
    )
    if not counts[State.PASSED] and not counts[State.FAILED]:
        lines.append("no gate was checked: these scores prove nothing by themselves")
        if outcome.options.ref in ("none", "recorded"):
            lines.append("limits are set against a reference: compare with --ref hf or "
                         "--ref llama.cpp, on this machine")  # fmt: skip
    return [*lines, *_exact_lines(outcome)]


def _counts(outcome: EvalOutcome) -> dict[State, int]:
    return {state: sum(v.state is state for v in outcome.verdicts) for state in State}


def _exact_lines(outcome: EvalOutcome) -> list[str]:
    parities = [case.parity for case in outcome.cases if case.parity]
    if not parities:
        return []
    exact = sum(parity.is_exact for parity in parities)
    worst = max(
        (p.logit_difference for p in parities if p.logit_difference is not None), default=None
    )
    logits = "" if worst is None else f"; largest relative logit difference {worst:.2e}"
    return [f"parity: {exact} of {len(parities)} pages have the reference's exact tokens{logits}"]


def _suite_json(suite: SuiteOutcome) -> dict[str, Any]:
    intervals = {m: interval_of(suite.cases, m) for m in ("cer", "whole_cer")}
    return {
        "name": suite.suite.name,
        "mean": _scores_json(mean_scores(suite.cases)),
        "reference_mean": _scores_json(mean_scores(suite.cases, of_reference=True)),
        "mean_interval_95": {m: list(i) for m, i in intervals.items() if i},
        "fact_groups": {k: list(v) for k, v in fact_groups(suite.cases).items()},
        "cases": [_case_json(case) for case in suite.cases],
        "not_run": [{"id": case.id, "reason": case.not_run} for case in suite.not_run],
        "verdicts": [asdict(verdict) for verdict in suite.verdicts],
        "notes": list(suite.suite.notes),
    }


def _case_json(outcome: CaseOutcome) -> dict[str, Any]:
    case, result = outcome.case, outcome.result
    try:
        digest = file_sha256(case.path)
    except InputError:
        digest = ""
    return {
        "id": case.id,
        "document": case.path.name,
        "page": case.page + 1,
        "input_sha256": digest,
        "pixels_sha256": result.pixels_sha256 if result else "",
        "prompt": case.prompt_text or prompt_text(case.prompt),
        "decode": asdict(case.decode),
        "status": result.status.value if result else "missing",
        "error": asdict(result.error) if result and result.error else None,
        "new_tokens": result.new_tokens if result else 0,
        "seconds": dict(result.seconds) if result else {},
        "scores": _scores_json(outcome.ours.scores),
        "reference_scores": _scores_json(outcome.reference.scores) if outcome.reference else None,
        "facts": [asdict(fact) for fact in outcome.ours.facts],
        "parity": asdict(outcome.parity) if outcome.parity else None,
        "truth": outcome.ours.truth,
        "output": outcome.ours.output,
        "reference_output": outcome.reference.output if outcome.reference else "",
        "notes": list(outcome.notes),
    }


def _scores_json(scores: Scores) -> dict[str, float]:
    return {m: round(v, 6) for m in METRICS if (v := scores.get(m)) is not None}
