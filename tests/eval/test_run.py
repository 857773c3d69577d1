"""A whole evaluation with toy readers: what fails, what passes, what is said."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_toys import TRUTH, draw_page, failed_result, page_result, reads, reads_truth

from ocr2cli.config import EngineConfig
from ocr2cli.errors import ExitCode, GateFailed, InputError, OutputError, UsageError
from ocr2cli.eval.cases import Case, suites_folder
from ocr2cli.eval.gates import State, gates_of, judge
from ocr2cli.eval.provenance import ModelFacts, model_facts
from ocr2cli.eval.read_suite import find_suite_folder, load_suite
from ocr2cli.eval.record import record_scores
from ocr2cli.eval.reference import Reference, ReferenceOutput
from ocr2cli.eval.report import json_report, text_report
from ocr2cli.eval.report_html import html_report
from ocr2cli.eval.run import EvalOptions, EvalOutcome, run_eval
from ocr2cli.pages import FinishReason, PageImage, PageResult, Status

MakeSuite = Callable[..., Path]

STRICT = """
[[gate]]
metric = "cer"
at_most = 0.1
reason = "a toy limit for the aligned score"
[[gate]]
metric = "whole_cer"
at_most = 0.1
reason = "a toy limit for the whole page"
"""


def failed_metrics(outcome: EvalOutcome) -> set[str]:
    return {verdict.metric for verdict in outcome.failed}


def test_a_right_page_passes_and_exits_zero(make_suite: MakeSuite, v2_model: ModelFacts) -> None:
    options = EvalOptions(suites=(str(make_suite(gates=STRICT)),))
    outcome = run_eval(options, reads_truth(), model=v2_model)
    outcome.raise_for_gates()
    assert {verdict.state for verdict in outcome.verdicts} == {State.PASSED}


def test_a_loop_after_a_perfect_page_fails_a_gate(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    options = EvalOptions(suites=(str(make_suite(gates=STRICT)),))
    outcome = run_eval(options, reads(TRUTH + " The rest." * 300), model=v2_model)
    assert outcome.cases[0].ours.scores.cer == 0.0
    assert failed_metrics(outcome) == {"whole_cer"}
    with pytest.raises(GateFailed) as caught:
        outcome.raise_for_gates()
    assert caught.value.exit_code is ExitCode.GATE_FAILED


def test_a_failed_page_and_a_missing_page_count_as_wrong(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    options = EvalOptions(suites=(str(make_suite(("one", "two", "three"), gates=STRICT)),))

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        return [page_result(cases[0], TRUTH), failed_result(cases[1])]  # the third is lost

    outcome = run_eval(options, reader, model=v2_model)
    assert [case.ours.scores.whole_cer for case in outcome.cases] == [0.0, 1.0, 1.0]
    assert {v.where for v in outcome.failed} == {"two", "three"}
    assert "missing" in text_report(outcome)


def test_text_of_a_failed_page_is_not_scored(make_suite: MakeSuite, v2_model: ModelFacts) -> None:
    options = EvalOptions(suites=(str(make_suite()),))

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        return [replace(failed_result(case), markdown=TRUTH) for case in cases]

    assert run_eval(options, reader, model=v2_model).cases[0].ours.scores.cer == 1.0


def test_a_page_the_decoder_did_not_end_is_not_stopped(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    gates = '[[gate]]\nmetric = "stopped"\nat_least = 1\nreason = "a page must end by itself"'
    options = EvalOptions(suites=(str(make_suite(gates=gates)),))

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        ended = {"status": Status.LOOP, "finish_reason": FinishReason.LOOP}
        return [page_result(case, TRUTH, **ended) for case in cases]

    assert failed_metrics(run_eval(options, reader, model=v2_model)) == {"stopped"}


def test_a_fact_that_does_not_hold_fails_whatever_the_scores(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    fact = '[[case.fact]]\nkind = "order"\nbefore = "herring"\nafter = "Monday"'
    options = EvalOptions(suites=(str(make_suite(gates=STRICT, case_extra=fact)),))
    outcome = run_eval(options, reads_truth(), model=v2_model)
    assert failed_metrics(outcome) == {"fact"}
    assert "does not come before" in text_report(outcome)


def test_facts_are_a_score_alone_where_the_suite_says_so(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    fact = '[[case.fact]]\nkind = "present"\ntext = "whale"'
    folder = make_suite(case_extra=fact)
    text = (folder / "suite.toml").read_text(encoding="utf-8")
    (folder / "suite.toml").write_text("facts_gate = false\n" + text, encoding="utf-8")
    outcome = run_eval(EvalOptions(suites=(str(folder),)), reads_truth(), model=v2_model)
    assert not outcome.failed and outcome.cases[0].ours.scores.facts == 0.0


def test_the_seed_suite_says_truthfully_that_nothing_could_run(v2_model: ModelFacts) -> None:
    with pytest.raises(InputError, match=r"no case could be run\. .*test-1\.jpeg.*--images DIR"):
        run_eval(EvalOptions(suites=("seed",)), reads("x"), model=v2_model)


def seed_like(make_suite: MakeSuite) -> Path:
    return make_suite(
        gates="gate = []",
        case_extra='needs = "v2"\nrecorded = { cer = 0.0236, chrf = 97.05, by = "a test" }\n'
        'tolerance = { cer_tol = 0.03, chrf_tol = 3.0, reason = "a toy tolerance" }',
    )


def test_recorded_scores_judge_the_aligned_text(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    options = EvalOptions(suites=(str(seed_like(make_suite)),), ref="recorded")
    good = run_eval(options, reads_truth(), model=v2_model)
    assert {v.metric for v in good.verdicts if v.state is State.PASSED} == {"cer", "chrf"}
    bad = run_eval(options, reads(TRUTH.replace("e", "o")), model=v2_model)
    assert failed_metrics(bad) == {"cer", "chrf"}


def test_ref_none_leaves_relative_gates_unchecked_and_says_so(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    options = EvalOptions(suites=(str(seed_like(make_suite)),), ref="none")
    outcome = run_eval(options, reads("rubbish"), model=v2_model)
    outcome.raise_for_gates()
    assert {verdict.state for verdict in outcome.verdicts} == {State.UNCHECKED}
    assert "no gate was checked: these scores prove nothing" in text_report(outcome)
    assert "compare with --ref hf or --ref llama.cpp" in text_report(outcome)
    report = json_report(outcome)
    assert report["gates"] == {"passed": 0, "failed": 0, "not checked": len(outcome.verdicts)}
    assert report["passed"] is False


def test_a_case_for_another_model_is_not_run_and_not_passed(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    folder = make_suite(("old", "new"))
    text = (folder / "suite.toml").read_text(encoding="utf-8")
    text = text.replace('id = "old"', 'id = "old"\nneeds = "v1"')
    (folder / "suite.toml").write_text(text, encoding="utf-8")
    outcome = run_eval(EvalOptions(suites=(str(folder),)), reads_truth(), model=v2_model)
    assert [case.case.id for case in outcome.cases] == ["new"]
    report = text_report(outcome)
    assert "1 run, 1 not run" in report
    assert "not run: old: needs a v1 checkpoint, this one is v2" in report
    assert json_report(outcome)["suites"][0]["not_run"][0]["id"] == "old"


def reference_of(text: str, logits: np.ndarray | None = None) -> Reference:
    def read(case: Case, page: PageImage) -> ReferenceOutput:
        return ReferenceOutput(text, tuple(text.encode()), logits)

    return Reference("hf", {"weights": "toy"}, read)


PARITY = """
[[gate]]
metric = "exact_share"
at_least = 1.0
is_overall = true
reason = "toy tokens must be equal"
[[gate]]
metric = "logit_difference"
at_most = 0.02
reason = "toy logits must be near"
"""


def test_lucky_scores_do_not_pass_the_parity_gates(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    """Ours equals the truth, the reference does not: better, and still not the same model."""
    options = EvalOptions(suites=(str(make_suite(gates=PARITY)),), ref="hf")
    reference = reference_of(TRUTH.replace("Monday", "Sunday"))
    outcome = run_eval(options, reads_truth(), reference=reference, model=v2_model)
    assert failed_metrics(outcome) == {"exact_share"}
    parity = outcome.cases[0].parity
    assert parity is not None and parity.first_difference == TRUTH.index("Monday")


def test_equal_tokens_with_other_logits_fail_the_logit_gate(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    options = EvalOptions(suites=(str(make_suite(gates=PARITY)),), ref="hf")
    reference = reference_of(TRUTH, np.array([1.0, 4.0], np.float32))
    near = run_eval(
        options, reads_truth(), reference=reference, model=v2_model,
        first_logits=lambda case, page: np.array([1.0, 4.01], np.float32),
    )  # fmt: skip
    assert not near.failed
    far = run_eval(
        options, reads_truth(), reference=reference, model=v2_model,
        first_logits=lambda case, page: np.array([1.0, 4.1], np.float32),
    )  # fmt: skip
    assert failed_metrics(far) == {"logit_difference"}


def test_a_reference_is_asked_once_for_a_page_and_then_cached(
    make_suite: MakeSuite, v2_model: ModelFacts, tmp_path: Path
) -> None:
    asked: list[str] = []

    def read(case: Case, page: PageImage) -> ReferenceOutput:
        asked.append(case.id)
        return ReferenceOutput(TRUTH, (1, 2), np.array([1.5], np.float32), ("a note",))

    options = EvalOptions(suites=(str(make_suite()),), ref="hf", cache=tmp_path / "cache")
    for _ in range(2):
        reference = Reference("hf", {"weights": "a"}, read)
        outcome = run_eval(options, reads_truth(), reference=reference, model=v2_model)
        assert outcome.cases[0].notes == ("a note",)
        assert outcome.cases[0].reference is not None
    assert asked == ["one"]
    other = Reference("hf", {"weights": "b"}, read)
    run_eval(options, reads_truth(), reference=other, model=v2_model)
    assert asked == ["one", "one"]


def test_a_references_scores_can_be_recorded_and_judge_a_later_run(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    gates = (
        '[[gate]]\nmetric = "whole_cer"\nat_most_reference_plus = 0.01\n'
        'reason = "no worse than what was recorded"'
    )
    options = EvalOptions(suites=(str(make_suite(gates=gates)),), ref="hf")
    outcome = run_eval(options, reads_truth(), reference=reference_of(TRUTH), model=v2_model)
    (file,) = record_scores(outcome)
    later = replace(options, ref="recorded")
    run_eval(later, reads_truth(), model=v2_model).raise_for_gates()
    worse = run_eval(later, reads(TRUTH.replace("the", "a")), model=v2_model)
    assert failed_metrics(worse) == {"whole_cer"}
    with pytest.raises(UsageError, match="give --ref hf"):
        record_scores(worse)
    file.write_text('{"scores": {"one": {"cerr": 1}}}', encoding="utf-8")
    with pytest.raises(UsageError, match="not recorded scores"):
        run_eval(later, reads_truth(), model=v2_model)


def test_recording_some_cases_keeps_the_scores_of_the_others(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    folder = make_suite(("one", "two"))
    options = EvalOptions(suites=(str(folder),), ref="hf")

    def recorded(text: str, version: str, *only: str) -> dict[str, Any]:
        reference = replace(reference_of(text), identity={"transformers": version})
        chosen = replace(options, only=only)
        (file,) = record_scores(
            run_eval(chosen, reads_truth(), reference=reference, model=v2_model)
        )
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return values

    first = recorded("rubbish", "1")
    assert set(first["scores"]) == {"one", "two"} and "sources" not in first
    second = recorded(TRUTH, "2", "two")
    assert second["scores"]["one"] == first["scores"]["one"]
    assert second["scores"]["two"]["whole_cer"] == 0.0
    # and whose they are is not forgotten
    by_first = {"by": {"reference": "hf", "transformers": "1"}, "model": "toy"}
    assert second["by"]["transformers"] == "2" and second["sources"] == {"one": by_first}
    third = recorded(TRUTH, "2")
    assert third["scores"]["one"]["whole_cer"] == 0.0 and "sources" not in third
    assert not list(folder.glob(".*"))


def test_recorded_scores_are_replaced_whole_or_left_alone(
    make_suite: MakeSuite, v2_model: ModelFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EvalOptions(suites=(str(make_suite()),), ref="hf")
    outcome = run_eval(options, reads_truth(), reference=reference_of(TRUTH), model=v2_model)
    (file,) = record_scores(outcome)
    before = file.read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"recorded\.json cannot be written \(No space left"):
        record_scores(outcome)
    assert file.read_bytes() == before and [p.name for p in file.parent.glob(".*")] == []


def test_recorded_scores_of_a_plain_folder_judge_a_later_run(
    v2_model: ModelFacts, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    draw_page(folder / "one.png", "one")
    (folder / "one.txt").write_text(TRUTH, encoding="utf-8")
    options = EvalOptions(suites=(str(folder),), ref="hf")
    outcome = run_eval(options, reads_truth(), reference=reference_of(TRUTH), model=v2_model)
    record_scores(outcome)
    later = replace(options, ref="recorded")
    assert "whole_cer" in failed_metrics(run_eval(later, reads("rubbish"), model=v2_model))


def test_a_gate_for_a_case_that_is_not_in_the_suite_is_said_in_the_reports(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    gates = STRICT + 'cases = ["page-*", "pgae-b"]\n'
    folder = str(make_suite(("page-a", "page-b"), gates=gates))
    # what --case leaves out is in the suite all the same
    for only in ((), ("page-b",)):
        outcome = run_eval(
            EvalOptions(suites=(folder,), only=only), reads_truth(), model=v2_model
        )
        outcome.raise_for_gates()
        said = "not checked: whole_cer <= 0.1 for 'pgae-b': no case has such a name\n"
        assert text_report(outcome).count("not checked: ") == 1
        assert said in text_report(outcome)
        row = "<td>not checked: no case has such a name</td><td>pgae-b</td>"
        assert row in html_report(outcome)


@pytest.mark.parametrize("name", ["bundled", "seed"])
def test_the_suites_that_come_with_the_tool_have_no_gate_without_a_case(
    name: str, v2_model: ModelFacts
) -> None:
    suite = load_suite(find_suite_folder(name))
    gates = gates_of(suite, suites_folder() / "gates.toml", v2_model.dtype)
    assert gates and judge(gates, [], [case.id for case in suite.cases]) == []


@pytest.fixture(scope="module")
def nano() -> ModelFacts:
    return model_facts(EngineConfig(device="cpu"))


def test_the_bundled_model_is_held_to_what_it_is_known_to_read_without_any_reference(
    nano: ModelFacts, v2_model: ModelFacts
) -> None:
    options = EvalOptions(ref="none")
    right = run_eval(options, reads_truth(), model=nano)
    assert not right.failed
    assert {v.metric for v in right.verdicts if v.state is State.PASSED} == {
        "whole_cer", "word_recall", "length_ratio"
    }
    for text in ("", "Lighthouse"):
        wrong = run_eval(options, reads(text), model=nano)
        assert failed_metrics(wrong) == {"whole_cer", "word_recall", "length_ratio"}
    one = run_eval(replace(options, only=("note-door",)), reads(""), model=nano)
    assert [verdict.where for verdict in one.failed] == ["note-door"]
    # of other weights nothing is known, and of the same ones on other pages neither
    assert not run_eval(options, reads(""), model=v2_model).failed


def test_no_absolute_limit_of_the_tool_is_for_another_suite(
    make_suite: MakeSuite, nano: ModelFacts
) -> None:
    folder = make_suite()
    (folder / "gates.toml").unlink()
    outcome = run_eval(EvalOptions(suites=(str(folder),)), reads(""), model=nano)
    assert not outcome.failed


def test_a_mistake_in_the_gates_is_said_before_anything_runs(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    folder = make_suite(gates=STRICT + 'suite = "toi"\n')

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        raise AssertionError("nothing may be read")

    with pytest.raises(UsageError, match="suite = 'toi' is not this suite"):
        run_eval(EvalOptions(suites=(str(folder),)), reader, model=v2_model)


def test_a_case_without_a_mode_is_read_in_the_one_that_was_asked_for(
    make_suite: MakeSuite, v2_model: ModelFacts, tmp_path: Path
) -> None:
    folder = make_suite(("one", "two"))
    text = (folder / "suite.toml").read_text(encoding="utf-8")
    text = text.replace('id = "two"', 'id = "two"\nmode = "tiny"')
    (folder / "suite.toml").write_text(text, encoding="utf-8")
    read: list[tuple[str, str]] = []
    asked: list[tuple[str, str]] = []

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        read.extend((case.id, case.mode) for case in cases)
        return reads_truth()(cases)

    def reference(case: Case, page: PageImage) -> ReferenceOutput:
        asked.append((case.id, case.mode))
        return ReferenceOutput(TRUTH)

    for mode in ("base", "base", "large"):
        run_eval(
            EvalOptions(
                suites=(str(folder),), ref="hf", cache=tmp_path / "cache",
                engine=EngineConfig(mode=mode),
            ),
            reader, reference=Reference("hf", {}, reference), model=v2_model,
        )  # fmt: skip
    base, large, own = ("one", "base"), ("one", "large"), ("two", "tiny")
    assert read == [base, own, base, own, large, own]
    assert asked == [base, own, large]  # the cache knows the mode


def test_a_mode_that_there_is_not_is_refused_for_v1_before_anything_runs(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    options = EvalOptions(suites=(str(make_suite()),), engine=EngineConfig(mode="gundma"))

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        raise AssertionError("nothing may be read")

    with pytest.raises(UsageError, match="there is no mode 'gundma'; choose one of tiny"):
        run_eval(options, reader, model=replace(v2_model, kind="v1"))


def test_cases_are_chosen_by_pattern_and_an_unknown_name_is_said(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    folder = str(make_suite(("page-a", "page-b", "letter")))
    options = EvalOptions(suites=(folder,), only=("page-*",))
    outcome = run_eval(options, reads_truth(), model=v2_model)
    assert [case.case.id for case in outcome.cases] == ["page-a", "page-b"]
    with pytest.raises(InputError, match="No case has such a name"):
        run_eval(EvalOptions(suites=(folder,), only=("nothing",)), reads_truth(), model=v2_model)


def test_an_unreadable_page_of_a_suite_is_named_before_anything_runs(
    make_suite: MakeSuite, v2_model: ModelFacts
) -> None:
    folder = make_suite()
    (folder / "one.png").write_bytes(b"this is no image")

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        raise AssertionError("nothing may be read")

    with pytest.raises(
        InputError, match=r"one\.png page 1 cannot be read: .*[^.]\. Or drop the case 'one'\."
    ):
        run_eval(EvalOptions(suites=(str(folder),)), reader, model=v2_model)


def test_two_suites_of_one_name_are_refused(
    make_suite: MakeSuite, v2_model: ModelFacts, tmp_path: Path
) -> None:
    folder = make_suite()
    other = tmp_path / "elsewhere" / "toy"
    other.mkdir(parents=True)
    for name in ("one.png", "one.txt"):
        (other / name).write_bytes((folder / name).read_bytes())
    options = EvalOptions(suites=(str(folder), str(folder)))
    assert len(run_eval(options, reads_truth(), model=v2_model).suites) == 1
    with pytest.raises(UsageError, match="two suites have the name 'toy'"):
        run_eval(EvalOptions(suites=(str(folder), str(other))), reads_truth(), model=v2_model)


def test_an_unknown_reference_is_a_usage_error(v2_model: ModelFacts) -> None:
    with pytest.raises(UsageError, match=r"use one of hf, hf-processor, llama\.cpp"):
        run_eval(EvalOptions(ref="hff"), reads("x"), model=v2_model)
