"""What this machine's last runs took, and what the last dry run forecast, in the user's cache.

Both are conveniences: a cache that cannot be read or written is no error. Knows nothing about how
pages are read or counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ocr2cli.config import RunConfig
from ocr2cli.document.urls import is_url
from ocr2cli.home import user_folder
from ocr2cli.output.summary import Summary
from ocr2cli.pipeline.durable import atomic_write

# A shorter run says more about starting than about reading.
MIN_PAGES = 3
# The last run counts for this much of what all runs before it do.
_FADE = 0.5


@dataclass(frozen=True, slots=True)
class Rates:
    """Totals over the last runs, older ones fading. startup_s: until the first page could be read;
    vision_s and text_s: the rest of the wall time, split by what it was spent on."""

    pages: float
    visual_tokens: float
    new_tokens: float
    startup_s: float
    vision_s: float
    text_s: float

    def seconds(self, *, visual_tokens: float, new_tokens: float) -> float:
        """Wall time of a run with so many tokens."""
        vision = self.vision_s / self.visual_tokens * visual_tokens
        return self.startup_s + vision + self.text_s / self.new_tokens * new_tokens

    def after(self, run: Rates) -> Rates:
        """These rates with one more run; its start-up time replaces the older one."""
        old, new = asdict(self), asdict(run)
        mixed = {name: _FADE * old[name] + new[name] for name in old}
        return Rates(**{**mixed, "startup_s": run.startup_s})


def rates_of(summary: Summary, startup_s: float) -> Rates | None:
    """One run's rates; None when it read too little to tell."""
    pages = summary.pages_of_model
    # Where most pages were only looked up, or taken from text layers, the time went into that.
    if pages < max(MIN_PAGES, summary.pages_reused + summary.pages_taken):
        return None
    if not summary.visual_tokens or not summary.new_tokens:
        return None
    reading = max(summary.wall_seconds - startup_s, 0.01)
    # Pages are decoded together, so their decoding times overlap: what encoding leaves is text's.
    seen = summary.seconds["raster"] - summary.taken_seconds + summary.seconds["encode"]
    vision = min(float(seen), 0.8 * reading)
    return Rates(
        pages, summary.visual_tokens, summary.new_tokens, startup_s, vision, reading - vision
    )


def load_rates(cfg: RunConfig) -> Rates | None:
    """What runs like this one took on this machine, or None."""
    row: Any = _read("rates").get(_kind_of_run(cfg))
    try:
        rates = Rates(**{name: _finite(value) for name, value in row.items()})
        return rates if min(rates.pages, rates.visual_tokens, rates.new_tokens) > 0 else None
    except (AttributeError, OverflowError, TypeError, ValueError):
        return None


def store_rates(cfg: RunConfig, run: Rates) -> None:
    """Remember a run."""
    earlier = load_rates(cfg)
    table = _read("rates")
    table[_kind_of_run(cfg)] = asdict(earlier.after(run) if earlier else run)
    _write("rates", table)


def load_forecast(cfg: RunConfig) -> dict[str, Any]:
    """pages, new tokens, seconds (or None) and basis of the last dry run with these inputs and
    settings for this output folder; {} without one."""
    row: Any = _read("forecasts").get(_work(cfg))
    try:
        found = {name: _finite(row[name]) for name in ("pages", "predicted_new_tokens")}
        seconds = row["predicted_seconds"]
        known = {"predicted_seconds": None if seconds is None else _finite(seconds)}
        return {**found, **known, "basis": str(row["basis"])} if found["pages"] > 0 else {}
    except (KeyError, OverflowError, TypeError, ValueError):
        return {}


def _finite(value: Any) -> float:
    """Raises: TypeError, ValueError, OverflowError."""
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is no amount")
    return number


def store_forecast(cfg: RunConfig, forecast: dict[str, Any]) -> None:
    """Remember a dry run; only the last hundred are kept."""
    table = _read("forecasts")
    table.pop(_work(cfg), None)
    table[_work(cfg)] = forecast
    _write("forecasts", dict(list(table.items())[-100:]))


def expected(cfg: RunConfig, summary: Summary) -> dict[str, Any]:
    """What was forecast for the pages that a finished run read; {} when nothing was.

    By the last dry run of the same (`load_forecast`), else by the last runs on this machine. A run
    that found pages read already is held to its share of the dry run.
    """
    read = summary.pages_read
    dry_run, rates = load_forecast(cfg), load_rates(cfg)
    if read and dry_run:
        share = read / dry_run["pages"] if read < summary.pages else 1.0
        seconds = dry_run["predicted_seconds"]
        return {
            "pages": round(share * dry_run["pages"]),
            "new_tokens": round(share * dry_run["predicted_new_tokens"]),
            "seconds": None if seconds is None else round(share * seconds, 1),
            "basis": f"the dry run ({dry_run['basis']})",
        }
    if summary.pages_of_model and rates:
        read = summary.pages_of_model
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


def _kind_of_run(cfg: RunConfig) -> str:
    """Runs whose speeds can be compared. A home folder may be shared by machines."""
    engine = cfg.engine
    facts = (
        platform.node(), os.cpu_count(), cfg.runner, engine.engine, engine.model, engine.server,
        engine.device, engine.dtype, engine.compile, engine.decoders, engine.encoders,
        engine.batch_size,
    )  # fmt: skip
    return "|".join(map(str, facts))


def _work(cfg: RunConfig) -> str:
    """Digest of what is read, how, and into which folder: of another run a forecast says nothing.
    Not the fingerprint that resume uses, which of a server's model cannot be told by a dry run."""
    raster = asdict(cfg.raster) | {"password": ""}
    facts = (
        os.path.abspath(cfg.out), cfg.out_url,
        [given if is_url(given) else os.path.abspath(given) for given in cfg.inputs],
        cfg.pages, cfg.resume, cfg.retry_failed, cfg.recover_loops, raster, asdict(cfg.decode),
        cfg.engine.prompt, cfg.engine.prompt_text, cfg.engine.mmproj, cfg.engine.mode,
        _kind_of_run(cfg),
    )  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()


def _file(name: str) -> Path:
    """Raises: RuntimeError for a user without a home."""
    return user_folder("cache") / f"{name}.json"


def _read(name: str) -> dict[str, Any]:
    try:
        table = json.loads(_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return table if isinstance(table, dict) else {}


def _write(name: str, table: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        path = _file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(table, indent=1).encode() + b"\n")
