"""Runner: a whole local runner on each node of a Ray cluster, fed and watched from here.

The driver hands out pages, keeps a bounded number of them on each node and takes results as they
are finished; it alone keeps the books. A node is judged by its answers, not by what Ray says of it:
Ray notices a lost machine late. Knows nothing about what the pages are; which node gets which of
them is `waiting.py`'s.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from ocr2cli import __version__
from ocr2cli.errors import EngineError, Ocr2Error
from ocr2cli.pages import PageError, PageJob, PageResult, Status
from ocr2cli.pipeline.ledger import Ledger, Ticket, failed_result
from ocr2cli.pipeline.options import RunnerOptions, StageStatus
from ocr2cli.pipeline.staff import LOADING_SILENCE_S
from ocr2cli.pipeline.stage import Stage
from ocr2cli.runners.cluster import TOKEN_HINT, Cluster, Lost, Spot
from ocr2cli.runners.node import NodeSetup, Turn
from ocr2cli.runners.post import FIRST_PAGES, MAX_REFUSALS, Post, ended_stages, merged_stages
from ocr2cli.runners.waiting import Waiting

logger = logging.getLogger("ocr2")

# A node answers within this time, with results or without: its sign of life.
_ANSWER_S = 0.5
_TICK_S = 0.1
_IDLE_S = 0.02
# How often the cluster is asked which nodes it has.
_SCAN_S = 2.0
# At most so much of the time between two looks counts as a node's silence: the loop may have been
# away for longer, and heard nobody meanwhile.
_MAX_STEP_S = 1.0
# A node that loses this many runners in a row, and reads nothing, is left alone.
_MAX_USELESS_LOSSES = 3
_MAX_READY_RESULTS = 64
_DRAIN_SLACK_S = 1.0
_STUCK_SLACK_S = 60.0


def run(
    stages: Sequence[Stage],
    jobs: Iterable[PageJob | None],
    *,
    options: RunnerOptions | None = None,
) -> Iterator[PageResult]:
    """Read every job; yields one result per job, in the order they are finished.

    The promise of `local.run`, on many machines: jobs are pulled lazily, no cluster is joined
    before the first page that needs one, closing the iterator ends the actors. Nodes that join
    later are used, pages of lost ones are read again. Input files must be visible on every node.
    Raises: UsageError for a client's address; EngineError when no cluster answers or no node takes
    part; whatever ended the last node's runner. Results finished before that have been yielded.
    """
    driver = _Driver(tuple(stages), iter(jobs), options or RunnerOptions())
    try:
        yield from driver.results()
    finally:
        driver.close()


class _Driver:
    """The loop: give pages, take results, look after nodes."""

    def __init__(
        self, stages: tuple[Stage, ...], jobs: Iterator[PageJob | None], options: RunnerOptions
    ) -> None:
        if not stages:
            raise ValueError("a run needs at least one stage")
        self._stages = stages
        self._jobs = jobs
        self._options = options
        self._ledger = Ledger(options.retries)
        self._cluster: Cluster | None = None
        self._posts: dict[tuple[str, int], Post] = {}
        self._waiting = Waiting(self._posts)
        self._num_useless: Counter[tuple[str, int]] = Counter()
        self._given_up: dict[tuple[str, int], Ocr2Error] = {}
        self._num_restarts = 0
        self._ended_stages: tuple[StageStatus, ...] = ()  # of nodes that are gone, added up
        self._ready: deque[PageResult] = deque()
        self._has_jobs = True
        self._is_source_idle = False
        self._drain_until: float | None = None
        self._fatal: Ocr2Error | None = None
        self._looked_at = time.monotonic()
        self._scan_at = 0.0
        self._alone_s = 0.0
        self._head_silent_s = 0.0
        options.status.probe = self._snapshot

    def results(self) -> Iterator[PageResult]:
        while not self._should_end():
            self._admit()
            self._give()
            self._call()
            self._collect()
            self._watch()
            while self._ready:
                yield self._ready.popleft()
            if self._fatal:
                raise self._fatal
        self._ledger.check()
        if self._cluster and not self._options.status.is_interrupted:
            # Those not up hold nothing and would only be waited for.
            self._cluster.end([post.actor for post in self._posts.values() if post.is_up])

    def close(self) -> None:
        """Kill what is left and leave the cluster. Safe at any moment."""
        if self._cluster:
            for post in self._posts.values():
                self._cluster.kill(post.actor)
            self._cluster.close()

    # -- what ends a run

    def _should_end(self) -> bool:
        if self._heed_stop():
            return True
        return not (self._has_jobs or self._ledger or self._ready)

    def _heed_stop(self) -> bool:
        """Begin or end the drain; True when the run must end now."""
        num_requests = self._options.stop()
        if not num_requests:
            return False
        now = time.monotonic()
        self._options.status.is_interrupted = True
        if self._drain_until is None:
            # Each node ends its own drain in time; its last results need a moment to get here.
            self._drain_until = now + self._options.drain_s + _DRAIN_SLACK_S
            self._has_jobs = self._is_source_idle = False
            self._give_up(self._waiting.clear())
            for post in self._posts.values():
                self._give_up([post.held.pop(job.key) for job in post.unsent])
                post.unsent.clear()
        if num_requests >= 2 or now >= self._drain_until:
            self._give_up(self._ledger.tickets())
            return True
        return False

    def _give_up(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self._ledger.drop(ticket)

    # -- pages out

    def _admit(self) -> None:
        """Pull jobs while somebody has room for them; one at a time until there is a cluster."""
        self._is_source_idle = False
        while self._has_jobs and len(self._ready) < _MAX_READY_RESULTS:
            if len(self._waiting.fresh) >= self._waiting.num_free():
                return
            try:
                job = next(self._jobs)
            except StopIteration:
                self._has_jobs = False
                return
            if job is None:
                self._is_source_idle = True
                return
            ticket = self._ledger.admit(job)
            if job.error:
                self._ready.append(self._ledger.finish(ticket, failed_result(job, job.error)))
                continue
            self._waiting.fresh.append(ticket)
            self._join()

    def _give(self) -> None:
        """What waits to nodes that have room. Suspects come first, since they want empty nodes."""
        waiting = self._waiting
        waiting.give_suspects()
        limit_s = self._options.cluster.start_within_s
        for ticket, refusal in waiting.give_refused(
            start_within_s=limit_s, may_grow=self._must_scan
        ):
            self._finish(ticket, self._ledger.finish(ticket, refusal))
        waiting.give_fresh()

    def _call(self) -> None:
        """One call at a time to each node that has, or gets, something to do."""
        num_stops = self._options.stop()
        for post in self._posts.values():
            is_told = post.num_stops_told == num_stops
            if post.call is not None or (post.is_up and not post.held and is_told):
                continue
            jobs, post.unsent = post.unsent, []
            post.num_stops_told = num_stops
            wait_s = _ANSWER_S if post.held or not post.is_up else 0.0
            post.call = post.actor.turn.remote(jobs, num_stops, wait_s)
            post.silent_s = 0.0

    # -- results in

    def _collect(self) -> None:
        waiting = {post.call: post for post in self._posts.values() if post.call is not None}
        is_idle = self._is_source_idle or not waiting
        timeout_s = 0.0 if self._ready else _IDLE_S if is_idle else _TICK_S
        if not waiting or self._cluster is None:
            time.sleep(timeout_s if self._ledger or self._is_source_idle else 0.0)
            return
        for call in self._cluster.wait(list(waiting), timeout_s):
            post = waiting[call]
            try:
                turn = self._cluster.fetch(call)
            except Lost as loss:
                self._lose(post, str(loss))
                continue
            post.call = None
            self._accept(post, turn)

    def _accept(self, post: Post, turn: Turn) -> None:
        post.has_answered, post.silent_s = True, 0.0
        post.heed(turn.stages)
        if turn.num_wanted:
            post.is_up = True
            # A quarter more than its stages hold, so that none waits for a message.
            post.num_wanted = turn.num_wanted + max(FIRST_PAGES, turn.num_wanted // 4)
        for level, line in turn.logs:
            logger.log(level, "node %s: %s", post.spot.name, line)
        num_before = post.num_results
        for result in turn.results:
            ticket = post.held.pop(result.key)
            if result.error and result.error.code == "away":
                self._hold_back(post, ticket, result, result.error)
                continue
            post.num_results += 1
            if result.status is not Status.FAILED:
                post.num_refused = 0
            self._finish(ticket, self._ledger.finish(ticket, result))
        if post.num_results > num_before:
            self._num_useless.pop(post.place, None)
            post.limit = min(2 * post.limit, post.num_wanted)
        if not post.held:
            post.group = 0
        if turn.failure:
            self._dismiss(post, turn.failure.run_error("node"))
        elif turn.is_ended:
            self._let_go(post, None)

    def _hold_back(
        self, post: Post, ticket: Ticket, refusal: PageResult, error: PageError
    ) -> None:
        """The driver has opened this file: that the node cannot is no fault of the page's."""
        post.num_refused += 1
        post.refused.add(ticket.serial)
        post.refusal = error.message
        if self._drain_until is not None:
            self._ledger.drop(ticket)
            return
        self._ledger.rewind(ticket)
        self._waiting.add_refused(ticket, refusal)

    def _finish(self, ticket: Ticket, result: PageResult) -> None:
        """Hand out what the books have closed, and learn from it who was wrong about the file."""
        self._waiting.forget(ticket)
        for post in self._posts.values():
            if ticket.serial not in post.refused:
                continue
            post.refused.remove(ticket.serial)
            if result.status is not Status.FAILED:
                post.is_blind |= post.num_refused >= MAX_REFUSALS
            elif result.error and result.error.code == "away":  # no node could
                post.num_refused = 0
        self._ready.append(result)

    # -- nodes that come and go

    def _join(self) -> None:
        if self._cluster is None:
            self._cluster = Cluster(self._options.cluster.address)
            self._looked_at = time.monotonic()

    def _watch(self) -> None:
        if self._cluster is None:
            return
        now = time.monotonic()
        step_s, self._looked_at = min(now - self._looked_at, _MAX_STEP_S), now
        for post in list(self._posts.values()):
            self._judge(post, step_s)
        if now >= self._scan_at and self._drain_until is None:
            self._ask_head(now, step_s)
        self._end_if_nobody_helps(step_s)

    def _judge(self, post: Post, step_s: float) -> None:
        """A node has two deadlines: to answer at all, and to get on with what it holds."""
        cluster = self._options.cluster
        post.silent_s += step_s if post.call is not None else 0.0
        post.stuck_s += step_s if post.held else 0.0
        post.age_s += step_s
        # A node's own watchdog acts in time, and that shows. 0: no page has a limit.
        timeout_s = max(stage.timeout_s for stage in self._stages)
        stuck_after_s = _STUCK_SLACK_S + 2 * max(timeout_s, LOADING_SILENCE_S)
        if post.is_blind:
            self._dismiss(post, EngineError(
                f"node {post.spot.name} cannot open what other nodes read: "
                f"{post.refusal.rstrip('.')}"
            ))  # fmt: skip
        elif post.has_answered and post.silent_s > cluster.lost_after_s:
            self._lose(post, f"it gave no sign of life for {cluster.lost_after_s:g} s.")
        elif timeout_s and post.stuck_s > stuck_after_s:
            self._lose(post, f"nothing moved on it for {stuck_after_s:g} s.")

    def _ask_head(self, now: float, step_s: float) -> None:
        assert self._cluster is not None
        cluster = self._options.cluster
        spots = self._cluster.poll_spots(uses_gpus=cluster.uses_gpus)
        if spots is not None:
            self._scan_at = now + _SCAN_S
            self._head_silent_s = 0.0
            self._scan(spots)
            return
        self._head_silent_s += step_s
        if self._head_silent_s > cluster.lost_after_s:
            self._cluster.abandon()
            self._fatal = EngineError(
                f"the head of the Ray cluster has not answered for {cluster.lost_after_s:g} s. "
                "Start the cluster again, then run the same command; finished pages are kept."
            )

    @property
    def _must_scan(self) -> bool:
        """True before it is known whether a place has another actor to come."""
        return not self._scan_at

    def _scan(self, spots: Sequence[Spot]) -> None:
        """Use nodes that have joined, and places whose actor was lost."""
        assert self._cluster is not None
        places = {(spot.node_id, spot.number): spot for spot in spots}
        # A node that is gone says nothing about those to come.
        self._given_up = {place: why for place, why in self._given_up.items() if place in places}
        for place in [place for place in self._posts if place not in places]:
            self._lose(self._posts[place], "Ray says that its node is gone.")
        for place, spot in places.items():
            if place not in self._posts and place not in self._given_up:
                self._posts[place] = Post(spot, self._cluster.start(spot, self._setup(spot)))

    def _setup(self, spot: Spot) -> NodeSetup:
        options, cluster = self._options, self._options.cluster
        return NodeSetup(
            name=spot.name,
            version=__version__,
            stages=() if cluster.make_plan else self._stages,
            make_plan=cluster.make_plan,
            fingerprint=cluster.fingerprint,
            num_cores=max(1, int(spot.num_cpus)),
            retries=options.retries,
            drain_s=options.drain_s,
            hopeless_after=options.hopeless_after,
            log_level=logger.getEffectiveLevel(),
        )

    def _lose(self, post: Post, why: str) -> None:
        """An actor that died or is taken for dead. It is killed, should it live after all."""
        place = post.place
        if self._drain_until is None:
            logger.warning("node %s: its runner was lost: %s Pages read again: %d",
                           post.spot.name, why, len(post.held))  # fmt: skip
        self._num_restarts += 1
        # Suspects are given out to see whether they kill: that says nothing about the node.
        self._num_useless[place] += post.num_results == 0 and not post.group
        if self._num_useless[place] >= _MAX_USELESS_LOSSES:
            hint = "Look at Ray's logs there"
            if not post.has_answered:
                hint = f"{TOKEN_HINT}; else look at Ray's logs there"
            self._given_up[place] = EngineError(
                f"node {post.spot.name} lost {_MAX_USELESS_LOSSES} runners in a row: {why} {hint}"
            )
        self._let_go(post, PageError("worker_died", f"the node that read it was lost: {why}"))

    def _dismiss(self, post: Post, error: Ocr2Error | None) -> None:
        """A node whose runner cannot go on; no page is to blame, the others read on."""
        place = post.place
        self._given_up[place] = error or EngineError(f"node {post.spot.name} stopped")
        if len(self._posts) > 1:
            logger.warning("%s; going on without this node", self._given_up[place])
        self._let_go(post, None)

    def _let_go(self, post: Post, blame: PageError | None) -> None:
        """Take leave of an actor; what it holds is read again, or was given up by request."""
        del self._posts[post.place]
        self._ended_stages = merged_stages([self._ended_stages, ended_stages(post.stages)])
        self._scan_at = 0.0
        unsent = {job.key for job in post.unsent}
        for key, ticket in post.held.items():
            if self._drain_until is not None:
                self._ledger.drop(ticket)
            elif blame is None or key in unsent:
                self._ledger.rewind(ticket)
                self._waiting.fresh.append(ticket)
            else:
                self._suspect(ticket, blame, was_alone=post.group == 1)
        post.held.clear()
        if self._cluster:
            self._cluster.kill(post.actor)

    def _suspect(self, ticket: Ticket, blame: PageError, *, was_alone: bool) -> None:
        """Machines are lost for many reasons: only a page that had one for itself is blamed."""
        if was_alone and (result := self._ledger.fault(ticket, blame)):
            self._finish(ticket, result)
            return
        self._ledger.rewind(ticket)
        self._waiting.add_suspect(ticket, was_alone=was_alone)

    def _end_if_nobody_helps(self, step_s: float) -> None:
        if any(post.is_up for post in self._posts.values()) or not self._ledger:
            self._alone_s = 0.0
            return
        if self._given_up and not self._posts and not self._must_scan:
            self._fatal = next(iter(self._given_up.values()))
            return
        self._alone_s += step_s
        limit_s = self._options.cluster.start_within_s
        if self._alone_s > limit_s:
            asked = [f"{post.spot.num_cpus:g} CPUs of {post.spot.name}" for post in
                     self._posts.values()]  # fmt: skip
            need = f"It needs all of {', '.join(asked[:3])}" if asked else "No node has a CPU"
            self._fatal = EngineError(
                f"no node of the Ray cluster took a runner within {limit_s:g} s. {need}; look "
                "with `ray status`"
            )

    def _snapshot(self) -> tuple[StageStatus, ...]:
        """The nodes, then the stages of all of them."""
        up = sum(post.is_up for post in self._posts.values())
        nodes = StageStatus(
            "node",
            len(self._posts),
            num_ready=up,
            num_waiting=len(self._waiting),
            num_restarts=self._num_restarts,
        )
        each = [*(post.stages for post in list(self._posts.values())), self._ended_stages]
        return (nodes, *merged_stages(each))
