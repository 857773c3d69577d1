"""A dry run: pages, tiles and tokens counted, time and money forecast; no model is loaded.

Knows nothing about how pages are read: speeds come from the last runs on this machine, or from the
figures of docs/speed.md, and the report says which.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ocr2cli.config import EngineConfig, RunConfig, TileConfig
from ocr2cli.document.source import find_jobs
from ocr2cli.document.tiles import v1_tile_config, view_layout
from ocr2cli.errors import ExitCode
from ocr2cli.model.config import ModelConfig
from ocr2cli.output.assembly import written_files
from ocr2cli.output.rates import Rates, load_forecast, load_rates, store_forecast
from ocr2cli.output.summary import Summary
from ocr2cli.weights.checkpoint import config_of
from ocr2cli.weights.hub import HUB_NAMES, ModelFiles, cached_folder, hub_repo, resolve_model

# Characters of a text layer per new token, and tokens of a page without one. Measured on the
# bundled suite with nano; a large vocabulary needs fewer.
_CHARACTERS_PER_TOKEN = 2.0
_TOKENS_OF_A_SCAN = 700
# nano on two CPU cores (docs/speed.md), for a first run: 0.8 s to encode an A4 page's 1,121
# visual tokens, 10.8 ms for a step of four pages.
_FIRST_RUN = Rates(
    pages=1, visual_tokens=1121, new_tokens=1, startup_s=3.0, vision_s=0.8, text_s=0.0027
)


@dataclass(slots=True)
class Forecast:
    """What a run would do. seconds: wall time; basis: where the speed comes from."""

    documents: int = 0
    pages: int = 0
    unreadable: list[str] = field(default_factory=list)
    tiles: int = 0
    visual_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    basis: str = ""
    price_per_hour: float = 0.0
    grids: Counter[str] = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        return ExitCode.OK if self.pages else ExitCode.INPUT

    @property
    def money(self) -> float:
        return self.seconds / 3600 * self.price_per_hour

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "pages": self.pages,
            "unreadable": self.unreadable,
            "grids": dict(self.grids),
            "tiles": self.tiles,
            "visual_tokens": self.visual_tokens,
            "predicted_new_tokens": self.new_tokens,
            "predicted_seconds": round(self.seconds, 1),
            "basis": self.basis,
            "price_per_hour": self.price_per_hour,
            "predicted_cost": round(self.money, 4),
        }

    def to_text(self) -> str:
        grids = ", ".join(f"{count} of {grid}" for grid, count in self.grids.most_common())
        lines = [
            f"{self.pages} pages of {self.documents} documents ({grids or 'no grids'})",
            f"{self.tiles} tiles, {self.visual_tokens} visual tokens, "
            f"about {self.new_tokens} new tokens",
            f"about {self.seconds / 60:.1f} minutes ({self.basis})",
        ]
        if self.price_per_hour:
            lines.append(f"about {self.money:.2f} at {self.price_per_hour:g} an hour")
        lines += [f"unreadable: {name}" for name in self.unreadable]
        return "\n".join(lines)


def forecast(cfg: RunConfig, *, price_per_hour: float = 0.0) -> Forecast:
    """Count the pages of `cfg.inputs` without rendering one.

    Raises: UsageError; ModelError for a model that the run itself would not find.
    """
    from ocr2cli.document.raster import page_estimate

    plan = Forecast(price_per_hour=price_per_hour)
    seen: set[str] = set()
    where: Any = {"out": cfg.out, "out_url": cfg.out_url, "written": written_files(cfg.out)}
    model = _model(cfg)
    most = cfg.decode.max_new_tokens or model.max_positions
    for job in find_jobs(cfg.inputs, cfg.pages, cfg.raster, **where):
        seen.add(job.key.document)
        if job.error is not None:
            plan.unreadable.append(f"{job.key.document}: {job.error.message}")
            continue
        width, height, num_characters = page_estimate(job, cfg.raster)
        layout = view_layout(width, height, model.tiles, is_v1=model.is_v1)
        plan.pages += 1
        plan.tiles += layout.num_tiles
        plan.visual_tokens += layout.visual_tokens
        expected = int(num_characters / _CHARACTERS_PER_TOKEN) or _TOKENS_OF_A_SCAN
        plan.new_tokens += min(most, expected)
        plan.grids["x".join(map(str, layout.grid))] += 1
    plan.documents = len(seen)
    plan.seconds, plan.basis = _time(cfg, plan)
    store_forecast(cfg, plan.to_json())
    return plan


class _Model(NamedTuple):
    """What a forecast needs to know of the model."""

    tiles: TileConfig
    is_v1: bool
    max_positions: int


def _model(cfg: RunConfig) -> _Model:
    """By the model's own config; a model of the hub that is not on this machine, or one that a
    server holds, is taken for its published version. Raises: ModelError."""
    config, is_v1 = ModelConfig(), False
    if cfg.engine.engine != "openai":
        files, repo = _find_model(cfg.engine)
        config = config_of(files) if files else config
        is_v1 = config.is_v1 if files else repo == HUB_NAMES["deepseek-ocr"]
    tiles = v1_tile_config(cfg.engine.mode) if is_v1 else TileConfig()
    return _Model(tiles, is_v1, config.decoder.max_positions)


def _find_model(engine: EngineConfig) -> tuple[ModelFiles | None, str]:
    """(its files, or None when the hub has it and this machine does not; its repository)."""
    path = Path(engine.model).expanduser()
    if engine.model == "nano" or path.suffix == ".gguf" or path.exists():
        return resolve_model(engine.model, engine.mmproj), ""
    # Not `resolve_model`: a dry run downloads nothing.
    repo, revision = hub_repo(engine.model)
    folder = cached_folder(repo, revision)
    return (ModelFiles(engine.model, folder) if folder else None), repo


def _time(cfg: RunConfig, plan: Forecast) -> tuple[float, str]:
    """Seconds, and where the speeds come from."""
    rates = load_rates(cfg)
    seconds = (rates or _FIRST_RUN).seconds(
        visual_tokens=plan.visual_tokens, new_tokens=plan.new_tokens
    )
    if rates is None:
        return seconds, "nano on two CPU cores; after a run on this machine, its own speed"
    return seconds, f"as the last runs on this machine, {rates.pages:.0f} pages"


def expected(cfg: RunConfig, summary: Summary) -> dict[str, Any]:
    """What was forecast for the pages that a finished run read; {} when nothing was.

    By the last dry run for this output folder, else by the last runs on this machine. A run that
    found pages read already is held to its share of the dry run.
    """
    read = summary.pages_read
    dry_run, rates = load_forecast(cfg), load_rates(cfg)
    if read and dry_run.get("pages"):
        share = read / dry_run["pages"] if read < summary.pages else 1.0
        return {
            "pages": round(share * dry_run["pages"]),
            "new_tokens": round(share * dry_run["predicted_new_tokens"]),
            "seconds": round(share * dry_run["predicted_seconds"], 1),
            "basis": f"the dry run ({dry_run['basis']})",
        }
    if read and rates:
        per_page = read / rates.pages
        tokens, visual_tokens = per_page * rates.new_tokens, per_page * rates.visual_tokens
        seconds = rates.seconds(visual_tokens=visual_tokens, new_tokens=tokens)
        return {
            "pages": read,
            "new_tokens": round(tokens),
            "seconds": round(seconds, 1),
            "basis": f"the last runs on this machine, {rates.pages:.0f} pages",
        }
    return {}
