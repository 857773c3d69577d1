"""The Python API: read documents from a program; `ocr2cli/__init__.py` re-exports it.

Knows nothing about the command line. Importing it loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ocr2cli.config import (
    DRAFT_MODES,
    DTYPE_NAMES,
    ENGINES,
    ROTATE_MODES,
    TEXT_LAYER_USES,
    DecodeConfig,
    EngineConfig,
    RasterConfig,
    RunConfig,
)
from ocr2cli.document.source import find_sources
from ocr2cli.errors import UsageError
from ocr2cli.output.markdown import document_markdown
from ocr2cli.pages import Document, PageResult


def read(path: str | Path, **settings: Any) -> Document:
    """Read one document; its pages in order, a page that failed included with its error.

    settings: fields of EngineConfig, RasterConfig, DecodeConfig or RunConfig by name, e.g.
    model="nano", prompt="ocr", dpi=200, max_new_tokens=500, pages="1-3", runner="local".
    Raises: UsageError for an unknown setting, ModelError, EngineError.
    """
    if len(sources := find_sources([str(path)])) != 1:
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

    return iter_pages(make_config(_listed(paths), **settings))


def _listed(paths: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """A single path is one path, never its letters."""
    return (str(paths),) if isinstance(paths, str | Path) else tuple(map(str, paths))


def to_markdown(document: Document) -> str:
    """The document as one markdown text, as `ocr2 run` writes it, without figures."""
    return document_markdown(document)


_WORDS = {
    "dtype": DTYPE_NAMES,
    "rotate": ROTATE_MODES,
    "text_layer": TEXT_LAYER_USES,
    "draft": DRAFT_MODES,
    "engine": ENGINES,
}


def make_config(inputs: tuple[str, ...], **settings: Any) -> RunConfig:
    """Flat settings to a RunConfig. Raises: UsageError naming an unknown setting."""
    parts: dict[str, Any] = {}
    cfg = RunConfig(inputs=inputs, runner="inline")
    kinds = {"raster": RasterConfig, "decode": DecodeConfig, "engine": EngineConfig}
    for name, kind in kinds.items():
        names = {field.name for field in fields(kind)}
        known = {key: settings.pop(key) for key in list(settings) if key in names}
        parts[name] = replace(getattr(cfg, name), **known)
    for key, words in _WORDS.items():
        part = next(part for part in parts.values() if hasattr(part, key))
        if getattr(part, key) not in words:
            raise UsageError(f"{key}={getattr(part, key)!r}: choose from {', '.join(words)}")
    unknown = set(settings) - set(RunConfig.__dataclass_fields__)
    if unknown:
        raise UsageError(f"read() has no setting {min(unknown)!r}; see help(ocr2cli.read)")
    return replace(cfg, **parts, **settings)
