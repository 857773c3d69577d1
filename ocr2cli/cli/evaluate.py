"""`ocr2 eval`: options to EvalOptions, the outcome to the terminal, files and the exit code.

Knows flags; the work is in `ocr2cli.eval`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from ocr2cli.cli.options import common, completes, model_names, option, set_up_logging
from ocr2cli.config import DTYPE_NAMES, REFERENCES, V1_MODES, EngineConfig
from ocr2cli.home import user_folder


@click.command(
    "eval",
    short_help="Score a model against truth and a reference.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME|DIR",
    default=("bundled",),
    help="bundled, seed, a folder with suite.toml, a plain folder of pages with truth beside "
    "them, or the folder of OmniDocBench or olmOCR-bench. May be repeated.",
)
@option(
    "--ref",
    type=click.Choice(REFERENCES),
    default="recorded",
    help="What to compare with: transformers on the same views (hf) or on its own "
    "(hf-processor), llama-mtmd-cli, the suite's recorded scores, or truth alone.",
)
@option("--model", default="nano", metavar="NAME|PATH", help="Model to score, as for run.",
        shell_complete=completes(model_names))
@option("--mmproj", default="", metavar="FILE", help="Vision half of a .gguf model.")
@option(
    "--mode", default="gundam", type=click.Choice(tuple(V1_MODES)), help="Tiling of v1 models."
)
@option("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
@option(
    "--dtype",
    default="auto",
    type=click.Choice(DTYPE_NAMES),
    help="Arithmetic of the model; int8: of the decoder, on a CPU.",
)
@option(
    "--batch-size",
    default=0,
    type=click.IntRange(min=0),
    help="Pages decoded together; 0: by device and memory.",
)
@option(
    "--images",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=None,
    help="Folder with the pages that a suite does not bring along.",
)
@option("--case", "only", multiple=True, metavar="PATTERN", help="Only cases with such an id.")
@option("--ref-bin", default="", metavar="FILE", help="The llama-mtmd-cli to use.")
@option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    show_default="the user's cache folder",
    help="Where outputs of references are kept.",
)
@option("--no-cache", is_flag=True, show_default=False, help="Run the reference anew.")
@option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Write report.json and report.html to this folder.",
)
@option(
    "--record", is_flag=True, show_default=False, help="Keep the reference's scores in the suite."
)
@option("--json", "as_json", is_flag=True, show_default=False, help="The report as JSON on stdout.")
@common
def evaluate(
    *,
    suites: tuple[str, ...],
    ref: str,
    model: str,
    mmproj: str,
    mode: str,
    device: str,
    dtype: str,
    batch_size: int,
    images: Path | None,
    only: tuple[str, ...],
    ref_bin: str,
    cache: Path | None,
    no_cache: bool,
    report: Path | None,
    record: bool,
    as_json: bool,
    verbose: int,
    quiet: bool,
    log_format: str,
) -> None:
    """Score a model against truth and a reference.

    Exit 0 when every gate holds, 7 when one fails.
    """
    set_up_logging(verbose=verbose, quiet=quiet, log_format=log_format)
    from ocr2cli.pipeline.process import wait_quietly

    wait_quietly(os.environ)  # as the workers of a run, before torch is imported
    from ocr2cli.eval.report import json_report, text_report, write_report
    from ocr2cli.eval.run import EvalOptions, run_eval

    engine = EngineConfig(
        model=model, mmproj=mmproj, mode=mode, device=device, dtype=dtype, batch_size=batch_size
    )
    outcome = run_eval(
        EvalOptions(
            suites=suites,
            ref=ref,
            engine=engine,
            images=images,
            ref_bin=ref_bin,
            only=only,
            cache=None if no_cache else cache or _default_cache(),
        )
    )
    if record:
        from ocr2cli.eval.record import record_scores

        record_scores(outcome)
    if report is not None:
        write_report(outcome, report)
    if as_json:
        click.echo(json.dumps(json_report(outcome)))
    elif not quiet or outcome.failed:
        click.echo(text_report(outcome), nl=False)
    outcome.raise_for_gates()


def _default_cache() -> Path | None:
    try:
        return user_folder("cache") / "eval"
    except RuntimeError:
        return None
