"""Doctor: the first stage that differs is named, later ones are not blamed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_checkpoint_hf import write_checkpoint

from ocr2cli.config import EngineConfig
from ocr2cli.errors import GateFailed, OutputError, UsageError
from ocr2cli.eval import doctor
from ocr2cli.eval.doctor import Diagnosis, Measured, diagnose, record, run_doctor
from ocr2cli.eval.provenance import ModelFacts

MODEL = ModelFacts("toy", "v2", "ab" * 32, "cpu", "float32")
NOW = Measured("r1", "v1", (2, 1), 123.0, (5, 6, 7), "abc", "float32", {"pillow": "12.0"})


def states(diagnosis: Diagnosis) -> list[str]:
    return [check.state for check in diagnosis.checks]


def test_unrecorded_weights_are_said_to_be_unrecorded_and_not_sound() -> None:
    diagnosis = diagnose(MODEL, NOW, {})
    assert states(diagnosis) == ["not recorded"] * 5
    assert "run with --record" in diagnosis.lines()[-1]
    diagnosis.raise_if_different()


def test_what_was_recorded_is_the_same_afterwards() -> None:
    diagnosis = diagnose(MODEL, NOW, json.loads(json.dumps(record(MODEL, NOW, {}))))
    assert states(diagnosis) == ["same"] * 5


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"raster": "r2", "views": "v2", "encoder": 9.0}, "raster"),
        ({"views": "v2", "encoder": 9.0}, "views"),
        ({"encoder": 124.0, "tokens": (9,)}, "encoder"),
        ({"tokens": (5, 6, 8)}, "tokens"),
        ({"tokens": (5, 6)}, "tokens"),
    ],
)
def test_the_first_difference_is_named_and_the_rest_not_compared(
    change: dict[str, object], stage: str
) -> None:
    now = replace(NOW, versions={"pillow": "13.0"}, **change)  # type: ignore[arg-type]
    diagnosis = diagnose(MODEL, now, record(MODEL, NOW, {}))
    wrong = diagnosis.first_different
    assert wrong is not None and wrong.stage == stage
    after = states(diagnosis)[[c.stage for c in diagnosis.checks].index(stage) + 1 :]
    assert set(after) <= {"not compared"}
    lines = "\n".join(diagnosis.lines())
    assert f"first difference: {stage}: {doctor.MEANS[stage]}" in lines
    assert "pillow 12.0 -> 13.0" in lines
    with pytest.raises(GateFailed, match=f"the stage {stage} differs"):
        diagnosis.raise_if_different()


def test_a_norm_within_the_dtypes_precision_is_the_same() -> None:
    recorded = record(MODEL, NOW, {})
    assert states(diagnose(MODEL, replace(NOW, encoder=123.05), recorded))[3] == "same"
    assert states(diagnose(MODEL, replace(NOW, encoder=123.5), recorded))[3] == "different"


def test_values_are_kept_apart_by_weights_and_dtype() -> None:
    half = replace(NOW, dtype="bfloat16", encoder=124.5)
    recorded = record(MODEL, half, record(MODEL, NOW, {}))
    assert states(diagnose(MODEL, NOW, recorded)) == ["same"] * 5
    assert states(diagnose(MODEL, half, recorded)) == ["same"] * 5
    quarter = diagnose(replace(MODEL, dtype="float16"), replace(NOW, dtype="float16"), recorded)
    assert states(quarter) == ["same"] * 3 + ["not recorded"] * 2
    assert quarter.lines()[-1] == (
        "these weights are recorded in another dtype (bfloat16, float32), not in float16: give "
        "that --dtype, or run with --record to record this one"
    )
    other = replace(MODEL, name="mine", digest="cd" * 32)
    assert states(diagnose(other, NOW, recorded))[2:] == ["not recorded"] * 3


def test_other_weights_under_a_recorded_name_are_the_difference() -> None:
    other = replace(MODEL, digest="cd" * 32)
    diagnosis = diagnose(other, replace(NOW, encoder=9.0), record(MODEL, NOW, {}))
    wrong = diagnosis.first_different
    assert wrong is not None and wrong.stage == "weights"
    assert states(diagnosis)[3:] == ["not compared"] * 2


def test_damaged_recorded_values_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="not readable recorded values"):
        doctor.read_goldens(tmp_path / "g.json")


def test_values_that_cannot_be_written_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(OutputError, match="No space left"):
        doctor.write_goldens(tmp_path / "goldens.json", {"page": "x"})
    assert list(tmp_path.iterdir()) == []


def test_a_scaled_layer_is_found_in_the_encoder_of_a_real_run(tmp_path: Path) -> None:
    goldens = tmp_path / "goldens.json"
    whole = write_checkpoint(tmp_path / "whole")
    engine = EngineConfig(model=str(whole), device="cpu", dtype="f32")
    first = run_doctor(engine, goldens=goldens, is_recording=True)
    assert states(first) == ["same"] * 5
    assert states(run_doctor(engine, goldens=goldens)) == ["same"] * 5

    name = "model.sam_model.blocks.0.mlp.lin2.weight"
    broken = write_checkpoint(tmp_path / "broken", changes={name: 1.5})
    values = json.loads(goldens.read_text(encoding="utf-8"))
    ((key, own),) = values["models"].items()
    from ocr2cli.eval.provenance import model_facts

    damaged = replace(engine, model=str(broken))
    values["models"] = {key: own, f"{model_facts(damaged).digest}:float32": own}
    goldens.write_text(json.dumps(values), encoding="utf-8")
    wrong = run_doctor(damaged, goldens=goldens).first_different
    assert wrong is not None and wrong.stage == "encoder"


def test_doctor_needs_the_weights_in_this_process() -> None:
    with pytest.raises(UsageError, match="needs --engine native"):
        run_doctor(EngineConfig(engine="openai"))
