"""Cases read by the tool itself: the batch pipeline, groups of equal settings together.

The seam of the whole evaluation is `Recognize`: give another function to score anything else.
Knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig
from ocr2cli.engines.finish import failed
from ocr2cli.eval.cases import Case
from ocr2cli.pages import PageKey, PageResult

# One result per case, in order. A page that could not be read is a failed result.
Recognize = Callable[[Sequence[Case]], list[PageResult]]

Settings = tuple[str, str, str, DecodeConfig]


def batch_recognizer(engine: EngineConfig, raster: RasterConfig) -> Recognize:
    """The pipeline of `ocr2 run`, in this process, pages of equal settings decoded together."""

    def recognize(cases: Sequence[Case]) -> list[PageResult]:
        groups: dict[Settings, list[int]] = {}
        for i, case in enumerate(cases):
            settings = (case.prompt, case.prompt_text, case.mode, case.decode)
            groups.setdefault(settings, []).append(i)
        results: dict[int, PageResult] = {}
        for settings, members in groups.items():
            found = _read_group([cases[i] for i in members], settings, engine, raster)
            results.update(zip(members, found, strict=True))
        return [results[i] for i in range(len(cases))]

    return recognize


def _read_group(
    cases: Sequence[Case], settings: Settings, engine: EngineConfig, raster: RasterConfig
) -> list[PageResult]:
    from dataclasses import replace

    from ocr2cli.batch import read_pages

    prompt, prompt_own, mode, decode = settings
    paths = list(dict.fromkeys(case.path for case in cases))
    results = read_pages(
        paths,
        engine=replace(engine, prompt=prompt, prompt_text=prompt_own, mode=mode),
        raster=raster,
        decode=decode,
    )
    by_page = _by_path(paths, results)
    missing = "the run gave no result for this page"
    return [
        by_page.get((case.path, case.page))
        or _document_error(case, by_page)
        or failed(PageKey(case.id, case.page), "internal", missing)
        for case in cases
    ]


def _by_path(
    paths: Sequence[Path], results: Sequence[PageResult]
) -> dict[tuple[Path, int], PageResult]:
    """Results by (path, page). Documents come back in the order they were given."""
    documents = list(dict.fromkeys(result.key.document for result in results))
    place = dict(zip(documents, paths, strict=False))
    return {(place[r.key.document], r.key.page): r for r in results if r.key.document in place}


def _document_error(case: Case, by_page: dict[tuple[Path, int], PageResult]) -> PageResult | None:
    """A document that cannot be opened has one failed result, which stands for all its pages."""
    first = by_page.get((case.path, 0))
    return first if first is not None and first.error is not None else None
