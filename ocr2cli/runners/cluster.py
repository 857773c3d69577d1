"""A Ray cluster as the driver uses it: join, list, start an actor, call it, end it.

The only code that imports Ray; the driver calls the actors that it gets from here. Knows nothing
about pages or what a loss means.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocr2cli.engines.host import num_cores
from ocr2cli.errors import EngineError, UsageError
from ocr2cli.pipeline.stop import SIGNALS
from ocr2cli.runners.node import Node, NodeSetup, Turn

logger = logging.getLogger("ocr2")

# An answer that is said to be there and does not come sits on a node that is gone.
_FETCH_S = 10.0
_CLOSE_S = 5.0
# Ray itself tries an address nobody answers at for minutes.
_CONNECT_S = 5.0
# A private cluster moves nothing but results through its store.
_STORE_BYTES = 100_000_000
# Ray puts sockets below its folder, and a socket's path may have 107 bytes.
_MAX_TEMP_DIR = 40
_TEMP_PREFIX = "ocr2-ray-"
# A folder gets its lock right after it is made.
_UNLOCKED_S = 60.0
# Ray itself does not tell what is wrong: it says that it cannot connect, or that an actor died.
TOKEN_HINT = (
    "This machine and the cluster must have the same token of Ray's, in RAY_AUTH_TOKEN or "
    "~/.ray/auth_token, or neither (RAY_AUTH_MODE=disabled)"
)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place for one local runner. number: which of its node's. num_cpus, num_gpus: claimed."""

    node_id: str
    number: int
    name: str
    num_cpus: float
    num_gpus: float


class Lost(Exception):
    """The actor will not answer any more. The message is one line."""


class Cluster:
    """A connection to a cluster, or a private one on this machine. Ends with `close`."""

    def __init__(self, address: str) -> None:
        """address: "" for the one RAY_ADDRESS names, or a private one.

        Raises: UsageError for Ray's client and a host without a port; EngineError when no cluster
        answers.
        """
        address = _meant(address)
        # Ray reads these when it is imported or started: no usage statistics, no hints.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if not address:
            # A cluster of one machine has no business on the network. Ray listens on the loopback
            # only where it takes itself for unable to form clusters, by this variable's odd name.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            # Without one Ray writes a token to ~/.ray, which it then shows to every cluster, and
            # those that have none do not work for those who have.
            if "ray" not in sys.modules and not any(
                name.startswith("RAY_AUTH_") for name in os.environ
            ):
                os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16))
        import ray

        self._ray = ray
        self._is_ours = not ray.is_initialized()
        self._temp_dir = ""
        self._temp_lock = -1
        self._nodes: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()
        self._is_asking = False
        self._is_abandoned = False
        if self._is_ours:
            self._connect(address)

    def poll_spots(self, *, uses_gpus: bool) -> list[Spot] | None:
        """The places there are: one for each node with CPUs or, where GPUs are used, for each GPU.

        None while the cluster's head has not answered; it is asked in a thread, since Ray waits a
        minute for a head that is gone.
        """
        try:
            nodes = self._nodes.get_nowait()
        except queue.Empty:
            if not self._is_asking:
                self._is_asking = True
                threading.Thread(target=self._ask, name="ocr2-ray-nodes", daemon=True).start()
            return None
        alive = [node for node in nodes if node["Alive"]]
        return [spot for node in alive for spot in _spots_of(node, uses_gpus=uses_gpus)]

    def _ask(self) -> None:
        with contextlib.suppress(Exception):  # the driver has a deadline, and asks until then
            self._nodes.put(self._ray.nodes())
        self._is_asking = False

    def start(self, spot: Spot, setup: NodeSetup) -> Any:
        """An actor on this very node; returns at once, its first answer says that it is up."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._ray.remote(Node).options(
            num_cpus=spot.num_cpus,
            num_gpus=spot.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(spot.node_id, soft=False),
        )
        return actor.remote(setup)

    def wait(self, calls: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those of the calls that have an answer, or never will; all there are by then."""
        first, rest = self._ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        if not first or not rest:
            return list(first)
        more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
        return [*first, *more]

    def fetch(self, call: Any) -> Turn:
        """The answer. Raises: Lost when the actor or its node is gone."""
        try:
            turn = self._ray.get(call, timeout=_FETCH_S)
        except self._ray.exceptions.RayError as error:
            raise Lost(one_line_of(error)) from error
        assert isinstance(turn, Turn)
        return turn

    def kill(self, actor: Any) -> None:
        """End an actor now; its workers end with it."""
        if self._is_abandoned:
            return
        with contextlib.suppress(Exception):  # a cluster that is gone has no actors either
            self._ray.kill(actor, no_restart=True)

    def end(self, actors: Sequence[Any]) -> None:
        """Let actors finish their workers in order, for a few seconds, then kill them."""
        with contextlib.suppress(Exception):  # as in `kill`
            calls = [actor.close.remote() for actor in actors]
            if calls:
                self._ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_S)
        for actor in actors:
            self.kill(actor)

    def close(self) -> None:
        """Leave the cluster; a private one ends."""
        if self._is_ours:
            with _own_signals():
                self._ray.shutdown()
        if self._temp_dir:
            shutil.rmtree(self._temp_dir, ignore_errors=True)
            os.close(self._temp_lock)

    def abandon(self) -> None:
        """The head is gone: ask nothing more of it. (Ray waits for it a minute, then ends us.)"""
        self._is_abandoned = True

    def _connect(self, address: str) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address:
            settings["address"] = address
        else:
            settings.update(
                address="local",
                num_cpus=num_cores(),
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
            if len(tempfile.gettempdir()) < _MAX_TEMP_DIR:
                self._temp_dir, self._temp_lock = _temp_folder()
                settings["_temp_dir"] = self._temp_dir
        _keep_stdout_clean()
        try:
            _require_answer(address)
            with _own_signals():
                self._ray.init(**settings)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError: Ray has many
            hint = (
                "Start one with `ray start --head`, or leave --address and RAY_ADDRESS out for a "
                "cluster on this machine alone."
            )
            # Somebody listens there, but is not heard.
            if "Failed to connect to Ray" in str(error):
                hint = f"{TOKEN_HINT}."
            raise EngineError(
                f"no Ray cluster at {address or 'this machine'}: {one_line_of(error)} {hint}"
            ) from error


def _meant(address: str) -> str:
    """The address to join at; "" when no cluster is meant but a private one. Raises: UsageError."""
    name = f"--address {address}"
    if not address:
        address = os.environ.get("RAY_ADDRESS", "")
        name = f"RAY_ADDRESS={address}"
    if address.startswith("ray://"):
        raise UsageError(
            f"{name}: the Ray client is not supported. Run ocr2 on a machine of the cluster, with "
            "--address auto or HOST:6379"
        )
    if address not in ("", "auto", "local") and ":" not in address:
        raise UsageError(f"{name}: give HOST:PORT, e.g. {address}:6379, or auto")
    return "" if address == "local" else address


def _temp_folder() -> tuple[str, int]:
    """(a folder for a private cluster, its lock, which ends with this process).

    What processes that were killed have left is removed.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMP_PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, another's, or in use
            status = folder.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _UNLOCKED_S:
                lock = _locked(folder)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
    made = tempfile.mkdtemp(prefix=_TEMP_PREFIX)
    return made, _locked(Path(made))


def _locked(folder: Path) -> int:
    """Raises: OSError when another process holds it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _require_answer(address: str) -> None:
    """Raises: OSError when nobody listens at HOST:PORT; other words are Ray's to explain."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except OSError:
        # Ray takes the local host for this machine's address in its network.
        import ray

        if host not in ("127.0.0.1", "localhost"):
            raise
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), _CONNECT_S).close()


def one_line_of(error: BaseException) -> str:
    """The first sentence that says something, ending in a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    # A constructor's error: Ray's own words first, the reason in the last line.
    if text.endswith(":") or "in its creation task" in text:
        text = lines[-1]
    return text[:300].rstrip(" .:,") + "."


def _spots_of(node: dict[str, Any], *, uses_gpus: bool) -> Iterator[Spot]:
    resources = node["Resources"]
    num_cpus, num_gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0.0))
    count = num_gpus if uses_gpus and num_gpus else int(num_cpus >= 1)
    for number in range(count):
        yield Spot(
            node["NodeID"],
            number,
            f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}",
            # Whole cores: a runner's processes use all that it claims.
            num_cpus=float(int(num_cpus / count)),
            num_gpus=1.0 if uses_gpus and num_gpus else 0.0,
        )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our signal handlers: Ray installs its own, which would end the run without a drain."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = [(each, signal.getsignal(each)) for each in SIGNALS]
    try:
        yield
    finally:
        for each, handler in kept:
            signal.signal(each, handler)


def _keep_stdout_clean() -> None:
    """Ray prints a dead node's last words to stdout, which is for results (`--json`).

    No public setting turns it off: `log_to_driver` is about other lines.
    """
    import ray._private.worker as private

    def to_log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            logger.debug("ray: %s", str(line).partition("\n")[0])

    if hasattr(private, "print_to_stdstream"):
        private.print_to_stdstream = to_log
