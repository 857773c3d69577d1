"""`ocr2 doctor`: one golden page through every stage, the first difference named.

Knows flags; the work is in `ocr2cli.eval.doctor`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from ocr2cli.cli.options import common, completes, model_names, option, set_up_logging
from ocr2cli.config import DTYPE_NAMES, EngineConfig
from ocr2cli.errors import UsageError


@click.command(
    "doctor",
    short_help="Find the first stage that reads a page wrongly.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@option("--model", default="nano", metavar="NAME|PATH", help="Model to check, as for run.",
        shell_complete=completes(model_names))
@option("--mmproj", default="", metavar="FILE", help="Vision half of a .gguf model.")
@option("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
@option(
    "--dtype",
    default="auto",
    type=click.Choice([name for name in DTYPE_NAMES if name != "int8"]),
    help="Arithmetic of the model.",
)
@option(
    "--goldens",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    show_default="the values that come with the tool",
    help="File of recorded values.",
)
@option("--record", is_flag=True, show_default=False, help="Record today's values as right.")
@option("--json", "as_json", is_flag=True, show_default=False, help="The checks as JSON on stdout.")
@common
def doctor(
    *,
    model: str,
    mmproj: str,
    device: str,
    dtype: str,
    goldens: Path | None,
    record: bool,
    as_json: bool,
    verbose: int,
    quiet: bool,
    log_format: str,
) -> None:
    """Find the first stage that reads a page wrongly.

    Exit 0 when all stages give what was recorded, 7 when one differs.
    """
    set_up_logging(verbose=verbose, quiet=quiet, log_format=log_format)
    from ocr2cli.pipeline.process import wait_quietly

    wait_quietly(os.environ)  # as the workers of a run, before torch is imported
    from ocr2cli.eval.doctor import run_doctor

    if goldens is not None and not record and not goldens.exists():
        raise UsageError(f"--goldens {goldens}: not there. Check the name, or add --record.")
    engine = EngineConfig(model=model, mmproj=mmproj, device=device, dtype=dtype)
    diagnosis = run_doctor(engine, goldens=goldens, is_recording=record)
    if as_json:
        click.echo(json.dumps(asdict(diagnosis)))
    elif not quiet or diagnosis.first_different:
        click.echo("\n".join(diagnosis.lines()))
    diagnosis.raise_if_different()
