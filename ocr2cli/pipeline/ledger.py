"""Which pages are under way, and the one retry policy: one job in, one result out.

Knows nothing about how or where stages run; both runners keep their books here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ocr2cli.pages import Attempt, PageError, PageJob, PageKey, PageResult, Status

# Pages that a worker died with come back in groups smaller by this factor, down to one.
_SPLIT = 4


class Company:
    """Who has a worker of a stage for themselves: pages of which one may be deadly."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A page under way. The job is kept: a page that goes back starts again from it.

    stage: index of the stage that holds it or that it waits for. body: its item between two
    stages, opaque here. company: by stage, those with whom alone it may share a worker there.
    """

    serial: int
    job: PageJob
    stage: int = 0
    body: object = None
    company: dict[int, Company] = field(default_factory=dict)
    faults: list[PageError] = field(default_factory=list)


class Ledger:
    """Tickets of the pages under way; counts what went in and what came out."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._live: dict[int, Ticket] = {}
        self._keys: set[PageKey] = set()
        self.num_in = 0
        self.num_out = 0
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, serial: int) -> Ticket:
        return self._live[serial]

    def tickets(self) -> list[Ticket]:
        return list(self._live.values())

    def admit(self, job: PageJob) -> Ticket:
        """Raises: ValueError when a page of the same key is under way."""
        if job.key in self._keys:
            raise ValueError(f"{job.key} was submitted twice; document ids must be unique in a run")
        self.num_in += 1
        ticket = Ticket(self.num_in, job)
        self._live[ticket.serial] = ticket
        self._keys.add(job.key)
        return ticket

    def finish(self, ticket: Ticket, result: PageResult) -> PageResult:
        """Close the ticket; returns the result with what only the job knows filled in."""
        if result.key != ticket.job.key:
            raise ValueError(f"a result for {result.key} came from {ticket.job.key}")
        self._forget(ticket)
        self.num_out += 1
        if result.input_sha256:
            return result
        return replace(result, input_sha256=ticket.job.sha256)

    def fault(self, ticket: Ticket, error: PageError) -> PageResult | None:
        """The worker of this page died in `ticket.stage`: None means try again, from the job.

        The page then runs alone in that stage, so that a second death blames the right page.
        """
        ticket.faults.append(error)
        if len(ticket.faults) > self._retries:
            return self.finish(ticket, failed_result(ticket.job, error, ticket.faults))
        self._send_back(ticket, Company())
        return None

    def suspect(self, tickets: Sequence[Ticket], error: PageError) -> list[PageResult]:
        """A worker died with these pages of one stage. Returns results of those that are given up.

        Of many nobody knows which one is deadly: they come back in smaller groups, each with a
        worker for itself, until one is alone. However often it dies in company, that is one fault.
        """
        if len(tickets) == 1 or not self._retries:
            results = [self.fault(ticket, error) for ticket in tickets]
            return [result for result in results if result is not None]
        size = math.ceil(len(tickets) / _SPLIT)
        for number, ticket in enumerate(tickets):
            if number % size == 0:
                company = Company()
            ticket.faults = ticket.faults or [error]
            self._send_back(ticket, company)
        return []

    def _send_back(self, ticket: Ticket, company: Company) -> None:
        ticket.company[ticket.stage] = company
        ticket.job = replace(ticket.job, attempt=ticket.job.attempt + 1)
        self.rewind(ticket)

    def rewind(self, ticket: Ticket) -> None:
        """Send the page back to its start without blame."""
        ticket.stage = 0

    def drop(self, ticket: Ticket) -> None:
        """Give the page up without a result: only after a stop request."""
        self._forget(ticket)
        self.num_dropped += 1

    def check(self) -> None:
        """One job in, one result out."""
        assert self.num_in == self.num_out + self.num_dropped + len(self._live), (
            f"{self.num_in} pages in, {self.num_out} out, {self.num_dropped} dropped, "
            f"{len(self._live)} under way"
        )

    def _forget(self, ticket: Ticket) -> None:
        del self._live[ticket.serial]
        self._keys.remove(ticket.job.key)


def failed_result(
    job: PageJob, error: PageError, faults: list[PageError] | None = None
) -> PageResult:
    """The result of a page that no stage could finish."""
    steps = ["first", *(["retry"] * len(faults or ()))]
    attempts = tuple(
        Attempt(step, None, note=fault.message)
        for step, fault in zip(steps, faults or (), strict=False)
    )
    return PageResult(
        job.key, Status.FAILED, input_sha256=job.sha256, attempts=attempts, error=error
    )


def not_a_result(stage_name: str) -> PageError:
    """For an item that the last stage passed on instead of a result: a bug in the stages."""
    return PageError("internal", f"the {stage_name} stage comes last but did not emit a result")
