"""The long fault run on Ray: kill actors, nodes and drivers at random moments; compare trees.

    python tests/soak/ray_soak.py [--kills 30] [--seed 1]

Each round reads twenty documents (a stub in the model's place) on a cluster of two nodes on this
machine, starts the run again when its driver was killed, and compares its tree with one read
without Ray. Exit 0 when every tree was byte-equal and no actor and no worker was left.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAULTS = Path(__file__).parents[1] / "faults"
sys.path.insert(0, str(FAULTS))
sys.path.insert(0, str(Path(__file__).parents[2]))

from stub_runs import command, environment, write_pdf  # noqa: E402
from test_ray_runs import MARKER, Nodes, actors, wait_for, workers  # noqa: E402

from ocr2cli.errors import ExitCode  # noqa: E402
from ocr2cli.output.canonical import canonical_tree  # noqa: E402

KINDS = ("actor", "actor", "actor", "node", "driver")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    dice = random.Random(asked.seed)
    name, value = MARKER.split("=")
    os.environ.update(environment(), RAY_USAGE_STATS_ENABLED="0", **{name: value})
    started, kills, number = time.monotonic(), dict.fromkeys(sorted(set(KINDS)), 0), 0
    nodes = Nodes()
    try:
        with tempfile.TemporaryDirectory() as folder:
            inputs = make_inputs(Path(folder) / "in")
            calm = Path(folder) / "calm"
            subprocess.run(command(inputs, "-o", calm), check=True, capture_output=True)
            while sum(kills.values()) < asked.kills:
                number += 1
                out = Path(folder) / f"out-{number}"
                problem = disturb(nodes, inputs, out, dice, kills)
                if not problem and canonical_tree(out) != canonical_tree(calm):
                    problem = "another tree"
                print(f"round {number}: {kills}, {problem or 'equal'}", flush=True)
                if problem:
                    return 1
            wait_for(lambda: not actors() and not workers())
    finally:
        nodes.close()
    seconds = time.monotonic() - started
    print(f"{kills} in {number} rounds, every tree byte-equal, no process left; {seconds:.0f} s, "
          f"Python {platform.python_version()}, seed {asked.seed}")  # fmt: skip
    return 0


def make_inputs(folder: Path) -> Path:
    folder.mkdir()
    for number in range(20):
        write_pdf(folder / f"{number}.pdf", 20)
    return folder


def disturb(
    nodes: Nodes, inputs: Path, out: Path, dice: random.Random, kills: dict[str, int]
) -> str:
    """One run to its end, with kills on the way; what went wrong, or nothing."""
    words = command(inputs, "-o", out, "-q", "--runner", "ray", "--address", nodes.address)
    env = environment({"*": "slow 0.4"})
    going = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    while True:
        # A node comes up in two seconds: kills come slowly enough for something to be read.
        time.sleep(dice.uniform(2.0, 6.0))
        if going.poll() is not None:
            error = going.stderr.read() if going.stderr else ""
            return "" if going.returncode == ExitCode.OK else f"exit {going.returncode}: {error}"
        kind = dice.choice(KINDS)
        found = actors()
        if kind == "actor" and found:
            os.kill(dice.choice(found), signal.SIGKILL)
        elif kind == "node":
            nodes.kill_one()
            nodes.complete()
        elif kind == "driver":
            going.kill()
            going.wait()
            going = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
        else:
            continue
        kills[kind] += 1


if __name__ == "__main__":
    sys.exit(main())
