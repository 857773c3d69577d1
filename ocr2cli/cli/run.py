"""`ocr2 run`: flags to a RunConfig, signals to a stop request, a summary to an exit code.

Knows nothing about how pages are read.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ocr2cli.cli.options import (
    FiniteRange,
    TopicCommand,
    common,
    is_terminal,
    json_line,
    option,
    say,
    set_up_logging,
)
from ocr2cli.config import (
    BOUNDS,
    DRAFT_MODES,
    DTYPE_NAMES,
    ENGINES,
    ROTATE_MODES,
    TEXT_LAYER_USES,
    V1_MODES,
    DecodeConfig,
    DryConfig,
    EngineConfig,
    RasterConfig,
    RunConfig,
)
from ocr2cli.document.urls import is_url, local_path
from ocr2cli.errors import ExitCode, InputError, OutputError, UsageError, exit_code_of
from ocr2cli.output.formats import BOX_FORMATS, FORMATS
from ocr2cli.runners import RUNNERS
from ocr2cli.text.prompt import asks_for_boxes, asks_for_text, prompt_text

if TYPE_CHECKING:
    from ocr2cli.output.summary import Summary

logger = logging.getLogger("ocr2")

_COUNT = click.IntRange(min=0)
# What Python and the libraries of a rasteriser, the smallest worker, are mapped in.
_LEAST_WORKER_BYTES = 256_000_000
_TEXT_HINT = (
    "PDFs among them have a text of their own: --text-layer auto takes it where it looks like the "
    "page"
)
# A stranger's first page may well be small print.
_NANO_HINT = (
    "nano, the small model that comes along, reads large print only. For pages like these: "
    "ocr2 models pull deepseek-ocr-2, then --model deepseek-ocr-2"
)

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
            option("--model", default="nano", help="nano, deepseek-ocr-2, deepseek-ocr, a hub id, "
                   "a folder or a .gguf file."),
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
@option("-0", "--null", "null_separated", is_flag=True, show_default=False, envvar=None,
        help="Paths on stdin end in NUL.")
@engine_options
@option("--prompt", default="markdown", help="markdown, ocr, figure, describe or locate:WHAT.")
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
@option("--format", "formats", default="md,jsonl", help="Comma list of: " + ", ".join(FORMATS))
@option("--no-resume", is_flag=True, show_default=False, help="Read every page again.")
@option("--retry-failed", is_flag=True, show_default=False, help="Read failed pages again.")
@option("--dry-run", is_flag=True, show_default=False, help="Count pages, tiles and tokens only.")
@option("--price-per-hour", default=0.0, type=FiniteRange(min=0), show_default="none",
        help="Price of this machine, for the forecast of a dry run.")
@option("--fail-fast", is_flag=True, show_default=False, help="Stop at the first failed page.")
@option("--page-timeout", default=600.0, type=FiniteRange(*BOUNDS["page_timeout"]),
        help="Seconds without progress until a worker is killed.")
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
    set_up_logging(
        verbose=flags.pop("verbose"), quiet=(quiet := flags["quiet"]),
        log_format=(log_format := flags.pop("log_format")),
    )  # fmt: skip
    as_json, dry_run, price = (
        flags.pop("as_json"), flags.pop("dry_run"), flags.pop("price_per_hour")
    )  # fmt: skip
    flags.pop("quiet")
    _give_way(click.get_current_context(), flags)
    cfg = config_from_flags(flags)
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
    from ocr2cli.pipeline.stop import stop_on_signals

    if stages is None:
        _warn(cfg)
    has_bar = is_terminal() and not log_json and not quiet
    tell = partial(_say_stopping, cfg.drain, is_over_bar=has_bar)
    summary = Summary()
    try:
        with stop_on_signals(tell) as stop, make_progress(quiet=quiet, bar=has_bar) as progress:
            summary = run_batch(
                cfg, stages=stages, progress=progress, stop=stop, summary=summary
            )
    except Exception as error:
        summary.ended_by = exit_code_of(error)
        if as_json:
            with contextlib.suppress(OutputError):  # what ended the run is the greater news
                click.echo(json.dumps(summary.to_json(), ensure_ascii=True))
        raise
    summary.ended_by = stop.exit_code
    if stages is None:
        _learn(cfg, summary, progress.startup_s, is_whole=not stop.exit_code)
    if as_json:
        click.echo(json.dumps(summary.to_json(), ensure_ascii=True))
    code = summary.exit_code
    if code != ExitCode.OK or not (quiet or as_json):
        for line in (summary.to_text(), *_hints(cfg, summary)):
            say(line)
    if stop.exit_code:
        say("stopped: run the same command again to go on")
    return int(code)


def _hints(cfg: RunConfig, summary: Summary) -> Iterator[str]:
    """What else to try with the pages that were read badly."""
    if summary.pages_badly_read_of_text and cfg.raster.text_layer == "never":
        yield _TEXT_HINT
    if summary.pages_badly_read and _reads_with_nano(cfg.engine):
        yield _NANO_HINT


def _say_stopping(drain_s: float, signum: int, *, is_over_bar: bool) -> None:
    """One line, at once, past the buffers of `sys.stderr`, which a signal may find half written."""
    again = "Ctrl-C again" if signum == signal.SIGINT else "a second signal"
    text = (
        f"stopping: pages under way are being finished, for {drain_s:g} s at most; {again} to stop "
        "now"
    )
    line = f"{json_line(text, logging.WARNING) or text}\n"
    # The bar, and the ^C that a terminal shows, are drawn over; the bar comes back below.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), (f"\r\x1b[K{line}" if is_over_bar else line).encode())


def _reads_with_nano(engine: EngineConfig) -> bool:
    return engine.model == "nano" and engine.engine != "openai"


def _warn(cfg: RunConfig) -> None:
    """Tells, before page one, of what is asked for and will not be had."""
    prompt = cfg.engine.prompt_text or prompt_text(cfg.engine.prompt)
    if _reads_with_nano(cfg.engine) and not asks_for_text(prompt):
        logger.warning(
            "nano was trained on --prompt markdown and --prompt ocr alone: what it answers to "
            "another prompt makes no sense"
        )
    drawn = [name for name in cfg.formats if name in BOX_FORMATS]
    if drawn and not asks_for_boxes(prompt):
        logger.warning(
            "--format %s: this prompt asks for no boxes, so there will be none to draw; "
            "--prompt markdown does", ",".join(drawn),
        )  # fmt: skip


def config_from_flags(flags: dict[str, Any]) -> RunConfig:
    """Sort flat flags into the frozen dataclasses. Raises UsageError on values that clash."""
    formats = tuple(part.strip() for part in flags["formats"].split(",") if part.strip())
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--format {name}: unknown. Choose from {', '.join(FORMATS)}")
    raster = RasterConfig(
        dpi=flags["dpi"],
        password=_password(flags["password"], flags["password_file"]),
        rotate=flags["rotate"],
        text_layer=flags["text_layer"],
    )
    _refuse_idle(flags)
    out, out_url = _output(flags["out"], flags["state"])
    return RunConfig(
        inputs=_inputs(flags["inputs"], flags["null_separated"]),
        out=out,
        out_url=out_url,
        pages=flags["pages"],
        formats=formats,
        resume=not flags["no_resume"],
        recover_loops=not flags["no_recover"],
        worker_memory=_worker_memory(flags["worker_memory"]),
        cache_size=_bytes(flags["cache_size"], "--cache-size"),
        raster=raster,
        decode=decode_config(flags),
        engine=engine_config(flags),
        **{name: flags[name] for name in (
            "retry_failed", "fail_fast", "save_tokens", "page_timeout", "retries",
            "recycle_after", "cache", "min_confidence", "metrics_file", "runner", "ray_address",
        )},
    )  # fmt: skip


# An option, its value when not given, and another that rules it out when a test of all holds.
_RULED_OUT: tuple[tuple[str, Any, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("server", "", "engine", lambda flags: flags["engine"] != "openai"),
    ("save_tokens", False, "engine", lambda flags: flags["engine"] == "openai"),
    ("ray_address", "", "runner", lambda flags: flags["runner"] != "ray"),
    ("password", "", "password_file", lambda flags: True),
    ("password_file", None, "password", lambda flags: True),
    ("state", None, "out", lambda flags: not is_url(local_path(flags["out"]))),
    ("prompt_text", "", "prompt", lambda flags: True),
)
_RANKS = (
    ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)  # fmt: skip


def _give_way(ctx: click.Context, flags: dict[str, Any]) -> None:
    """Flags beat the environment and that the file, also where one option rules another out: the
    lower one counts as not given."""
    ranks = {name: _RANKS.index(ctx.get_parameter_source(name)) for name in flags}
    for name, not_given, other, is_ruled_out in _RULED_OUT:
        if ranks[other] < ranks[name] and is_ruled_out(flags):
            flags[name] = not_given


def _refuse_idle(flags: dict[str, Any]) -> None:
    """Options that say who reads, beside one that says that somebody else does.

    Raises: UsageError: a batch must not be read by another model than the one that was meant.
    """
    if flags["server"] and flags["engine"] != "openai":
        raise UsageError("--server is for --engine openai: add it, or leave --server out")
    if flags["save_tokens"] and flags["engine"] == "openai":
        raise UsageError("--save-tokens: a server does not say which tokens it made; leave it out")
    if flags["ray_address"] and flags["runner"] != "ray":
        raise UsageError("--address is for --runner ray: add it, or leave --address out")


def _output(given: str, state: Path | None) -> tuple[Path, str]:
    """(local folder, URL or ""). Raises: UsageError for a URL that cannot hold outputs."""
    given = local_path(given)
    if not given:  # the current folder, to the file system
        raise UsageError("-o is empty. Name a folder, `.` for the current one")
    if not is_url(given):
        if state is not None:
            raise UsageError("--state is for an output that is a URL; a folder holds its own state")
        return Path(given), ""
    from ocr2cli.output.bucket import check_scheme, staging_folder

    check_scheme(given)
    return staging_folder(given, state), given


def engine_config(flags: dict[str, Any]) -> EngineConfig:
    """The engine's share of the flags."""
    names = EngineConfig.__dataclass_fields__
    return EngineConfig(**{name: value for name, value in flags.items() if name in names})


def decode_config(flags: dict[str, Any]) -> DecodeConfig:
    """The decoder's share of the flags."""
    draft = "text-layer" if flags.get("text_layer") == "draft" else flags["draft"]
    return DecodeConfig(
        max_new_tokens=flags["max_new_tokens"],
        no_repeat_ngram=0 if flags["dry"] else flags["no_repeat_ngram"],
        ngram_window=flags["ngram_window"],
        dry=_dry(flags["dry"]),
        draft=draft,
    )


def _dry(text: str) -> DryConfig | None:
    if not text:
        return None
    kinds = (float, float, int, int)
    parts = text.split(",")
    try:
        values = [kind(part) for kind, part in zip(kinds, parts, strict=False)]
        if not all(map(math.isfinite, values)):
            raise ValueError
    except ValueError:
        raise UsageError(f"--dry {text}: write numbers, e.g. --dry 0.8,1.75,2,64") from None
    if len(parts) > len(kinds):
        raise UsageError(f"--dry {text}: at most four numbers, e.g. --dry 0.8,1.75,2,64")
    names = ("multiplier", "base", "allowed_length", "last_n")
    config = DryConfig(**dict(zip(names, values, strict=False)))
    if config.fault:
        raise UsageError(f"--dry {text}: {config.fault}")
    return config


def _password(text: str, file: Path | None) -> str:
    if file is None:
        return text
    if text:
        raise UsageError("give --password or --password-file, not both")
    try:
        return file.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"--password-file {file}: not a readable text file. Save the password as UTF-8 text"
        ) from None


def _inputs(inputs: tuple[str, ...], null_separated: bool) -> tuple[str, ...]:
    """Replace `-` by the paths on stdin, one a line or NUL-separated."""
    if "" in inputs:  # the current folder, to the file system
        raise UsageError("an INPUT is empty. Name a file or a folder, `.` for the current one")
    if "-" not in inputs:
        return inputs
    if sys.stdin is None:
        raise UsageError("`-` reads paths from stdin, and stdin is closed")
    data = sys.stdin.buffer.read()
    names = os.fsdecode(data).split("\0") if null_separated else _lines(data)
    paths = tuple(name for name in names if name)
    at = inputs.index("-")
    found = inputs[:at] + paths + tuple(i for i in inputs[at + 1 :] if i != "-")
    if not found:
        raise InputError("no path came on stdin, where `-` reads them from")
    return found


def _lines(data: bytes) -> list[str]:
    # No name holds a zero byte: this is how PowerShell writes a list to a file.
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in data
    text = data.decode("utf-16", "replace") if is_utf_16 else os.fsdecode(data)
    return [_as_meant(line) for line in text.split("\n")]


def _as_meant(line: str) -> str:
    """A line of a list without the marks that Windows puts before the first and after each."""
    return line if os.path.lexists(line) else line.removeprefix("\ufeff").removesuffix("\r")


def _bytes(text: str, flag: str) -> int:
    """'8G' -> 8_000_000_000; '' -> 0."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number = text.strip().upper().removesuffix("B")
    unit = units.get(number[-1:], 1)
    digits = number[:-1] if unit > 1 else number
    if not number:
        return 0
    try:
        size = int(float(digits) * unit)
        if size >= 0:
            return size
        raise ValueError
    except (ValueError, OverflowError):
        raise UsageError(f"{flag} {text}: write a size such as 8G or 500M") from None


def _worker_memory(text: str) -> int:
    size = _bytes(text, "--worker-memory")
    if 0 < size < _LEAST_WORKER_BYTES:
        raise UsageError(f"--worker-memory {text}: no worker can start in less than 256M")
    return size


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
