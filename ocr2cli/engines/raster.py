"""The raster stage, shared by the engines: a job becomes views, or a result that needs no model.

Imports no torch: a raster worker stays small. Knows nothing about what reads the views.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from ocr2cli.config import RasterConfig, TileConfig
from ocr2cli.engines.finish import PageFacts, failed, read_before
from ocr2cli.errors import PageFault
from ocr2cli.pages import (
    Ask,
    Box,
    PageImage,
    PageJob,
    PageKey,
    PageResult,
    Status,
    Uint8Array,
    Unchanged,
)
from ocr2cli.pipeline.stage import Emit, Inbox, remedy
from ocr2cli.text.grounding import box_units
from ocr2cli.text.markup import literal
from ocr2cli.text.prompt import asks_for_text

# A page of a newspaper has 50,000 characters; a layer may hold anything.
_MAX_OWN_TEXT = 100_000
_FROM_LAYER = "text taken from the PDF's own text layer, not from the pixels"


def raster_remedy(num_workers: int) -> str:
    """What a person may do where rasterisers lack memory. A server's resolution is fixed."""
    return remedy(num_workers, "--rasterizers", "a lower resolution (`ocr2 run --dpi`)")


class PageCache(Protocol):
    """What `output/page_cache.py` offers a raster worker."""

    def find(self, key: PageKey, pixels_sha256: str) -> PageResult | None: ...


class RasterWorker:
    """Renders one page at a time. Holds the open document and nothing else."""

    def __init__(
        self,
        raster: RasterConfig,
        tiles: TileConfig,
        *,
        prompt: str = "",
        cache: PageCache | None = None,
    ) -> None:
        self.raster = raster
        self.tiles = tiles
        self.prompt = prompt
        self.cache = cache

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            emit(guarded(jobs[0], self.read))

    def read(self, job: PageJob) -> Any:
        """The page's views; a PageResult for a blank page or one whose text layer is trusted."""
        from ocr2cli.document.raster import render_page
        from ocr2cli.document.tiles import make_views

        started = time.perf_counter()
        page = chosen_view(render_page(job, self.raster), job.ask.view)
        facts = page_facts(page, time.perf_counter() - started)
        early = early_result(job, page, self.raster, facts, self.prompt)
        early = early or known_result(job, facts, self.raster, self.prompt, self.cache)
        if early is not None:
            return early
        seconds = time.perf_counter() - started
        views = make_views(
            page,
            self.tiles,
            digest=facts.pixels_sha256,
            own_text=own_text(job, self.raster),
            seconds={"raster": seconds},
        )
        return replace(views, ask=job.ask)


def known_result(
    job: PageJob, facts: PageFacts, cfg: RasterConfig, prompt: str, cache: PageCache | None
) -> PageResult | None:
    """A page whose pixels an earlier run has read: in this output folder, or in the cache."""
    # Where a text layer may stand for the pixels, equal pixels do not mean an equal text.
    is_read = not _may_take_layer(job, cfg, prompt)
    if is_read and job.known_pixels and job.known_pixels == facts.pixels_sha256:
        own = witness_of(job, cfg, prompt)
        return Unchanged(job.key, Status.OK, raw=own, warnings=facts.warnings)
    if cache and (known := cache.find(job.key, facts.pixels_sha256)):
        return read_before(known, facts.warnings, witness_of(job, cfg, prompt))
    return None


def own_text(job: PageJob, cfg: RasterConfig) -> str:
    """The PDF's text layer; "" where there is none, and where it is damaged: the pixels count."""
    from ocr2cli.document.raster import text_layer

    with suppress(PageFault, MemoryError):
        return text_layer(job, cfg)[:_MAX_OWN_TEXT]
    return ""


def witness_of(job: PageJob, cfg: RasterConfig, prompt: str) -> str:
    """The PDF's own text, where all of the page's text is asked for; else ""."""
    return own_text(job, cfg) if asks_for_all(job.ask, prompt) else ""


def asks_for_all(ask: Ask, prompt: str) -> bool:
    """True where the answer should hold all of the page's text. prompt: the run's."""
    return ask.view in ("", "upright") and asks_for_text(ask.prompt or prompt)


def chosen_view(page: PageImage, view: str) -> PageImage:
    """The part of a page that a recovery step reads; all of it for "".

    Raises: PageFault not_applicable when turning the page upright would change nothing.
    """
    if view == "upright":
        from ocr2cli.document.raster import turn_upright

        rgb, degrees = turn_upright(page.rgb)
        if not degrees:
            raise PageFault("not_applicable", "the page is upright already")
        note = f"turned by {degrees} degrees"
        return replace(page, rgb=rgb, warnings=(*page.warnings, note))
    if view in ("top", "bottom"):
        row = quietest_row(page.rgb)
        return replace(page, rgb=page.rgb[:row] if view == "top" else page.rgb[row:])
    return page


def quietest_row(rgb: Uint8Array) -> int:
    """The row to cut a page at: the one with the least contrast in its middle fifth, so that no
    line of text is cut in two. rgb: uint8 [H, W, 3]."""
    height = rgb.shape[0]
    first, last = int(height * 0.4), max(int(height * 0.6), int(height * 0.4) + 1)
    band = rgb[first:last]
    contrast = band.max(axis=(1, 2)).astype(int) - band.min(axis=(1, 2))
    quiet = [row for row, value in enumerate(contrast) if value == contrast.min()]
    # The middle of all equally quiet rows keeps away from the text on both sides.
    return max(1, first + quiet[len(quiet) // 2])


def page_facts(page: PageImage, seconds: float) -> PageFacts:
    """What the pixels tell before any model sees them. seconds: spent on rendering."""
    from ocr2cli.document.tiles import pixels_sha256

    return PageFacts(
        page_size=(page.rgb.shape[1], page.rgb.shape[0]),
        pixels_sha256=pixels_sha256(page.rgb),
        warnings=page.warnings,
        seconds={"raster": seconds},
    )


def early_result(
    job: PageJob, page: PageImage, cfg: RasterConfig, facts: PageFacts, prompt: str
) -> PageResult | None:
    """A blank page, a lost one, or one whose text layer is used as it stands: no model is asked."""
    from ocr2cli.document.ink import is_blank

    if cfg.blank_ink and is_blank(page.rgb, cfg.blank_ink):
        # A part of a page is only read when the page has ink.
        if page.damage and not job.ask.view:
            return _lost(job, page, facts)
        return _without_model(job, Status.BLANK, facts)
    return _layer_result(job, page, cfg, facts) if _may_take_layer(job, cfg, prompt) else None


def _may_take_layer(job: PageJob, cfg: RasterConfig, prompt: str) -> bool:
    """A text layer answers no other question than what the page's text is."""
    return cfg.text_layer in ("trust", "auto") and asks_for_all(job.ask, prompt)


def _layer_result(
    job: PageJob, page: PageImage, cfg: RasterConfig, facts: PageFacts
) -> PageResult | None:
    from ocr2cli.document.pdf import MAX_TEXT_CHARACTERS, is_cut
    from ocr2cli.document.raster import own_paragraphs, trusted_text

    started = time.perf_counter()
    raw = trusted_text(job, cfg, None if job.ask.view else page)
    if raw is None:
        return None
    found = own_paragraphs(job, cfg, raw)
    texts = [paragraph.text for paragraph in found] or ["\n".join(map(str.strip, raw.splitlines()))]
    notes = [_FROM_LAYER]
    if is_cut(raw):
        notes.append(f"the text layer was cut after {MAX_TEXT_CHARACTERS:,} characters")
    # The pixels may have been turned, and the layer was not.
    is_turned = cfg.rotate == "auto" or bool(job.ask.view)
    seconds = facts.seconds["raster"] + time.perf_counter() - started
    return replace(
        _without_model(job, Status.OK, facts),
        markdown="\n\n".join(map(literal, texts)),
        raw=raw,
        boxes=() if is_turned else tuple(Box("text", box_units(each.box)) for each in found),
        warnings=(*facts.warnings, *notes),
        seconds={"raster": seconds},
        extra={"source": "text-layer"},
    )


def _lost(job: PageJob, page: PageImage, facts: PageFacts) -> PageResult:
    from ocr2cli.document.files import shown

    message = (
        f"page {job.key.page + 1} of {shown(job.path)} is damaged and shows nothing "
        f"({page.damage}). Copy the file again, or try to repair a PDF with `qpdf IN OUT`."
    )
    return failed(job.key, "unreadable", message, facts)


def _without_model(job: PageJob, status: Status, facts: PageFacts) -> PageResult:
    return PageResult(
        key=job.key,
        status=status,
        page_size=facts.page_size,
        pixels_sha256=facts.pixels_sha256,
        warnings=facts.warnings,
        seconds=facts.seconds,
    )


def guarded(job: PageJob, read: Callable[[PageJob], Any]) -> Any:
    """`read(job)`, with every fault of the page turned into its failed result."""
    try:
        return read(job)
    except PageFault as fault:
        return failed(job.key, fault.code, fault.message)
    except MemoryError:
        return failed(job.key, "out_of_memory", f"no memory to render {job.key}; try a lower --dpi")
    except Exception as error:  # the border: one hostile page must not take the worker along
        return failed(job.key, "internal", f"{type(error).__name__}: {error}".splitlines()[0])
