"""What a runner may be told, and what it tells about itself while it runs.

Knows nothing about how workers are run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage at one moment.

    num_ready: workers that are loaded. num_waiting: items queued in the parent for this stage.
    num_held: items inside workers. num_emitted, num_restarts, num_deaths, busy_s: totals of the
    run; a worker that is renewed after its number of pages is a restart and no death; busy_s
    adds up the seconds in which each worker held something. num_moves: how often workers told of
    progress with pages that are not done. silence_s: the longest time a worker that holds an item
    has told of nothing; `oldest` names a page it holds.
    """

    name: str
    num_workers: int
    num_ready: int = 0
    num_waiting: int = 0
    num_held: int = 0
    num_emitted: int = 0
    num_restarts: int = 0
    num_deaths: int = 0
    num_moves: int = 0
    busy_s: float = 0.0
    silence_s: float = 0.0
    oldest: str = ""


def _no_stages() -> tuple[StageStatus, ...]:
    return ()


@dataclass(slots=True)
class RunStatus:
    """Filled by the runner, read by whoever wants to know; one object per run.

    is_interrupted: a stop was requested before the last page was done.
    """

    is_interrupted: bool = False
    probe: Callable[[], tuple[StageStatus, ...]] = _no_stages

    def stages(self) -> tuple[StageStatus, ...]:
        """A snapshot, in stage order; empty before the run's first item is asked for."""
        return self.probe()


def _never() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What only a runner on many machines asks for.

    address: of the cluster; "": a new one on this machine. make_plan: given the cores it may use,
    makes the stages anew on a node, sized by that node (an object with `stages` and
    `fingerprint`, which must equal `fingerprint` here); None: the caller's stages are sent.
    uses_gpus: one runner for each GPU of a node, not one for each node. lost_after_s: a node that
    gives no sign for so long is given up. start_within_s: a run no node takes part in by then ends.
    """

    address: str = ""
    make_plan: Callable[[int], Any] | None = None
    fingerprint: str = ""
    uses_gpus: bool = True
    lost_after_s: float = 30.0
    start_within_s: float = 300.0


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a runner treats pages, whatever the stages are.

    retries: times a page goes back after its worker died or was killed by the watchdog.
    stop: number of stop requests so far: 1 drains, 2 ends at once (`StopRequests` is one).
    drain_s: seconds that pages under way may still take after the first stop request.
    hopeless_after: deaths of one stage before its first item is out, after which the run ends;
    those of a page that was alone with its worker, and has failed by name, do not count.
    cluster: for a runner on many machines; the others do not look at it.
    """

    retries: int = 1
    stop: Callable[[], int] = _never
    drain_s: float = 20.0
    status: RunStatus = field(default_factory=RunStatus)
    hopeless_after: int = 20
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
