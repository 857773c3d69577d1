"""Plots loss and validation error of all stages against samples and time, for the model card.

    python -m nanotrain.plot --logs models/nano/recipe/logs --out models/nano/training.png

Draws with Pillow: no plotting package is needed. Reads eyes.log, reader.log and joint.log (JSON
lines).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PANEL_W, PANEL_H, MARGIN = 640, 360, 56
COLOURS = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)]
Points = list[tuple[float, float]]


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
                out.setdefault(name, []).append((record[x], 1 - value if one_minus else value))
    return out


def panel(
    canvas: ImageDraw.ImageDraw,
    at: tuple[int, int],
    title: str,
    x_name: str,
    curves: dict[str, Points],
) -> None:
    left, top = at[0] + MARGIN, at[1] + 28
    width, height = PANEL_W - MARGIN - 12, PANEL_H - 28 - 44
    font = ImageFont.load_default(12)
    canvas.text((left, at[1] + 8), title, fill=0, font=font)
    points = [p for curve in curves.values() for p in curve]
    if not points:
        return
    far = max(x for x, _ in points) or 1.0
    high = sorted(y for _, y in points)[int(0.99 * (len(points) - 1))] or 1.0
    canvas.rectangle((left, top, left + width, top + height), outline=(160, 160, 160))
    for index in range(5):
        y = top + height * (1 - index / 4)
        canvas.line((left, y, left + width, y), fill=(225, 225, 225))
        canvas.text((at[0] + 8, y - 7), f"{high * index / 4:.2f}", fill=0, font=font)
        canvas.text(
            (left + width * index / 4 - 12, top + height + 4),
            f"{far * index / 4:.0f}",
            fill=0,
            font=font,
        )
    canvas.text((left + width / 2 - 40, top + height + 20), x_name, fill=0, font=font)
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        scaled = [
            (left + width * x / far, top + height * (1 - min(1.0, max(0.0, y / high))))
            for x, y in curve
        ]
        if len(scaled) > 1:
            canvas.line(scaled, fill=colour, width=2)
        canvas.text((left + width - 190, top + 6 + 15 * number), name, fill=colour, font=font)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    eyes, reader, joint = (
        read_log(args.logs / f"{stage}.log") for stage in ("eyes", "reader", "joint")
    )
    image = Image.new("RGB", (2 * PANEL_W, 4 * PANEL_H), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    panels = [
        (
            "eyes: loss of patches",
            "crops",
            series(eyes, "patch", "total_samples"),
        ),
        (
            "eyes: held-out fonts and texts, share of slots named wrong",
            "crops",
            series(eyes, "held_out_right", "total_samples", one_minus=True),
        ),
        ("decoder: loss a token", "characters", series(reader, "text", "total_samples")),
        (
            "decoder: held-out, share of characters wrong, teacher-forced",
            "characters",
            series(reader, "held_out_right", "total_samples", one_minus=True),
        ),
        ("eyes: distance to the ideal tokens", "seconds", series(eyes, "far", "total_seconds")),
        ("decoder: loss a token", "seconds", series(reader, "text", "total_seconds")),
        ("joint: loss a token", "seconds", series(joint, "text_", "total_seconds")),
        (
            "joint: held-out, share of characters wrong, teacher-forced",
            "characters",
            series(joint, "held_out_right", "total_samples", one_minus=True),
        ),
    ]
    for index, (title, x_name, curves) in enumerate(panels):
        panel(canvas, (index % 2 * PANEL_W, index // 2 * PANEL_H), title, x_name, curves)
    image.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
