"""Cases read by the tool itself: the batch pipeline, groups of equal settings together.

The seam of the whole evaluation is `Recognize`: give another function to score anything else.
Knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig, RunConfig
from ocr2cli.engines.finish import failed
from ocr2cli.errors import InputError
from ocr2cli.eval.cases import Case
from ocr2cli.eval.pixels import page_job
from ocr2cli.pages import PageKey, PageResult

# One result per case, in order. A page that could not be read is a failed result.
Recognize = Callable[[Sequence[Case]], list[PageResult]]

Settings = tuple[str, str, str, DecodeConfig]


def batch_recognizer(engine: EngineConfig, raster: RasterConfig) -> Recognize:
    """The pipeline of `ocr2 run`, in this process, pages of equal settings decoded together.

    The loop-recovery ladder is off: a second reading would be compared with a first one.
    """

    def recognize(cases: Sequence[Case]) -> list[PageResult]:
        groups: dict[Settings, list[Case]] = {}
        for case in cases:
            settings = (case.prompt, case.prompt_text, case.mode, case.decode)
            groups.setdefault(settings, []).append(case)
        results: dict[PageKey, PageResult] = {}
        for settings, members in groups.items():
            results |= _read_group(members, settings, engine, raster)
        return [results[_key(case)] for case in cases]

    return recognize


def _key(case: Case) -> PageKey:
    return PageKey(f"{case.suite}/{case.id}", case.page)


def _read_group(
    cases: Sequence[Case], settings: Settings, engine: EngineConfig, raster: RasterConfig
) -> dict[PageKey, PageResult]:
    from ocr2cli.batch import iter_pages

    prompt, prompt_own, case_mode, decode = settings
    mode = case_mode or engine.mode
    cfg = RunConfig(
        engine=replace(engine, prompt=prompt, prompt_text=prompt_own, mode=mode),
        raster=raster,
        decode=decode,
        runner="inline",
        recover_loops=False,
    )
    results, jobs = {}, []
    for case in cases:
        try:
            jobs.append(replace(page_job(case, raster), key=_key(case)))
        except InputError as error:
            results[_key(case)] = failed(_key(case), "unreadable", str(error))
    results |= {result.key: result for result in iter_pages(cfg, jobs)} if jobs else {}
    for case in cases:
        if _key(case) not in results:
            message = "the run gave no result for this page"
            results[_key(case)] = failed(_key(case), "internal", message)
    return results
