"""Doctor: the first stage that differs is named, later ones are not blamed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_checkpoint_hf import write_checkpoint

from ocr2cli.config import EngineConfig, TileConfig
from ocr2cli.errors import GateFailed, OutputError, UsageError
from ocr2cli.eval import doctor
from ocr2cli.eval.diagnosis import MEANS, Diagnosis, Measured, diagnose
from ocr2cli.eval.doctor import goldens_file, measure, read_goldens, record, run_doctor
from ocr2cli.eval.provenance import ModelFacts, model_facts
from ocr2cli.eval.stages import ModelStages, load_stages
from ocr2cli.model.vision import VisionEncoder
from ocr2cli.pages import Views
from ocr2cli.text import grounding

MODEL = ModelFacts("toy", "v2", "ab" * 32, "cpu", "float32")
NOW = Measured(
    "r1", "v1", (2, 1), 123.0, (5, 6, 7), "abc", "float32", {"pillow": "12.0"},
    visual=(1.0, -2.0, 3.0), logits=(0.5, 9.0, -3.0), chances=(-0.1, -0.0, -2.0),
    raw="<|ref|>text", markdown="abc", boxes=(("text", (1, 2, 300, 40)),),
)  # fmt: skip
STAGES = 8


def states(diagnosis: Diagnosis) -> list[str]:
    return [check.state for check in diagnosis.checks]


def test_unrecorded_weights_are_said_to_be_unrecorded_and_not_sound() -> None:
    diagnosis = diagnose(MODEL, NOW, {})
    assert states(diagnosis) == ["not recorded"] * STAGES
    assert "run with --record" in diagnosis.lines()[-1]
    diagnosis.raise_if_different()


def test_what_was_recorded_is_the_same_afterwards() -> None:
    diagnosis = diagnose(MODEL, NOW, json.loads(json.dumps(record(MODEL, NOW, {}))))
    assert states(diagnosis) == ["same"] * STAGES


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"raster": "r2", "views": "v2", "encoder": 9.0}, "raster"),
        ({"views": "v2", "encoder": 9.0}, "views"),
        ({"encoder": 124.0, "tokens": (9,)}, "encoder"),
        # the same norm: only the order is another one
        ({"visual": (3.0, -2.0, 1.0), "tokens": (9,)}, "encoder"),
        ({"visual": (1.0, float("nan"), 3.0)}, "encoder"),
        ({"logits": (9.0, 0.5, -3.0), "tokens": (9,)}, "logits"),
        ({"logits": (0.5,)}, "logits"),
        ({"chances": (-0.1, -0.05, -2.0), "boxes": ()}, "steps"),
        ({"markdown": ""}, "page"),
        ({"raw": "<|ref|>txt"}, "page"),
        ({"boxes": (("text", (61, 2, 360, 40)),)}, "page"),
        ({"boxes": (("title", (1, 2, 300, 40)),)}, "page"),
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
    assert f"first difference: {stage}: {MEANS[stage]}" in lines
    assert "pillow 12.0 -> 13.0" in lines
    with pytest.raises(GateFailed, match=f"the stage {stage} differs"):
        diagnosis.raise_if_different()


def test_a_norm_within_the_dtypes_precision_is_the_same() -> None:
    recorded = record(MODEL, NOW, {})
    assert states(diagnose(MODEL, replace(NOW, encoder=123.05), recorded))[3] == "same"
    assert states(diagnose(MODEL, replace(NOW, encoder=123.5), recorded))[3] == "different"


def test_a_two_byte_type_may_move_the_edges_of_boxes_when_the_models_own_text_does() -> None:
    half = replace(NOW, dtype="bfloat16")
    recorded = record(MODEL, half, {})
    moved = replace(half, boxes=(("text", (9, 2, 300, 40)),))
    assert states(diagnose(MODEL, replace(moved, raw="other"), recorded))[-1] == "same"
    assert states(diagnose(MODEL, moved, recorded))[-1] == "different"
    far = replace(half, raw="other", boxes=(("text", (61, 2, 300, 40)),))
    assert states(diagnose(MODEL, far, recorded))[-1] == "different"


def test_what_an_earlier_version_recorded_is_compared_and_the_rest_said_to_be_missing() -> None:
    recorded = json.loads(json.dumps(record(MODEL, NOW, {})))
    (own,) = recorded["models"].values()
    for key in ("visual", "logits", "chances", "raw", "markdown", "boxes"):
        del own[key]
    diagnosis = diagnose(MODEL, NOW, recorded)
    missing = {c.stage for c in diagnosis.checks if c.state == "not recorded"}
    assert missing == {"encoder", "logits", "steps", "page"}
    assert diagnosis.lines()[-1].startswith("encoder, logits, steps, page: not recorded for these")
    assert states(diagnose(MODEL, replace(NOW, tokens=(9,)), recorded))[5] == "different"


def test_values_are_kept_apart_by_weights_and_dtype() -> None:
    half = replace(NOW, dtype="bfloat16", encoder=124.5)
    recorded = record(MODEL, half, record(MODEL, NOW, {}))
    assert states(diagnose(MODEL, NOW, recorded)) == ["same"] * STAGES
    assert states(diagnose(MODEL, half, recorded)) == ["same"] * STAGES
    quarter = diagnose(replace(MODEL, dtype="float16"), replace(NOW, dtype="float16"), recorded)
    assert states(quarter) == ["same"] * 3 + ["not recorded"] * 5
    assert quarter.lines()[-1] == (
        "these weights are recorded in another dtype (bfloat16, float32), not in float16: give "
        "that --dtype, or run with --record to record this one"
    )
    other = replace(MODEL, name="mine", digest="cd" * 32)
    assert states(diagnose(other, NOW, recorded))[2:] == ["not recorded"] * 6


def test_other_weights_under_a_recorded_name_are_the_difference() -> None:
    other = replace(MODEL, digest="cd" * 32)
    diagnosis = diagnose(other, replace(NOW, encoder=9.0), record(MODEL, NOW, {}))
    wrong = diagnosis.first_different
    assert wrong is not None and wrong.stage == "weights"
    assert states(diagnosis)[3:] == ["not compared"] * 5


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
    assert states(first) == ["same"] * STAGES
    assert states(run_doctor(engine, goldens=goldens)) == ["same"] * STAGES

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


@pytest.fixture(scope="module")
def nano(nano_folder: Path) -> ModelStages:
    return load_stages(EngineConfig(model=str(nano_folder), device="cpu", dtype="f32"))


def examined(stages: ModelStages) -> Diagnosis:
    facts = model_facts(EngineConfig(device="cpu", dtype="f32"))
    return diagnose(facts, measure(stages, facts), read_goldens(goldens_file()))


def stage_of(stages: ModelStages) -> str:
    wrong = examined(stages).first_different
    return wrong.stage if wrong else ""


def test_the_bundled_model_gives_what_was_recorded(nano: ModelStages) -> None:
    assert [(c.stage, c.state) for c in examined(nano).checks][2:] == [
        (stage, "same") for stage in ("weights", "encoder", "logits", "tokens", "steps", "page")
    ]


def test_pixels_taken_a_little_darker_are_found_in_the_encoder(
    nano: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = VisionEncoder.forward

    def darker(self: VisionEncoder, pixels: torch.Tensor) -> torch.Tensor:
        return whole(self, pixels + 0.04)

    monkeypatch.setattr(VisionEncoder, "forward", darker)
    assert stage_of(nano) == "encoder"


def test_tiles_in_another_order_are_found_in_the_encoder(
    nano: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nano.visual_tokens

    def flipped(views: Views) -> torch.Tensor:
        visual = whole(views)
        num = TileConfig().tile_size // 64  # queries on the side of a tile
        first, second = visual[: num * num], visual[num * num : 2 * num * num]
        return torch.cat((second, first, visual[2 * num * num :]))

    monkeypatch.setattr(nano, "visual_tokens", flipped)
    assert stage_of(nano) == "encoder"


def test_another_begin_token_is_found_in_the_first_logits(
    nano: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano.tokenizer, "bos_id", nano.tokenizer.eos_id)
    assert stage_of(nano) == "logits"


def test_a_wrong_position_in_every_step_is_found_though_no_token_changes(
    nano: ModelStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotary = nano.model.decoder.rotary
    right = rotary.at

    def late(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return right(positions + (positions.shape[-1] == 1))

    monkeypatch.setattr(rotary, "at", late)
    assert stage_of(nano) == "steps"


@pytest.mark.parametrize("function", ["to_markdown", "parse"])
def test_lost_text_and_shifted_boxes_are_found_on_the_page(
    nano: ModelStages, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    boxes = grounding._parse_boxes

    def shifted(text: str) -> tuple[grounding.BoxUnits, ...]:
        return tuple((min(x + 60, 998), y, min(x2 + 60, 999), y2) for x, y, x2, y2 in boxes(text))

    if function == "parse":
        monkeypatch.setattr(grounding, "_parse_boxes", shifted)
    else:
        monkeypatch.setattr(grounding, "clean", lambda text: "")
    assert stage_of(nano) == "page"


def test_doctor_needs_the_weights_in_this_process() -> None:
    with pytest.raises(UsageError, match="needs --engine native"):
        run_doctor(EngineConfig(engine="openai"))
