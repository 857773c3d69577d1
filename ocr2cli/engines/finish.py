"""Generation -> PageResult: grounding parsed, status named, confidence worked out.

Shared by the engines, so that a page reads the same whoever answered it. Knows nothing about
models, processes or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from ocr2cli.engines.recovery import NOTHING, TURNED
from ocr2cli.pages import (
    Attempt,
    FinishReason,
    Generation,
    PageError,
    PageKey,
    PageResult,
    Status,
)
from ocr2cli.text.grounding import parse, text_spans, to_markdown
from ocr2cli.text.witness import share_found

if TYPE_CHECKING:
    from ocr2cli.generate.track import Finished
    from ocr2cli.text.tokenizer import Tokenizer

_STATUS = {
    FinishReason.STOP: Status.OK,
    FinishReason.LENGTH: Status.TRUNCATED,
    FinishReason.LOOP: Status.LOOP,
}


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What is known of a page before the decoder writes: it passes through to the result."""

    grid: tuple[int, int] = (1, 1)
    page_size: tuple[int, int] = (0, 0)
    pixels_sha256: str = ""
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    own_text: str = ""  # the PDF's own, where all of the page's text was asked for


def to_generation(
    key: PageKey, finished: Finished, tokenizer: Tokenizer, num_visual_tokens: int,
    step: str = "first",
) -> Generation | PageError:  # fmt: skip
    """What our own decoder wrote for the page, or why it broke off."""
    if finished.error is not None or finished.finish_reason is None:
        return finished.error or PageError("internal", "the page ended without a reason")
    return Generation(
        key=key,
        token_ids=tuple(finished.token_ids),
        text=tokenizer.decode(finished.token_ids),
        finish_reason=finished.finish_reason,
        num_prompt_tokens=finished.num_prompt,
        num_visual_tokens=num_visual_tokens,
        logprobs=tuple(finished.logprobs),
        pieces=tuple(map(tokenizer.bytes_of, finished.token_ids)),
        step=step,
    )


def to_attempt(one: Generation) -> Attempt:
    """A try as the sidecar has it."""
    note = NOTHING if one.finish_reason is FinishReason.STOP and not one.text.strip() else ""
    return Attempt(one.step, one.finish_reason, one.num_new_tokens, note)


def has_read(again: Generation) -> bool:
    """Whether another try at a page that looped is good: it came to its end, and wrote something,
    since there was enough on the page to loop over."""
    return again.finish_reason is FinishReason.STOP and bool(again.text.strip())


def to_result(
    tries: Sequence[Generation], facts: PageFacts, attempts: Sequence[Attempt] = ()
) -> PageResult:
    """The page's result. tries: in order; all but the last are no good. A good last one of several
    is `recovered`; if it is no good either, the first saw most of the page and counts.
    attempts: the tries and, where there were such, those that broke off."""
    generation = tries[-1] if has_read(tries[-1]) else tries[0]
    grounded, logprobs = parse(generation.text), text_logprobs(generation)
    status = _STATUS[generation.finish_reason]
    if status is Status.OK and len(tries) > 1:
        status = Status.RECOVERED
    is_empty = status is Status.OK and not generation.text.strip()
    result = PageResult(
        key=generation.key,
        status=status,
        markdown=to_markdown(grounded.blocks, _figure_place),
        raw=generation.text,
        finish_reason=generation.finish_reason,
        boxes=grounded.boxes,
        grid=facts.grid,
        page_size=facts.page_size,
        visual_tokens=generation.num_visual_tokens,
        prompt_tokens=generation.num_prompt_tokens,
        new_tokens=generation.num_new_tokens,
        confidence=mean_confidence(logprobs),
        confidence_p5=low_confidence(logprobs),
        seconds={**facts.seconds, **generation.seconds},
        attempts=tuple(attempts or map(to_attempt, tries)),
        pixels_sha256=facts.pixels_sha256,
        warnings=(*facts.warnings, NOTHING) if is_empty else facts.warnings,
        token_ids=generation.token_ids,
    )
    return with_witness(result, facts.own_text)


def with_witness(result: PageResult, own_text: str) -> PageResult:
    """The same with the share of the PDF's own text that stands in it: of this PDF, not of one that
    the result may come from. own_text: "" where there is nothing to compare with."""
    extra = {name: value for name, value in result.extra.items() if name != "own_text_found"}
    share = share_found(own_text, result.markdown)
    return replace(result, extra=extra if share is None else {**extra, "own_text_found": share})


def read_before(known: PageResult, warnings: tuple[str, ...], own_text: str) -> PageResult:
    """An earlier reading of the same pixels as this page's, whose document may be another: with
    the page's own warnings, and compared with its own text."""
    if known.attempts and known.attempts[-1].step == "upright":
        warnings = (*warnings, TURNED)
    if NOTHING in known.warnings:
        warnings = (*warnings, NOTHING)
    return with_witness(replace(known, warnings=warnings), own_text)


def _figure_place(number: int) -> str:
    """A link target that `output/figures.py` replaces by the figure's file; the first is 1."""
    return f"figure:{number + 1}"


def failed(key: PageKey, code: str, message: str, facts: PageFacts | None = None) -> PageResult:
    """A page that could not be read, with its reason."""
    facts = facts or PageFacts()
    return PageResult(
        key=key,
        status=Status.FAILED,
        grid=facts.grid,
        page_size=facts.page_size,
        pixels_sha256=facts.pixels_sha256,
        warnings=facts.warnings,
        seconds=facts.seconds,
        error=PageError(code, message),
    )


def text_logprobs(generation: Generation) -> Sequence[float]:
    """Those of the tokens that wrote the page's text, and of the end token: where a box lies is a
    guess also on a page that is read right. All of them where no text was written, or where nobody
    knows which token is which."""
    pieces, logprobs = generation.pieces, generation.logprobs
    written = b"".join(pieces).decode("latin-1")  # a character a byte: the tags are plain ASCII
    is_text = bytearray(len(written))
    for start, end in text_spans(written):
        is_text[start:end] = b"\1" * (end - start)
    places = pairwise(accumulate(map(len, pieces), initial=0))
    chosen = [
        logprob
        for logprob, (start, end) in zip(logprobs, places, strict=False)
        if any(is_text[start:end])
    ]
    return [*chosen, *logprobs[len(pieces) :]] if chosen else logprobs


def mean_confidence(logprobs: Sequence[float]) -> float | None:
    """exp of the mean log-probability: the geometric mean of the token probabilities, 0..1."""
    if not logprobs:
        return None
    return round(math.exp(math.fsum(logprobs) / len(logprobs)), 6)


def low_confidence(logprobs: Sequence[float]) -> float | None:
    """The 5th percentile of the token probabilities: low when a few words were guessed."""
    if not logprobs:
        return None
    ordered = sorted(logprobs)
    return round(math.exp(ordered[int(0.05 * (len(ordered) - 1))]), 6)
