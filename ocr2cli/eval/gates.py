"""The gates: limits from gates.toml and tolerances from the suite, turned into verdicts.

Knows nothing about how scores came to be. A missing page has scores too (the worst ones), so it
can never slip through; a limit that cannot be checked is said to be unchecked, never passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ocr2cli.errors import UsageError
from ocr2cli.eval.cases import Suite, Tolerance
from ocr2cli.eval.metrics import METRICS, Scores
from ocr2cli.eval.schema import check_keys, nearest, read_toml, take, take_tables

# exact_share: share of pages whose tokens equal the reference's. first_difference: number of equal
# tokens before the first differing one. logit_difference: largest difference of any logit of the
# first new token, relative to the reference's largest.
PARITY_METRICS = ("exact_share", "first_difference", "logit_difference")
DTYPES = ("", "float32", "bfloat16", "float16", "int8")
NO_SUCH_CASE = "no case has such a name"
BOUNDS = ("at_most", "at_least", "at_most_reference_plus", "at_least_reference_minus")


class State(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNCHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Gate:
    """One limit. cases: patterns of case ids, empty for all. is_overall: on the suite's mean.

    dtype: for models run in this dtype only ("float32", "int8"), and there in place of a limit
    for any dtype on the same metric; empty: in any. weights: digest of the only weights it is for;
    empty: any.
    """

    metric: str
    bound: str
    limit: float
    reason: str
    suite: str = "*"
    cases: tuple[str, ...] = ()
    is_overall: bool = False
    dtype: str = ""
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate on one case (or "overall"). rule: the limit in words; note: why unchecked.

    where: the case's id; with the note NO_SUCH_CASE, the pattern that names none.
    """

    where: str
    metric: str
    state: State
    rule: str
    reason: str
    value: float | None = None
    limit: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class CaseScores:
    """What the gates see of a case: our scores, the reference's, and parity with its tokens."""

    id: str
    ours: Scores
    reference: Scores | None = None
    parity: Mapping[str, float] | None = None


def load_gates(path: Path) -> list[Gate]:
    """Read a gates.toml. Raises: UsageError when a key is unknown or a number has no reason."""
    table = read_toml(path)
    check_keys(table, ("gate",), str(path))
    rows = take_tables(table, "gate", str(path))
    return [_read_gate(row, f"{path}: gate {n}") for n, row in enumerate(rows, start=1)]


def gates_of(
    suite: Suite, default_file: Path, dtype: str = "", weights: str = ""
) -> list[Gate]:
    """The suite's own gates file or the default one, and its tolerances as gates.

    dtype: the model's; limits for another one are left out, and a limit for this one stands in
    place of the same limit for any. weights: digest of the model's; limits for others are left out.
    Raises: UsageError for a mistake in the file.
    """
    file = suite.gates_file or default_file
    gates = load_gates(file) if file.is_file() else []
    if suite.gates_file is not None:
        _refuse_other_suites(gates, suite, file)
    gates = [gate for gate in gates if fnmatch(suite.name, gate.suite)]
    gates = [gate for gate in gates if gate.weights in ("", weights)]
    gates = _for_dtype(gates, dtype)
    for case in suite.cases:
        if case.tolerance is not None:
            gates += _tolerance_gates(case.tolerance, cases=(case.id,))
    if suite.overall is not None:
        gates += _tolerance_gates(suite.overall, is_overall=True)
    return gates


def _refuse_other_suites(gates: Sequence[Gate], suite: Suite, file: Path) -> None:
    """A suite's own limit that names another suite would never be asked."""
    for number, gate in enumerate(gates, start=1):
        if not fnmatch(suite.name, gate.suite):
            raise UsageError(
                f"{file}: gate {number}: suite = {gate.suite!r} is not this suite, whose name is "
                f"{suite.name!r}. Correct it, or leave it out."
            )


def _for_dtype(gates: Sequence[Gate], dtype: str) -> list[Gate]:
    own = {_subject(gate) for gate in gates if gate.dtype and gate.dtype == dtype}
    return [
        gate
        for gate in gates
        if gate.dtype == dtype or (not gate.dtype and _subject(gate) not in own)
    ]


def _subject(gate: Gate) -> tuple[object, ...]:
    """What a gate limits, whatever the limit."""
    return gate.metric, gate.bound, gate.suite, gate.cases, gate.is_overall, gate.weights


def judge(
    gates: Sequence[Gate],
    cases: Sequence[CaseScores],
    others: Sequence[str] = (),
    *,
    is_part: bool = False,
) -> list[Verdict]:
    """Every gate on every case it is meant for. No cases: no verdicts, so nothing is passed.

    others: ids of the suite's cases that did not run; a gate meant for them alone says nothing. A
    pattern of no case at all is unchecked, with NO_SUCH_CASE as its note. is_part: cases of the
    suite were left out, so that a mean is not the one that a limit is meant for.
    """
    verdicts: list[Verdict] = []
    ids = [*(case.id for case in cases), *others]
    for gate in gates:
        chosen = [c for c in cases if not gate.cases or any(_names(p, c.id) for p in gate.cases)]
        unknown = [p for p in gate.cases if not any(_names(p, name) for name in ids)]
        verdicts += [_verdict(gate, pattern, None, None, NO_SUCH_CASE) for pattern in unknown]
        if gate.is_overall and chosen:
            verdicts.append(_judge_mean(gate, chosen, is_part=is_part))
        elif not gate.is_overall:
            verdicts += [_judge_case(gate, case) for case in chosen]
    return verdicts


def _names(pattern: str, case: str) -> bool:
    return pattern == case or fnmatch(case, pattern)  # an id may itself hold a bracket


def _judge_case(gate: Gate, case: CaseScores) -> Verdict:
    if gate.metric in PARITY_METRICS:
        value = (case.parity or {}).get(gate.metric)
        return _verdict(gate, case.id, value, None, _why_no_parity(gate.metric, [case]))
    reference = case.reference.get(gate.metric) if case.reference else None
    return _verdict(gate, case.id, case.ours.get(gate.metric), reference)


def _judge_mean(gate: Gate, cases: Sequence[CaseScores], *, is_part: bool) -> Verdict:
    if gate.metric in PARITY_METRICS:
        values = [c.parity[gate.metric] for c in cases if c.parity and gate.metric in c.parity]
        return _verdict(gate, "overall", mean(values), None, _why_no_parity(gate.metric, cases))
    if "reference" in gate.bound:
        # only pages both have read: a mean over other pages would compare two different things
        cases = [c for c in cases if c.reference and c.reference.get(gate.metric) is not None]
    elif is_part and not gate.cases:
        return _verdict(gate, "overall", None, None, "only some of the suite's pages were read")
    ours = mean([v for c in cases if (v := c.ours.get(gate.metric)) is not None])
    theirs = mean(
        [v for c in cases if c.reference and (v := c.reference.get(gate.metric)) is not None]
    )
    return _verdict(gate, "overall", ours, theirs)


def _why_no_parity(metric: str, cases: Sequence[CaseScores]) -> str:
    """The note where none of the cases has the metric."""
    known = [case.parity for case in cases if case.parity]
    if not known:
        return "no tokens of a reference"
    if metric == "logit_difference":
        return "no logits to compare"
    is_equal = all(parity.get("exact_share") == 1 for parity in known)
    return "all tokens are equal" if is_equal else "no tokens of ours"


def _verdict(
    gate: Gate, where: str, value: float | None, reference: float | None, note: str = ""
) -> Verdict:
    rule = _RULES[gate.bound].format(gate.limit)
    limit = _limit(gate, reference)
    if note == NO_SUCH_CASE:
        state = State.UNCHECKED
    elif limit is None:
        state, note = State.UNCHECKED, "no reference score"
    elif value is None:
        state, note = State.UNCHECKED, note or "does not apply to this page"
    else:
        is_upper = gate.bound in ("at_most", "at_most_reference_plus")
        # scores are recorded to four digits: what differs by less is equal
        passed = value <= limit + 1e-9 if is_upper else value >= limit - 1e-9
        state, note = (State.PASSED if passed else State.FAILED), ""
    return Verdict(where, gate.metric, state, rule, gate.reason, value, limit, note)


def _limit(gate: Gate, reference: float | None) -> float | None:
    if gate.bound in ("at_most", "at_least"):
        return gate.limit
    if reference is None:
        return None
    return (
        reference + gate.limit if gate.bound == "at_most_reference_plus" else reference - gate.limit
    )


_RULES = {
    "at_most": "<= {:g}",
    "at_least": ">= {:g}",
    "at_most_reference_plus": "<= reference + {:g}",
    "at_least_reference_minus": ">= reference - {:g}",
}


def _tolerance_gates(
    tolerance: Tolerance, *, cases: tuple[str, ...] = (), is_overall: bool = False
) -> list[Gate]:
    rows = (
        ("cer", "at_most_reference_plus", tolerance.cer_tol),
        ("whole_cer", "at_most_reference_plus", tolerance.cer_tol),
        ("chrf", "at_least_reference_minus", tolerance.chrf_tol),
        ("whole_chrf", "at_least_reference_minus", tolerance.chrf_tol),
    )
    return [
        Gate(metric, bound, limit, tolerance.reason, cases=cases, is_overall=is_overall)
        for metric, bound, limit in rows
    ]


_GATE_KEYS = ("metric", "reason", "suite", "cases", "is_overall", "dtype", "weights", *BOUNDS)


def _read_gate(row: Mapping[str, Any], where: str) -> Gate:
    check_keys(row, _GATE_KEYS, where)
    metric = take(row, "metric", str, where)
    known = (*METRICS, *PARITY_METRICS)
    if metric not in known:
        raise UsageError(f"{where}: unknown metric {metric!r}.{nearest(metric, known)}")
    bounds = [bound for bound in BOUNDS if bound in row]
    if len(bounds) != 1:
        raise UsageError(f"{where}: give exactly one of {', '.join(BOUNDS)}.")
    reason = take(row, "reason", str, where)
    if not reason.strip():
        raise UsageError(f"{where}: 'reason' is empty. Say why the number is what it is.")
    limit = take(row, bounds[0], float, where)
    if not math.isfinite(limit):
        raise UsageError(f"{where}: {bounds[0]} = {limit} is no limit. Give a number.")
    cases = take(row, "cases", list, where, [])
    if wrong := [name for name in cases if not isinstance(name, str)]:
        raise UsageError(f"{where}: 'cases' must be a list of texts; {wrong[0]!r} is none.")
    return Gate(
        metric=metric,
        bound=bounds[0],
        limit=limit,
        reason=reason,
        suite=take(row, "suite", str, where, "*"),
        cases=tuple(cases),
        is_overall=take(row, "is_overall", bool, where, False),
        dtype=_read_dtype(row, where),
        weights=take(row, "weights", str, where, ""),
    )


def _read_dtype(row: Mapping[str, Any], where: str) -> str:
    dtype = take(row, "dtype", str, where, "")
    if dtype not in DTYPES:
        raise UsageError(f"{where}: unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    return dtype


def group_failed(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Failed verdicts, those of one limit together, in order of appearance."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.state is State.FAILED:
            key = (verdict.metric, verdict.rule, verdict.reason)
            groups.setdefault(key, []).append(verdict)
    return list(groups.values())


def without_case(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those whose pattern is the name of no case: most likely a mistake in a gates.toml."""
    return [verdict for verdict in verdicts if verdict.note == NO_SUCH_CASE]


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, None of nothing."""
    return sum(values) / len(values) if values else None
