"""Parsed options to the frozen dataclasses of `config.py`; which of two that clash stands.

Knows nothing about what reads them.
"""

from __future__ import annotations

import codecs
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ocr2cli.config import DecodeConfig, DryConfig, EngineConfig, RasterConfig, RunConfig
from ocr2cli.document.files import PLAIN_MAGICS
from ocr2cli.document.urls import is_url, local_path
from ocr2cli.errors import InputError, UsageError
from ocr2cli.output.formats import FORMATS

# What Python and the libraries of a rasteriser, the smallest worker, are mapped in.
_LEAST_WORKER_BYTES = 256_000_000


def run_config(flags: dict[str, Any]) -> RunConfig:
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
    ("mmproj", "", "model", lambda flags: not os.path.exists(os.path.expanduser(flags["model"]))),
    ("dtype", "auto", "device",
     lambda flags: flags["dtype"] == "int8" and flags["device"] not in ("auto", "cpu")),
    ("device", "auto", "dtype", lambda flags: flags["dtype"] == "int8"),
    ("dry", "", "no_repeat_ngram", lambda flags: flags["no_repeat_ngram"] > 0),
    ("dry", "", "ngram_window", lambda flags: flags["no_repeat_ngram"] > 0),
    ("text_layer", "never", "draft", lambda flags: flags["text_layer"] == "draft"),
    ("quiet", False, "verbose", lambda flags: flags["verbose"] > 0),
)  # fmt: skip
_RANKS = (
    ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)  # fmt: skip


def give_way(ctx: click.Context, flags: dict[str, Any]) -> None:
    """Flags beat the environment and that the file, also where one option rules another out: the
    lower one counts as not given. flags: those of the command, which need not have them all."""
    ranks = {name: _RANKS.index(ctx.get_parameter_source(name)) for name in flags}
    for name, not_given, other, is_ruled_out in _RULED_OUT:
        if {name, other} <= ranks.keys() and ranks[other] < ranks[name] and is_ruled_out(flags):
            flags[name] = not_given


def refuse_two_prompts(ctx: click.Context) -> None:
    """Raises: UsageError for two prompts from one place, of which one would count in silence."""
    source = ctx.get_parameter_source("prompt_text")
    is_given = source is not ParameterSource.DEFAULT and ctx.params["prompt_text"]
    if is_given and ctx.get_parameter_source("prompt") is source:
        raise UsageError("--prompt and --prompt-text are two prompts: leave one of them out")


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
    if given == "-":  # stdout, to many programs
        raise UsageError("-o -: outputs are files. Name a folder, `./-` for one of that name")
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
    _refuse_no_list(data, null_separated)
    names = os.fsdecode(data).split("\0") if null_separated else _lines(data)
    paths = tuple(name for name in names if name)
    at = inputs.index("-")
    found = inputs[:at] + paths + tuple(i for i in inputs[at + 1 :] if i != "-")
    if not found:
        raise InputError("no path came on stdin, where `-` reads them from")
    return found


def _refuse_no_list(data: bytes, null_separated: bool) -> None:
    """Raises: UsageError when stdin holds something else than the list that `-` stands for."""
    if data.startswith((b"%PDF-", *PLAIN_MAGICS)):
        raise UsageError(
            "`-` reads paths, and a document came on stdin. Save it to a file and name that"
        )
    if b"\0" in data and not null_separated and not _is_utf_16(data):
        raise UsageError(
            "`-` reads one path a line, and zero bytes came on stdin. Add -0 for paths that end in "
            "them; save a document to a file and name that"
        )


def _is_utf_16(data: bytes) -> bool:
    # No name holds a zero byte: this is how PowerShell writes a list to a file.
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in data


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-16", "replace") if _is_utf_16(data) else os.fsdecode(data)
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
