"""A case and the text read for it, to scores and facts. The same for ours and for a reference.

Knows nothing about where the text came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ocr2cli.eval.blocks import block_scores
from ocr2cli.eval.cases import Case
from ocr2cli.eval.facts import FactResult, check_fact
from ocr2cli.eval.metrics import Scores, fold, plain_text, score_text, table_score
from ocr2cli.pages import FinishReason, PageResult, Status


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores, facts, and the two plain texts that were compared."""

    scores: Scores
    facts: tuple[FactResult, ...] = ()
    truth: str = ""
    output: str = ""


def score_result(case: Case, result: PageResult | None) -> Scored:
    """Scores of our page. A page that is missing or failed has read nothing: empty text."""
    if result is None or result.status is Status.FAILED:
        scored = score_markdown(case, "")
        return replace(scored, scores=replace(scored.scores, stopped=0.0))
    scored = score_markdown(case, result.markdown)
    has_stopped = result.status is Status.BLANK or result.finish_reason is FinishReason.STOP
    return replace(scored, scores=replace(scored.scores, stopped=float(has_stopped)))


def score_raw(case: Case, raw: str) -> Scored:
    """Scores of a reference's raw text, post-processed as ours is."""
    from ocr2cli.text.grounding import parse, to_markdown

    return score_markdown(case, to_markdown(parse(raw).blocks, lambda _number: ""))


def score_markdown(case: Case, markdown: str) -> Scored:
    """Scores of a page's markdown against the case's truth and facts."""
    facts = tuple(
        FactResult(named.id, not why, why)
        for named in case.facts
        for why in [check_fact(named.fact, markdown)]
    )
    scores, truth, output = Scores(), "", plain_text(markdown)
    if case.has_truth:
        scores, truth, output = _score_plainest(case, markdown)
    if case.truth_markdown:
        scores = replace(scores, teds=table_score(case.truth_markdown, markdown))
    if case.blocks:
        distance, order = block_scores(case.blocks, case.ignored_blocks, markdown)
        scores = replace(scores, block_distance=distance, order=order)
    if facts:
        scores = replace(scores, facts=sum(fact.holds for fact in facts) / len(facts))
    return Scored(scores, facts, truth, output)


def _score_plainest(case: Case, markdown: str) -> tuple[Scores, str, str]:
    """(scores, truth, output) as they were compared. What looks like markup in a plain truth is
    text ("- milk", "2*3*4"): of the ways to take the output, the one that is nearest counts."""
    output = plain_text(markdown)
    if not case.truth:
        pairs = [(plain_text(case.truth_markdown), output)]
    else:
        stripped = plain_text(case.truth)
        pairs = [(case.truth, output), (case.truth, markdown)]
        if stripped.strip() and _letters(stripped) == _letters(case.truth):
            pairs.append((stripped, output))  # lists under a heading: only marks are lost
    different = {(fold(truth), fold(text)): (truth, text) for truth, text in pairs}
    tried = [
        (score_text(truth, text, covers_page=case.covers_page), truth, text)
        for truth, text in different.values()
    ]
    return min(tried, key=lambda scored: (scored[0].whole_cer or 0.0) + (scored[0].cer or 0.0))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
