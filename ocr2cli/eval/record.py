"""Writes a reference's scores into a suite as its recorded ones.

Knows the outcome and the suite's folder; judges nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from ocr2cli.errors import OutputError, UsageError
from ocr2cli.eval.metrics import METRICS, Scores
from ocr2cli.eval.run import EvalOutcome


def record_scores(outcome: EvalOutcome) -> list[Path]:
    """Write `recorded.json` beside each suite's suite.toml; returns the files.

    Only scores of a reference are recorded: ours would be compared with themselves.
    Raises: UsageError when no reference ran, OutputError.
    """
    if outcome.options.ref in ("recorded", "none"):
        raise UsageError("--record writes a reference's scores: give --ref hf or llama.cpp too.")
    written = []
    for suite in outcome.suites:
        path = suite.suite.folder / "recorded.json"
        scores = {c.case.id: _row(c.reference.scores) for c in suite.cases if c.reference}
        values = {
            "by": {"reference": outcome.options.ref, **dict(outcome.reference_identity)},
            "model": outcome.model.name,
            "scores": scores,
        }
        try:
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}).") from error
        written.append(path)
    return written


def _row(scores: Scores) -> dict[str, float]:
    # parity and facts are judged on their own, not against an earlier run
    kept = [m for m in METRICS if m not in ("stopped", "facts")]
    return {m: round(v, 4) for m in kept if (v := scores.get(m)) is not None}
