"""`ocr2 bench`: measure encode, prefill and decode; the peer and the ceilings in the same run."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from ocr2cli.cli.options import common, completes, model_names, option, set_up_logging
from ocr2cli.config import DTYPE_NAMES, EngineConfig


@click.command(short_help="Measure encode, prefill, decode and end to end.")
@option("--model", default="random-full",
        shell_complete=completes(lambda: ("random-full", "random-tiny", *model_names())),
        help="random-full, random-tiny, or any model that `ocr2 run` takes.")
@option("--device", default="auto", help="cpu, cuda, cuda:1, mps.")
@option("--dtype", default="auto", type=click.Choice(DTYPE_NAMES),
        help="Arithmetic of the model; int8: of the decoder, on a CPU.")
@option("--compile", "is_compiled", is_flag=True, show_default=False,
        help="Compile a GPU's encoder first (torch.compile).")
@option("--pages", default=1, type=click.IntRange(1, 1024), help="Pages decoded together.")
@option("--new-tokens", default=64, type=click.IntRange(2, 8000), help="Tokens a page.")
@option("--threads", default=0, type=click.IntRange(0, 1024), show_default="all cores",
        help="CPU threads.")
@option("--against", type=click.Choice(["hf"]), default=None, show_default="nobody",
        help="Measure a peer on the same work in the same run.")
@option("--json", "as_json", is_flag=True, show_default=False, help="One JSON object on stdout.")
@common
def bench(
    model: str, device: str, dtype: str, is_compiled: bool, pages: int, new_tokens: int,
    threads: int, against: str | None, as_json: bool, **logs: Any,
) -> None:  # fmt: skip
    """Measure this machine: seconds a page by stage, tokens/s, memory, ceilings.

    Pages are A4 at 144 dpi: 6 tiles and the global view. No model needs to be downloaded.
    """
    set_up_logging(**logs)
    from ocr2cli.pipeline.process import wait_quietly

    wait_quietly(os.environ)  # as the workers of a run, before torch is imported
    import torch

    from ocr2cli.bench.measure import (
        ENCODED_GROUPS,
        measure_ceilings,
        measure_ours,
        pages_at_once,
        peak_memory,
    )  # fmt: skip
    from ocr2cli.bench.raster import measure_raster
    from ocr2cli.bench.report import as_text, report
    from ocr2cli.bench.workload import (
        check_request,
        make_subject,
        make_work,
        model_config,
        tile_config,
    )
    from ocr2cli.engines.host import num_cores

    torch.set_num_threads(threads or num_cores())
    engine = EngineConfig(model=model, device=device, dtype=dtype, compile=is_compiled)
    check_request(model_config(engine), new_tokens, against)
    subject = make_subject(engine)
    encoded = ENCODED_GROUPS * pages_at_once(subject.device)
    work = make_work(subject, pages, new_tokens, encoded=encoded)
    ours = measure_ours(subject, work)
    peak = peak_memory(subject.device)  # before the ceilings, whose buffers are none of the model's
    ceilings = measure_ceilings(subject.device, subject.dtype)
    peers = {}
    if against:
        from ocr2cli.bench.hf import measure_hf

        subject.give_up_model()
        peers["transformers"] = measure_hf(subject, work)
    raster_ms = measure_raster(tile_config(subject.config))
    facts = report(subject, ours, ceilings, raster_ms=raster_ms, peak_bytes=peak, peers=peers)
    click.echo(json.dumps(facts) if as_json else as_text(facts))
