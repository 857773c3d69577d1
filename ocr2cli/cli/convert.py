"""`ocr2 convert`: safetensors <-> GGUF, dtype and quantisation."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ocr2cli.cli.options import common, is_terminal, option, set_up_logging
from ocr2cli.errors import ExitCode, UsageError


@click.command(short_help="Convert safetensors <-> GGUF, quantise.")
@click.argument("src", type=click.Path(path_type=str))
@click.argument("dst", type=click.Path(path_type=str))
@option("--mmproj", default="", show_default="beside SRC", help="Vision file of a GGUF SRC.")
@option("--quant", default="bf16", type=click.Choice(["bf16", "f16", "f32", "q8_0"]),
        help="What the weights are stored as.")
@option("--naming", default="original", type=click.Choice(["original", "transformers"]),
        help="Tensor names of a safetensors DST.")
@option("--errors", is_flag=True, show_default=False,
        help="Print the rounding error of every kind of tensor, as q8_0 always does.")
@common
def convert(
    src: str, dst: str, mmproj: str, quant: str, naming: str, errors: bool, **logs: Any
) -> None:
    """Convert model SRC to DST.

    DST ending in .gguf writes the text file and mmproj-*.gguf beside it, loadable by llama.cpp;
    any other DST is a folder of safetensors. Weights that are there are replaced only if they were
    converted from the same SRC. Memory stays small: tensors pass one by one.
    """
    from ocr2cli.weights.convert import convert as convert_model

    set_up_logging(**logs)
    for name, given in (("SRC", src), ("DST", dst)):
        if not given:  # the current folder, to the file system
            raise UsageError(f"{name} is empty. Name a model, a folder or a file")
    bar, progress = _progress(quiet=logs["quiet"])
    # An exception, so that what was half written is removed.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.SIGTERM))
    try:
        report = convert_model(src, Path(dst), quant=quant, naming=naming, mmproj=mmproj,
                               progress=progress)  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
        if bar is not None:
            bar.close()
    click.echo(report.to_text(with_errors=errors or quant == "q8_0"))


def _progress(*, quiet: bool) -> tuple[Any, Callable[[int, int], None]]:
    """A tqdm bar over bytes, and the callback (done, total) that moves it."""
    if quiet or not is_terminal():
        return None, lambda done, total: None
    from tqdm import tqdm

    bar: Any = tqdm(unit="B", unit_scale=True, dynamic_ncols=True)

    def move(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return bar, move
