"""Plots as inline SVG, drawn here so that a report needs no script, no font and no network.

Knows nothing about cases: it is handed names and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _ROW, _LEFT, _RIGHT = 660, 24, 180, 64


@dataclass(frozen=True, slots=True)
class Bar:
    """One row. ours, reference: values from 0 up; None: no value. kind: "good", "bad" or "none",
    what gates said of it. href: where a click goes."""

    name: str
    ours: float | None
    reference: float | None = None
    kind: str = "none"
    href: str = ""


def bar_chart(
    bars: Sequence[Bar], *, title: str, unit: str = "", limit: float | None = None
) -> str:
    """Horizontal bars for ours and a tick for the reference on each row, in an <svg>.

    limit: values above it are cut there, with a sign, and written out, so that one bad page does
    not flatten the rest.
    """
    values = [v for bar in bars for v in (bar.ours, bar.reference) if v is not None]
    top = (
        _nice(max(values, default=1.0))
        if limit is None
        else min(limit, _nice(max(values, default=1.0)))
    )
    height = 56 + _ROW * len(bars)
    scale = (_WIDTH - _LEFT - _RIGHT) / top
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *_grid(top, scale, height, unit),
    ]
    for number, bar in enumerate(bars):
        parts += _bar(bar, 34 + _ROW * number, scale, top)
    return "\n".join([*parts, "</svg>"])


def _grid(top: float, scale: float, height: int, unit: str) -> list[str]:
    parts = []
    for step in range(5):
        value = top * step / 4
        x = _LEFT + value * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="{height - 12}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="18">{value:g}{escape(unit)}</text>')
    return parts


def _bar(bar: Bar, y: int, scale: float, top: float) -> list[str]:
    name = escape(bar.name if len(bar.name) <= 30 else bar.name[:29] + "\u2026")
    label = f'<text class="name" x="{_LEFT - 10}" y="{y + 13}">{name}</text>'
    parts = [f'<a href="{escape(bar.href)}">{label}</a>' if bar.href else label]
    if bar.ours is not None:
        width = max(1.5, min(bar.ours, top) * scale)
        hint = f"{bar.name}: ours {bar.ours:.4f}"
        parts.append(
            f'<rect class="{bar.kind}" x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="14" '
            f'rx="2"><title>{escape(hint)}</title></rect>'
        )
        if bar.ours > top:
            x = _LEFT + width - 12
            parts.append(f'<path class="cut" d="M{x:.1f} {y + 18}l4 -18m4 0l-4 18"/>')
        # beyond the reference's tick too, or the tick crosses the number out
        right = max(width, min(bar.reference or 0.0, top) * scale) + 7
        parts.append(
            f'<text class="value" x="{_LEFT + right:.1f}" y="{y + 13}">{bar.ours:.3f}</text>'
        )
    if bar.reference is not None:
        x = _LEFT + min(bar.reference, top) * scale
        parts.append(
            f'<line class="tick" x1="{x:.1f}" y1="{y - 1}" x2="{x:.1f}" y2="{y + 19}">'
            f"<title>{escape(bar.name)}: reference {bar.reference:.4f}</title></line>"
        )
    return parts


def _nice(value: float) -> float:
    """The next number of a scale people like to read."""
    for step in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.5, 2.0, 4.0, 10.0, 50.0, 100.0, 1000.0):
        if value <= step:
            return step
    return value
