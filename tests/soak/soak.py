"""The long fault run: kill the parent or a worker at random moments, 200 times; compare the trees.

    python tests/soak/soak.py [--kills 200] [--seed 1]

Each round starts `ocr2 run` (a stub in the model's place) on a fresh folder, kills it or one of its
workers several times, lets a last run finish, and compares the tree with an undisturbed one. Exit 0
when every tree was byte-equal, no process was left behind and no temporary file stayed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shutil
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
from trees import leftovers, living  # noqa: E402

from ocr2cli.errors import ExitCode  # noqa: E402
from ocr2cli.output.canonical import canonical_tree  # noqa: E402

KILLS_A_ROUND = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    dice = random.Random(asked.seed)
    started = time.monotonic()
    num_kills = {"parent": 0, "worker": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder / "in")
        calm = finish(inputs, folder / "calm")
        number = 0
        while sum(num_kills.values()) < asked.kills:
            number += 1
            out = folder / f"out-{number}"
            for _ in range(KILLS_A_ROUND):
                num_kills[disturb(inputs, out, dice)] += 1
            problem = compare(calm, finish(inputs, out), out)
            kills = sum(num_kills.values())
            print(f"round {number}: {kills} kills, {problem or 'equal'}", flush=True)
            if problem:
                return 1
            shutil.rmtree(out)
    seconds = time.monotonic() - started
    print(f"{num_kills['parent']} kills of the parent and {num_kills['worker']} of a worker in "
          f"{number} rounds, every tree byte-equal, no process and no file left behind; "
          f"{seconds:.0f} s, seed {asked.seed}, Python {platform.python_version()}, "
          f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    return 0


def make_inputs(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    write_pdf(folder / "a.pdf", 25)
    write_pdf(folder / "b.pdf", 1)
    write_pdf(folder / "sub" / "c.pdf", 9)
    return folder


def finish(inputs: Path, out: Path) -> dict[str, str]:
    """An undisturbed run; its tree."""
    subprocess.run(command(inputs, "-o", out, "-q"), env=environment(), check=True)
    return canonical_tree(out)


def disturb(inputs: Path, out: Path, dice: random.Random) -> str:
    """Start a run and kill its parent, or one of its workers, at a random moment."""
    marker = f"soak-{os.getpid()}-{dice.randrange(10**9)}"
    # Workers may die twice without blame: a killed page must not end as failed.
    process = subprocess.Popen(
        command(inputs, "-o", out, "-q", "--retries", "3"),
        env=environment({"*": "slow 0.02"}, FAULT_MARK=marker),
    )
    time.sleep(dice.uniform(0.2, 3.0))
    workers = [pid for pid in living(marker) if pid != process.pid]
    victim = "worker" if workers and dice.random() < 0.5 else "parent"
    with contextlib.suppress(ProcessLookupError):  # just finished: a moment like any other
        os.kill(dice.choice(workers) if victim == "worker" else process.pid, signal.SIGKILL)
    code = process.wait(120)
    # A worker killed while it loads ends the run with exit 6, as promised: the next one goes on.
    if victim == "worker" and code not in (ExitCode.OK, ExitCode.ENGINE):
        raise SystemExit(f"a killed worker cost the run: exit {code}")
    wait_until_gone(marker)
    return victim


def wait_until_gone(marker: str) -> None:
    for _ in range(100):
        if not living(marker):
            return
        time.sleep(0.05)
    raise SystemExit("a process of the run outlived it by five seconds")


def compare(calm: dict[str, str], disturbed: dict[str, str], out: Path) -> str:
    if disturbed != calm:
        names = sorted(set(calm) ^ set(disturbed)) or [n for n in calm if calm[n] != disturbed[n]]
        return f"the trees differ in {', '.join(names)}"
    left = leftovers(out)
    return f"left behind: {', '.join(left)}" if left else ""


if __name__ == "__main__":
    sys.exit(main())
