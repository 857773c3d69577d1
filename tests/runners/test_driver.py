"""The driver's policy against nodes that die, stall and lie: a cluster of objects, no Ray.

Whatever happens to nodes, each page has exactly one result, and only a page that kills is blamed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ocr2cli.errors import EngineError
from ocr2cli.pages import PageError, PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.failure import Failure
from ocr2cli.pipeline.options import ClusterOptions, RunnerOptions, RunStatus, StageStatus
from ocr2cli.pipeline.stage import Stage
from ocr2cli.pipeline.stop import StopRequests
from ocr2cli.runners import ray as ray_runner
from ocr2cli.runners.cluster import Lost, Spot
from ocr2cli.runners.node import Turn
from ocr2cli.runners.post import Post

NUM_WANTED = 16


@dataclass
class World:
    """What goes wrong. killers: pages that end the actor that reads them. blind: nodes that see no
    file; gone: pages whose file no node sees."""

    seed: int = 0
    num_nodes: int = 3
    killers: frozenset[int] = frozenset()
    blind: frozenset[str] = frozenset()
    gone: frozenset[int] = frozenset()
    late: str = ""
    num_losses: int = 0
    silent: int = 0
    stuck: int = 0
    is_refusing: bool = False
    is_headless: bool = False
    is_abandoned: bool = False
    # What happened.
    num_deaths: int = 0
    num_actors: int = 0
    most_held: int = 0
    num_refused: int = 0
    random: random.Random = field(default_factory=random.Random)


class Actor:
    def __init__(self, world: World, node: str) -> None:
        self.world = world
        self.node = node
        self.num_turns = 0
        self.held: list[PageJob] = []
        self.is_dead = False
        self.is_silent = False
        self.is_stuck = False
        self.turn = self
        world.num_actors += 1

    def remote(self, jobs: Sequence[PageJob], num_stops: int, wait_s: float) -> Call:
        self.held += jobs
        self.world.most_held = max(self.world.most_held, len(self.held))
        return Call(self, num_stops)

    def answer(self, num_stops: int) -> Turn:
        world = self.world
        if world.is_refusing:
            return Turn(is_ended=True, failure=Failure("ModelError", "no model", is_ours=True))
        if world.num_losses and len(self.held) > 1 and world.random.random() < 0.3:
            world.num_losses -= 1
            self.die()
        num_done = len(self.held) if self.node in world.blind else world.random.randint(0, 3)
        done = [] if self.is_stuck else self.held[:num_done]
        for job in done:
            if job.key.page in world.killers:
                self.die()
        self.held = self.held[len(done) :]
        self.num_turns += 1
        results = tuple(self.read(job) for job in done)
        num_wanted = 0 if world.late == self.node and self.num_turns < 50 else NUM_WANTED
        return Turn(results, (), num_wanted, is_ended=num_stops > 0 and not self.held)

    def read(self, job: PageJob) -> PageResult:
        world = self.world
        if self.node not in world.blind and job.key.page not in world.gone:
            return PageResult(job.key, Status.OK)
        world.num_refused += 1
        error = PageError("away", f"{job.path} is not there on {self.node}.")
        return PageResult(job.key, Status.FAILED, error=error)

    def die(self) -> None:
        self.is_dead = True
        self.world.num_deaths += 1
        raise Lost("the node is dead.")


class Call:
    def __init__(self, actor: Actor, num_stops: int) -> None:
        self.actor, self.num_stops = actor, num_stops


def fake_cluster(world: World) -> type:
    class Cluster:
        def __init__(self, address: str) -> None:
            self.killed: list[Actor] = []

        def poll_spots(self, *, uses_gpus: bool) -> list[Spot] | None:
            if world.is_headless:
                return None
            return [Spot(f"node{n}", 0, f"node{n}", 1.0, 0.0) for n in range(world.num_nodes)]

        def start(self, spot: Spot, setup: Any) -> Actor:
            actor = Actor(world, spot.name)
            if world.silent and world.num_actors <= world.silent:
                actor.is_silent = True
            actor.is_stuck = world.num_actors <= world.stuck
            return actor

        def wait(self, calls: Sequence[Call], timeout_s: float) -> list[Call]:
            ready = [one for one in calls if not (one.actor.is_silent and one.actor.held)]
            return world.random.sample(ready, world.random.randint(0, len(ready)))

        def fetch(self, call: Call) -> Turn:
            if call.actor.is_dead:
                raise Lost("the actor is dead.")
            return call.actor.answer(call.num_stops)

        def kill(self, actor: Actor) -> None:
            actor.is_dead = True

        def end(self, actors: Sequence[Actor]) -> None:
            assert not any(actor.held for actor in actors), "a run ended with pages under way"

        def abandon(self) -> None:
            world.is_abandoned = True

        def close(self) -> None: ...

    return Cluster


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray_runner, "_SCAN_S", 0.0)
    monkeypatch.setattr(ray_runner, "_TICK_S", 0.0)
    monkeypatch.setattr(ray_runner, "_IDLE_S", 0.0)

    def go(world: World, jobs: Any, **how: Any) -> Iterator[PageResult]:
        world.random.seed(world.seed)
        monkeypatch.setattr(ray_runner, "Cluster", fake_cluster(world))
        stage = Stage("stub", object, num_workers=1, credit=NUM_WANTED, timeout_s=5.0)
        return ray_runner.run([stage], jobs, options=RunnerOptions(**how))

    return go


def pages(count: int) -> list[PageJob]:
    return [PageJob(PageKey("d", page), "/in/d.pdf", "ab" * 32, count) for page in range(count)]


def statuses(results: Iterator[PageResult]) -> dict[int, Status]:
    found: dict[int, Status] = {}
    for result in results:
        assert result.key.page not in found, "a page came out twice"
        found[result.key.page] = result.status
    return found


@pytest.mark.parametrize("seed", range(25))
def test_nodes_that_are_lost_cost_no_page(read: Any, seed: int) -> None:
    world = World(seed, num_losses=8)
    found = statuses(read(world, pages(150)))
    assert found == dict.fromkeys(range(150), Status.OK)
    assert world.num_deaths == 8 and world.num_losses == 0


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("killers", [{7}, {3, 80}, {20, 21, 22}])
def test_a_page_that_kills_is_found_and_no_other_is_blamed(
    read: Any, seed: int, killers: set[int]
) -> None:
    world = World(seed, killers=frozenset(killers), num_losses=2)
    found = statuses(read(world, pages(120)))
    assert {page for page, status in found.items() if status is Status.FAILED} == killers
    assert len(found) == 120
    # Twice in company, as groups shrink from 20 over 5 to 1, and once more than `retries` alone.
    assert world.num_deaths <= 2 + 4 * len(killers)


@pytest.mark.parametrize("seed", range(5))
def test_killing_pages_in_a_row_do_not_bring_their_only_node_into_disrepute(
    read: Any, seed: int
) -> None:
    world = World(seed, num_nodes=1, killers=frozenset({20, 21, 22, 23}))
    found = statuses(read(world, pages(40), retries=2))
    assert {page for page, status in found.items() if status is Status.FAILED} == {20, 21, 22, 23}


def test_retries_are_deaths_alone(read: Any) -> None:
    few, many = World(killers=frozenset({1})), World(killers=frozenset({1}))
    statuses(read(few, pages(8), retries=0))
    statuses(read(many, pages(8), retries=3))
    assert many.num_deaths == few.num_deaths + 3


def test_a_node_holds_no_more_than_its_stages_and_a_quarter(read: Any) -> None:
    world = World()
    statuses(read(world, pages(400)))
    assert NUM_WANTED < world.most_held <= NUM_WANTED + NUM_WANTED // 4


def test_jobs_are_pulled_only_as_there_is_room(read: Any) -> None:
    pulled = 0

    def source() -> Iterator[PageJob]:
        nonlocal pulled
        for job in pages(1000):
            pulled += 1
            yield job

    world = World(num_nodes=2)
    results = read(world, source())
    for count, _ in enumerate(results, 1):
        assert pulled - count <= 2 * (NUM_WANTED + NUM_WANTED // 4) + ray_runner._MAX_READY_RESULTS
        if count == 200:
            break
    results.close()


def test_silent_nodes_are_replaced(read: Any) -> None:
    world = World(silent=2)
    how = ClusterOptions(lost_after_s=0.2)
    found = statuses(read(world, pages(40), cluster=how))
    assert found == dict.fromkeys(range(40), Status.OK) and world.num_actors >= 5


def test_a_node_that_answers_and_gets_nowhere_is_replaced(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_runner, "_STUCK_SLACK_S", -119.8)  # 0.2 s: twice a minute is added
    world = World(stuck=1)
    found = statuses(read(world, pages(40)))
    assert found == dict.fromkeys(range(40), Status.OK) and world.num_actors >= 4


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("blind", [{"node0"}, {"node0", "node2"}])
def test_a_node_that_cannot_open_the_files_costs_no_page_and_is_given_up_by_name(
    read: Any, seed: int, blind: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It failed pages at once, and so was given nearly all of them."""
    world = World(seed, blind=frozenset(blind), num_losses=2)
    found = statuses(read(world, pages(150)))
    assert found == dict.fromkeys(range(150), Status.OK)
    assert world.num_refused <= 12 * len(blind)
    for node in blind:
        assert f"node {node} cannot open what other nodes read: /in/d.pdf is not" in caplog.text


@pytest.mark.parametrize("seed", range(10))
def test_a_node_that_comes_up_late_reads_what_the_first_one_cannot_open(
    read: Any, seed: int
) -> None:
    world = World(seed, num_nodes=2, blind=frozenset({"node0"}), late="node1")
    assert statuses(read(world, pages(50))) == dict.fromkeys(range(50), Status.OK)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_file_that_no_node_can_open_fails_its_pages_and_no_node_is_given_up(
    read: Any, seed: int, num_nodes: int, caplog: pytest.LogCaptureFixture
) -> None:
    gone = frozenset(range(20, 60))
    world = World(seed, num_nodes=num_nodes, gone=gone)
    found = statuses(read(world, pages(100)))
    assert {page for page, status in found.items() if status is Status.FAILED} == gone
    assert world.num_refused == len(gone) * num_nodes and "cannot open" not in caplog.text


def test_a_cluster_that_sees_no_file_fails_every_page(read: Any) -> None:
    world = World(num_nodes=2, blind=frozenset({"node0", "node1"}))
    assert statuses(read(world, pages(30))) == dict.fromkeys(range(30), Status.FAILED)


def test_when_every_node_refuses_the_run_ends_with_its_reason(read: Any) -> None:
    world = World(is_refusing=True)
    with pytest.raises(Exception, match="no model") as caught:
        list(read(world, pages(3)))
    assert int(caught.value.exit_code) == 4


def test_a_cluster_without_nodes_ends_in_one_message(read: Any) -> None:
    how = ClusterOptions(start_within_s=0.2)
    with pytest.raises(EngineError, match="No node has a CPU"):
        list(read(World(num_nodes=0), pages(3), cluster=how))


def test_a_head_that_is_gone_ends_the_run_after_what_is_finished(read: Any) -> None:
    world = World()
    endless = (PageJob(PageKey("d", n), "/in/d.pdf", "ab" * 32, 1) for n in itertools.count())
    results = read(world, endless, cluster=ClusterOptions(lost_after_s=0.2))
    found = [next(results) for _ in range(10)]
    world.is_headless = True
    with pytest.raises(EngineError, match="Start the cluster again") as caught:
        found += results
    assert caught.value.exit_code == 6 and world.is_abandoned


def test_a_node_that_joins_later_is_used(read: Any) -> None:
    world = World(num_nodes=1)
    results = read(world, pages(200))
    found = [next(results) for _ in range(10)]
    assert world.num_actors == 1
    world.num_nodes = 3
    found += results
    assert len(found) == 200 and world.num_actors == 3


def test_a_source_that_never_ends_is_asked_again_until_a_stop(read: Any) -> None:
    stop, status = StopRequests(), RunStatus()

    def source() -> Iterator[PageJob | None]:
        yield from pages(5)
        while True:
            yield None

    found = []
    for result in read(World(), source(), stop=stop, status=status):
        found.append(result.key.page)
        if len(found) == 5:
            stop.request()
    assert sorted(found) == [0, 1, 2, 3, 4] and status.is_interrupted


def test_a_job_with_an_error_joins_no_cluster(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def __init__(self, address: str) -> None:
            raise AssertionError("no cluster is needed")

    job = PageJob(PageKey("x", 0), "/x", "", 1, error=PageError("unreadable", "gone"))
    results = read(World(), [job])
    monkeypatch.setattr(ray_runner, "Cluster", Never)
    assert [result.status for result in results] == [Status.FAILED]


def test_the_same_key_twice_is_refused(read: Any) -> None:
    with pytest.raises(ValueError, match="submitted twice"):
        list(read(World(), [*pages(2), *pages(1)]))


def test_deaths_of_workers_are_not_forgotten_with_their_nodes() -> None:
    """Lost, dismissed or ended: the summary counts them when all is over."""
    status = RunStatus()
    stage = Stage("stub", object, timeout_s=5.0)
    driver = ray_runner._Driver((stage,), iter(()), RunnerOptions(status=status))
    told = StageStatus("stub", 2, 2, num_held=3, num_deaths=4, num_restarts=4, oldest="d page 1")
    posts = [Post(Spot(name, 0, name, 1.0, 0.0), None, stages=(told,)) for name in "abcd"]
    driver._posts.update((post.place, post) for post in posts)
    driver._lose(posts[0], "it is gone.")
    driver._dismiss(posts[1], None)
    driver._let_go(posts[2], None)
    _, stub = status.stages()
    assert (stub.num_deaths, stub.num_restarts) == (16, 16)
    assert (stub.num_workers, stub.num_ready, stub.num_held) == (2, 2, 3), "of those there are"
    driver._let_go(posts[3], None)
    _, stub = status.stages()
    assert (stub.num_deaths, stub.num_held, stub.oldest) == (16, 0, "")


@pytest.mark.parametrize(("timeout_s", "allowed_s"), [(5.0, 180.0), (600.0, 1260.0)])
def test_a_node_is_not_stuck_before_its_own_watchdog_had_its_turn(
    timeout_s: float, allowed_s: float
) -> None:
    """A worker that loads may stand still for a minute at least, however short pages' time is."""
    stage = Stage("stub", object, timeout_s=timeout_s)
    driver = ray_runner._Driver((stage,), iter(()), RunnerOptions())
    post = Post(Spot("a", 0, "a", 1.0, 0.0), None)
    driver._posts[post.place] = post
    post.stuck_s = allowed_s
    driver._judge(post, 0.0)
    assert driver._posts
    post.stuck_s += 1.0
    driver._judge(post, 0.0)
    assert not driver._posts
