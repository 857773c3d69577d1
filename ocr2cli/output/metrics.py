"""The run's numbers as a Prometheus text file, for node_exporter's textfile collector.

Replaced atomically, so that a scrape never sees half of it. Knows nothing about servers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ocr2cli.errors import OutputError
from ocr2cli.output.summary import Summary
from ocr2cli.pages import Status
from ocr2cli.pipeline.durable import atomic_write
from ocr2cli.pipeline.options import RunStatus
from ocr2cli.pipeline.output_faults import output_error

logger = logging.getLogger("ocr2")


@dataclass(frozen=True, slots=True)
class PipelineGauges:
    """What the runner knows. Keys are stage names. time: seconds since 1970, of this snapshot."""

    queue_depths: Mapping[str, int] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    time: float = 0.0
    is_finished: bool = False


def write_metrics(path: Path, summary: Summary, gauges: PipelineGauges) -> None:
    """Replaces `path`. Raises: OutputError when it cannot be written."""
    try:
        atomic_write(path, metrics_text(summary, gauges).encode())
    except OSError as error:
        raise OutputError(str(output_error(path, error))) from error


@contextmanager
def watched(path: str, summary: Summary, status: RunStatus) -> Iterator[None]:
    """At the end, whatever it is, the run's watchers are told of it."""
    try:
        yield
    finally:
        tell_watchers(path, summary, status, is_finished=True)


def tell_watchers(
    path: str, summary: Summary, status: RunStatus, *, is_finished: bool = False
) -> None:
    """Replaces the file at `path`, if there is to be one; that it cannot be written is told at the
    end, and stops nothing."""
    if not path:
        return
    stages = status.stages()
    gauges = PipelineGauges(
        queue_depths={stage.name: stage.num_waiting + stage.num_held for stage in stages},
        restarts={stage.name: stage.num_restarts for stage in stages},
        time=time.time(),
        is_finished=is_finished,
    )
    try:
        write_metrics(Path(path), summary, gauges)
    except OutputError as error:
        if is_finished:
            logger.warning("--metrics-file: %s", error)


def metrics_text(summary: Summary, gauges: PipelineGauges) -> str:
    """Prometheus text exposition format 0.0.4."""
    exit_code = int(summary.exit_code) if gauges.is_finished else 0
    depths, restarts = gauges.queue_depths, gauges.restarts
    numbers = {
        "ocr2_pages_resumed_total": ("Pages an earlier run had read.", summary.pages_resumed),
        "ocr2_documents_total": ("Documents seen.", summary.documents),
        "ocr2_document_errors_total": (
            "Documents whose files could not be put in place.",
            len(summary.document_faults),
        ),
        "ocr2_new_tokens_total": ("Tokens the decoder wrote.", summary.new_tokens),
        "ocr2_run_finished": ("1 once the run has ended.", int(gauges.is_finished)),
        "ocr2_exit_code": ("Exit code, 0 while the run goes on.", exit_code),
        "ocr2_last_update_timestamp_seconds": ("When this file was written.", gauges.time),
    }
    lines = _pages(summary.by_status)
    lines += _family("ocr2_stage_seconds_total", "Time in it, summed.", "stage", summary.seconds)
    lines += _stages(depths, restarts)
    for name, (text, value) in numbers.items():
        lines += [*_head(name, text), f"{name} {value!r}"]
    return "\n".join(lines) + "\n"


def server_metrics(
    by_status: Mapping[str, int], depths: Mapping[str, int], restarts: Mapping[str, int]
) -> str:
    """The same families for a server, which has pages and stages but no documents and no end."""
    return "\n".join(_pages(by_status) + _stages(depths, restarts)) + "\n"


def _pages(by_status: Mapping[str, int]) -> list[str]:
    pages = {status.value: by_status.get(status.value, 0) for status in Status}
    return _family("ocr2_pages_total", "Pages by the state they ended in.", "status", pages)


def _stages(depths: Mapping[str, int], restarts: Mapping[str, int]) -> list[str]:
    return [
        *_family("ocr2_queue_depth", "Pages a stage holds or waits for.", "stage", depths),
        *_family("ocr2_worker_restarts_total", "Workers replaced.", "stage", restarts),
    ]


def _head(name: str, text: str) -> list[str]:
    kind = "counter" if name.endswith("_total") else "gauge"
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _family(name: str, text: str, label: str, values: Mapping[str, float]) -> list[str]:
    rows = [f'{name}{{{label}="{_escape(key)}"}} {value!r}' for key, value in values.items()]
    return [*_head(name, text), *rows] if rows else []


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
