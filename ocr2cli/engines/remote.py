"""The remote engine: pages as PNG to an OpenAI-compatible server (vLLM, SGLang, llama-server).

The same raster stage without the tiles (the server cuts them), then one request stage with many
requests in flight. Ends in the same `finish.py`. Knows nothing about models or weights.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ocr2cli.config import RasterConfig, RunConfig
from ocr2cli.engines.choose import EnginePlan, OpenCache, fingerprint_of
from ocr2cli.engines.finish import PageFacts, failed, to_result
from ocr2cli.engines.raster import (
    PageCache,
    chosen_view,
    early_result,
    guarded,
    known_result,
    page_facts,
    raster_remedy,
    witness_of,
)
from ocr2cli.engines.recovery import NOTHING
from ocr2cli.engines.remote_client import (
    RemoteSpec,
    ServerGone,
    first_choice,
    make_client,
    no_answer,
    post,
    request_body,
    short,
    text_of,
    to_png,
    untold_rule,
)
from ocr2cli.engines.remote_probe import probe
from ocr2cli.errors import EngineError, UsageError
from ocr2cli.pages import FinishReason, Generation, PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.text.tokenizer import EOS_TOKEN

logger = logging.getLogger("ocr2")

# Columns and rows of tiles that a server did not tell.
UNKNOWN_GRID = (0, 0)

_POLL_S = 0.05
# A request ends by its own after its time; one that does not is given up.
_GRACE_S = 2.0
# A socket takes no time without end.
_LONGEST_TIMEOUT_S = 1e8
# What a page may end in; whatever else a server calls it, there is more on the page.
_FINISH_REASONS = {
    None: FinishReason.STOP, "stop": FinishReason.STOP, "length": FinishReason.LENGTH,
}  # fmt: skip
# A probability is rounded on its way here; below this one it is none.
_LOGPROB_SLACK, _LEAST_LOGPROB = 0.01, -1e4


@dataclass(frozen=True, slots=True)
class PagePng:
    """One page on its way to the server. png: the whole page, losslessly."""

    key: PageKey
    png: bytes
    facts: PageFacts


def plan_remote(
    cfg: RunConfig, prompt: str, open_cache: OpenCache | None = None
) -> EnginePlan:
    """Probe the server with one page, then plan. Raises: UsageError, EngineError."""
    spec = probe(remote_spec(cfg, prompt))
    logger.info(
        "server: %s, model %s (%s); up to %d pages at once",
        spec.shown, spec.model, spec.flavour, spec.concurrency,
    )  # fmt: skip
    if flag := untold_rule(spec):
        logger.warning(
            "%s cannot be told %s, which keeps pages from looping", spec.shown, flag
        )
    fingerprint = fingerprint_of(cfg, prompt, server_model=spec.model, flavour=spec.flavour)
    cache = open_cache(fingerprint) if open_cache else None
    rasterizers = cfg.engine.rasterizers or 1
    stages = (
        Stage("raster", partial(PngWorker, cfg.raster, prompt, cache), rasterizers, credit=2,
              timeout_s=cfg.page_timeout, recycle_after=cfg.recycle_after, num_threads=1,
              remedy=raster_remedy(rasterizers)),
        Stage("request", partial(RequestWorker, spec), 1, credit=2 * spec.concurrency,
              timeout_s=cfg.page_timeout, num_threads=1),
    )  # fmt: skip
    return EnginePlan(stages, fingerprint, cache, (rasterizers, 0, 1))


def remote_spec(cfg: RunConfig, prompt: str) -> RemoteSpec:
    """The request worker's settings from the run's. Raises: UsageError without --server."""
    if not cfg.engine.server:
        raise UsageError("--engine openai needs --server URL, e.g. --server http://127.0.0.1:8000")
    server = cfg.engine.server.rstrip("/").removesuffix("/v1")
    return RemoteSpec(
        server=server,
        api_key=cfg.engine.api_key,
        model="" if cfg.engine.model == "nano" else cfg.engine.model,
        flavour="",
        prompt=prompt,
        decode=cfg.decode,
        concurrency=cfg.engine.server_concurrency,
        timeout_s=min(cfg.page_timeout, _LONGEST_TIMEOUT_S),
    )


class PngWorker:
    """A job becomes a PNG of the page, or a result that needs no server."""

    def __init__(self, raster: RasterConfig, prompt: str, cache: PageCache | None = None) -> None:
        self.raster = raster
        self.prompt = prompt
        self.cache = cache

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            emit(guarded(jobs[0], self.read))

    def read(self, job: PageJob) -> PagePng | PageResult:
        from ocr2cli.document.raster import render_page

        started = time.perf_counter()
        page = chosen_view(render_page(job, self.raster), job.ask.view)
        facts = page_facts(page, time.perf_counter() - started)
        early = early_result(job, page, self.raster, facts, self.prompt)
        early = early or known_result(job, facts, self.raster, self.prompt, self.cache)
        if early is not None:
            return early
        facts = replace(facts, seconds={"raster": time.perf_counter() - started})
        witness = witness_of(job, self.raster, self.prompt)
        return PagePng(job.key, to_png(page.rgb), replace(facts, own_text=witness))


class RequestWorker:
    """Keeps up to `concurrency` pages with the server; emits results as they come back."""

    def __init__(self, spec: RemoteSpec) -> None:
        self.spec = spec
        self.client = make_client(spec)

    def run(self, inbox: Inbox, emit: Emit) -> None:
        waiting: dict[Future[PageResult], tuple[PagePng, float]] = {}
        while True:
            # Also where there is no room: a take lets go of the turn, and who waits for Ctrl-C
            # has to have it.
            pages = inbox.take(self.spec.concurrency - len(waiting), wait=not waiting)
            if not pages and not waiting:
                return
            until = time.monotonic() + self.spec.timeout_s + _GRACE_S
            waiting |= {self.ask(page): (page, until) for page in pages}
            done, _ = wait(waiting, _POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                del waiting[future]
                emit(future.result())
            late = [one for one, (_, until) in waiting.items() if time.monotonic() > until]
            for future in late:
                page, _ = waiting.pop(future)
                message = f"{self.spec.shown}: {no_answer(self.spec)}"
                emit(failed(page.key, "request", message, page.facts))
            inbox.note_progress()

    def ask(self, page: PagePng) -> Future[PageResult]:
        """`read` in a thread that nobody waits for: a server that sends a byte of a header now and
        then holds it for as long as it likes."""
        future: Future[PageResult] = Future()

        def main() -> None:
            try:
                future.set_result(self.read(page))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=main, name="ocr2-ask", daemon=True).start()
        return future

    def read(self, page: PagePng) -> PageResult:
        """One page's result; a request that fails for good is the page's error.

        Raises: ServerGone.
        """
        started = time.perf_counter()
        try:
            answer = post(self.client, self.spec, request_body(self.spec, page.png))
            choice = first_choice(answer)
            generation = to_generation(page.key, answer, choice, time.perf_counter() - started)
            # The server tiles the page, and only ours says how.
            result = to_result([generation], replace(page.facts, grid=UNKNOWN_GRID))
            return as_told(result, answer) if self.spec.flavour == "ocr2" else result
        except ServerGone:
            raise
        except EngineError as error:
            return failed(page.key, "request", str(error), page.facts)
        except Exception as error:  # the border: one odd answer must not take the others along
            message = f"the answer: {type(error).__name__} {error}"
            return failed(page.key, "request", short(message), page.facts)


def to_generation(
    key: PageKey, answer: Mapping[str, Any], choice: Mapping[str, Any], seconds: float
) -> Generation:
    """A server's answer as a generation. The visual tokens are what the text does not explain.

    Raises: EngineError for an answer of another shape, or cut short for a reason of the server's.
    """
    try:
        return _generation(key, answer, choice, seconds)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise EngineError(
            f"the answer is no chat completion: {short(json.dumps(answer))}"
        ) from None


def _generation(
    key: PageKey, answer: Mapping[str, Any], choice: Mapping[str, Any], seconds: float
) -> Generation:
    usage = answer.get("usage") or {}
    tokens = [entry for entry in (choice.get("logprobs") or {}).get("content") or []]
    reason = choice.get("finish_reason")
    if reason not in _FINISH_REASONS:
        raise EngineError(f"the server cut the page short: {short(str(reason))}")
    finish = _FINISH_REASONS[reason]
    if choice.get("ocr2_finish_reason") in tuple(FinishReason):
        finish = FinishReason(choice["ocr2_finish_reason"])
    num_new = int(usage.get("completion_tokens") or 0)
    content = choice["message"].get("content")
    if content is None and num_new > 1:
        raise EngineError(f"the answer has {num_new} tokens and no text")
    text = text_of(content)
    # llama-server with --special, which boxes need, writes the end token out as well.
    return Generation(
        key=key,
        token_ids=(),
        text=text.removesuffix(EOS_TOKEN),
        finish_reason=finish,
        num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
        num_visual_tokens=int(usage.get("visual_tokens") or 0),
        logprobs=tuple(_logprob(entry["logprob"]) for entry in tokens),
        pieces=_pieces(tokens),
        seconds={"request": seconds},
        num_unnamed=num_new,
    )


def as_told(result: PageResult, answer: Mapping[str, Any]) -> PageResult:
    """The same with what `ocr2 serve` knows of the page and OpenAI's form has no place for."""
    told = answer.get("ocr2")
    if not isinstance(told, Mapping):
        return result
    confidence: Any = told.get("confidence")
    status, grid = told.get("status"), told.get("grid")
    if isinstance(grid, list) and len(grid) == 2 and all(_is_count(number) for number in grid):
        result = replace(result, grid=(grid[0], grid[1]))
    if type(confidence) in (int, float) and 0 <= confidence <= 1:
        result = replace(result, confidence=float(confidence))
    # Any other status is told by why the page ended.
    if result.status is Status.OK and status == Status.RECOVERED:
        return replace(result, status=Status.RECOVERED)
    if result.status is Status.OK and status == Status.BLANK and not result.raw:
        warnings = tuple(note for note in result.warnings if note != NOTHING)
        return replace(result, status=Status.BLANK, finish_reason=None, warnings=warnings)
    return result


def _pieces(tokens: Sequence[Mapping[str, Any]]) -> tuple[bytes, ...]:
    """Each token's bytes, for half a character has no text of its own; without the end token."""
    pieces = [
        bytes(entry["bytes"]) if isinstance(entry.get("bytes"), list)
        else str(entry.get("token") or "").encode("utf-8", "replace")
        for entry in tokens
    ]  # fmt: skip
    return tuple(pieces[:-1] if pieces[-1:] in ([b""], [EOS_TOKEN.encode()]) else pieces)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 100


def _logprob(value: Any) -> float:
    """Raises: ValueError for what is no logarithm of a probability."""
    if not float(value) <= _LOGPROB_SLACK:
        raise ValueError
    return max(_LEAST_LOGPROB, min(0.0, float(value)))
