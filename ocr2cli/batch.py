"""The whole tool on one screen: jobs -> stages -> runner -> page part -> journal -> documents.

It is handed stages and a runner by name; it knows nothing about models, pixels or processes.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig, RunConfig
from ocr2cli.document.source import find_jobs, find_sources, poll_jobs
from ocr2cli.engines.choose import EnginePlan, plan_engine, plan_for_cores
from ocr2cli.engines.finish import read_before
from ocr2cli.engines.recovery import Ladder
from ocr2cli.errors import OutputError, UsageError, exit_code_of, extra_hint
from ocr2cli.output.assembly import OutputSettings, written_files
from ocr2cli.output.bucket import Bucket
from ocr2cli.output.metrics import PipelineGauges, write_metrics
from ocr2cli.output.page_cache import PageCache
from ocr2cli.output.rates import expected
from ocr2cli.output.summary import Summary
from ocr2cli.output.writer import SUMMARY_PATH, Writer
from ocr2cli.pages import PageJob, PageKey, PageResult, Unchanged
from ocr2cli.pipeline.journal import Journal
from ocr2cli.pipeline.lock import OutputLock
from ocr2cli.pipeline.options import ClusterOptions, RunnerOptions, RunStatus
from ocr2cli.pipeline.stage import Stage
from ocr2cli.pipeline.stop import StopRequests
from ocr2cli.runners import RUNNERS

logger = logging.getLogger("ocr2")

# Fingerprint of runs whose stages were handed in.
STUB = "stub"


class Progress(Protocol):
    """Who wants to know, told once a page."""

    def page(self, result: PageResult) -> None: ...

    def expect(self, total: int, *, is_guess: bool = False) -> None: ...


@dataclass(slots=True)
class Outlook:
    """How many pages the run will read, as far as that is known while documents are listed.

    Documents not opened yet count as many pages as those opened had on average, the largest left
    out: a book among letters, opened first, says nothing of them.
    """

    num_documents: int
    num_listed: int = 0
    num_pages: int = 0
    num_resumed: int = 0
    _largest: int = 0
    _last: str | None = None

    def note(self, job: PageJob) -> None:
        """A page was listed; its document tells how many more there are."""
        if job.key.document != self._last:
            self._last = job.key.document
            self.num_listed += 1
            self.num_pages += job.num_pages
            self._largest = max(self._largest, job.num_pages)

    @property
    def num_to_read(self) -> int:
        """Pages still without a result when the run began."""
        others = self.num_listed - 1
        average = (self.num_pages - self._largest) / others if others > 0 else 1
        return round(self.num_pages + self._num_unseen * average) - self.num_resumed

    @property
    def is_guess(self) -> bool:
        """True while a document is not opened yet."""
        return self._num_unseen > 0

    @property
    def _num_unseen(self) -> int:
        return max(0, self.num_documents - self.num_listed)


@dataclass(slots=True)
class Batch:
    """One run's state in the parent."""

    cfg: RunConfig
    journal: Journal
    writer: Writer
    jobs_under_way: dict[PageKey, PageJob]
    stop: StopRequests
    cache: PageCache | None = None
    ladder: Ladder = field(default_factory=Ladder)
    outlook: Outlook = field(default_factory=lambda: Outlook(0))


def run_batch(
    cfg: RunConfig,
    *,
    stages: Sequence[Stage] | None = None,
    progress: Progress | None = None,
    stop: StopRequests | None = None,
    summary: Summary | None = None,
) -> Summary:
    """Read every page that has no result yet, write every document that is complete.

    stages: instead of the configured engine's. summary: filled as the run goes, so that a caller
    has it of a run that an error ends too. Raises: Ocr2Error; pages read until then are kept.
    """
    stop = stop or StopRequests()
    summary = summary or Summary()
    summary.min_confidence = cfg.min_confidence
    with _ending(summary, stop):
        check_run(cfg)
        _run(cfg, stages, progress, stop, summary)
    return summary


def _run(
    cfg: RunConfig, stages: Sequence[Stage] | None, progress: Progress | None,
    stop: StopRequests, summary: Summary,
) -> None:  # fmt: skip
    status = RunStatus()
    with (
        OutputLock(cfg.out),
        _watched(cfg, summary, status, stop),
        ExitStack() as after_uploads,
        _ending(summary, stop),
        _bucket(cfg, summary, stop) as bucket,
    ):
        plan = EnginePlan(tuple(stages), STUB) if stages else plan_engine(cfg, _cache_opener(cfg))
        workers = ", ".join(f"{stage.num_workers} {stage.name}" for stage in plan.stages)
        logger.info("workers: %s", workers)
        settings = OutputSettings(
            cfg.formats, plan.fingerprint, cfg.save_tokens, cfg.min_confidence
        )
        options = RunnerOptions(
            retries=cfg.retries,
            stop=stop,
            drain_s=cfg.drain,
            status=status,
            cluster=_cluster_options(cfg, plan),
        )
        with closing(Journal.open(cfg.out, plan.fingerprint)) as journal:
            told = bucket.offer if bucket else None
            writer = Writer(
                cfg.out, settings, raster=cfg.raster, on_document=told, summary=summary
            )
            if bucket is not None:
                bucket.take_away(SUMMARY_PATH)
            after_uploads.callback(_sum_up, writer, bucket)
            batch = Batch(cfg, journal, writer, {}, stop, plan.cache)
            try:
                for result in _results(batch, plan, options):
                    if progress is not None:
                        outlook = batch.outlook
                        progress.expect(outlook.num_to_read, is_guess=outlook.is_guess)
                        progress.page(result)
                    _write_metrics(cfg, summary, status)
                    if cfg.fail_fast and not result.status.is_good:
                        break
            finally:
                if not stages:
                    summary.forecast = expected(cfg, summary)
                writer.finish()


def _log_page(result: PageResult) -> None:
    if not logger.isEnabledFor(logging.DEBUG):
        return
    seconds = {name: round(value, 2) for name, value in result.seconds.items()}
    fields = {
        "document": result.key.document,
        "page": result.key.page + 1,
        "status": result.status.value,
        "new_tokens": result.new_tokens,
        "seconds": seconds,
    }
    stages = ", ".join(f"{name} {value} s" for name, value in seconds.items())
    logger.debug(
        "%s: %s, %d new tokens%s", result.key, result.status.value, result.new_tokens,
        stages and f"; {stages}", extra={"fields": fields},
    )  # fmt: skip


@contextmanager
def _ending(summary: Summary, stop: StopRequests) -> Iterator[None]:
    """How the block ends is how the run ends, to whoever looks at the summary after it."""
    try:
        yield
    except BaseException as error:
        summary.ended_by = exit_code_of(error)
        raise
    summary.ended_by = stop.exit_code


@contextmanager
def _watched(
    cfg: RunConfig, summary: Summary, status: RunStatus, stop: StopRequests
) -> Iterator[None]:
    """At the end, whatever it is, the run's watchers are told of it."""
    try:
        with _ending(summary, stop):
            yield
    finally:
        _write_metrics(cfg, summary, status, is_finished=True)


def _sum_up(writer: Writer, bucket: Bucket | None) -> None:
    """When all else is done and its faults are known."""
    writer.close()
    if bucket is not None:
        bucket.put_last(SUMMARY_PATH)


@contextmanager
def _bucket(cfg: RunConfig, summary: Summary, stop: StopRequests) -> Iterator[Bucket | None]:
    """Where finished documents go besides OUT; at the end its uploads are waited for, and faults
    of theirs are the summary's."""
    if not cfg.out_url:
        yield None
        return
    bucket = Bucket(cfg.out_url, cfg.out, stop=stop)
    try:
        try:
            yield bucket
        except BaseException:
            bucket.close(is_failing=True)
            raise
        bucket.close()
    finally:
        summary.document_faults += bucket.faults
    logger.info("%d files uploaded to %s", bucket.num_uploaded, cfg.out_url)


def check_run(cfg: RunConfig) -> None:
    """What can be told before anything is loaded.

    Raises: UsageError for a runner that cannot run here, and for a metrics file whose folder is
    not there.
    """
    runner_named(cfg.runner)
    folder = Path(cfg.metrics_file).absolute().parent
    if cfg.metrics_file and not folder.is_dir():
        raise UsageError(f"--metrics-file {cfg.metrics_file}: there is no folder {folder}")


def _write_metrics(
    cfg: RunConfig, summary: Summary, status: RunStatus, *, is_finished: bool = False
) -> None:
    """A file for the watchers of the run; that it cannot be written is told, and stops nothing."""
    if not cfg.metrics_file:
        return
    stages = status.stages()
    gauges = PipelineGauges(
        queue_depths={stage.name: stage.num_waiting + stage.num_held for stage in stages},
        restarts={stage.name: stage.num_restarts for stage in stages},
        time=time.time(),
        is_finished=is_finished,
    )
    try:
        write_metrics(Path(cfg.metrics_file), summary, gauges)
    except OutputError as error:
        if is_finished:
            logger.warning("--metrics-file: %s", error)


def _cache_opener(cfg: RunConfig) -> Callable[[str], PageCache] | None:
    if not cfg.cache:
        return None
    return partial(_open_cache, Path(cfg.cache), cfg.cache_size)


def _open_cache(folder: Path, max_bytes: int, fingerprint: str) -> PageCache:
    return PageCache(folder, fingerprint, max_bytes)


def _results(batch: Batch, plan: EnginePlan, options: RunnerOptions) -> Iterator[PageResult]:
    """Run what is to do; every result is on the disk, and in the journal, before it is yielded."""
    run = runner_named(batch.cfg.runner)
    for answer in run(plan.stages, _to_do(batch), options=options):
        job = batch.jobs_under_way.pop(answer.key)
        result = batch.ladder.take(job, answer) if batch.cfg.recover_loops else answer
        if result is None:
            continue
        if isinstance(result, Unchanged):
            earlier = _earlier(batch, job.key)
            if earlier is None:  # its part has gone since the page was handed out
                batch.ladder.again(replace(job, known_pixels=""))
                continue
            result = _taken_over(earlier, result)
        kept = replace(result, input_sha256=job.sha256)
        _log_page(kept)
        better = batch.journal.better(job, kept.status)
        if better is not None and batch.writer.keep(kept, better.part_sha256):
            batch.writer.assemble_complete()
            yield kept
            continue
        sha256 = batch.writer.add(kept)
        # What could not be opened today may be tomorrow (an extra, a password): its row is to
        # match no page that is found then, though the file is the same.
        row = kept if job.error is None else replace(kept, input_sha256="")
        batch.journal.record(row, sha256)
        batch.writer.assemble_complete()
        if batch.cache is not None:
            batch.cache.store(kept)
        yield kept


def _to_do(batch: Batch) -> Iterator[PageJob | None]:
    """The pages without a result of an earlier run; those with one go to the writer at once.

    None means: nothing now, ask again, since a document is still being opened or pages under way
    may loop. Recovery steps of looping pages come in between. A request to stop ends the list;
    checked for every job, since a resumed run may skip thousands between two that it yields.
    """
    cfg = batch.cfg
    where: Any = {"out": cfg.out, "out_url": cfg.out_url, "written": cache(written_files)}
    told: list[str] = []
    sources = find_sources(cfg.inputs, **where, tell=told.append)
    for line in told:
        # Where nothing can be read this is the reason, for those who want to hear of nothing else.
        logger.log(logging.WARNING if sources else logging.ERROR, "%s", line)
    batch.outlook = Outlook(len(sources))
    batch.writer.spare(source.path for source in sources)
    for job in poll_jobs(cfg.inputs, cfg.pages, cfg.raster, **where):
        if batch.stop():
            return
        if job is None:
            again = batch.ladder.next_job()
            yield None if again is None else _admitted(batch, again)
            continue
        if job.error is not None and batch.journal.was_read(job.key.document):
            batch.writer.leave(job)
            batch.outlook.note(job)
            batch.outlook.num_resumed += 1
            continue
        batch.writer.expect(job)
        batch.outlook.note(job)
        entry = batch.journal.find(job, retry_failed=cfg.retry_failed) if cfg.resume else None
        if entry is not None and batch.writer.restore(job.key, entry.part_sha256):
            batch.outlook.num_resumed += 1
            batch.writer.assemble_complete()
            continue
        if cfg.resume and (earlier := _earlier(batch, job.key)) is not None:
            job = replace(job, known_pixels=earlier.pixels_sha256)
        yield _admitted(batch, job)
        while (again := batch.ladder.next_job()) is not None:
            yield _admitted(batch, again)
    # Pages under way may still loop: the list ends when none is left that could.
    while batch.jobs_under_way or batch.ladder.is_busy:
        again = batch.ladder.next_job()
        yield None if again is None else _admitted(batch, again)


def _admitted(batch: Batch, job: PageJob) -> PageJob:
    batch.jobs_under_way[job.key] = job
    return job


def _taken_over(earlier: PageResult, page: Unchanged) -> PageResult:
    """The earlier run's result when the file changed but this page's pixels did not; marked, since
    its tokens and seconds are that run's."""
    result = read_before(earlier, page.warnings, page.raw)
    return replace(result, extra={**result.extra, "same_pixels": True})


def _earlier(batch: Batch, key: PageKey) -> PageResult | None:
    row = batch.journal.earlier(key)
    return batch.writer.read_earlier(key, row.part_sha256) if row is not None else None


def runner_named(name: str) -> Callable[..., Iterator[PageResult]]:
    """`run(stages, jobs, options=...)` of one of RUNNERS.

    Raises: UsageError for another name, and for ray where its package is not installed.
    """
    if name not in RUNNERS:
        raise UsageError(f"--runner {name}: unknown. Choose from {', '.join(RUNNERS)}")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError(
            f"--runner ray needs the package Ray. {extra_hint('ray')}, or use --runner local"
        )
    run = importlib.import_module(RUNNERS[name]).run
    assert callable(run)
    return run  # type: ignore[no-any-return]


def _cluster_options(cfg: RunConfig, plan: EnginePlan) -> ClusterOptions:
    """Nodes plan anew, since they may be larger or smaller; paths must not depend on a folder."""
    engine = replace(
        cfg.engine, model=_absolute(cfg.engine.model), mmproj=_absolute(cfg.engine.mmproj)
    )
    there = replace(cfg, engine=engine, cache=os.path.abspath(cfg.cache) if cfg.cache else "")
    is_given = plan.fingerprint == STUB
    return ClusterOptions(
        address=cfg.ray_address,
        make_plan=None if is_given else partial(plan_for_cores, there, _cache_opener(there)),
        fingerprint=plan.fingerprint,
        uses_gpus=cfg.engine.device in ("auto", "cuda"),
    )


def _absolute(name: str) -> str:
    """A path that is there made absolute; the name of a model as it is."""
    return os.path.abspath(name) if name and os.path.exists(name) else name


def read_pages(
    paths: Sequence[Path],
    *,
    engine: EngineConfig,
    raster: RasterConfig | None = None,
    decode: DecodeConfig | None = None,
    runner: str = "inline",
) -> list[PageResult]:
    """Read documents without writing anything; results in input and page order."""
    cfg = RunConfig(
        inputs=tuple(map(str, paths)),
        raster=raster or RasterConfig(),
        decode=decode or DecodeConfig(),
        engine=engine,
        runner=runner,
    )
    return list(iter_pages(cfg))


def iter_pages(cfg: RunConfig, jobs: Iterable[PageJob] | None = None) -> Iterator[PageResult]:
    """Results of `cfg.inputs` (or of `jobs`) in input and page order, held back until in turn."""
    order: list[PageKey] = []
    digests: dict[PageKey, str] = {}

    def noted() -> Iterator[PageJob]:
        for job in jobs if jobs is not None else find_jobs(cfg.inputs, cfg.pages, cfg.raster):
            order.append(job.key)
            digests[job.key] = job.sha256
            yield job

    waiting: dict[PageKey, PageResult] = {}
    position = 0
    run = runner_named(cfg.runner)
    plan = plan_engine(cfg)
    options = RunnerOptions(retries=cfg.retries, cluster=_cluster_options(cfg, plan))
    for result in run(plan.stages, noted(), options=options):
        waiting[result.key] = replace(result, input_sha256=digests.pop(result.key))
        while position < len(order) and order[position] in waiting:
            yield waiting.pop(order[position])
            position += 1
