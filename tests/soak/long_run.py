"""A long run watched from outside: memory, descriptors, processes and temporary files over time.

    python tests/soak/long_run.py [--pages 10000] [--model stub]

With `--model stub` the pages are one PDF and the model is a stub; with a model's name they are
images of one line of large print each, read for real. Prints a table and exits 1 when the parent's
memory after the first tenth of the run has grown by more than 50 MB at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

FAULTS = Path(__file__).parents[1] / "faults"
sys.path.insert(0, str(FAULTS))

from stub_runs import REPO, environment, write_pdf  # noqa: E402

MOST_GROWTH_BYTES = 50_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--model", default="stub")
    asked = parser.parse_args()
    return report(*run(asked.model, asked.pages))


def run(
    model: str, num_pages: int, *more: str, every_s: float = 2.0
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """One run in a folder of its own: (what was seen every `every_s`, the run's summary)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder, num_pages, is_stub=model == "stub")
        argv = [sys.executable]
        argv += [str(FAULTS / "stub.py")] if model == "stub" else ["-m", "ocr2cli"]
        argv += ["run", str(inputs), "-o", str(folder / "out"), "-q", "--json"]
        argv += [] if model == "stub" else ["--model", model, "--prompt", "ocr", *more]
        process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, cwd=REPO)
        rows = watch(process, folder / "out", every_s)
        assert process.stdout is not None
        return rows, json.loads(process.stdout.read())


def make_inputs(folder: Path, num_pages: int, *, is_stub: bool) -> Path:
    if is_stub:
        return write_pdf(folder / "long.pdf", num_pages)
    from PIL import Image, ImageDraw, ImageFont

    (folder / "in").mkdir()
    font = ImageFont.load_default(44)
    for number in range(num_pages):
        page = Image.new("RGB", (640, 160), "white")
        ImageDraw.Draw(page).text((40, 50), f"Page number {number}", fill="black", font=font)
        page.save(folder / "in" / f"{number:06d}.png")
    return folder / "in"


def watch(
    process: subprocess.Popen[bytes], out: Path, every_s: float
) -> list[dict[str, float]]:
    rows, started = [], time.monotonic()
    parent = psutil.Process(process.pid)
    journal = out / ".ocr2" / "journal.jsonl"
    while process.poll() is None:
        try:
            children = parent.children(recursive=True)
            rows.append({
                "seconds": round(time.monotonic() - started, 1),
                "pages": journal.read_bytes().count(b"\n") if journal.exists() else 0,
                "parent_mb": parent.memory_info().rss / 1e6,
                "workers_mb": sum(child.memory_info().rss for child in children) / 1e6,
                "processes": 1 + len(children),
                "descriptors": parent.num_fds(),
                "temporary": len(os.listdir(out / ".ocr2" / "tmp")) if journal.exists() else 0,
            })  # fmt: skip
        except (psutil.Error, OSError):
            continue  # a worker ended while it was looked at
        time.sleep(every_s)
    return rows


def report(rows: list[dict[str, float]], summary: dict[str, object]) -> int:
    num_pages = max(row["pages"] for row in rows)
    steady = [row for row in rows if row["pages"] >= num_pages / 10]
    for row in steady[:: max(1, len(steady) // 10)]:
        print("  ".join(f"{name} {value:.0f}" for name, value in row.items()))
    growth = (steady[-1]["parent_mb"] - steady[0]["parent_mb"]) * 1e6
    print(f"{summary['pages']} pages, {summary['wall_seconds']} s, exit {summary['exit_code']}, "
          f"parent grew by {growth / 1e6:.1f} MB after the first tenth")  # fmt: skip
    return int(growth > MOST_GROWTH_BYTES or summary["pages"] == 0)


if __name__ == "__main__":
    sys.exit(main())
