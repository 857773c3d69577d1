"""The Python API: read documents from a program; `ocr2cli/__init__.py` re-exports it.

Knows nothing about the command line. Importing it loads no torch.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

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
from ocr2cli.document.source import find_sources
from ocr2cli.errors import Ocr2Error, UsageError
from ocr2cli.output.markdown import document_markdown
from ocr2cli.pages import Document, PageResult
from ocr2cli.pipeline.process import wait_quietly
from ocr2cli.runners import RUNNERS


def read(path: str | Path, **settings: Any) -> Document:
    """Read one document; its pages in order, a page that failed included with its error.

    settings: fields of config.py's EngineConfig, RasterConfig and DecodeConfig by name, and pages,
    recover_loops, runner, ray_address, retries, page_timeout, recycle_after and worker_memory; e.g.
    model="nano", prompt="ocr", dpi=200, max_new_tokens=500, pages="1-3", runner="local".
    A page that loops is tried again from what the decoder has of it, not from its pixels as the
    last steps of `ocr2 run` do. Where pages are read in this process (runner="inline", the
    default), torch's threads are told not to spin while they wait, by GOMP_SPINCOUNT in its
    environment, if that says nothing of it yet and torch is not imported.
    Raises: UsageError for an unknown setting, ModelError, EngineError.
    """
    if len(sources := find_sources(_listed([path]))) != 1:
        raise UsageError(
            f"read() reads one document, and {path} holds {len(sources)}: use read_documents()"
        )
    pages = tuple(read_pages([path], **settings))
    return Document(id=pages[0].key.document if pages else "", path=str(path), pages=pages)


def read_documents(
    paths: str | Path | Iterable[str | Path], **settings: Any
) -> Iterator[Document]:
    """Read many documents, yielding each when its last page is done; settings as in `read`.

    paths: as for `read_pages`. A document's path is that of its file.
    """
    listed = _listed(paths)
    path_of = {source.id: source.path for source in find_sources(listed)}
    for key, pages in groupby(read_pages(listed, **settings), key=lambda page: page.key.document):
        yield Document(id=key, path=path_of.get(key, key), pages=tuple(pages))


def read_pages(paths: str | Path | Iterable[str | Path], **settings: Any) -> Iterator[PageResult]:
    """Read documents page by page, in input and page order; settings as in `read`.

    paths: files, folders, globs or URLs, or a single one.
    """
    from ocr2cli.batch import iter_pages

    cfg = make_config(_listed(paths), **settings)
    if cfg.runner == "inline" and "torch" not in sys.modules:
        wait_quietly(os.environ)
    return _in_settings(iter_pages(cfg))


def _in_settings(pages: Iterator[PageResult]) -> Iterator[PageResult]:
    """The same, what goes wrong said in the words of a program, which has no flags to give."""
    try:
        for page in pages:
            if page.error is not None:
                error = replace(page.error, message=_for_programs(page.error.message))
                page = replace(page, error=error)
            yield page
    except Ocr2Error as error:
        error.args = (_for_programs(str(error)),)
        raise


def _for_programs(message: str) -> str:
    """A message with settings for flags: `prompt_text` for `--prompt-text`."""
    message = message.replace("--password-file FILE", "--password")
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", _setting_of, message)


def _setting_of(flag: re.Match[str]) -> str:
    name = flag[1].replace("-", "_")
    known = _RUN_SETTINGS.union(*(part.__dataclass_fields__ for part in _PARTS))
    return name if name in known else flag[0]


def _listed(paths: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """A single path is one path, never its letters. Raises: UsageError for what is no path."""
    if isinstance(paths, str | Path) or not isinstance(paths, Iterable):
        paths = (paths,)
    listed = tuple(paths)
    for path in listed:
        if not isinstance(path, str | Path) or not str(path):
            raise UsageError(f"{path!r} is no path. Give text or a pathlib.Path, not empty")
    return tuple(map(str, listed))


def to_markdown(document: Document) -> str:
    """The document as one markdown text, as `ocr2 run` writes it, without figures. Pages begin with
    their numbers unless there is the first one only, also where the file has more."""
    return document_markdown(document)


# Of a run's own settings those that reading without an output folder heeds.
_RUN_SETTINGS = frozenset(
    ("pages", "recover_loops", "runner", "ray_address", "retries", "page_timeout",
     "recycle_after", "worker_memory")
)  # fmt: skip
_PARTS = (RasterConfig, DecodeConfig, EngineConfig)
_WORDS = {
    "mode": tuple(V1_MODES),
    "dtype": DTYPE_NAMES,
    "rotate": ROTATE_MODES,
    "text_layer": TEXT_LAYER_USES,
    "draft": DRAFT_MODES,
    "engine": ENGINES,
    "runner": tuple(RUNNERS),
}


def make_config(inputs: tuple[str, ...], /, **settings: Any) -> RunConfig:
    """Flat settings to a RunConfig.

    Raises: UsageError naming an unknown setting, and one whose value makes no sense.
    """
    defaults = RunConfig(inputs=inputs, runner="inline")
    parts = {name: getattr(defaults, name) for name in ("raster", "decode", "engine")}
    names = {part: {field.name for field in fields(value)} for part, value in parts.items()}
    known = _RUN_SETTINGS.union(*names.values())
    for name, value in settings.items():
        if name not in known:
            raise UsageError(f"read() has no setting {name!r}.{_nearest(name, known)}")
        part = next((parts[part] for part in parts if name in names[part]), defaults)
        settings[name] = _checked(name, value, getattr(part, name))
    if settings.get("dry"):
        settings.setdefault("no_repeat_ngram", 0)  # one rule instead of the other, as --dry is
    if settings.get("text_layer") == "draft":
        settings["draft"] = "text-layer"  # as the command line has it
    for part, value in parts.items():
        own = names[part] & set(settings)
        parts[part] = replace(value, **{name: settings.pop(name) for name in own})
    return replace(defaults, **parts, **settings)


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value, which must be of its default's kind. Raises: UsageError."""
    kind = type(default)
    if kind is str and isinstance(value, Path):
        return str(value)
    kinds: Any = {float: (int, float), type(None): (DryConfig, type(None))}.get(kind, kind)
    # A bool is an int to Python, and to nobody else.
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        wanted = _KINDS.get(kind, "a DryConfig or None")
        raise UsageError(f"{name}: give {wanted}, not {type(value).__name__}")
    if kind in (int, float):
        least, most = BOUNDS.get(name, (0, None))
        if not math.isfinite(value) or value < least or (most is not None and value > most):
            limits = f"{least} or more" if most is None else f"{least} to {most}"
            raise UsageError(f"{name}={value!r}: give a number of {limits}")
    if isinstance(value, DryConfig) and value.fault:
        raise UsageError(f"{name}={value!r}: {value.fault}")
    if value not in _WORDS.get(name, (value,)):
        raise UsageError(f"{name}={value!r}: choose from {', '.join(_WORDS[name])}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def _nearest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, sorted(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else " See help(ocr2cli.read)."
