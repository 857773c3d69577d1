"""The bench's figures as a table for people and one object for machines."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ocr2cli import __version__
from ocr2cli.bench.measure import Ceilings, Timing
from ocr2cli.bench.workload import Subject, make_pages, tile_config
from ocr2cli.engines.encoding import encode_pages
from ocr2cli.engines.host import num_cores
from ocr2cli.model.config import ModelConfig
from ocr2cli.model.vision import VisionEncoder


def report(
    subject: Subject,
    ours: Timing,
    ceilings: Ceilings,
    *,
    raster_ms: Mapping[str, float],
    peak_bytes: int,
    peers: Mapping[str, Timing],
) -> dict[str, Any]:
    """One JSON object; every figure was measured in this run."""
    return {
        "ocr2": __version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {num_cores()} cores, {torch.get_num_threads()} threads",
        "model": subject.name,
        "device": str(subject.device),
        "dtype": dtype_of(subject),
        "pages": ours.num_pages,
        "new_tokens": ours.new_tokens,
        "ours": figures(ours),
        "raster_ms": {stage: round(value, 2) for stage, value in raster_ms.items()},
        "rasterizers_needed": rasterizers_needed(ours, raster_ms),
        "peak_bytes": peak_bytes,
        "ceilings": asdict(ceilings),
        "share_of_ceilings": shares(subject, ours, ceilings),
        "peers": {name: figures(timing) for name, timing in peers.items()},
        "times_faster": {
            name: times_faster(figures(timing), figures(ours)) for name, timing in peers.items()
        },
    }


def dtype_of(subject: Subject) -> str:
    """As in "float32, matrices in bfloat16, int8": only what differs from the first is said."""
    parts = [str(subject.dtype).removeprefix("torch.")]
    if subject.matrices not in (None, subject.dtype):
        parts.append("matrices in " + str(subject.matrices).removeprefix("torch."))
    if subject.has_int8:
        parts.append("int8")
    if subject.is_compiled:
        parts.append("encoder compiled")
    return ", ".join(parts)


KEYS = ("encode_s_page", "prefill_s_page", "decode_tokens_s", "s_page_of_1000", "pages_s")
_TYPICAL_TOKENS = 1_000


def figures(timing: Timing) -> dict[str, float]:
    """Rates of one measurement."""
    pages = timing.num_pages
    return {
        "encode_s_page": round(timing.encode_s / pages, 4),
        "prefill_s_page": round(timing.prefill_s / pages, 4),
        "decode_s_page": round(timing.decode_s / pages, 4),
        "decode_tokens_s": round(timing.decode_tokens_s, 2),
        "s_page_of_1000": round(timing.seconds_a_page_of(_TYPICAL_TOKENS), 4),
        "pages_s": round(1 / timing.seconds_a_page, 4) if timing.seconds_a_page else 0.0,
    }


def rasterizers_needed(ours: Timing, raster_ms: Mapping[str, float]) -> int:
    """Processes that rasterise as fast as the model reads pages of a typical length."""
    return max(1, math.ceil(raster_ms["total"] / 1e3 / ours.seconds_a_page_of(_TYPICAL_TOKENS)))


def times_faster(theirs: Mapping[str, float], mine: Mapping[str, float]) -> dict[str, float]:
    """How many times `mine` is ahead in the table's columns, from two `figures`; below 1 it is
    behind."""
    result = {}
    for key in KEYS:
        top, bottom = theirs[key], mine[key]
        if key in ("decode_tokens_s", "pages_s"):
            top, bottom = bottom, top
        result[key] = round(top / bottom, 2) if bottom else 0.0
    return result


def shares(subject: Subject, ours: Timing, ceilings: Ceilings) -> dict[str, float]:
    """What of the machine's measured ceilings the stages reach.

    encode: multiply-adds of its weights and attention against the product's rate.
    decode: the fewest bytes a step must read against the memory's rate.
    """
    result = {}
    if ours.encode_s:
        rate = encode_flops(subject.config) / (ours.encode_s / ours.num_pages)
        result["encode"] = round(rate / ceilings.matmul, 3)
    if ours.decode_steps and ours.decode_s:
        step = least_bytes_a_step(subject, ours) / (ours.decode_s / ours.decode_steps)
        result["decode"] = round(step / ceilings.memory, 3)
    return result


def encode_flops(config: ModelConfig) -> int:
    """Of one page's views, counted by their sizes; nothing is computed."""
    with torch.device("meta"):
        vision = VisionEncoder(config)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        encode_pages(vision, make_pages(1, tile_config(config)))
    return counter.get_total_flops()


def least_bytes_a_step(subject: Subject, ours: Timing) -> float:
    """Bytes one decode step of all pages reads at least: weights once, each page's KV cache."""
    decoder, width = subject.config.decoder, subject.dtype.itemsize
    weight_width = 1 if subject.has_int8 else (subject.matrices or subject.dtype).itemsize
    hidden = decoder.hidden_size
    missed = (1 - decoder.experts_per_token / decoder.num_experts) ** ours.num_pages
    experts = decoder.num_shared_experts + decoder.num_experts * (1 - missed)
    num_sparse = decoder.num_layers - decoder.num_dense_layers
    weights = (
        4 * hidden * hidden * decoder.num_layers
        + 3 * hidden * decoder.dense_intermediate * decoder.num_dense_layers
        + 3 * hidden * decoder.expert_intermediate * experts * num_sparse
        + hidden * decoder.vocab_size
    )
    context = ours.prompt_tokens + ours.num_pages * ours.new_tokens / 2
    return weight_width * weights + width * 2 * decoder.num_layers * hidden * context


def as_text(facts: Mapping[str, Any]) -> str:
    """A table: ours, the peers, the ratios."""
    head = (
        f"{facts['model']} on {facts['device']} in {facts['dtype']}, {facts['pages']} pages, "
        f"{facts['new_tokens']} new tokens each; {facts['machine']}, torch {facts['torch']}"
    )
    rows: list[tuple[str, ...]] = [
        ("", "encode s/page", "prefill s/page", "decode tokens/s", "s/page of 1,000 tokens",
         "pages/s as measured")
    ]
    rows += [
        (name, *(f"{value[key]:.3f}" for key in KEYS))
        for name, value in {"ocr2": facts["ours"], **facts["peers"]}.items()
    ]
    rows += [
        (f"ocr2 / {name}", *(f"{value[key]:.2f}x" for key in KEYS))
        for name, value in facts["times_faster"].items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    ceilings, share = facts["ceilings"], facts["share_of_ceilings"]
    foot = [
        "a page is rasterised in "
        + ", ".join(f"{value:.0f} ms {stage}" for stage, value in facts["raster_ms"].items())
        + f"; processes that keep up: {facts['rasterizers_needed']}",
        f"peak memory {facts['peak_bytes'] / 1e9:.2f} GB",
        f"this machine: {ceilings['matmul'] / 1e9:.0f} GFLOP/s in a product, "
        f"{ceilings['memory'] / 1e9:.1f} GB/s read",
        *(f"{name} reaches {value:.0%} of its ceiling" for name, value in share.items()),
    ]
    return "\n".join([head, *table, *foot])


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
