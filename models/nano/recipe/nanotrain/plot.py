"""Plots loss and validation error of all stages against samples and time, for the model card.

    python -m nanotrain.plot --logs models/nano/recipe/logs --out models/nano/training.png

Reads eyes.log, reader.log and joint.log (JSON lines).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Points = list[tuple[float, float]]
SMOOTHED = 5  # lines of a log that a loss is averaged over: single batches differ in difficulty


def read_log(path: Path) -> list[dict]:
    """Records with running totals: seconds and samples start again at each resume, so they are
    summed."""
    records: list[dict] = []
    base = {"seconds": 0.0, "samples": 0.0}
    last = {"seconds": 0.0, "samples": 0.0}
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if any(value != value for value in record.values()):
            continue  # the run that met 0 / 0
        record["samples"] = record.get("crops", record.get("characters", 0))
        if record["seconds"] < last["seconds"]:
            base = {key: base[key] + last[key] for key in base}
        last = {key: record[key] for key in last}
        record |= {f"total_{key}": base[key] + record[key] for key in base}
        records.append(record)
    return records


def series(
    records: list[dict], prefix: str, x: str, *, one_minus: bool = False
) -> dict[str, Points]:
    """Curves by name, for all values whose name is the prefix and a view or page kind."""
    out: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(prefix) and isinstance(value, float):
                kind = name.removeprefix(prefix).strip("_")
                out.setdefault(kind, []).append((record[x], 1 - value if one_minus else value))
    return out


def smoothed(curve: Points, count: int) -> Points:
    """Each point's mean with up to count - 1 before it."""
    out = []
    for index in range(len(curve)):
        values = [y for _, y in curve[max(0, index + 1 - count) : index + 1]]
        out.append((curve[index][0], sum(values) / len(values)))
    return out


def panel(axis: Axes, title: str, x_name: str, curves: dict[str, Points], *, smooth: int) -> None:
    for name, curve in curves.items():
        xs, ys = zip(*smoothed(curve, smooth), strict=True)
        axis.plot(xs, ys, label=name, linewidth=1.3, marker="" if len(xs) > 1 else "o")
    values = sorted(y for curve in curves.values() for _, y in curve)
    axis.set_ylim(0, values[int(0.99 * (len(values) - 1))] * 1.05)
    axis.set_xlim(left=0)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x_name, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    eyes, reader, joint = (
        read_log(args.logs / f"{stage}.log") for stage in ("eyes", "reader", "joint")
    )
    wrong = "held-out fonts and texts, share of"
    losses = [
        ("eyes: loss of patches, by view", "crops", series(eyes, "patch", "total_samples")),
        ("eyes: distance to ideal tokens", "seconds", series(eyes, "far", "total_seconds")),
        ("decoder: loss a token, by tiles", "characters", series(reader, "text", "total_samples")),
        ("decoder: loss a token, by tiles", "seconds", series(reader, "text", "total_seconds")),
        ("joint: loss a token", "characters", series(joint, "text_", "total_samples")),
        ("joint: loss a token", "seconds", series(joint, "text_", "total_seconds")),
    ]
    held_out = [
        (
            f"eyes: {wrong} slots named wrong",
            "crops",
            series(eyes, "held_out_right", "total_samples", one_minus=True),
        ),
        (
            f"decoder: {wrong} characters wrong",
            "characters",
            series(reader, "held_out_right", "total_samples", one_minus=True),
        ),
        (
            f"joint: {wrong} characters wrong",
            "characters",
            series(joint, "held_out_right", "total_samples", one_minus=True),
        ),
        (
            "joint: held-out, distance to ideal tokens",
            "characters",
            series(joint, "held_out_far", "total_samples"),
        ),
    ]
    figure, axes = plt.subplots(5, 2, figsize=(13, 15))
    panels = [(*one, SMOOTHED) for one in losses] + [(*one, 1) for one in held_out]
    for axis, (title, x_name, curves, smooth) in zip(axes.flat, panels, strict=True):
        panel(axis, title, x_name, curves, smooth=smooth)
    figure.tight_layout()
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
