"""Writes a reference's scores into a suite as its recorded ones.

Knows the outcome and the suite's folder; judges nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocr2cli.errors import OutputError, UsageError
from ocr2cli.eval.metrics import METRICS, Scores
from ocr2cli.eval.read_suite import read_recorded
from ocr2cli.eval.run import EvalOutcome
from ocr2cli.pipeline.durable import atomic_write


def record_scores(outcome: EvalOutcome) -> list[Path]:
    """Write `recorded.json` into each suite's folder; returns the files.

    Only scores of a reference are recorded: ours would be compared with themselves. Cases that did
    not run keep the scores they have. Raises: UsageError when no reference ran or when the file
    that is there is damaged, OutputError.
    """
    if outcome.options.ref in ("recorded", "none"):
        raise UsageError("--record writes a reference's scores: give --ref hf or llama.cpp too.")
    written = []
    for suite in outcome.suites:
        path = suite.suite.folder / "recorded.json"
        scores = {c.case.id: _row(c.reference.scores) for c in suite.cases if c.reference}
        values = _merged(read_recorded(path), scores, {
            "by": {"reference": outcome.options.ref, **dict(outcome.reference_identity)},
            "model": outcome.model.name,
        })
        try:
            atomic_write(path, (json.dumps(values, indent=1) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}).") from error
        written.append(path)
    return written


def _merged(
    earlier: Mapping[str, Any], scores: Mapping[str, dict[str, float]], source: Mapping[str, Any]
) -> dict[str, Any]:
    """The file's new values. sources: whose the kept scores are, where not of this `source`."""
    own = {name: earlier[name] for name in ("by", "model") if name in earlier}
    sources = {}
    for name in earlier["scores"]:
        origin = earlier.get("sources", {}).get(name, own)
        if name not in scores and origin != source:
            sources[name] = origin
    others = {"sources": sources} if sources else {}
    return {**source, **others, "scores": {**earlier["scores"], **scores}}


def _row(scores: Scores) -> dict[str, float]:
    # parity and facts are judged on their own, not against an earlier run
    kept = [m for m in METRICS if m not in ("stopped", "facts")]
    return {m: round(v, 4) for m in kept if (v := scores.get(m)) is not None}
