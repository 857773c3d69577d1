"""What the golden page gave, compared stage by stage with what was recorded for these weights.

The first stage that differs is named, with what that usually means: everything after it differs
too and says nothing. Knows nothing about models, devices or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ocr2cli.errors import GateFailed
from ocr2cli.eval.provenance import ModelFacts

MEANS = {
    "raster": "another version of PyMuPDF draws this PDF differently. Compare the versions below; "
    "small changes of pixels are harmless, but results are not comparable byte by byte.",
    "views": "the same pixels were cut or resized differently: another version of Pillow, or a "
    "change of the tile rule.",
    "weights": "the weight files are not those recorded under this model's name: another release, "
    "or damaged. Fetch them again, or record the new ones with --record.",
    "encoder": "the vision encoder computes something else: damaged or wrong weights, another "
    "dtype, or a faulty kernel of this device. Try --device cpu --dtype f32.",
    "logits": "the decoder's first token has other chances: another prompt or begin token, damaged "
    "decoder weights, or a faulty kernel of this device. Try --device cpu --dtype f32.",
    "tokens": "the decoder chose other tokens: a near tie when only late tokens differ, a faulty "
    "kernel or a changed n-gram rule when early ones do. Try --device cpu --dtype f32.",
    "steps": "the same tokens with other chances: the decoder's single steps compute something "
    "else: its positions, or its cache of keys and values. Try --device cpu --dtype f32.",
    "page": "the markdown or the boxes of the page differ: a near tie when the model's own text "
    "does too, a change in what is made of that text when it does not.",
}

# Norms, visual tokens and logits are compared with this relative tolerance: float32 differs in the
# sixth digit between devices, the two-byte types in the third.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}
# Chances of the tokens written, as natural logarithms. A position one too far in every step
# changes the bundled model's by 0.043, and not one token; bfloat16 alone by 0.037.
STEP_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 2e-2}
# Thousandths of the page by which a two-byte type may move the edge of a box.
BOX_TOLERANCE = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What the golden page gave, read twice: with the prompt `ocr` and with `markdown`.

    encoder: norm of the visual tokens; visual: some of their values, in order. logits: of the
    first new token, the whole vocabulary. tokens: the first new token ids; chances: natural log of
    each one's probability. text: the same, readable. raw, markdown, boxes: of the second reading.
    """

    raster: str
    views: str
    grid: tuple[int, int]
    encoder: float
    tokens: tuple[int, ...]
    text: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=dict)
    visual: tuple[float, ...] = ()
    logits: tuple[float, ...] = ()
    chances: tuple[float, ...] = ()
    raw: str = ""
    markdown: str = ""
    boxes: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class StageCheck:
    """state: "same", "different", "not recorded" or "not compared" (an earlier one differs)."""

    stage: str
    state: str
    measured: str
    recorded: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The checks in stage order, and the versions that changed since the recording."""

    model: ModelFacts
    checks: tuple[StageCheck, ...]
    changed_versions: tuple[str, ...] = ()
    recorded_dtypes: tuple[str, ...] = ()  # that these weights were recorded in

    @property
    def first_different(self) -> StageCheck | None:
        return next((check for check in self.checks if check.state == "different"), None)

    def lines(self) -> list[str]:
        """The diagnosis for a terminal."""
        lines = [f"model {self.model.name}, weights {self.model.digest[:12]}"]
        lines[0] += f", {self.model.device} {self.model.dtype}"
        for check in self.checks:
            lines.append(f"{check.stage:<8} {check.state:<13} {check.measured}")
            if check.state == "different":
                lines.append(f"{'':<8} {'recorded':<13} {check.recorded}")
        wrong = self.first_different
        if wrong is not None:
            lines.append(f"first difference: {wrong.stage}: {MEANS[wrong.stage]}")
            lines += [f"changed since the recording: {line}" for line in self.changed_versions]
        elif self.recorded_dtypes and self.model.dtype not in self.recorded_dtypes:
            lines.append(
                f"these weights are recorded in another dtype ({', '.join(self.recorded_dtypes)}), "
                f"not in {self.model.dtype}: give that --dtype, or run with --record to record "
                "this one"
            )
        elif missing := [c.stage for c in self.checks if c.state == "not recorded"]:
            is_known = self.model.dtype in self.recorded_dtypes  # by an earlier version
            what = f"{', '.join(missing)}: not recorded" if is_known else "nothing is recorded"
            lines.append(f"{what} for these weights: run with --record to record them")
        else:
            lines.append("every stage gives what was recorded")
        return lines

    def raise_if_different(self) -> None:
        """Raises: GateFailed (exit 7) that names the first stage that differs."""
        wrong = self.first_different
        if wrong is not None:
            raise GateFailed(f"doctor: the stage {wrong.stage} differs. {MEANS[wrong.stage]}")


def diagnose(model: ModelFacts, now: Measured, recorded: Mapping[str, Any]) -> Diagnosis:
    """Compare with the recorded values (the whole file's content)."""
    own = recorded.get("models", {}).get(f"{model.digest}:{now.dtype}")
    page = recorded.get("page")
    found: list[tuple[str, str, str, bool | None]] = [
        _compare("raster", now.raster, page),
        _compare("views", now.views, page),
        _compare_weights(model, recorded.get("models", {})),
        _compare_encoder(now, own),
        _compare_logits(now, own),
        _compare_tokens(now.tokens, own),
        _compare_steps(now, own),
        _compare_page(now, own),
    ]
    checks: list[StageCheck] = []
    for stage, measured, before, is_same in found:
        if any(check.state == "different" for check in checks):
            state = "not compared"
        elif is_same is None:
            state = "not recorded"
        else:
            state = "same" if is_same else "different"
        checks.append(StageCheck(stage, state, measured, before))
    versions_then = (own or page or {}).get("versions", {})
    keys = (key.split(":") for key in recorded.get("models", {}))
    dtypes = sorted(dtype for digest, dtype in keys if digest == model.digest)
    return Diagnosis(
        model, tuple(checks), tuple(_changes(versions_then, now.versions)), tuple(dtypes)
    )


def _compare(
    stage: str, now: str, page: Mapping[str, Any] | None
) -> tuple[str, str, str, bool | None]:
    before = str(page[stage]) if page else ""
    return stage, now, before, now == before if page else None


def _compare_weights(
    model: ModelFacts, models: Mapping[str, Any]
) -> tuple[str, str, str, bool | None]:
    measured = model.digest[:16]
    if any(key.startswith(model.digest) for key in models):
        return "weights", measured, measured, True
    for key, row in models.items():
        if row["name"] == model.name:
            return "weights", measured, key[:16], False
    return "weights", measured, "", None


def _compare_encoder(
    now: Measured, own: Mapping[str, Any] | None
) -> tuple[str, str, str, bool | None]:
    """The norm, and the values in their order: swapped tiles leave the norm as it is."""
    measured = f"norm {now.encoder:.6g}"
    if own is None:
        return "encoder", measured, "", None
    tolerance = TOLERANCE.get(now.dtype, 1e-3)
    before = float(own["encoder"])
    is_same = abs(now.encoder - before) <= tolerance * abs(before)
    recorded = f"norm {before:.6g}"
    if "visual" not in own:  # recorded by an earlier version
        return "encoder", measured, recorded, None if is_same else False
    apart = _distance(now.visual, own["visual"])
    if apart > tolerance:
        recorded += f"; values in their order differ by {apart:.2g} of their norm"
    return "encoder", measured, recorded, is_same and apart <= tolerance


def _compare_logits(
    now: Measured, own: Mapping[str, Any] | None
) -> tuple[str, str, str, bool | None]:
    best = max(now.logits, default=0.0)
    measured = f"largest {best:.6g}"
    if own is None or "logits" not in own:
        return "logits", measured, "", None
    before = [float(value) for _, value in own["logits"]]
    here = [now.logits[i] if i < len(now.logits) else math.inf for i, _ in own["logits"]]
    apart = max(map(_difference, here, before)) / (max(map(abs, before)) or 1.0)
    is_same = apart <= TOLERANCE.get(now.dtype, 1e-3)
    recorded = f"largest {before[0]:.6g}; the {len(before)} differ by {apart:.2g} of it at most"
    return "logits", measured, recorded, is_same


def _compare_steps(
    now: Measured, own: Mapping[str, Any] | None
) -> tuple[str, str, str, bool | None]:
    measured = f"sum of log chances {sum(now.chances):.6g}"
    if own is None or "chances" not in own:
        return "steps", measured, "", None
    before = [float(chance) for chance in own["chances"]]
    apart = [abs(a - b) for a, b in zip(now.chances, before, strict=False)]
    worst = max(apart, default=0.0)
    is_same = worst <= STEP_TOLERANCE.get(now.dtype, 1e-3)
    recorded = f"sum of log chances {sum(before):.6g}"
    if not is_same:
        recorded += f"; token {apart.index(worst)} differs by {worst:.2g}"
    return "steps", measured, recorded, is_same


def _compare_page(
    now: Measured, own: Mapping[str, Any] | None
) -> tuple[str, str, str, bool | None]:
    measured = f"{len(now.markdown)} characters, {len(now.boxes)} boxes"
    if own is None or "markdown" not in own:
        return "page", measured, "", None
    before = [(label, tuple(box)) for label, box in own["boxes"]]
    recorded = f"{len(own['markdown'])} characters, {len(before)} boxes"
    wrong = []
    is_near = now.dtype != "float32" and now.raw != own["raw"]
    if now.raw != own["raw"] and not is_near:
        wrong.append("the model's own text")
    if now.markdown != own["markdown"]:
        wrong.append("the markdown")
    if not _same_boxes(now.boxes, before, BOX_TOLERANCE if is_near else 0):
        wrong.append("the boxes")
    recorded += f"; other: {', '.join(wrong)}" if wrong else ""
    return "page", measured, recorded, not wrong


def _same_boxes(
    ours: Sequence[tuple[str, tuple[int, ...]]],
    before: Sequence[tuple[str, tuple[int, ...]]],
    tolerance: int,
) -> bool:
    if [label for label, _ in ours] != [label for label, _ in before]:
        return False
    edges = [
        abs(x - y) for (_, a), (_, b) in zip(ours, before, strict=True)
        for x, y in zip(a, b, strict=True)
    ]
    return max(edges, default=0) <= tolerance


def _distance(now: Sequence[float], before: Sequence[float]) -> float:
    """Norm of the difference over the norm of what was recorded."""
    if len(now) != len(before):
        return math.inf
    apart = math.hypot(*map(_difference, now, before))
    return apart / (math.hypot(*before) or 1.0)


def _difference(a: float, b: float) -> float:
    """Not a number is as far off as can be."""
    return abs(a - b) if math.isfinite(a) else math.inf


def _compare_tokens(
    now: Sequence[int], own: Mapping[str, Any] | None
) -> tuple[str, str, str, bool | None]:
    if own is None:
        return "tokens", f"{len(now)} tokens", "", None
    before = [int(token) for token in own["tokens"]]
    if list(now) == before:
        return "tokens", f"{len(now)} tokens", f"{len(before)} tokens", True
    at = next((i for i, (a, b) in enumerate(zip(now, before, strict=False)) if a != b), None)
    at = min(len(now), len(before)) if at is None else at
    here, there = list(now[at : at + 6]), before[at : at + 6]
    return "tokens", f"{at} equal, then {here}", f"{at} equal, then {there}", False


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {then[name]} -> {now.get(name, 'not installed')}"
        for name in sorted(then)
        if then[name] != now.get(name, "not installed")
    ]
