"""A dry run: pages, tiles and tokens counted, time and money forecast; no model is loaded.

Knows nothing about how pages are read: speeds come from the last real run into the same folder,
or from the figures of the README's table, and the report says which.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ocr2cli.config import RunConfig, TileConfig
from ocr2cli.document.source import find_jobs
from ocr2cli.document.tiles import view_layout
from ocr2cli.errors import ExitCode

# Characters of a text layer per new token, and tokens of a page without one. Measured on the
# bundled suite with nano; a large vocabulary needs fewer.
_CHARACTERS_PER_TOKEN = 2.0
_TOKENS_OF_A_SCAN = 700
# Seconds a page on two CPU cores with nano (README, speed table), for a first run.
_SECONDS_PER_VIEW = 0.25
_SECONDS_PER_TOKEN = 0.004


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
    """Count the pages of `cfg.inputs` without rendering one. Raises: UsageError."""
    from ocr2cli.document.raster import page_estimate

    plan = Forecast(price_per_hour=price_per_hour)
    seen: set[str] = set()
    for job in find_jobs(cfg.inputs, cfg.pages, cfg.raster, out=cfg.out):
        seen.add(job.key.document)
        if job.error is not None:
            plan.unreadable.append(f"{job.key.document}: {job.error.message}")
            continue
        width, height, num_characters = page_estimate(job, cfg.raster)
        layout = view_layout(width, height, TileConfig())
        plan.pages += 1
        plan.tiles += layout.num_tiles
        plan.visual_tokens += layout.visual_tokens
        plan.new_tokens += int(num_characters / _CHARACTERS_PER_TOKEN) or _TOKENS_OF_A_SCAN
        plan.grids["x".join(map(str, layout.grid))] += 1
    plan.documents = len(seen)
    plan.seconds, plan.basis = _time(cfg, plan)
    return plan


def _time(cfg: RunConfig, plan: Forecast) -> tuple[float, str]:
    """Seconds, from the last run's pages per minute when there was one."""
    try:
        last = json.loads((cfg.out / ".ocr2" / "summary.json").read_text(encoding="utf-8"))
        rate, tokens = float(last["pages_per_minute"]), int(last["new_tokens"])
        read = int(last["pages"]) - int(last["pages_resumed"])
    except (OSError, ValueError, KeyError, TypeError):
        rate, tokens, read = 0.0, 0, 0
    if rate > 0 and read > 0 and tokens > 0:
        seconds = plan.new_tokens / (tokens / read) * 60 / rate
        return seconds, f"at {rate:.1f} pages a minute, as the last run into this folder"
    seconds = (plan.tiles + 1.8 * plan.pages) * _SECONDS_PER_VIEW
    seconds += plan.new_tokens * _SECONDS_PER_TOKEN
    return seconds, "nano on two CPU cores; run once for a forecast of this machine"
