"""Time and memory from one page to ten thousand, as a table and a picture.

    python tests/soak/scale.py --model stub --sizes 1 10 100 1000 10000
    python tests/soak/scale.py --model nano --sizes 1 10 100 1000

Each call replaces its model's rows in scale.json and draws scale.png anew. With the stub the pages
are one PDF; with a model they are images of one line each, read for real, 24 tokens at most.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from long_run import run

HERE = Path(__file__).parent
ROWS, PICTURE = HERE / "scale.json", HERE / "scale.png"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stub")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 1000])
    asked = parser.parse_args()
    kept = json.loads(ROWS.read_text()) if ROWS.exists() else []
    rows = [row for row in kept if row["model"] != asked.model]
    for size in asked.sizes:
        rows.append(row := measure(asked.model, size))
        print(
            f"| {row['model']} | {row['pages']:,} | {row['seconds']} | "
            f"{row['parent_mb']:.0f} | {row['workers_mb']:.0f} |",
            flush=True,
        )
    ROWS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    draw(rows)
    return 0


def measure(model: str, size: int) -> dict[str, Any]:
    seen, summary = run(model, size, "--max-new-tokens", "24", every_s=0.25)
    if summary["pages"] != size:
        raise SystemExit(f"{summary['pages']} pages of {size}")
    return {
        "model": model,
        "pages": size,
        "seconds": summary["wall_seconds"],
        "parent_mb": max(row["parent_mb"] for row in seen),
        "workers_mb": max(row["workers_mb"] for row in seen),
    }


def draw(rows: list[dict[str, Any]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        pages = [row["pages"] for row in mine]
        left.plot(pages, [row["seconds"] for row in mine], "o-", label=model)
        right.plot(pages, [row["parent_mb"] for row in mine], "o-", label=f"{model}: parent")
        right.plot(pages, [row["workers_mb"] for row in mine], "s--", label=f"{model}: all workers")
    left.set(xscale="log", yscale="log", xlabel="pages", ylabel="seconds, start included")
    right.set(xscale="log", yscale="log", xlabel="pages", ylabel="most memory, MB")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
