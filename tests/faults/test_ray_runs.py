"""Runs on a real Ray cluster of several nodes on this machine, with the stub in the model's place.

What holds for one machine holds here: one result a page, the same bytes, nothing left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from stub_runs import STUB, Run, command, complaints, environment, write_pdf
from stub_worker import StubReader
from test_faults import summary, whole
from trees import living

from ocr2cli.errors import ExitCode, UsageError
from ocr2cli.output.canonical import canonical_tree
from ocr2cli.pages import PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.options import ClusterOptions, RunnerOptions
from ocr2cli.pipeline.stage import Stage
from ocr2cli.runners import ray as ray_runner

# Machines are shared, and a wait that succeeds costs nothing.
PATIENCE_S = 120
MARKER = f"FAULT_RAY_TEST={os.getpid()}"


class Nodes:
    """A cluster with a head that reads nothing and two nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._settings: dict[str, Any] = {
            "object_store_memory": 80_000_000,
            "include_dashboard": False,
        }
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, **self._settings}
        )
        self._nodes = [self._new(), self._new()]

    def _new(self) -> Any:
        return self._cluster.add_node(num_cpus=1, **self._settings)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill_one(self, number: int = 0) -> None:
        """As a machine that loses its power: no goodbye."""
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)

    def kill_that_of(self, worker: int) -> None:
        above = {one.pid for one in psutil.Process(worker).parents()}
        (number,) = [n for n, node in enumerate(self._nodes) if raylet(node) in above]
        self.kill_one(number)
        # Its processes find out for themselves.
        wait_for(lambda: worker not in workers())

    def complete(self) -> None:
        while len(self._nodes) < 2:
            self._nodes.append(self._new())

    def close(self) -> None:
        self._cluster.shutdown()


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


@pytest.fixture(scope="module")
def all_nodes() -> Iterator[Nodes]:
    name, value = MARKER.split("=")
    kept = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(environment(), RAY_USAGE_STATS_ENABLED="0", **{name: value})
    nodes = Nodes()
    yield nodes
    nodes.close()
    # Ray puts its own there, which children of later tests would inherit.
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def nodes(all_nodes: Nodes) -> Nodes:
    all_nodes.complete()
    return all_nodes


@pytest.fixture
def on_ray(run: Run, nodes: Nodes) -> Run:
    return partial(run, "--runner", "ray", "--address", nodes.address)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents, as in the other fault tests, for the whole module."""
    folder = tmp_path_factory.mktemp("in")
    (folder / "sub").mkdir()
    for name, num_pages in (("a.pdf", 5), ("b.pdf", 1), ("sub/c.pdf", 3)):
        write_pdf(folder / name, num_pages)
    return folder


@pytest.fixture(scope="module")
def calm(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tree of a run on this machine alone."""
    out = tmp_path_factory.mktemp("calm")
    subprocess.run(command(inputs, "-o", out), env=environment(), check=True, capture_output=True)
    return whole(out)


def named(word: bytes, marker: str) -> list[int]:
    found = []
    for pid in living(marker):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if word in title:
            found.append(pid)
    return found


def actors(marker: str = MARKER) -> list[int]:
    """The processes that hold a local runner."""
    return named(b"ray::Node", marker)


def workers(marker: str = MARKER) -> list[int]:
    """The processes that local runners have started."""
    return named(b"ocr2-stub", marker)


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


class Gate:
    """Where all pages but one wait: until it is opened, none that a node holds can be finished,
    however slow the machine is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def plan(self, free: str) -> dict[str, str]:
        """free: the page that is read at once, as in "a:1"."""
        return {free: "", "*": f"wait {self._folder}"}

    def holder(self) -> int:
        """A worker that holds a page."""
        return int(wait_for(lambda: list(self._folder.iterdir()))[0].name)

    def open(self) -> None:
        (self._folder / "open").touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def started(
    nodes: Nodes, inputs: Path, out: Path, plan: dict[str, str]
) -> subprocess.Popen[str]:
    """A run whose pages take their time, with its first page done."""
    going = subprocess.Popen(
        command(inputs, "-o", out, "--runner", "ray", "--address", nodes.address),
        env=environment(plan), text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: list(out.glob(".ocr2/parts/*/*.json")))
    return going


def test_the_tree_of_a_cluster_is_that_of_one_machine(
    inputs: Path, tmp_path: Path, on_ray: Run, calm: dict[str, str]
) -> None:
    done = on_ray(inputs, "-o", tmp_path / "out", "--json", plan={"a:2": "die-once"})
    assert done.returncode == ExitCode.OK and summary(done)["pages"] == 9, done.stderr
    (death,) = complaints(done.stderr).splitlines()
    assert death.startswith("warning: node ") and "stub worker exited with status 3; the" in death
    assert summary(done)["worker_deaths"] == 1
    assert canonical_tree(tmp_path / "out") == calm
    again = on_ray(inputs, "-o", tmp_path / "out", "--json")
    assert summary(again)["pages_resumed"] == 9


def test_a_node_killed_in_mid_run_costs_nothing(
    inputs: Path, tmp_path: Path, nodes: Nodes, calm: dict[str, str], gate: Gate
) -> None:
    going = started(nodes, inputs, tmp_path / "out", gate.plan("a:1"))
    nodes.kill_that_of(gate.holder())
    gate.open()
    _, error = going.communicate(timeout=PATIENCE_S)
    assert going.returncode == ExitCode.OK, error
    assert "its runner was lost" in error and "Traceback" not in error
    assert canonical_tree(tmp_path / "out") == calm


def test_a_killed_actor_leaves_no_worker_and_costs_nothing(
    inputs: Path, tmp_path: Path, nodes: Nodes, calm: dict[str, str], gate: Gate
) -> None:
    going = started(nodes, inputs, tmp_path / "out", gate.plan("a:1"))
    orphans = {gate.holder(), *workers()}
    for pid in actors():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not orphans & set(workers()), 5)
    gate.open()
    _, error = going.communicate(timeout=PATIENCE_S)
    assert going.returncode == ExitCode.OK, error
    assert "its runner was lost" in error and "Traceback" not in error
    assert canonical_tree(tmp_path / "out") == calm


def test_a_page_that_kills_its_node_again_and_again_fails_by_name(
    inputs: Path, tmp_path: Path, on_ray: Run
) -> None:
    done = on_ray(inputs, "-o", tmp_path / "out", "--json", plan={"a:3": "kill-parent"})
    assert done.returncode == ExitCode.PAGES_FAILED, done.stderr
    (bad,) = summary(done)["failed_pages"]
    assert (bad["document"], bad["page"], bad["code"]) == ("a", 3, "worker_died")
    assert summary(done)["pages"] == 9 and len(canonical_tree(tmp_path / "out")) == 6


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_the_nodes_and_a_rerun_finishes(
    tmp_path: Path, nodes: Nodes, run: Run, signum: int, code: int
) -> None:
    # More pages than both nodes may hold at a time, or read before a slow machine sends a signal.
    (tmp_path / "in").mkdir()
    inputs, out = write_pdf(tmp_path / "in" / "long.pdf", 150), tmp_path / "out"
    going = started(nodes, inputs, out, {"*": "slow 0.2"})
    num_before = len(list(out.glob(".ocr2/parts/*/*.json")))
    going.send_signal(signum)
    going.communicate(timeout=60)
    num_after = len(list(out.glob(".ocr2/parts/*/*.json")))
    assert going.returncode == code and num_before < num_after < 150
    # The rest on this machine: what a cluster has begun, any runner finishes.
    for folder in (out, tmp_path / "calm"):
        assert run(inputs, "-o", folder).returncode == ExitCode.OK
    assert canonical_tree(out) == canonical_tree(tmp_path / "calm")
    assert "Text of long:150." in (out / "long.md").read_text()


def test_a_killed_driver_leaves_nothing_running_and_a_rerun_finishes(
    inputs: Path, tmp_path: Path, nodes: Nodes, calm: dict[str, str], run: Run, gate: Gate
) -> None:
    out = tmp_path / "out"
    going = started(nodes, inputs, out, gate.plan("a:1"))
    assert gate.holder() in workers() and actors()
    going.kill()
    going.communicate()
    wait_for(lambda: not actors() and not workers(), 15)
    assert run(inputs, "-o", out).returncode == ExitCode.OK
    assert canonical_tree(out) == calm


def direct(
    nodes: Nodes, jobs: list[PageJob], plan: dict[str, str], **how: Any
) -> Iterator[PageResult]:
    """The runner itself, on pages of a file that needs no content."""
    stage = Stage("stub", partial(StubReader, plan), num_workers=2, credit=3)
    options = RunnerOptions(cluster=ClusterOptions(nodes.address, **how))
    return ray_runner.run([stage], jobs, options=options)


def pages(number: int, path: Path = STUB) -> list[PageJob]:
    return [PageJob(PageKey("d", page), str(path), "ab" * 32, number) for page in range(number)]


def test_a_node_that_says_nothing_is_given_up(
    nodes: Nodes, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """It lives and its connections stand, as after a switch failed: Ray sees nothing wrong."""
    results = direct(nodes, pages(30), gate.plan("d:1"), lost_after_s=2.0)
    done = [next(results)]
    frozen = psutil.Process(gate.holder()).ppid()
    assert frozen in actors()
    os.kill(frozen, signal.SIGSTOP)
    gate.open()
    try:
        done += results
    finally:
        wait_for(lambda: frozen not in actors() or os.kill(frozen, signal.SIGCONT), 20)
    assert sorted(one.key.page for one in done) == list(range(30))
    assert {one.status for one in done} == {Status.OK}
    assert "it gave no sign of life for 2 s" in caplog.text


def test_a_file_that_no_node_sees_fails_its_page_alone(nodes: Nodes, tmp_path: Path) -> None:
    jobs = [*pages(2), PageJob(PageKey("gone", 0), str(tmp_path / "gone.pdf"), "cd" * 32, 1)]
    found = {str(one.key): one for one in direct(nodes, jobs, {})}
    assert len(found) == 3
    error = found["gone page 1"].error
    assert error is not None and error.code == "away"
    assert "Every node must see the inputs under the same path" in error.message


def test_no_room_on_any_node_is_one_message(nodes: Nodes) -> None:
    first = direct(nodes, pages(40), {"*": "slow 0.2"})
    next(first)
    code = (
        "import sys; sys.argv = ['x']\n"
        "from test_ray_runs import direct, pages\n"
        f"class Here: address = {nodes.address!r}\n"
        "list(direct(Here, pages(1), {}, start_within_s=2.0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    first.close()
    assert "no node of the Ray cluster took a runner within 2 s" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_an_address_nobody_answers_at_ends_in_one_line(
    by: str, inputs: Path, tmp_path: Path, run: Run
) -> None:
    how = ["--address", "127.0.0.1:9"] if by == "flag" else []
    env = {} if how else {"RAY_ADDRESS": "127.0.0.1:9"}
    done = run(inputs, "-o", tmp_path / "out", "--runner", "ray", *how, env=env)
    assert done.returncode == ExitCode.ENGINE
    assert "no Ray cluster at 127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr


def test_rays_client_is_refused(nodes: Nodes) -> None:
    stage = Stage("stub", partial(StubReader, {}))
    options = RunnerOptions(cluster=ClusterOptions("ray://127.0.0.1:10001"))
    with pytest.raises(UsageError, match="--address auto"):
        list(ray_runner.run([stage], pages(1), options=options))


@pytest.fixture
def alone() -> Iterator[dict[str, str]]:
    """The environment of a run that makes a cluster of its own, told from the others'."""
    env = {**environment({"*": "slow 0.4"}), "FAULT_RAY_ALONE": str(os.getpid())}
    # A folder for Ray's sockets, whose paths must be short.
    env["TMPDIR"] = tempfile.mkdtemp(prefix="ocr2-")
    # No folder can be made in it.
    env["HOME"] = "/dev/null"
    yield {name: value for name, value in env.items() if not name.startswith("RAY_")}
    shutil.rmtree(env["TMPDIR"], ignore_errors=True)


def test_without_an_address_a_cluster_of_its_own_stays_on_the_loopback_and_dies_with_the_run(
    inputs: Path, tmp_path: Path, calm: dict[str, str], alone: dict[str, str], gate: Gate
) -> None:
    alone["STUB_PLAN"] = json.dumps(gate.plan("a:1"))
    words = command(inputs, "-o", tmp_path / "out", "--runner", "ray", "--json")
    marker = f"FAULT_RAY_ALONE={os.getpid()}"
    going = subprocess.Popen(words, env=alone, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("out/.ocr2/parts/*/*.json")))
    pids = set(living(marker))
    addresses = {
        one.laddr.ip
        for one in psutil.net_connections("inet")
        if one.status == psutil.CONN_LISTEN and one.pid in pids
    }
    assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert actors(marker) and gate.holder() in workers(marker)
    going.kill()
    going.wait()
    # Two small agents of Ray's stay until they have given up calling their dead master.
    wait_for(lambda: not actors(marker) and not workers(marker), 15)
    wait_for(lambda: not named(b"raylet", marker) and not named(b"gcs_server", marker), 15)

    left = set(Path(alone["TMPDIR"]).iterdir())
    alone["STUB_PLAN"] = "{}"
    done = subprocess.run(words, env=alone, text=True, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == ExitCode.OK and complaints(done.stderr) == ""
    assert summary(done)["pages"] == 9 and canonical_tree(tmp_path / "out") == calm
    assert set(Path(alone["TMPDIR"]).iterdir()) == left


def test_a_cluster_that_loses_its_head_ends_the_run_in_one_line(
    tmp_path: Path, alone: dict[str, str]
) -> None:
    """Pages go on being finished until the head is given up, and are kept."""
    code = (
        "import stub\n"
        "from dataclasses import replace\n"
        "from ocr2cli import batch\n"
        "made = batch.cluster_options\n"
        "batch.cluster_options = lambda *a: replace(made(*a), lost_after_s=1.5)\n"
        "stub.main()\n"
    )
    marker = f"FAULT_RAY_ALONE={os.getpid()}"
    pdf, out = write_pdf(tmp_path / "long.pdf", 100), tmp_path / "out"
    going = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(pdf), "-o", str(out), "--runner", "ray"],
        env=alone, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: list(out.glob(".ocr2/parts/*/*.json")))
    (head,) = named(b"gcs_server", marker)
    os.kill(head, signal.SIGKILL)
    _, error = going.communicate(timeout=PATIENCE_S)
    assert going.returncode == ExitCode.ENGINE, error
    assert "the head of the Ray cluster has not answered for 1.5 s" in error.splitlines()[-1]
    wait_for(lambda: not actors(marker) and not workers(marker), 15)
