"""A dry run: pages, tiles and tokens counted, time and money forecast; no model is loaded.

Knows nothing about how pages are read: speeds come from the last runs on this machine, for nano
else from docs/speed.md, and the report says which; of another model it then forecasts no time.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from ocr2cli.config import RunConfig, TileConfig
from ocr2cli.document.listing import Estimate, PageEstimates
from ocr2cli.document.source import find_jobs
from ocr2cli.document.tiles import v1_tile_config, view_layout
from ocr2cli.engines.choose import check_request, plan_engine
from ocr2cli.engines.remote import remote_spec
from ocr2cli.errors import ExitCode
from ocr2cli.model.config import ModelConfig
from ocr2cli.output.assembly import written_files
from ocr2cli.output.jsonl import rounded
from ocr2cli.output.rates import Rates, load_rates, store_forecast
from ocr2cli.output.summary import counted
from ocr2cli.pages import PageJob
from ocr2cli.pipeline.journal import Journal
from ocr2cli.text.prompt import asks_for_boxes, asks_for_text
from ocr2cli.weights.checkpoint import config_of
from ocr2cli.weights.hub import HUB_NAMES, find_model, hub_repo

# Characters of a text layer per new token, and tokens of a page without one. Measured on the
# bundled suite with nano; a large vocabulary needs fewer.
_CHARACTERS_PER_TOKEN = 2.0
_TOKENS_OF_A_SCAN = 700
# Of a page with a word or two, where a label and a box are written beside them.
_TOKENS_OF_A_BLOCK = 40
# To draw a page and to compare it with its text layer, on one core.
_SECONDS_OF_OWN_TEXT = 0.15
# Pages of a document that are asked whether their text layer is taken, and pages of all after
# which one in ten is asked. Each speaks for those that follow it.
_ASKED_OF_DOCUMENT = 16
_ASKED_OF_ALL = 100
# nano on two CPU cores (docs/speed.md), for its first run: 0.76 s to encode an A4 page's 1,121
# visual tokens, 254 tokens/s with four pages.
_NANO = Rates(
    pages=1, visual_tokens=1121, new_tokens=1, startup_s=3.0, vision_s=0.76, text_s=0.0039
)
_NO_WORK = "nothing is left to do"


@dataclass(slots=True)
class Forecast:
    """What a run would do. pages: those it would read; pages_done: those that an earlier run has
    settled; pages_from_text_layer: of those it would read, the ones that need no model. seconds:
    wall time, None when nobody knows; basis: where the speed comes from."""

    documents: int = 0
    pages: int = 0
    pages_done: int = 0
    unreadable: list[str] = field(default_factory=list)
    tiles: int = 0
    visual_tokens: int = 0
    new_tokens: int = 0
    seconds: float | None = None
    basis: str = ""
    price_per_hour: float = 0.0
    grids: Counter[str] = field(default_factory=Counter)
    pages_from_text_layer: int = 0

    @property
    def exit_code(self) -> int:
        return ExitCode.OK if self.pages or self.pages_done else ExitCode.INPUT

    @property
    def money(self) -> float | None:
        return None if self.seconds is None else self.seconds / 3600 * self.price_per_hour

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "pages": self.pages,
            "pages_resumed": self.pages_done,
            "pages_from_text_layer": self.pages_from_text_layer,
            "unreadable": self.unreadable,
            "grids": dict(self.grids),
            "tiles": self.tiles,
            "visual_tokens": self.visual_tokens,
            "predicted_new_tokens": self.new_tokens,
            "predicted_seconds": rounded(self.seconds, 1),
            "basis": self.basis,
            "price_per_hour": self.price_per_hour,
            "predicted_cost": rounded(self.money, 4),
        }

    def to_text(self) -> str:
        lines = self._work() if self.pages else self._no_work()
        return "\n".join([*lines, *(f"unreadable: {name}" for name in self.unreadable)])

    def _no_work(self) -> list[str]:
        if not self.pages_done:
            return ["no page can be read"]
        done = "is" if self.pages_done == 1 else "are"
        return [f"{_NO_WORK}, 0 seconds: {counted(self.pages_done, 'page')} {done} done already"]

    def _work(self) -> list[str]:
        grids = ", ".join(f"{count:,} of {grid}" for grid, count in self.grids.most_common())
        lines = [
            f"{counted(self.pages, 'page')} of {counted(self.documents, 'document')} "
            f"({grids or 'no grids'})",
            *self._own_text(),
            f"{counted(self.tiles, 'tile')}, {counted(self.visual_tokens, 'visual token')}, "
            f"about {counted(self.new_tokens, 'new token')}",
            f"no forecast of time: {self.basis}" if self.seconds is None
            else f"about {_duration(self.seconds)} ({self.basis})",
        ]  # fmt: skip
        if self.price_per_hour and self.money is not None:
            about = "less than 0.01" if self.money < 0.01 else f"about {self.money:.2f}"
            lines.append(f"{about} at {self.price_per_hour:g} an hour")
        if self.pages_done:
            done = "is" if self.pages_done == 1 else "are"
            pages = counted(self.pages_done, "page")
            lines.append(f"{pages} {done} done already and not counted here")
        return lines

    def _own_text(self) -> list[str]:
        taken = self.pages_from_text_layer
        return [f"about {taken:,} of them taken from the PDFs' own text"] if taken else []


def _duration(seconds: float) -> str:
    """In the unit that people would say it in, to two digits below ten."""
    for unit, length in (("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 1.5 * length:
            number = seconds / length
            return f"{round(number, 1):g} {unit}s" if number < 9.95 else f"{number:,.0f} {unit}s"
    return counted(max(1, round(seconds)), "second")


def forecast(cfg: RunConfig, *, price_per_hour: float = 0.0) -> Forecast:
    """Count the pages of `cfg.inputs` that a run would read. None is rendered but those that are
    asked for their text layer.

    Raises: UsageError; ModelError for a model that the run itself would not find.
    """
    plan = Forecast(price_per_hour=price_per_hour)
    seen: set[str] = set()
    where: Any = {"out": cfg.out, "out_url": cfg.out_url, "written": cache(written_files)}
    model = _model(cfg)
    journal = Journal.peek(cfg.out, model.fingerprint)
    most = cfg.decode.max_new_tokens or model.max_positions
    layers = _Layers(cfg.raster.text_layer if model.is_asked_for_text else "never")
    with closing(journal), PageEstimates(cfg.raster) as pages:
        for job in find_jobs(cfg.inputs, cfg.pages, cfg.raster, **where):
            seen.add(job.key.document)
            if job.error is not None:
                plan.unreadable.append(f"{job.key.document}: {job.error.message}")
                continue
            if cfg.resume and journal.find(job, retry_failed=cfg.retry_failed):
                plan.pages_done += 1
                continue
            page = pages.of(job, is_layer_asked=layers.asks(job))
            if page.error is not None:
                plan.unreadable.append(f"{job.key}: {page.error.message}")
                continue
            if layers.takes(page):
                plan.pages += 1
                plan.pages_from_text_layer += 1
                continue
            layout = view_layout(page.width, page.height, model.tiles, is_v1=model.is_v1)
            plan.pages += 1
            plan.tiles += layout.num_tiles
            plan.visual_tokens += layout.visual_tokens
            expected = int(page.num_characters / _CHARACTERS_PER_TOKEN)
            least = _TOKENS_OF_A_BLOCK if model.is_asked_for_boxes else 1
            expected = max(least, expected) if page.num_characters else _TOKENS_OF_A_SCAN
            plan.new_tokens += min(most, expected)
            plan.grids["x".join(map(str, layout.grid))] += 1
    plan.documents = len(seen)
    plan.seconds, plan.basis = _time(cfg, plan)
    store_forecast(cfg, plan.to_json())
    return plan


class _Layers:
    """Which pages take the PDF's own text: one that was not asked, as the last one that was."""

    def __init__(self, use: str) -> None:
        self._use = use
        self._document = ""
        self._num_pages = self._num_asked = self._num_willing = 0
        self._is_asked = self._is_taken = False

    def asks(self, job: PageJob) -> bool:
        if job.key.document != self._document:
            self._document, self._num_pages = job.key.document, 0
        index, self._num_pages = self._num_pages, self._num_pages + 1
        # A title page says little of the others.
        is_sample = index < 2 or index % -(-job.num_pages // _ASKED_OF_DOCUMENT) == 0
        self._num_willing += is_sample
        is_asked = self._num_asked < _ASKED_OF_ALL or self._num_willing % 10 == 0
        self._is_asked = self._use == "trust" or (self._use == "auto" and is_sample and is_asked)
        self._num_asked += self._is_asked
        return self._is_asked

    def takes(self, page: Estimate) -> bool:
        if self._use not in ("trust", "auto") or not page.num_characters:
            return False
        if self._is_asked:
            self._is_taken = page.is_own_text
        return self._is_taken


class _Model(NamedTuple):
    """What a forecast needs to know of the model and its prompt. fingerprint: of the run; "" when
    it cannot be told without a download or a server, and no page is done under that."""

    tiles: TileConfig
    is_v1: bool
    max_positions: int
    is_asked_for_text: bool
    is_asked_for_boxes: bool
    fingerprint: str = ""


def _model(cfg: RunConfig) -> _Model:
    """By the model's own config; a model of the hub that is not on this machine, or one that a
    server holds, is taken for its published version. Raises: ModelError, UsageError."""
    config, is_v1, fingerprint = ModelConfig(), False, ""
    prompt = check_request(cfg)
    if cfg.engine.engine == "openai":
        remote_spec(cfg, prompt)
    else:
        # Not `resolve_model`: a dry run downloads nothing.
        if files := find_model(cfg.engine.model, cfg.engine.mmproj):
            config = config_of(files)
            is_v1 = config.is_v1
            fingerprint = plan_engine(cfg).fingerprint
        else:
            is_v1 = hub_repo(cfg.engine.model)[0] == HUB_NAMES["deepseek-ocr"]
    tiles = v1_tile_config(cfg.engine.mode) if is_v1 else TileConfig()
    asked = asks_for_text(prompt), asks_for_boxes(prompt)
    return _Model(tiles, is_v1, config.decoder.max_positions, *asked, fingerprint)


def _time(cfg: RunConfig, plan: Forecast) -> tuple[float | None, str]:
    """Seconds, and where the speeds come from; (None, why not) for a model never run here."""
    if not plan.pages:
        return 0.0, _NO_WORK if plan.pages_done else "no page can be read"
    rates = load_rates(cfg)
    own_text_s = plan.pages_from_text_layer * _SECONDS_OF_OWN_TEXT
    basis = "nano on two CPU cores; after a run on this machine, its own speed"
    if rates is not None:
        basis = f"as the last runs on this machine, {rates.pages:.0f} pages"
    elif cfg.engine.model == "nano" and cfg.engine.engine != "openai":
        rates = _NANO
    elif plan.pages == plan.pages_from_text_layer:
        return own_text_s, "no page for the model"
    else:
        return None, "this model was not run on this machine yet; read some pages first"
    seconds = rates.seconds(visual_tokens=plan.visual_tokens, new_tokens=plan.new_tokens)
    return seconds + own_text_s, basis
