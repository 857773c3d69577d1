"""A node's side of the Ray runner, without Ray: a local runner that is fed and emptied by calls."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ocr2cli import __version__
from ocr2cli.errors import EngineError, ModelError
from ocr2cli.pages import PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.runners.cluster import Cluster, _spots_of, one_line_of
from ocr2cli.runners.node import Node, NodeSetup, Turn, _Keeper


class Echo:
    """Answers a page with its number. Worker processes import it by name from here."""

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            logging.getLogger("ocr2").warning("page %d", jobs[0].key.page + 1)
            emit(PageResult(jobs[0].key, Status.OK, markdown=str(jobs[0].key.page)))


class Nap(Echo):
    def run(self, inbox: Inbox, emit: Emit) -> None:
        time.sleep(0.5)
        super().run(inbox, emit)


def no_model() -> Any:
    raise ModelError("there is no model")


SETUP = NodeSetup(
    name="10.0.0.3",
    version=__version__,
    stages=(Stage("echo", Echo, num_workers=1, credit=2),),
    make_plan=None,
    fingerprint="f",
    num_cores=1,
    retries=1,
    drain_s=5.0,
    hopeless_after=20,
    log_level=logging.WARNING,
)


def jobs(count: int, path: str = __file__) -> list[PageJob]:
    return [PageJob(PageKey("d", page), path, "ab" * 32, count) for page in range(count)]


@pytest.fixture
def start() -> Iterator[Any]:
    nodes: list[Node] = []

    def go(setup: NodeSetup = SETUP) -> Node:
        nodes.append(Node(setup))
        return nodes[-1]

    yield go
    for node in nodes:
        node.close()


def turns(node: Node, first: list[PageJob], until: Any, seconds: float = 20) -> list[Turn]:
    """Turns until one of them is as asked for."""
    found = [node.turn(first, 0, 0.2)]
    deadline = time.monotonic() + seconds
    while not until(found):
        assert time.monotonic() < deadline, found
        found.append(node.turn([], 0, 0.2))
    return found


def results(found: list[Turn]) -> list[PageResult]:
    return [result for turn in found for result in turn.results]


def test_pages_come_back_one_result_each_with_the_log(start: Any) -> None:
    found = turns(start(), jobs(5), lambda seen: len(results(seen)) == 5)
    assert sorted(result.markdown for result in results(found)) == list("01234")
    assert found[-1].num_wanted == 2 and found[-1].stages[0].num_emitted == 5
    lines = [line for turn in found for _, line in turn.logs]
    assert sorted(lines) == [f"page {number}" for number in range(1, 6)]


def test_an_empty_turn_waits_no_longer_than_asked(start: Any) -> None:
    slow = Stage("nap", Nap, num_workers=1, credit=2)
    node = start(replace(SETUP, stages=(slow,)))
    started = time.monotonic()
    turn = node.turn(jobs(1), 0, 0.1)
    assert (turn.results, turn.is_ended, turn.failure) == ((), False, None)
    assert 0.05 < time.monotonic() - started < 2
    turns(node, [], lambda seen: len(results(seen)) == 1)


def test_a_file_the_node_does_not_see_fails_its_page_by_name(start: Any, tmp_path: Path) -> None:
    gone = PageJob(PageKey("gone", 0), str(tmp_path / "gone.pdf"), "cd" * 32, 1)
    found = turns(start(), [gone, *jobs(1)], lambda seen: len(results(seen)) == 2)
    (bad,) = (one for one in results(found) if one.key.document == "gone")
    assert bad.error is not None and bad.error.code == "away"
    assert "is not there on node 10.0.0.3. Every node must see the inputs" in bad.error.message


@pytest.mark.parametrize("is_first_there", [True, False])
def test_a_file_that_comes_or_goes_while_it_is_looked_for_gives_one_answer(
    start: Any, monkeypatch: pytest.MonkeyPatch, is_first_there: bool
) -> None:
    """It was both failed and read, or neither."""
    looks = iter([is_first_there, not is_first_there])

    def look(path: str) -> bool:
        return next(looks) if path == "/in/a.pdf" else path == __file__

    monkeypatch.setattr("ocr2cli.runners.node._is_visible", look)
    gone, moving = (PageJob(PageKey(name, 0), f"/in/{name}.pdf", "", 1) for name in ("gone", "a"))
    given = [gone, moving, *jobs(2)]
    found = turns(start(), given, lambda seen: len(results(seen)) >= 4)
    assert sorted(str(one.key) for one in results(found)) == sorted(str(one.key) for one in given)


def test_a_stop_drains_and_ends(start: Any) -> None:
    node = start()
    turns(node, jobs(2), lambda seen: len(results(seen)) == 2)
    deadline = time.monotonic() + 10
    while not node.turn([], 1, 0.1).is_ended:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.0.1"}, "Install the same version on every node"),
        ({"make_plan": lambda cores: SimpleNamespace(stages=(), fingerprint="other")},
         "it would read pages differently"),
        ({"make_plan": lambda cores: no_model()}, "there is no model"),
    ],
)  # fmt: skip
def test_a_node_that_would_read_otherwise_takes_no_part(
    start: Any, change: dict[str, Any], words: str
) -> None:
    (*_, last) = turns(start(replace(SETUP, **change)), [], lambda seen: seen[-1].is_ended)
    assert last.failure is not None and words in last.failure.message
    error = last.failure.run_error("node")
    kind = ModelError if "no model" in words else EngineError
    assert type(error) is kind and str(error).startswith("node 10.0.0.3: ")


def test_a_plan_is_made_for_the_cores_of_the_node(start: Any) -> None:
    seen = []

    def plan(cores: int) -> Any:
        seen.append(cores)
        return SimpleNamespace(stages=SETUP.stages, fingerprint="f")

    node = start(replace(SETUP, make_plan=plan, num_cores=7))
    turns(node, jobs(1), lambda found: len(results(found)) == 1)
    assert seen == [7]


def test_a_librarys_slip_in_a_log_line_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines: deque[tuple[int, str]] = deque()
    for args in (("many",), (2,)):
        _Keeper(lines).handle(logging.makeLogRecord({"msg": "%d pages", "args": args}))
    assert [line for _, line in lines] == ["2 pages"]
    assert "Logging error" in capsys.readouterr().err


def test_a_head_that_fails_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "NodeID": "ab" * 14, "NodeManagerAddress": "h", "Resources": {"CPU": 2}}
    answers = iter([None, [node]])

    def nodes() -> list[dict[str, Any]]:
        if (answer := next(answers)) is None:
            raise RuntimeError("the head is busy")
        return answer

    ray = SimpleNamespace(is_initialized=lambda: True, nodes=nodes)
    monkeypatch.setitem(sys.modules, "ray", ray)
    cluster = Cluster("10.0.0.3:6379")
    deadline = time.monotonic() + 5
    while not (found := cluster.poll_spots(uses_gpus=False)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [one.num_cpus for one in found] == [2.0]


def spots(uses_gpus: bool = True, **resources: float) -> list[tuple[float, float]]:
    node = {"NodeID": "ab" * 14, "NodeManagerAddress": "10.0.0.3", "Resources": resources}
    return [(one.num_cpus, one.num_gpus) for one in _spots_of(node, uses_gpus=uses_gpus)]


def test_a_node_has_one_runner_or_one_for_each_gpu() -> None:
    assert spots(CPU=16.0) == [(16.0, 0.0)]
    assert spots(CPU=16.0, GPU=4.0) == [(4.0, 1.0)] * 4
    assert spots(CPU=16.0, GPU=4.0, uses_gpus=False) == [(16.0, 0.0)]
    assert spots(CPU=2.0, GPU=4.0) == [(0.0, 1.0)] * 4
    assert spots(CPU=0.0) == spots() == []


def test_an_error_of_ray_is_cut_to_the_line_that_says_something() -> None:
    text = "The actor died because of an error raised in its creation task, ray::Node()\nNo module"
    assert one_line_of(RuntimeError(text)) == "No module."
    assert one_line_of(RuntimeError("The node is dead.\n\tclass_name: Node")) == "The node is dead."
    assert one_line_of(RuntimeError()) == "RuntimeError."
