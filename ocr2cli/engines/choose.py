"""A run's configuration -> its stages, how many workers each gets, and the run's fingerprint.

Imports no torch: the parent plans, the workers load. Knows nothing about pages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ocr2cli.config import OUTPUT_VERSION, RunConfig, TileConfig
from ocr2cli.document.tiles import TILE_RULE, v1_tile_config
from ocr2cli.engines.host import check_device, num_cores
from ocr2cli.engines.memory_plan import plan_batch, plan_kv_tokens
from ocr2cli.engines.native import NativeSpec, native_stages
from ocr2cli.errors import UsageError
from ocr2cli.model.config import ModelConfig
from ocr2cli.pipeline.stage import Stage
from ocr2cli.text.prompt import is_text, prompt_text, split_at_page
from ocr2cli.weights.hub import resolve_model
from ocr2cli.weights.names import count_parameters

if TYPE_CHECKING:
    from ocr2cli.weights.hub import ModelFiles

logger = logging.getLogger("ocr2")

_MAX_RASTERIZERS = 16  # where no number was asked for

# Fingerprint of runs whose stages were handed in.
STUB = "stub"


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What a runner needs.

    fingerprint: changes when, and only when, the output may change.
    cache: finds pages read by earlier runs, or None. num_workers: raster, encode, decode.
    """

    stages: tuple[Stage, ...]
    fingerprint: str
    cache: Any = None
    num_workers: tuple[int, int, int] = (0, 0, 0)


OpenCache = Callable[[str], Any]


def plan_engine(
    cfg: RunConfig, open_cache: OpenCache | None = None, *, cores: int = 0
) -> EnginePlan:
    """Check model and prompt, size the workers.

    open_cache: fingerprint -> page cache (`find` looks a page up by its pixels' digest). cores:
    that the workers share; 0: all that this process may use.
    Raises: ModelError, UsageError.
    """
    prompt = check_request(cfg)
    if cfg.engine.engine == "openai":
        from ocr2cli.engines.remote import plan_remote

        return plan_remote(cfg, prompt, open_cache)
    from ocr2cli.weights.checkpoint import open_checkpoint
    from ocr2cli.weights.digest import weights_digest

    files = resolve_model(cfg.engine.model, cfg.engine.mmproj)
    checkpoint = open_checkpoint(files)
    checkpoint.close()
    config = checkpoint.config
    spec = native_spec(cfg, files, config, prompt)
    logger.info(
        "model: %s, %s parameters; a decoder reads up to %d pages together, of %s tokens in all",
        cfg.engine.model, f"{count_parameters(config):,}", spec.batch_size, f"{spec.kv_tokens:,}",
    )  # fmt: skip
    identity = weights_digest(files)
    fingerprint = run_fingerprint(cfg, prompt, model=identity, tiles=spec.tiles)
    cache = open_cache(fingerprint) if open_cache else None
    stages = _native_stages(cfg, spec, cache, cores or num_cores())
    return EnginePlan(stages, fingerprint, cache, num_workers(cfg))


def check_request(cfg: RunConfig) -> str:
    """The prompt's text. Raises: UsageError for a prompt or a device that is none."""
    prompt = cfg.engine.prompt_text or prompt_text(cfg.engine.prompt)
    if not is_text(prompt):
        raise UsageError("--prompt-text is no text in this terminal's encoding. Type it as UTF-8")
    split_at_page(prompt)  # refuses a second <image>
    check_device(cfg.engine.device, cfg.engine.dtype)
    return prompt


def plan_for_cores(cfg: RunConfig, open_cache: OpenCache | None, cores: int) -> EnginePlan:
    """`plan_engine` on a node of whose cores this runner may use so many."""
    rasterizers = cfg.engine.rasterizers or _rasterizers_for(cores)
    return plan_engine(
        dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, rasterizers=rasterizers)),
        open_cache,
        cores=cores,
    )


def native_spec(
    cfg: RunConfig, files: ModelFiles, config: ModelConfig, prompt: str
) -> NativeSpec:
    """What each worker of the native engine is told."""
    _, encoders, decoders = num_workers(cfg)
    batch = cfg.engine.batch_size or plan_batch(
        cfg.engine, config, encoders=encoders, decoders=decoders, memory_limit=cfg.worker_memory
    )
    return NativeSpec(
        files=files,
        engine=cfg.engine,
        decode=cfg.decode,
        tiles=v1_tile_config(cfg.engine.mode) if config.is_v1 else TileConfig(),
        prompt=prompt,
        batch_size=batch,
        kv_tokens=cfg.engine.kv_tokens
        or plan_kv_tokens(cfg.engine, config, batch, encoders=encoders, decoders=decoders),
        recover=cfg.recover_loops,
    )


def _native_stages(
    cfg: RunConfig, spec: NativeSpec, cache: Any, cores: int
) -> tuple[Stage, ...]:
    rasterizers, encoders, decoders = num_workers(cfg)
    stages = native_stages(
        spec,
        cfg.raster,
        cache=cache,
        rasterizers=rasterizers,
        encoders=encoders,
        decoders=decoders,
        timeout_s=cfg.page_timeout,
        recycle_after=cfg.recycle_after,
        memory_limit=cfg.worker_memory,
        # Encoder and decoder are rarely both busy to the full: each may use all cores.
        threads=max(1, cores // max(encoders, decoders)),
    )
    return tuple(stages)


def num_workers(cfg: RunConfig) -> tuple[int, int, int]:
    """(rasterizers, encoders, decoders), counts not given worked out from the cores."""
    rasterizers = cfg.engine.rasterizers or _rasterizers_for(num_cores())
    return rasterizers, cfg.engine.encoders or 1, cfg.engine.decoders or 1


def _rasterizers_for(cores: int) -> int:
    return max(1, min(_MAX_RASTERIZERS, cores - 2))


def run_fingerprint(cfg: RunConfig, prompt: str, *, model: str, tiles: TileConfig) -> str:
    """SHA-256 over everything that may change a page's text."""
    return fingerprint_of(
        cfg,
        prompt,
        tile_rule=TILE_RULE,
        model=model,
        tiles=dataclasses.asdict(tiles),
        dtype=cfg.engine.dtype,
    )


def fingerprint_of(cfg: RunConfig, prompt: str, **engine: Any) -> str:
    """SHA-256 over what may change a page's text whatever reads it, and over `engine`: what else
    may with this one."""
    raster = {k: v for k, v in dataclasses.asdict(cfg.raster).items() if k != "password"}
    if raster["text_layer"] == "draft":
        raster["text_layer"] = "never"  # a draft is checked token by token: the text is the same
    facts: dict[str, Any] = {
        "output_version": OUTPUT_VERSION,
        "prompt": prompt,
        "decode": dataclasses.asdict(cfg.decode) | {"draft": ""},  # drafts never change the text
        "raster": raster,
        "recover": cfg.recover_loops,
        **engine,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
