"""The native engine: raster, encode and decode stages over our own model.

Where documents, views, weights, the model, generation and text meet for a run. Knows nothing about
how workers are run, journalled or written out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ocr2cli.config import EXEMPT_TOKENS, DecodeConfig, EngineConfig, RasterConfig, TileConfig
from ocr2cli.document.tiles import num_visual_tokens
from ocr2cli.engines.finish import PageFacts, failed, has_read, to_attempt, to_generation, to_result
from ocr2cli.engines.host import expects_cuda
from ocr2cli.engines.raster import RasterWorker, asks_for_all, raster_remedy
from ocr2cli.engines.recovery import Step, decoder_steps
from ocr2cli.errors import PageFault
from ocr2cli.pages import Attempt, FinishReason, Generation, PageKey, Views, VisualTokens
from ocr2cli.pipeline.stage import Emit, Inbox, Stage, remedy

if TYPE_CHECKING:
    import torch

    from ocr2cli.generate.generator import Finished, Generator
    from ocr2cli.weights.hub import ModelFiles

logger = logging.getLogger("ocr2")

# Pages an encoder takes at once on a GPU, where their equal-size views run as one batch.
ENCODE_PAGES = 4

# How far a decoder on a CPU steps back for the encoder. In a step of three pages each costs more
# than twice what it costs in one of thirty; with equal shares of the cores a decoder keeps up with
# the encoder three pages at a time, and takes half of the cores for it.
DECODER_NICENESS = 10


@dataclass(frozen=True, slots=True)
class NativeSpec:
    """All that a worker needs to build itself in its own process; picklable."""

    files: ModelFiles
    engine: EngineConfig
    decode: DecodeConfig
    tiles: TileConfig
    prompt: str
    batch_size: int
    kv_tokens: int
    recover: bool = True


def native_stages(
    spec: NativeSpec, raster: RasterConfig, *, rasterizers: int, encoders: int, decoders: int,
    timeout_s: float, recycle_after: int, memory_limit: int, threads: int, cache: Any = None,
) -> list[Stage]:  # fmt: skip
    """raster -> encode -> decode.

    threads: of each encoder and decoder on a CPU. cache: pages that earlier runs read, or None.
    """
    # CUDA reserves far more addresses than memory, which a limit would forbid before page one.
    is_on_card = expects_cuda(spec.engine.device, spec.engine.dtype)
    model_limit = 0 if is_on_card else memory_limit
    # What a worker that lacks memory could still use; int8 is the decoder's, on a CPU.
    dtype, smaller = spec.engine.dtype, ["a smaller --dtype"]
    narrower = smaller if dtype == "f32" or (dtype == "auto" and not is_on_card) else []
    narrowest = narrower if is_on_card or dtype == "int8" else smaller
    slots = ["a lower --batch-size"] if spec.batch_size > 1 else []
    return [
        Stage(
            "raster",
            partial(
                RasterWorker,
                raster,
                spec.tiles,
                prompt=spec.prompt,
                cache=cache,
            ),
            num_workers=rasterizers,
            credit=2,
            recycle_after=recycle_after,
            num_threads=1,
            memory_limit_bytes=memory_limit,
            timeout_s=timeout_s,
            remedy=raster_remedy(rasterizers),
        ),
        Stage(
            "encode",
            partial(EncodeWorker, spec),
            num_workers=encoders,
            credit=encode_credit(spec.engine),
            num_threads=threads,
            memory_limit_bytes=model_limit,
            timeout_s=timeout_s,
            remedy=remedy(encoders, "--encoders", *narrower),
        ),
        Stage(
            "decode",
            partial(DecodeWorker, spec),
            num_workers=decoders,
            # A batch in the slots and half a batch waiting: a freed slot is filled at once.
            credit=spec.batch_size + max(1, spec.batch_size // 2),
            num_threads=threads,
            memory_limit_bytes=model_limit,
            timeout_s=timeout_s,
            niceness=0 if is_on_card else DECODER_NICENESS,
            remedy=remedy(decoders, "--decoders", *slots, *narrowest),
        ),
    ]


def encode_credit(engine: EngineConfig) -> int:
    """Pages an encoder holds. On a GPU the next group arrives while one is encoded: with room for
    a single group it would find half a group there. A CPU encodes page by page anyway."""
    return ENCODE_PAGES * (2 if expects_cuda(engine.device, engine.dtype) else 1)


class EncodeWorker:
    """Views -> visual tokens. Holds the vision weights only."""

    def __init__(self, spec: NativeSpec) -> None:
        from ocr2cli.engines.loading import load_vision
        from ocr2cli.engines.plain_tiles import PlainTiles

        self.vision = load_vision(spec.files, spec.engine)
        self.tiles = PlainTiles(self.vision.encode_views)
        # Elsewhere views are encoded one by one anyway, and pages that are answered together have
        # one --page-timeout between them.
        is_on_card = self.vision.view_separator.device.type == "cuda"
        self.together = ENCODE_PAGES if is_on_card else 1

    def run(self, inbox: Inbox, emit: Emit) -> None:
        import torch

        with torch.inference_mode():
            while pages := inbox.take(self.together, wait=True):
                for item in self.encode(pages):
                    emit(item)

    def encode(self, pages: Sequence[Views]) -> list[VisualTokens]:
        """The pages' visual tokens, with the seconds that each page took."""
        started = time.perf_counter()
        tokens = self._tokens_together(pages)
        if tokens is None:
            self._go_one_by_one(len(pages))
            tokens = [own for page in pages for own in self._tokens([page])]
        seconds = (time.perf_counter() - started) / len(pages)
        return [_visual_tokens(page, own, seconds) for page, own in zip(pages, tokens, strict=True)]

    def _tokens_together(self, pages: Sequence[Views]) -> list[torch.Tensor] | None:
        """None when several pages do not fit in memory together. The error is dropped on the way
        out: its traceback would hold the memory that the next try needs."""
        from ocr2cli.model.memory import is_out_of_memory

        try:
            return self._tokens(pages)
        except (MemoryError, RuntimeError) as error:
            if len(pages) == 1 or not is_out_of_memory(error):
                raise
            return None

    def _tokens(self, pages: Sequence[Views]) -> list[torch.Tensor]:
        from ocr2cli.engines.encoding import encode_pages

        # Copied before a clock is read: until then a GPU has only been told what to do.
        return [own.cpu() for own in encode_pages(self.vision, pages, self.tiles.encode)]

    def _go_one_by_one(self, tried: int) -> None:
        from ocr2cli.model.memory import empty_cache

        logger.warning("no memory to encode %d pages together: one at a time from here", tried)
        self.together = 1
        empty_cache()


def _visual_tokens(page: Views, tokens: torch.Tensor, seconds: float) -> VisualTokens:
    return VisualTokens(
        key=page.key,
        tokens=tokens,
        grid=page.grid,
        page_size=page.page_size,
        pixels_sha256=page.pixels_sha256,
        own_text=page.own_text,
        warnings=page.warnings,
        seconds={**page.seconds, "encode": seconds},
        ask=page.ask,
    )


@dataclass(slots=True)
class _Page:
    """A page inside the decoder, with the tries it has had. steps: the first try and those after
    it. visual_tokens: of the try under way. attempts: all tries, and seconds: of all of them;
    tries: those that did not break off."""

    visual: VisualTokens
    steps: tuple[Step, ...]
    visual_tokens: int = 0
    tries: list[Generation] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        """Of the try under way, or of the next one."""
        return self.steps[len(self.attempts)]


class DecodeWorker:
    """Visual tokens -> page results, many pages at a time. Holds the decoder weights only."""

    def __init__(self, spec: NativeSpec) -> None:
        from ocr2cli.engines.embedding import PromptEmbedder
        from ocr2cli.engines.loading import load_decoder, load_tokenizer
        from ocr2cli.weights.checkpoint import config_of

        self.spec = spec
        self.tokenizer = load_tokenizer(spec.files)
        self.config = config_of(spec.files)
        self.decoder = load_decoder(spec.files, spec.engine)
        self.exempt_ids = self.tokenizer.ids_of(EXEMPT_TOKENS)
        self.prompts = PromptEmbedder(self.decoder, self.config.image_token_id)
        self.generator = self._make_generator()
        self.pages: dict[PageKey, _Page] = {}

    def run(self, inbox: Inbox, emit: Emit) -> None:
        import torch

        with torch.inference_mode():
            while True:
                is_idle = not self.generator.has_work
                # Not more than there are slots for: what was taken is suspected of this worker's
                # death and read again apart, what is still in the inbox only starts again.
                taken = inbox.take(self.spec.batch_size - len(self.pages), wait=is_idle)
                if is_idle and not taken:
                    return
                for visual in taken:
                    self._admit(self._page(visual), emit)
                for finished in self.generator.step():
                    self._finish(finished, emit)
                inbox.note_progress()

    def _make_generator(self) -> Generator:
        from ocr2cli.engines.memory_plan import card_kv_tokens, memory_remedy
        from ocr2cli.generate.generator import Generator
        from ocr2cli.generate.tuning import tuning_for

        kv_tokens = self.spec.kv_tokens
        if self.device.type == "cuda" and not self.spec.engine.kv_tokens:
            # With `auto` the plan was made for the host, in case that torch sees no card.
            kv_tokens = card_kv_tokens(self.config, self.spec.batch_size)
        return Generator(
            self.decoder,
            self.spec.decode,
            eos_id=self.config.eos_token_id,
            exempt_ids=self.exempt_ids,
            num_slots=self.spec.batch_size,
            kv_tokens=kv_tokens,
            tuning=tuning_for(self.device),
            remedy=memory_remedy(self.device.type),
        )

    def _page(self, visual: VisualTokens) -> _Page:
        return _Page(visual, decoder_steps(self.spec.decode, has_tiles=visual.grid != (1, 1)))

    def _admit(self, page: _Page, emit: Emit) -> None:
        from ocr2cli.text.prompt import prompt_ids

        tokens, config = page.visual.tokens, self.config
        if page.step.view == "global":  # the last rows
            tokens = tokens[-num_visual_tokens((1, 1), self.spec.tiles, config.is_v1) :]
        prompt = page.visual.ask.prompt or self.spec.prompt
        ids = prompt_ids(self.tokenizer, prompt, tokens.shape[0], config.image_token_id)
        x_TD = self.prompts.embed(ids, tokens)
        page.visual_tokens = tokens.shape[0]
        try:
            self._add(page, x_TD, ids)
        except PageFault as fault:
            emit(failed(page.visual.key, fault.code, fault.message, _facts(page)))

    def _add(self, page: _Page, x_TD: torch.Tensor, ids: list[int]) -> None:
        self.generator.add(
            page.visual.key,
            x_TD,
            ids,
            draft=self._draft(page.visual),
            max_new_tokens=page.visual.ask.max_new_tokens,
            config=page.step.settings(self.spec.decode),
        )
        self.pages[page.visual.key] = page

    def _finish(self, finished: Finished, emit: Emit) -> None:
        page = self.pages.pop(finished.key)
        for name, value in finished.seconds.items():
            page.seconds[name] = page.seconds.get(name, 0.0) + value
        written = to_generation(
            finished.key, finished, self.tokenizer, page.visual_tokens, page.step.name
        )
        if isinstance(written, Generation):
            page.attempts.append(to_attempt(written))
            page.tries.append(written)
        elif page.tries:
            num_new = len(finished.token_ids)
            page.attempts.append(Attempt(page.step.name, None, num_new, written.message))
        else:
            emit(failed(finished.key, written.code, written.message, _facts(page)))
            return
        if self._is_tried_again(page):
            self._admit(page, emit)
        else:
            facts = replace(_facts(page), own_text=self._witness(page.visual))
            emit(to_result(page.tries, facts, page.attempts))

    def _is_tried_again(self, page: _Page) -> bool:
        """True while a page that looped has not been read to its end and a step is left."""
        has_looped = page.tries[0].finish_reason is FinishReason.LOOP
        is_read = has_read(page.tries[-1])
        has_steps = len(page.attempts) < len(page.steps)
        return self.spec.recover and has_looped and has_steps and not is_read

    def _draft(self, visual: VisualTokens) -> list[int] | None:
        is_wanted = self.spec.decode.draft in ("auto", "text-layer")
        return self.tokenizer.encode(visual.own_text) if is_wanted and visual.own_text else None

    def _witness(self, visual: VisualTokens) -> str:
        """What a PDF itself says is on the page, where all of the page's text was asked for."""
        return visual.own_text if asks_for_all(visual.ask, self.spec.prompt) else ""

    @property
    def device(self) -> torch.device:
        return self.decoder.embed.weight.device


def _facts(page: _Page) -> PageFacts:
    return PageFacts(
        grid=page.visual.grid,
        page_size=page.visual.page_size,
        pixels_sha256=page.visual.pixels_sha256,
        warnings=page.visual.warnings,
        seconds={**page.visual.seconds, **page.seconds},
    )
