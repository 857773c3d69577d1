"""A case and the text read for it, to scores and facts. The same for ours and for a reference.

Knows nothing about where the text came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ocr2cli.eval.blocks import block_scores
from ocr2cli.eval.cases import Case
from ocr2cli.eval.facts import FactResult, check_fact
from ocr2cli.eval.metrics import Scores, plain_text, score_text, table_score
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
    output = plain_text(markdown)
    scores, truth = Scores(), ""
    if case.has_truth:
        truth = case.truth or plain_text(case.truth_markdown)
        scores = score_text(truth, output, covers_page=case.covers_page)
    if case.truth_markdown:
        scores = replace(scores, teds=table_score(case.truth_markdown, markdown))
    if case.blocks:
        distance, order = block_scores(case.blocks, case.ignored_blocks, markdown)
        scores = replace(scores, block_distance=distance, order=order)
    if facts:
        scores = replace(scores, facts=sum(fact.holds for fact in facts) / len(facts))
    return Scored(scores, facts, truth, output)
