"""Limits: what they read, when they fail, and when they say they could not be checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ocr2cli.errors import UsageError
from ocr2cli.eval.cases import Suite, Tolerance, suites_folder
from ocr2cli.eval.gates import (
    DTYPES,
    CaseScores,
    Gate,
    State,
    gates_of,
    judge,
    load_gates,
    without_case,
)
from ocr2cli.eval.metrics import Scores
from ocr2cli.eval.read_suite import find_suite_folder, load_suite

REASON = "because"


def states(gate: Gate, *cases: CaseScores) -> list[State]:
    return [verdict.state for verdict in judge([gate], cases)]


def case(name: str = "a", reference: Scores | None = None, **scores: float) -> CaseScores:
    return CaseScores(name, Scores(**scores), reference)


@pytest.mark.parametrize(
    ("bound", "limit", "value", "state"),
    [
        ("at_most", 0.05, 0.05, State.PASSED),
        ("at_most", 0.05, 0.0501, State.FAILED),
        ("at_least", 0.9, 0.9, State.PASSED),
        ("at_least", 0.9, 0.89, State.FAILED),
        ("at_most_reference_plus", 0.02, 0.12, State.PASSED),
        ("at_most_reference_plus", 0.02, 0.121, State.FAILED),
        ("at_least_reference_minus", 0.02, 0.08, State.PASSED),
        ("at_least_reference_minus", 0.02, 0.079, State.FAILED),
    ],
)
def test_a_limit_holds_up_to_itself(bound: str, limit: float, value: float, state: State) -> None:
    gate = Gate("cer", bound, limit, REASON)
    assert states(gate, case(cer=value, reference=Scores(cer=0.10))) == [state]


def test_without_a_reference_a_relative_gate_is_unchecked_and_not_passed() -> None:
    gate = Gate("cer", "at_most_reference_plus", 1.0, REASON)
    assert states(gate, case(cer=0.0)) == [State.UNCHECKED]
    assert states(gate, case(cer=0.0, reference=Scores(chrf=1.0))) == [State.UNCHECKED]


def test_a_score_that_does_not_apply_is_unchecked() -> None:
    assert states(Gate("teds", "at_least", 0.9, REASON), case(cer=0.0)) == [State.UNCHECKED]


def test_a_gate_is_for_the_cases_its_patterns_name() -> None:
    gate = Gate("cer", "at_most", 0.0, REASON, cases=("v2-*",))
    verdicts = judge([gate], [case("v1-a", cer=1.0), case("v2-b", cer=1.0)])
    assert [verdict.where for verdict in verdicts] == ["v2-b"]


def test_a_pattern_that_names_no_case_is_unchecked_and_says_so() -> None:
    gate = Gate("cer", "at_most", 0.0, REASON, cases=("v2-*", "v3-*"))
    found = judge([gate], [case("v2-b", cer=0.0)])
    assert [(v.where, v.state, v.note) for v in found] == [
        ("v3-*", State.UNCHECKED, "no case has such a name"),
        ("v2-b", State.PASSED, ""),
    ]
    mean = Gate("cer", "at_most_reference_plus", 0.0, REASON, cases=("typo",), is_overall=True)
    assert [v.where for v in without_case(judge([mean], [case("v2-b", cer=0.0)]))] == ["typo"]


def test_a_pattern_of_cases_that_did_not_run_says_nothing() -> None:
    gate = Gate("cer", "at_most", 0.0, REASON, cases=("v2-*", "v3-*"))
    verdicts = judge([gate], [case("v2-b", cer=0.0)], ["v3-a"])
    assert [verdict.where for verdict in verdicts] == ["v2-b"]


def test_a_limit_finds_its_case_whatever_is_in_the_name() -> None:
    gate = Gate("cer", "at_most", 0.0, REASON, cases=("page [1]",))
    assert states(gate, case("page [1]", cer=1.0)) == [State.FAILED]


def test_a_suites_own_limit_for_another_suite_is_refused(tmp_path: Path) -> None:
    row = '[[gate]]\nmetric = "cer"\nat_most = 0.1\nreason = "x"\n'
    file = tmp_path / "gates.toml"
    file.write_text(row + row + 'suite = "toi"\n', encoding="utf-8")
    suite = Suite("toy", tmp_path, (), gates_file=file)
    with pytest.raises(UsageError, match=r"gate 2: suite = 'toi' is not this suite.*'toy'"):
        gates_of(suite, tmp_path / "none.toml")
    # in the file for all suites it is for others
    assert len(gates_of(replace(suite, gates_file=None), file)) == 1
    file.write_text(row + 'suite = "t*"\n', encoding="utf-8")
    assert len(gates_of(suite, tmp_path / "none.toml")) == 1


def test_an_overall_gate_takes_the_mean_of_pages_both_have_read() -> None:
    gate = Gate("cer", "at_most_reference_plus", 0.05, REASON, is_overall=True)
    read = case("a", cer=0.10, reference=Scores(cer=0.06))
    unread = case("b", cer=0.9)
    (verdict,) = judge([gate], [read, unread])
    assert (verdict.state, verdict.value) == (State.PASSED, 0.10)
    (verdict,) = judge([gate], [read, case("b", cer=0.9, reference=Scores(cer=0.5))])
    assert verdict.state is State.FAILED and verdict.limit == pytest.approx(0.33)


def test_parity_gates_judge_tokens_and_say_when_there_are_none() -> None:
    share = Gate("exact_share", "at_least", 0.8, REASON, is_overall=True)
    logits = Gate("logit_difference", "at_most", 0.02, REASON)
    good = CaseScores("a", Scores(), parity={"exact_share": 1.0, "logit_difference": 0.001})
    bad = CaseScores("b", Scores(), parity={"exact_share": 0.0, "logit_difference": 0.5})
    assert states(share, good, bad) == [State.FAILED]
    assert states(share, good) == [State.PASSED]
    assert states(share, case()) == [State.UNCHECKED]
    assert states(logits, good, bad, case("c")) == [State.PASSED, State.FAILED, State.UNCHECKED]


def test_the_first_difference_does_not_apply_to_equal_pages() -> None:
    gate = Gate("first_difference", "at_least", 20, REASON)
    exact = CaseScores("a", Scores(), parity={"exact_share": 1.0})
    early = CaseScores("b", Scores(), parity={"exact_share": 0.0, "first_difference": 3.0})
    assert states(gate, exact, early) == [State.UNCHECKED, State.FAILED]


@pytest.mark.parametrize("is_overall", [False, True])
@pytest.mark.parametrize(
    ("metric", "parity", "note"),
    [
        ("first_difference", {"exact_share": 1.0}, "all tokens are equal"),
        ("first_difference", {"exact_share": 0.0}, "no tokens of ours"),
        ("logit_difference", {"exact_share": 0.0, "first_difference": 3.0}, "no logits to compare"),
        ("logit_difference", {"exact_share": 1.0}, "no logits to compare"),
        ("exact_share", None, "no tokens of a reference"),
    ],
)
def test_why_parity_is_not_checked_is_said_as_it_is(
    metric: str, parity: dict[str, float] | None, note: str, is_overall: bool
) -> None:
    gate = Gate(metric, "at_most", 1.0, REASON, is_overall=is_overall)
    (verdict,) = judge([gate], [CaseScores("a", Scores(), parity=parity)])
    assert (verdict.state, verdict.note) == (State.UNCHECKED, note)


def test_pages_of_which_one_differs_are_not_said_to_be_equal() -> None:
    gate = Gate("first_difference", "at_least", 20, REASON, is_overall=True)
    pages = [CaseScores(name, Scores(), parity={"exact_share": share})
             for name, share in (("a", 1.0), ("b", 0.0))]  # fmt: skip
    (verdict,) = judge([gate], pages)
    assert (verdict.state, verdict.note) == (State.UNCHECKED, "no tokens of ours")


def test_a_tolerance_gates_aligned_and_whole_page_scores_of_its_own_case() -> None:
    suite = load_suite(find_suite_folder("seed"))
    gates = gates_of(suite, suites_folder() / "gates.toml")
    mine = [(g.metric, g.bound, g.limit) for g in gates if g.cases == ("v2-multi-tile",)]
    assert ("cer", "at_most_reference_plus", 0.03) in mine
    assert ("whole_cer", "at_most_reference_plus", 0.03) in mine
    assert ("chrf", "at_least_reference_minus", 3.0) in mine
    assert ("whole_chrf", "at_least_reference_minus", 3.0) in mine


def test_the_overall_tolerance_gates_the_means(tmp_path: Path) -> None:
    suite = Suite("toy", tmp_path, (), overall=Tolerance(0.01, 1.0, REASON))
    gates = gates_of(suite, tmp_path / "none.toml")
    assert len(gates) == 4 and all(gate.is_overall for gate in gates)


def test_a_limit_for_one_dtype_is_not_asked_of_another(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    row = (
        '[[gate]]\nmetric = "logit_difference"\nat_most = 0.001\ndtype = "float32"\nreason = "x"\n'
    )
    file.write_text(row, encoding="utf-8")
    suite = Suite("toy", tmp_path, ())
    assert len(gates_of(suite, file, "float32")) == 1
    assert gates_of(suite, file, "bfloat16") == []
    file.write_text(row.replace("float32", "float23"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"Did you mean 'float32'\?"):
        load_gates(file)


def test_a_limit_for_one_dtype_stands_in_place_of_the_same_limit_for_any(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    strict = '[[gate]]\nmetric = "cer"\nat_most_reference_plus = 0.02\nreason = "x"\n'
    wide = strict.replace("0.02", '0.1\ndtype = "int8"')
    mean = strict + "is_overall = true\n"
    file.write_text(wide + strict + mean, encoding="utf-8")
    suite = Suite("toy", tmp_path, ())

    def limits(dtype: str) -> list[tuple[float, bool]]:
        return [(gate.limit, gate.is_overall) for gate in gates_of(suite, file, dtype)]

    assert limits("float32") == [(0.02, False), (0.02, True)]
    assert limits("int8") == [(0.1, False), (0.02, True)]
    fixed = strict.replace("at_most_reference_plus = 0.02", "at_most = 0.3")
    some = strict.replace("0.02", '0.05\nweights = "ab12"')
    file.write_text(wide + fixed + some, encoding="utf-8")
    found = gates_of(suite, file, "int8", "ab12")
    assert [gate.limit for gate in found] == [0.1, 0.3, 0.05], "limits of other things"


def test_a_limit_for_some_weights_is_not_asked_of_others(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    row = '[[gate]]\nmetric = "cer"\nat_most = 0.1\nreason = "x"\n'
    file.write_text(row + row + 'weights = "ab12"\n', encoding="utf-8")
    suite = Suite("toy", tmp_path, ())
    assert len(gates_of(suite, file, "float32", "ab12")) == 2
    assert len(gates_of(suite, file, "float32", "cd34")) == len(gates_of(suite, file)) == 1


def test_a_limit_on_the_mean_of_all_pages_is_not_asked_of_some() -> None:
    gate = Gate("cer", "at_most", 0.1, REASON, is_overall=True)
    (verdict,) = judge([gate], [case("a", cer=0.5)], ["b"], is_part=True)
    assert verdict.state is State.UNCHECKED and verdict.note.startswith("only some of the suite")
    relative = replace(gate, bound="at_most_reference_plus")
    read = case("a", cer=0.5, reference=Scores(cer=0.0))
    assert judge([relative], [read], ["b"], is_part=True)[0].state is State.FAILED


def test_every_dtype_has_a_limit_on_its_logits(tmp_path: Path) -> None:
    for dtype in DTYPES[1:]:
        gates = gates_of(Suite("toy", tmp_path, ()), suites_folder() / "gates.toml", dtype)
        assert [gate.dtype for gate in gates if gate.metric == "logit_difference"] == [dtype]


def test_int8_has_every_limit_of_the_tool_and_none_of_the_strict_ones(tmp_path: Path) -> None:
    suite = Suite("toy", tmp_path, ())
    whole = gates_of(suite, suites_folder() / "gates.toml", "float32")
    small = gates_of(suite, suites_folder() / "gates.toml", "int8")
    asked = [(gate.metric, gate.bound, gate.is_overall) for gate in whole]
    assert sorted((gate.metric, gate.bound, gate.is_overall) for gate in small) == sorted(asked)
    assert all(gate.dtype == "int8" for gate in small)


@pytest.mark.parametrize("file", sorted(suites_folder().rglob("gates.toml")), ids=str)
def test_every_limit_that_comes_with_the_tool_has_a_reason(file: Path) -> None:
    gates = load_gates(file)
    assert gates and all(len(gate.reason) > 20 for gate in gates)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('metric = "cer"\nat_most = 0.1', "'reason' is missing"),
        ('metric = "cer"\nat_most = 0.1\nreason = "  "', "'reason' is empty"),
        ('metric = "cerr"\nat_most = 0.1\nreason = "x"', r"Did you mean 'cer'\?"),
        ('metric = "cer"\natmost = 0.1\nreason = "x"', r"Did you mean 'at_most'\?"),
        ('metric = "cer"\nreason = "x"', "exactly one of"),
        ('metric = "cer"\nat_most = 1\nat_least = 0\nreason = "x"', "exactly one of"),
        ('metric = "cer"\nat_most = "1"\nreason = "x"', "must be a number"),
        ('metric = "cer"\nat_most = inf\nreason = "x"', "at_most = inf is no limit"),
        ('metric = "cer"\nat_least = nan\nreason = "x"', "at_least = nan is no limit"),
        ('metric = "cer"\nat_most = 1\nreason = "x"\ncases = ["a", 1]', "of texts; 1 is none"),
    ],
)
def test_a_gate_with_a_mistake_is_refused_in_one_line(
    tmp_path: Path, row: str, message: str
) -> None:
    file = tmp_path / "gates.toml"
    file.write_text(f"[[gate]]\n{row}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_gates(file)
    assert "gate 1" in str(caught.value) and "\n" not in str(caught.value)
