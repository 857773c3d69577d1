"""One golden page through every stage: measured, recorded, and handed to `diagnosis.py`.

Knows nothing about truth; a reading can be equal and wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig
from ocr2cli.document.tiles import pixels_sha256
from ocr2cli.errors import InputError, OutputError, UsageError
from ocr2cli.eval.cases import Case, suites_folder
from ocr2cli.eval.diagnosis import Diagnosis, Measured, diagnose
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.provenance import ModelFacts
from ocr2cli.eval.stages import ModelStages
from ocr2cli.pages import Views
from ocr2cli.pipeline.durable import atomic_write

# Of the plain reading, and at most of the one with boxes.
NUM_TOKENS = 64
NUM_PAGE_TOKENS = 256
# Values of the visual tokens, evenly spread and in order; largest first logits.
NUM_VALUES = 64
NUM_LOGITS = 8


def golden_page() -> Case:
    """The page every stage is tried on."""
    path = suites_folder() / "doctor" / "golden.pdf"
    if not path.is_file():
        raise InputError(f"{path} is missing. Reinstall ocr2cli.")
    return Case(id="golden", suite="doctor", path=path, prompt="ocr")


def goldens_file() -> Path:
    """Where the recorded values that come with the tool are."""
    return suites_folder() / "doctor" / "goldens.json"


def measure(stages: ModelStages, model: ModelFacts) -> Measured:
    """Run the golden page through the stages."""
    case = golden_page()
    page = load_page(case, RasterConfig())
    views = stages.views(page)
    visual = stages.visual_tokens(views)
    ids = stages.prompt(case.prompt, case.prompt_text, len(visual))
    decode = DecodeConfig(max_new_tokens=NUM_TOKENS)
    (finished,) = stages.generate([(ids, stages.embeddings(ids, visual))], decode)
    tokens = tuple(finished.token_ids)
    values = visual.float().flatten()
    decode = replace(decode, max_new_tokens=NUM_PAGE_TOKENS)
    (result,) = stages.recognize([replace(case, prompt="markdown", decode=decode)])
    return Measured(
        raster=pixels_sha256(page.rgb),
        views=views_digest(views),
        grid=views.grid,
        encoder=float(values.norm()),
        visual=tuple(values[n * (len(values) - 1) // (NUM_VALUES - 1)].item()
                     for n in range(NUM_VALUES)),
        logits=tuple(stages.first_logits(case, page).tolist()),
        tokens=tokens,
        chances=tuple(finished.logprobs[: len(tokens)]),
        text=stages.tokenizer.decode(tokens),
        raw=result.raw,
        markdown=result.markdown,
        boxes=tuple((box.label, tuple(box.box)) for box in result.boxes),
        dtype=model.dtype,
        versions=dict(model.versions),
    )  # fmt: skip


def views_digest(views: Views) -> str:
    """Digest of every view's bytes and of the grid."""
    digest = hashlib.sha256(repr(views.grid).encode())
    digest.update(views.global_view.tobytes())
    digest.update(views.tiles.tobytes())
    return digest.hexdigest()


_OWN_KEYS = (
    "encoder", "visual", "tokens", "chances", "text", "raw", "markdown", "boxes", "versions",
)  # fmt: skip


def record(model: ModelFacts, now: Measured, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded values with these added or replaced."""
    models = dict(recorded.get("models", {}))
    row = asdict(now)
    models[f"{model.digest}:{now.dtype}"] = {
        "name": model.name,
        "device": model.device,
        **{key: row[key] for key in _OWN_KEYS},
        "logits": sorted(enumerate(now.logits), key=lambda pair: -pair[1])[:NUM_LOGITS],
    }
    page = {key: row[key] for key in ("raster", "views", "grid", "versions")}
    return {"page": page, "models": models}


def read_goldens(path: Path) -> dict[str, Any]:
    """The recorded values; empty when there are none yet. Raises: UsageError for a bad file."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not readable recorded values ({error}). Delete it, record anew."
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: not recorded values. Delete it and record anew.")
    return values


def write_goldens(path: Path, values: Mapping[str, Any]) -> None:
    """Raises: OutputError."""
    text = json.dumps(values, indent=1, sort_keys=True) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}). Give --goldens FILE."
        ) from error


def run_doctor(
    engine: EngineConfig, *, goldens: Path | None = None, is_recording: bool = False
) -> Diagnosis:
    """Measure, then compare or record. Raises: ModelError, EngineError, UsageError."""
    from ocr2cli.eval.provenance import model_facts
    from ocr2cli.eval.stages import load_stages

    if engine.engine != "native":
        raise UsageError("doctor looks inside the model; it needs --engine native.")
    path = goldens or goldens_file()
    recorded = read_goldens(path)
    model = model_facts(engine)
    now = measure(load_stages(engine), model)
    if is_recording:
        recorded = record(model, now, recorded)
        write_goldens(path, recorded)
        recorded = read_goldens(path)
    return diagnose(model, now, recorded)
