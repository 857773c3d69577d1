"""The whole tool on one screen: jobs -> stages -> runner -> page part -> journal -> documents.

It is handed stages and a runner by name; it knows nothing about models, pixels or processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ocr2cli.config import RunConfig
from ocr2cli.document.source import find_jobs, find_sources, poll_jobs
from ocr2cli.engines.choose import STUB, EnginePlan, plan_engine
from ocr2cli.engines.finish import read_before
from ocr2cli.engines.recovery import Ladder
from ocr2cli.errors import UsageError, exit_code_of
from ocr2cli.output.assembly import OutputSettings, written_files
from ocr2cli.output.bucket import Bucket
from ocr2cli.output.metrics import tell_watchers, watched
from ocr2cli.output.names import output_name
from ocr2cli.output.page_cache import PageCache, cache_opener
from ocr2cli.output.rates import expected
from ocr2cli.output.summary import Summary
from ocr2cli.output.writer import SUMMARY_PATH, Writer
from ocr2cli.pages import PageJob, PageKey, PageResult, Unchanged
from ocr2cli.pipeline.journal import Journal
from ocr2cli.pipeline.lock import OutputLock
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.outlook import Outlook
from ocr2cli.pipeline.stage import Stage
from ocr2cli.pipeline.stop import StopRequests
from ocr2cli.runners import runner_named
from ocr2cli.runners.options import cluster_options

logger = logging.getLogger("ocr2")


class Progress(Protocol):
    """Who wants to know: of each page that is done, and whenever more is known of how many there
    are."""

    def page(self, result: PageResult) -> None: ...

    def expect(self, total: int, *, is_guess: bool = False) -> None: ...


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
    progress: Progress | None = None

    @property
    def has_rest(self) -> bool:
        """Whether a document was not listed, opened or finished."""
        counts = self.writer.summary
        is_unfinished = bool(counts.documents_incomplete or counts.document_faults)
        return not self.outlook.num_listed or self.outlook.is_guess or is_unfinished

    def note(self, job: PageJob, *, is_resumed: bool = False) -> None:
        """One more page is known. is_resumed: and has its result already."""
        self.outlook.note(job)
        self.outlook.num_resumed += is_resumed
        if self.progress is not None:
            self.progress.expect(self.outlook.num_to_read, is_guess=self.outlook.is_guess)


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
        watched(cfg.metrics_file, summary, status),
        _ending(summary, stop),  # for the watchers: writing the summary may fail too
        ExitStack() as after_uploads,
        _ending(summary, stop),  # for the summary that is then written
        _bucket(cfg, summary, stop) as bucket,
    ):
        plan = EnginePlan(tuple(stages), STUB) if stages else plan_engine(cfg, cache_opener(cfg))
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
            cluster=cluster_options(cfg, plan),
        )
        with closing(Journal.open(cfg.out, plan.fingerprint)) as journal:
            told = bucket.offer if bucket else None
            writer = Writer(
                cfg.out, settings, raster=cfg.raster, on_document=told, summary=summary
            )
            if bucket is not None:
                bucket.take_away(SUMMARY_PATH)
            after_uploads.callback(_sum_up, writer, bucket)
            batch = Batch(cfg, journal, writer, {}, stop, plan.cache, progress=progress)
            try:
                for result in _results(batch, plan, options):
                    if progress is not None:
                        progress.page(result)
                    tell_watchers(cfg.metrics_file, summary, status)
                    if cfg.fail_fast and not result.status.is_good:
                        break
            finally:
                if not stages:
                    summary.forecast = expected(cfg, summary)
                summary.worker_deaths = sum(stage.num_deaths for stage in status.stages())
                writer.finish()
                summary.has_rest = batch.has_rest


def _log_page(result: PageResult) -> None:
    if not logger.isEnabledFor(logging.DEBUG):
        return
    seconds = {name: round(value, 2) for name, value in result.seconds.items()}
    fields = {
        "document": output_name(result.key.document),
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
        # A second request to stop gives up uploads under way.
        summary.has_rest |= bool(bucket.faults) or stop() >= 2
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
            batch.note(job, is_resumed=True)
            continue
        batch.writer.expect(job)
        entry = batch.journal.find(job, retry_failed=cfg.retry_failed) if cfg.resume else None
        if entry is not None and batch.writer.restore(job.key, entry.part_sha256):
            batch.note(job, is_resumed=True)
            batch.writer.assemble_complete()
            continue
        batch.note(job)
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
    options = RunnerOptions(retries=cfg.retries, cluster=cluster_options(cfg, plan))
    for result in run(plan.stages, noted(), options=options):
        waiting[result.key] = replace(result, input_sha256=digests.pop(result.key))
        while position < len(order) and order[position] in waiting:
            yield waiting.pop(order[position])
            position += 1
