"""`ocr2 run`: its options, signals to a stop request, a summary to an exit code.

`settings.py` makes a RunConfig of the options, `run_report.py` says what is to be said. Knows
nothing about how pages are read.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocr2cli.cli.options import (
    FiniteRange,
    TopicCommand,
    common,
    completes,
    is_terminal,
    model_names,
    option,
    set_up_logging,
)
from ocr2cli.cli.run_report import print_json, say_end, say_stopping, warn
from ocr2cli.cli.settings import give_way, refuse_two_prompts, run_config
from ocr2cli.config import (
    BOUNDS,
    DRAFT_MODES,
    DTYPE_NAMES,
    ENGINES,
    ROTATE_MODES,
    TEXT_LAYER_USES,
    V1_MODES,
    RunConfig,
)
from ocr2cli.errors import EngineError, OutputError
from ocr2cli.output.formats import FORMATS
from ocr2cli.runners import RUNNERS
from ocr2cli.text.prompt import PROMPTS

if TYPE_CHECKING:
    from ocr2cli.output.summary import Summary

_PROMPT_WORDS = tuple(f"{name}:" if name == "locate" else name for name in PROMPTS)
_COUNT = click.IntRange(min=0)

# The headings of --help, and the flags below each, without their dashes.
TOPICS = {
    "Input": "null pages dpi password password-file rotate text-layer",
    "Output": "out state format min-confidence save-tokens json metrics-file",
    "Reading": "prompt prompt-text max-new-tokens no-repeat-ngram ngram-window dry "
               "draft no-recover",
    "Model": "model mmproj mode dtype",
    "Resume and retry": "no-resume retry-failed fail-fast page-timeout retries cache "
                        "cache-size",
    "Forecast": "dry-run price-per-hour",
    "Machine": "device compile encoders decoders rasterizers batch-size kv-tokens "
               "recycle-after worker-memory runner address",
    "Server that holds the model": "engine server api-key",
}  # fmt: skip


def engine_options(function: Any) -> Any:
    """Which model, where: shared by run, eval, bench, info and serve."""
    for decorate in reversed(
        (
            option("--model", default="nano", shell_complete=completes(model_names),
                   help="nano, deepseek-ocr-2, deepseek-ocr, a hub id, a folder or a .gguf "
                   "file."),
            option("--mmproj", default="", help="The GGUF file of the vision part.",
                   show_default="beside the .gguf"),
            option("--mode", default="gundam", help="Tiling of v1 models.",
                   type=click.Choice(tuple(V1_MODES))),
            option("--device", default="auto", help="cpu, cuda, cuda:1, mps."),
            option("--dtype", default="auto",
                   type=click.Choice(DTYPE_NAMES),
                   help="Arithmetic of the model; int8: of the decoder, on a CPU."),
            option("--compile", is_flag=True, show_default=False,
                   help="Compile a GPU's encoder before the first page (torch.compile)."),
            option("--encoders", default=0, type=_COUNT, show_default="auto",
                   help="Encoder processes."),
            option("--decoders", default=0, type=_COUNT, show_default="auto",
                   help="Decoder processes."),
            option("--rasterizers", default=0, type=_COUNT, show_default="auto",
                   help="Rasteriser processes."),
            option("--batch-size", default=0, type=_COUNT, show_default="auto",
                   help="Pages decoded together by one decoder."),
            option("--kv-tokens", default=0, type=_COUNT, show_default="auto",
                   help="Tokens that pages decoded together may hold; a longer page goes alone."),
        )
    ):  # fmt: skip
        function = decorate(function)
    return function


def decode_options(function: Any) -> Any:
    """What the decoder may write."""
    for decorate in reversed(
        (
            option("--max-new-tokens", default=0, type=_COUNT,
                   show_default="8192 less the prompt",
                   help="Token limit of a page."),
            option("--no-repeat-ngram", default=20, type=_COUNT,
                   help="Length of an n-gram that may not come twice; 0: off."),
            option("--ngram-window", default=90, type=_COUNT,
                   help="How far back the n-gram rule looks."),
            option("--dry", default="", show_default="off",
                   help="llama.cpp's DRY sampler instead: MULTIPLIER[,BASE[,LENGTH[,LAST_N]]]."),
            option("--draft", default="off",
                   type=click.Choice(DRAFT_MODES),
                   help="Lossless drafts: same tokens, fewer steps."),
        )
    ):  # fmt: skip
        function = decorate(function)
    return function


@click.command(cls=TopicCommand, topics=TOPICS, short_help="Read documents, write markdown.")
@click.argument("inputs", nargs=-1, required=True,
                type=click.Path(path_type=str, readable=False))
@option("-o", "--out", required=True, type=click.Path(path_type=str),
        help="Output folder, or the URL of an object store: s3://bucket/prefix.")
@option("--state", type=click.Path(file_okay=False, path_type=Path),
        show_default="a folder of the user's for each URL",
        help="Local folder for the state of a run whose output is a URL.")
@option("-0", "--null", "null_separated", is_flag=True, show_default=False,
        help="Paths on stdin end in NUL.")
@engine_options
@option("--prompt", default="markdown", shell_complete=completes(lambda: _PROMPT_WORDS),
        help="markdown, ocr, figure, describe or locate:WHAT.")
@option("--prompt-text", default="", show_default="none", help="A prompt of your own.")
@option("--pages", default="", show_default="all", help="1-3,7,10-; the first page is 1.")
@option("--dpi", default=144, type=click.IntRange(*BOUNDS["dpi"]), help="PDF rasterisation.")
@option("--password", default="", show_default="none", help="Password of encrypted PDFs.")
@option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="File whose first line is the password.")
@option("--rotate", default="never", type=click.Choice(ROTATE_MODES),
        help="Turn sideways scans upright.")
@option("--text-layer", default="never",
        type=click.Choice(TEXT_LAYER_USES),
        help="Use of a PDF's own text; auto: instead of reading, where it matches the pixels.")
@decode_options
@option("--format", "formats", default="md,jsonl",
        shell_complete=completes(lambda: FORMATS, is_list=True),
        help="Comma list of: " + ", ".join(FORMATS))
@option("--no-resume", is_flag=True, show_default=False, help="Read every page again.")
@option("--retry-failed", is_flag=True, show_default=False, help="Read failed pages again.")
@option("--dry-run", is_flag=True, show_default=False, help="Count pages, tiles and tokens only.")
@option("--price-per-hour", default=0.0, type=FiniteRange(min=0), show_default="none",
        help="Price of this machine, for the forecast of a dry run.")
@option("--fail-fast", is_flag=True, show_default=False, help="Stop at the first failed page.")
@option("--page-timeout", default=600.0, type=FiniteRange(*BOUNDS["page_timeout"]),
        help="Seconds without progress until a worker is killed; 60 at least while it loads.")
@option("--retries", default=1, type=click.IntRange(*BOUNDS["retries"]),
        help="Tries after a worker's death.")
@option("--no-recover", is_flag=True, show_default=False,
        help="Leave looping pages as they are.")
@option("--recycle-after", default=500, type=_COUNT,
        help="Pages after which a worker is replaced; 0: never.")
@option("--worker-memory", default="", show_default="no limit",
        help="Memory limit of a worker, e.g. 8G; on a GPU of rasterisers only.")
@option("--cache", default="", show_default="off", help="Folder of a page cache shared by runs.")
@option("--cache-size", default="2G", help="Size limit of the page cache.")
@option("--min-confidence", default=0.0, type=FiniteRange(*BOUNDS["min_confidence"]),
        show_default="off", help="List pages below this confidence in the summary.")
@option("--metrics-file", default="", show_default="none",
        help="Prometheus text file, replaced as the run goes.")
@option("--runner", default="local", type=click.Choice(tuple(RUNNERS)),
        help="Where the workers run.")
@option("--address", "ray_address", default="", help="Ray cluster.",
        show_default="RAY_ADDRESS, else a new local cluster")
@option("--engine", default="native", type=click.Choice(ENGINES),
        help="What answers a page.")
@option("--server", default="", show_default="none",
        help="URL of an OpenAI-compatible server, for --engine openai.")
@option("--api-key", default="", show_default="none", help="Key of that server.")
@option("--save-tokens", is_flag=True, show_default=False, help="Token ids into the sidecar.")
@option("--json", "as_json", is_flag=True, show_default=False,
        help="Summary as one JSON object on stdout.")
@common
def run(**flags: Any) -> int:
    """Read INPUTS (PDFs, images, folders, globs; - for paths on stdin), write markdown.

    A rerun reads only what is missing or changed. The exit code is 0 when every page was read,
    5 when some pages failed, looped or were cut, 3 when no input could be read.
    """
    give_way(click.get_current_context(), flags)
    set_up_logging(
        verbose=flags.pop("verbose"), quiet=(quiet := flags.pop("quiet")),
        log_format=(log_format := flags.pop("log_format")),
    )  # fmt: skip
    refuse_two_prompts(click.get_current_context())
    as_json, dry_run, price = (
        flags.pop("as_json"), flags.pop("dry_run"), flags.pop("price_per_hour")
    )  # fmt: skip
    cfg = run_config(flags)
    if dry_run:
        return _forecast(cfg, price_per_hour=price, as_json=as_json)
    return execute(cfg, quiet=quiet, as_json=as_json, log_json=log_format == "json")


def execute(
    cfg: RunConfig, *, quiet: bool = False, as_json: bool = False, log_json: bool = False,
    stages: Any = None,
) -> int:  # fmt: skip
    """Run the batch under signal handlers and progress; returns the exit code.

    stages: a stage list instead of the configured engine's (the fault tests pass stubs).
    """
    from ocr2cli.batch import run_batch
    from ocr2cli.cli.progress import make_progress
    from ocr2cli.output.summary import Summary
    from ocr2cli.pipeline.process import wait_quietly
    from ocr2cli.pipeline.stop import stop_on_signals

    if cfg.runner == "inline":
        wait_quietly(os.environ)  # as the workers of the others, before torch is imported
    if stages is None:
        warn(cfg)
    has_bar = is_terminal() and not log_json and not quiet
    tell = partial(say_stopping, cfg.drain, is_over_bar=has_bar)
    summary = Summary()
    try:
        with stop_on_signals(tell) as stop, make_progress(quiet=quiet, bar=has_bar) as progress:
            summary = run_batch(
                cfg, stages=stages, progress=progress, stop=stop, summary=summary
            )
    except Exception as error:
        if as_json:
            with contextlib.suppress(OutputError):  # what ended the run is the greater news
                print_json(summary)
        if isinstance(error, EngineError) and cfg.resume and summary.pages:
            error.add_note("Then the same command goes on where this run ended.")
        raise
    if stages is None:
        _learn(cfg, summary, progress.startup_s, is_whole=not summary.ended_by)
    say_end(cfg, summary, quiet=quiet, as_json=as_json)
    return int(summary.exit_code)


def _learn(cfg: RunConfig, summary: Summary, startup_s: float, *, is_whole: bool) -> None:
    """The speed of a whole run into the user's cache."""
    from ocr2cli.output.rates import rates_of, store_rates

    if is_whole and (rates := rates_of(summary, startup_s)):
        store_rates(cfg, rates)


def _forecast(cfg: RunConfig, *, price_per_hour: float, as_json: bool) -> int:
    from ocr2cli.batch import check_run
    from ocr2cli.forecast import forecast

    check_run(cfg)
    plan = forecast(cfg, price_per_hour=price_per_hour)
    click.echo(json.dumps(plan.to_json()) if as_json else plan.to_text())
    return plan.exit_code
