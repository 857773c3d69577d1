"""One evaluation from options to outcome: suites, our pages, the reference, scores, verdicts.

Reading is a function handed in (`recognize`), so that any reader can be scored. Knows nothing
about flags or terminals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from ocr2cli.config import REFERENCES, EngineConfig, RasterConfig
from ocr2cli.document.tiles import v1_tile_config
from ocr2cli.errors import GateFailed, InputError, PageFault, UsageError
from ocr2cli.eval.cases import Case, Suite, suites_folder
from ocr2cli.eval.gates import CaseScores, Gate, State, Verdict, gates_of, judge
from ocr2cli.eval.metrics import METRICS, Scores
from ocr2cli.eval.olmocr_bench import is_olmocr_bench, load_olmocr_bench
from ocr2cli.eval.omnidocbench import find_annotations, load_omnidocbench
from ocr2cli.eval.parity import Parity, compare
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.provenance import ModelFacts, model_facts
from ocr2cli.eval.read_suite import find_suite_folder, load_suite
from ocr2cli.eval.recognize import Recognize, batch_recognizer
from ocr2cli.eval.reference import Logits, Reference, ReferenceOutput, read_cached
from ocr2cli.eval.score import Scored, score_raw, score_result
from ocr2cli.pages import PageImage, PageResult

# (case, page) -> logits of the first new token, by our model
FirstLogits = Callable[[Case, PageImage], Logits]


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """suites: names or folders. ref: one of REFERENCES. images: where pages outside the suites
    are. only: patterns of case ids; empty for all. cache: folder of reference outputs, None: off.
    """

    suites: tuple[str, ...] = ("bundled",)
    ref: str = "recorded"
    engine: EngineConfig = field(default_factory=EngineConfig)
    raster: RasterConfig = field(default_factory=RasterConfig)
    images: Path | None = None
    ref_bin: str = ""
    only: tuple[str, ...] = ()
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """A case that ran. reference: scores and text of the reference, recorded scores alone have no
    text. Without the page's pixels: those of a benchmark fill any memory."""

    case: Case
    result: PageResult | None
    ours: Scored
    reference: Scored | None = None
    parity: Parity | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SuiteOutcome:
    """A suite: what ran, what did not (case, why), and every verdict."""

    suite: Suite
    cases: tuple[CaseOutcome, ...]
    not_run: tuple[Case, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class EvalOutcome:
    """Everything the report needs. seconds: of reading our pages, wall clock."""

    options: EvalOptions
    model: ModelFacts
    suites: tuple[SuiteOutcome, ...]
    seconds: float
    reference_identity: tuple[tuple[str, str], ...] = ()

    @property
    def cases(self) -> list[CaseOutcome]:
        return [case for suite in self.suites for case in suite.cases]

    @property
    def verdicts(self) -> list[Verdict]:
        """All suites'; where several ran, each says in which: ids are unique in a suite only."""
        return [
            replace(verdict, where=self.place(suite, verdict.where))
            for suite in self.suites
            for verdict in suite.verdicts
        ]

    def place(self, suite: SuiteOutcome, where: str) -> str:
        return where if len(self.suites) == 1 else f"{suite.suite.name}/{where}"

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.state is State.FAILED]

    def raise_for_gates(self) -> None:
        """Raises: GateFailed (exit 7) that names the first failed gate and counts the rest."""
        if self.failed:
            first = self.failed[0]
            more = f", and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
            value = "" if first.value is None else f" {first.value:.4f}"
            raise GateFailed(
                f"gate failed: {first.where}: {first.metric}{value}, {first.rule}{more}. "
                "Read the report for the pages and their differences."
            )


def run_eval(
    options: EvalOptions,
    recognize: Recognize | None = None,
    *,
    reference: Reference | None = None,
    model: ModelFacts | None = None,
    first_logits: FirstLogits | None = None,
) -> EvalOutcome:
    """Read, score and judge. The last four stand in for the engine of the options in tests.

    Raises: UsageError, InputError (nothing could be run), ModelError, EngineError.
    """
    if options.ref not in REFERENCES:
        raise UsageError(f"--ref {options.ref}: use one of {', '.join(REFERENCES)}.")
    suites = [_load(name, options) for name in dict.fromkeys(options.suites)]
    _check_names(suites)
    model = model or model_facts(options.engine)
    suites = [_choose(suite, options, model) for suite in suites]
    runnable = [case for suite in suites for case in suite.cases if not case.not_run]
    if not runnable:
        raise InputError(f"no case could be run. {_why_nothing(suites)}")
    if model.kind != "v2":
        for case in runnable:
            v1_tile_config(case.mode)  # refuses what is no mode, before anything is read
    default = suites_folder() / "gates.toml"
    gates = [gates_of(suite, default, model.dtype, model.digest) for suite in suites]
    _check_pages(suites, options.raster)
    if reference is None and options.ref not in ("recorded", "none"):
        from ocr2cli.eval.choose_reference import make_reference

        reference, first_logits = make_reference(options, model, first_logits)
    started = time.perf_counter()
    results = (recognize or batch_recognizer(options.engine, options.raster))(runnable)
    seconds = time.perf_counter() - started
    by_case = dict(zip([(c.suite, c.id) for c in runnable], results, strict=False))
    return EvalOutcome(
        options=options,
        model=model,
        suites=tuple(
            _judge_suite(suite, limits, by_case, options, reference, first_logits)
            for suite, limits in zip(suites, gates, strict=True)
        ),
        seconds=seconds,
        reference_identity=tuple(reference.identity.items()) if reference else (),
    )


def _load(name: str, options: EvalOptions) -> Suite:
    folder = find_suite_folder(name)
    if (folder / "suite.toml").is_file():
        return load_suite(folder, images=options.images)
    if annotations := find_annotations(folder):
        return load_omnidocbench(folder, annotations)
    if is_olmocr_bench(folder):
        return load_olmocr_bench(folder)
    return load_suite(folder)


def _check_names(suites: Sequence[Suite]) -> None:
    names = [suite.name for suite in suites]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two suites have the name {twice!r}. Run them one after the other.")


def _choose(suite: Suite, options: EvalOptions, model: ModelFacts) -> Suite:
    """The cases asked for, with their mode; those for another kind of model marked as not run."""
    only = options.only
    cases = [c for c in suite.cases if not only or any(fnmatch(c.id, p) for p in only)]
    chosen = {case.id for case in cases}
    # one mode for our reading and for the reference and its cache
    cases = [replace(case, mode=case.mode or options.engine.mode) for case in cases]
    return replace(
        suite,
        cases=tuple(_mark(case, model) for case in cases),
        left_out=tuple(case.id for case in suite.cases if case.id not in chosen),
    )


def _mark(case: Case, model: ModelFacts) -> Case:
    if case.needs and case.needs != model.kind:
        article = "an" if case.needs[0] in "aeiou" else "a"
        why = f"needs {article} {case.needs} checkpoint, this one is {model.kind}"
        return replace(case, not_run=why)
    return case


def _check_pages(suites: Sequence[Suite], raster: RasterConfig) -> None:
    """Every page of a suite must open, before a model is loaded for them.

    A benchmark is not ours to mend: there a page that cannot be read is read wrongly.
    Raises: InputError that names the page.
    """
    for suite in suites:
        for case in suite.cases if not suite.is_benchmark else ():
            if case.not_run:
                continue
            try:
                load_page(case, raster)
            except PageFault as fault:
                raise InputError(
                    f"suite {suite.name}: {case.path} page {case.page + 1} cannot be read: "
                    f"{fault.message.rstrip('.')}. Or drop the case {case.id!r}."
                ) from fault


def _why_nothing(suites: Sequence[Suite]) -> str:
    reasons = [case.not_run for suite in suites for case in suite.cases]
    return f"The first reason: {reasons[0]}." if reasons else "No case has such a name; see --case."


def _judge_suite(
    suite: Suite,
    gates: Sequence[Gate],
    results: dict[tuple[str, str], PageResult],
    options: EvalOptions,
    reference: Reference | None,
    first_logits: FirstLogits | None,
) -> SuiteOutcome:
    outcomes = []
    for case in suite.cases:
        if not case.not_run:
            result = results.get((case.suite, case.id))
            outcomes.append(_judge_case(case, result, options, reference, first_logits))
    scores = [
        CaseScores(
            id=o.case.id,
            ours=o.ours.scores,
            reference=o.reference.scores if o.reference else None,
            parity=o.parity.as_metrics() if o.parity else None,
        )
        for o in outcomes
    ]
    not_run = tuple(case for case in suite.cases if case.not_run)
    others = [*suite.left_out, *(case.id for case in not_run)]
    verdicts = judge(gates, scores, others, is_part=bool(suite.left_out))
    if suite.facts_gate:
        verdicts += [verdict for outcome in outcomes for verdict in _fact_verdicts(outcome)]
    return SuiteOutcome(suite, tuple(outcomes), not_run, tuple(verdicts))


def _judge_case(
    case: Case,
    result: PageResult | None,
    options: EvalOptions,
    reference: Reference | None,
    first_logits: FirstLogits | None,
) -> CaseOutcome:
    outcome = CaseOutcome(case, result, score_result(case, result))
    if options.ref == "recorded" and case.recorded is not None:
        return replace(outcome, reference=Scored(case.recorded))
    if reference is None:
        return outcome
    try:
        page = load_page(case, options.raster)
    except (PageFault, InputError):
        return outcome  # our own result says why; a reference cannot read it either
    theirs = read_cached(reference, case, page, options.cache)
    return replace(
        outcome,
        reference=score_raw(case, theirs.text),
        parity=_parity(case, page, result, theirs, first_logits),
        notes=theirs.notes,
    )


def _parity(
    case: Case,
    page: PageImage,
    result: PageResult | None,
    theirs: ReferenceOutput,
    first_logits: FirstLogits | None,
) -> Parity | None:
    if result is None:
        return Parity(False, 0, (), theirs.token_ids[:8]) if theirs.token_ids else None
    logits = None
    if first_logits is not None and theirs.first_logits is not None:
        logits = first_logits(case, page)
    return compare(result, theirs, logits)


def _fact_verdicts(outcome: CaseOutcome) -> list[Verdict]:
    return [
        Verdict(
            where=outcome.case.id,
            metric="fact",
            state=State.PASSED if fact.holds else State.FAILED,
            rule=fact.why or fact.id,
            reason="a fact of the page must hold",
        )
        for fact in outcome.ours.facts
    ]


def mean_scores(cases: Sequence[CaseOutcome], *, of_reference: bool = False) -> Scores:
    """Mean of every score over the cases that have it."""
    means: dict[str, float | None] = {}
    for metric in METRICS:
        values = []
        for outcome in cases:
            scored = outcome.reference if of_reference else outcome.ours
            value = scored.scores.get(metric) if scored else None
            if value is not None:
                values.append(value)
        means[metric] = sum(values) / len(values) if values else None
    return Scores(**means)
