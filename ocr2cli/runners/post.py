"""One actor of the Ray runner as the driver sees it: what it was given, what it said, since when.

Knows nothing about Ray, or about what a loss means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from ocr2cli.pages import PageJob, PageKey
from ocr2cli.pipeline.ledger import Ticket
from ocr2cli.pipeline.options import StageStatus
from ocr2cli.runners.cluster import Spot

# Pages a node is given before its first result; doubled with every answer that brings some.
FIRST_PAGES = 4
# A node that could not open so many files in a row is given up when others can.
MAX_REFUSALS = 3


@dataclass(slots=True, eq=False)
class Post:
    """One actor. held: pages given to it; unsent: those of them that it has not been told of yet.

    is_up: it has made its plan. limit: pages it may hold. group: size of the group of suspects it
    reads, 0 when it reads ordinary pages. silent_s: since its last answer; stuck_s: since something
    moved inside it; age_s: since it was started. refused: serials of pages under way whose file it
    could not open; refusal: what it said of the last; num_refused: so many in a row, none read in
    between. is_blind: others could open those.
    """

    spot: Spot
    actor: Any
    call: Any = None
    has_answered: bool = False
    is_up: bool = False
    held: dict[PageKey, Ticket] = field(default_factory=dict)
    unsent: list[PageJob] = field(default_factory=list)
    limit: int = FIRST_PAGES
    num_wanted: int = FIRST_PAGES
    group: int = 0
    num_results: int = 0
    num_stops_told: int = 0
    silent_s: float = 0.0
    stuck_s: float = 0.0
    age_s: float = 0.0
    refused: set[int] = field(default_factory=set)
    refusal: str = ""
    num_refused: int = 0
    is_blind: bool = False
    stages: tuple[StageStatus, ...] = ()

    @property
    def has_room(self) -> bool:
        return self.is_up and not self.group and len(self.held) < self.limit

    @property
    def is_doubted(self) -> bool:
        """True until it is known whether the files are at fault that it could not open, or it."""
        return len(self.refused) >= MAX_REFUSALS

    def take(self, ticket: Ticket) -> None:
        if not self.held:
            self.stuck_s = 0.0
        self.held[ticket.job.key] = ticket
        self.unsent.append(ticket.job)

    @property
    def place(self) -> tuple[str, int]:
        """Node and number: one actor has it at a time."""
        return self.spot.node_id, self.spot.number

    def heed(self, stages: tuple[StageStatus, ...]) -> None:
        """Take note of what its stages are doing."""
        if _pulse(stages) != _pulse(self.stages):
            self.stuck_s = 0.0
        self.stages = stages


def merged_stages(each: Iterable[tuple[StageStatus, ...]]) -> tuple[StageStatus, ...]:
    """The stages of all nodes, added up by name."""
    merged: dict[str, StageStatus] = {}
    for stages in each:
        for stage in stages:
            known = merged.get(stage.name)
            merged[stage.name] = stage if known is None else _added(known, stage)
    return tuple(merged.values())


def ended_stages(stages: tuple[StageStatus, ...]) -> tuple[StageStatus, ...]:
    """What has happened in them stays true when their node is gone; what they held does not."""
    return tuple(
        StageStatus(
            stage.name,
            0,
            num_emitted=stage.num_emitted,
            num_moves=stage.num_moves,
            num_restarts=stage.num_restarts,
            num_deaths=stage.num_deaths,
            busy_s=stage.busy_s,
        )
        for stage in stages
    )


def _pulse(stages: tuple[StageStatus, ...]) -> list[tuple[int, ...]]:
    """What changes when anything happens on a node."""
    return [
        (stage.num_emitted, stage.num_ready, stage.num_restarts, stage.num_moves)
        for stage in stages
    ]


def _added(one: StageStatus, other: StageStatus) -> StageStatus:
    """Counts and seconds added; the longest silence with the page it belongs to."""
    slower = max(one, other, key=lambda stage: stage.silence_s)
    totals = {
        name.name: getattr(one, name.name) + getattr(other, name.name)
        for name in fields(StageStatus)
        if name.name.startswith("num_") or name.name == "busy_s"
    }
    return StageStatus(one.name, silence_s=slower.silence_s, oldest=slower.oldest, **totals)
