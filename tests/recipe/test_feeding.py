"""Children that make batches: a trainer neither waits for dead ones nor leaves any behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


def test_batches_of_all_children_are_taken() -> None:
    from nanotrain.feeding import Feeder

    def threes(first: int) -> Iterator[int]:
        for at in range(3):
            yield first + at
        time.sleep(60)

    feeder = Feeder([lambda: threes(0), lambda: threes(10)])
    assert sorted(feeder.take() for _ in range(6)) == [0, 1, 2, 10, 11, 12]
    feeder.close()


@pytest.mark.parametrize("slot_bytes", [1 << 20, 1 << 12])
def test_arrays_arrive_as_they_were_sent_and_stay_so(
    slot_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through shared memory, whose slots are written again while earlier batches are still in use,
    or through the pipe where a batch is too large for a slot."""
    from nanotrain import feeding

    monkeypatch.setattr(feeding, "_SLOT_BYTES", slot_bytes)

    def batches(first: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        for at in range(first, first + 5):
            yield np.full((30, 50), at), [np.arange(at, at + 7), np.zeros(0)]
        time.sleep(60)

    feeder = feeding.Feeder([lambda: batches(0), lambda: batches(100)], room=3)
    taken = [feeder.take() for _ in range(10)]
    assert sorted(int(whole[0, 0]) for whole, _ in taken) == [*range(5), *range(100, 105)]
    for whole, (some, none) in taken:
        assert (whole == whole[0, 0]).all() and whole.shape == (30, 50) and none.shape == (0,)
        assert some.tolist() == list(range(whole[0, 0], whole[0, 0] + 7))
        whole += 1  # belongs to the trainer
    feeder.close()


def test_a_trainer_hears_of_a_feeders_error(capfd: pytest.CaptureFixture) -> None:
    from nanotrain.feeding import Feeder

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no page to read")

    feeder = Feeder([broken])
    assert feeder.take() == 1
    with pytest.raises(RuntimeError, match="a feeder ended") as caught:
        feeder.take()
    assert "no page to read" in str(caught.value.__cause__)
    feeder.close()


def test_a_trainer_does_not_wait_for_killed_feeders(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanotrain import feeding

    monkeypatch.setattr(feeding, "_PATIENCE_S", 0.1)

    def silent() -> Iterator[int]:
        time.sleep(60)
        yield 1

    feeder = feeding.Feeder([silent])
    os.kill(feeder._children[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="were killed"):
        feeder.take()


def test_feeders_end_with_a_trainer_that_was_killed() -> None:
    trainer = _start("print(feeder._children[0].pid, flush=True); import time; time.sleep(60)")
    child = int(trainer.stdout.readline())
    trainer.kill()
    trainer.wait()
    ends = time.monotonic() + 20
    while _runs(child) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not _runs(child)


@pytest.mark.parametrize("takes_ahead", [False, True])
def test_a_trainer_that_fails_is_not_held_up_by_its_feeders(takes_ahead: bool) -> None:
    ahead = "from nanotrain.moving import Ahead\nAhead(feeder.take, 'cpu').take()\n"
    fails = "raise FloatingPointError('loss is nan')"
    trainer = _start(ahead * takes_ahead + fails, before="handle()")
    _, errors = trainer.communicate(timeout=30)
    assert trainer.returncode == 1 and "loss is nan" in errors


def _start(then: str, before: str = "") -> subprocess.Popen:
    """A trainer that took one batch, in a process of its own. handle(): SIGTERM as some libraries
    take it."""
    script = (
        "import signal, sys\n"
        "from itertools import repeat\n"
        "from nanotrain.feeding import Feeder\n"
        "def handle(): signal.signal(signal.SIGTERM, lambda *call: sys.exit(1))\n"
        f"{before}\n"
        "feeder = Feeder([lambda: repeat(bytes(1 << 20))], room=2)\n"
        "feeder.take()\n"
        f"{then}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # the recipe's package, as here
    )


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
