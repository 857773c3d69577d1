"""`ocr2 info`: versions, devices, the model and its memory; the grid and tokens of a page size."""

from __future__ import annotations

import json
import platform
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ocr2cli import __version__
from ocr2cli.cli.options import common, option, set_up_logging
from ocr2cli.cli.run import engine_options
from ocr2cli.cli.settings import engine_config, give_way
from ocr2cli.config import RunConfig, TileConfig
from ocr2cli.errors import ExitCode, Ocr2Error, UsageError

if TYPE_CHECKING:
    from ocr2cli.model.config import ModelConfig
    from ocr2cli.weights.hub import ModelFiles

_PACKAGES = ("torch", "pymupdf", "pillow", "tokenizers", "safetensors", "numpy", "transformers")


@click.command(short_help="Show model, device, memory plan; the grid of a page.")
@option("--size", default="", show_default="none",
        help="A page's size in pixels, WIDTHxHEIGHT: show its grid and tokens.")
@option("--json", "as_json", is_flag=True, show_default=False, help="One JSON object on stdout.")
@engine_options
@common
def info(size: str, as_json: bool, **flags: Any) -> int:
    """Show what this install is made of, where it runs and what it needs.

    memory_plan: bytes of the weights in each encoder and each decoder, of each decoder's KV cache
    for its batch, and of all of that together. Python, torch and the pages under way come on top.
    """
    give_way(click.get_current_context(), flags)
    set_up_logging(**{name: flags.pop(name) for name in ("verbose", "quiet", "log_format")})
    cfg = RunConfig(engine=engine_config(flags))
    facts = page_facts(size, cfg) if size else install_facts(cfg)
    click.echo(json.dumps(facts) if as_json else _as_text(facts))
    return ExitCode.OK


def page_facts(size: str, cfg: RunConfig) -> dict[str, Any]:
    """Grid, views and tokens of one page size, with the model's own numbers."""
    from ocr2cli.document.tiles import v1_tile_config, view_layout

    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size.strip().lower())
    if not found or 0 in map(int, found.groups()):
        raise UsageError(f"--size {size}: write WIDTHxHEIGHT in pixels, e.g. --size 1224x1584")
    model = _find_model(cfg)
    is_v1 = model.config.is_v1
    tiles = v1_tile_config(cfg.engine.mode) if is_v1 else TileConfig()
    layout = view_layout(int(found[1]), int(found[2]), tiles, is_v1=is_v1)
    return {
        "size": [int(found[1]), int(found[2])],
        "grid": list(layout.grid),
        "num_tiles": layout.num_tiles,
        "visual_tokens": layout.visual_tokens,
        "global_view": {
            "size": list(layout.global_size),
            "offset": list(layout.global_offset),
        },
        **_model_facts(cfg, model),
    }


def install_facts(cfg: RunConfig) -> dict[str, Any]:
    """Versions, devices, model, and how many workers with how much memory a run would use."""
    from ocr2cli.engines.choose import num_workers
    from ocr2cli.engines.host import host_memory_available, num_cores

    rasterizers, encoders, decoders = num_workers(cfg)
    model = _find_model(cfg)
    return {
        "ocr2": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "cores": num_cores(),
        "memory_available": host_memory_available(),
        **_model_facts(cfg, model),
        "workers": {"raster": rasterizers, "encode": encoders, "decode": decoders},
        "memory_plan": _memory_plan(cfg, model),
    }


class _Model(NamedTuple):
    files: ModelFiles
    config: ModelConfig
    num_bytes: int


def _find_model(cfg: RunConfig) -> _Model:
    from ocr2cli.weights.checkpoint import open_checkpoint
    from ocr2cli.weights.hub import local_model

    files = local_model(cfg.engine.model, cfg.engine.mmproj)
    checkpoint = open_checkpoint(files)
    try:
        return _Model(files, checkpoint.config, checkpoint.num_bytes())
    finally:
        checkpoint.close()


def _model_facts(cfg: RunConfig, model: _Model) -> dict[str, Any]:
    from ocr2cli.weights.names import count_parameters

    return {
        "model": cfg.engine.model,
        "path": str(model.files.path),
        "parameters": count_parameters(model.config),
        "bytes": model.num_bytes,
        "kv_bytes_per_token": model.config.kv_bytes_per_token,
        "context": model.config.decoder.max_positions,
    }


def _memory_plan(cfg: RunConfig, model: _Model) -> dict[str, Any]:
    """What the workers of a run with these settings hold; why there is no plan where a run would
    be refused."""
    from ocr2cli.engines.choose import native_spec, num_workers
    from ocr2cli.engines.loading import place_of_size
    from ocr2cli.engines.memory_plan import worker_bytes
    from ocr2cli.weights.names import count_parameters

    config = model.config
    try:
        device, dtype, matrices = place_of_size(cfg.engine, count_parameters(config))
    except Ocr2Error as error:
        return {"error": str(error)}
    spec = native_spec(cfg, model.files, config, "")
    sizes = worker_bytes(
        config,
        arithmetic=dtype.itemsize,
        matrices=matrices.itemsize,
        is_int8=cfg.engine.dtype == "int8",
    )
    # A card commits each slot's whole context at once, and one slot more than there are pages.
    slots = (spec.batch_size + 1) * config.decoder.max_positions
    tokens = slots if device.type == "cuda" else spec.kv_tokens
    cache = tokens * sizes.kv_token
    _, encoders, decoders = num_workers(cfg)
    return {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": spec.batch_size,
        "kv_tokens": spec.kv_tokens,
        "encoder_bytes": sizes.encoder,
        "decoder_bytes": sizes.decoder,
        "kv_cache_bytes": cache,
        "total_bytes": encoders * sizes.encoder + decoders * (sizes.decoder + cache),
    }


def _devices() -> list[str]:
    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i} ({name})" for i, name in enumerate(cuda)), *mps]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _as_text(facts: dict[str, Any]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {_value(value)}" for name, value in facts.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    if isinstance(value, list):
        is_pair = bool(value) and isinstance(value[0], int)
        return (" x " if is_pair else ", ").join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
