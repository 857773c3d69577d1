"""A model with one thing wrong must not pass: the proof that the gates guard anything.

The reference is transformers on the undamaged weights; ours is damaged in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eval_toys import TRUTH, draw_page
from toy_checkpoint_hf import write_checkpoint

from ocr2cli.config import EngineConfig
from ocr2cli.errors import ExitCode, GateFailed
from ocr2cli.eval.run import EvalOptions, EvalOutcome, run_eval
from ocr2cli.eval.stages import ModelStages, load_stages
from ocr2cli.pages import PageImage, Views

Mutate = Callable[[ModelStages], ModelStages]


def untouched(stages: ModelStages) -> ModelStages:
    return stages


def scaled_decoder_layer(stages: ModelStages) -> ModelStages:
    stages.model.decoder.layers[1].attn.out.weight.mul_(1.5)
    return stages


def scaled_vision_layer(stages: ModelStages) -> ModelStages:
    stages.model.vision.sam.blocks[0].mlp.lin2.weight.mul_(1.5)
    return stages


class SwappedTiles(ModelStages):
    def views(self, page: PageImage) -> Views:
        views = super().views(page)
        return replace(views, tiles=views.tiles[::-1].copy())


class NoSeparator(ModelStages):
    def visual_tokens(self, views: Views) -> torch.Tensor:
        return super().visual_tokens(views)[:-1]


def swapped_tiles(stages: ModelStages) -> ModelStages:
    return SwappedTiles(stages.model, stages.tokenizer)


def no_separator(stages: ModelStages) -> ModelStages:
    return NoSeparator(stages.model, stages.tokenizer)


MUTANTS = [scaled_decoder_layer, scaled_vision_layer, swapped_tiles, no_separator]


def evaluate(options: EvalOptions, mutate: Mutate) -> EvalOutcome:
    with torch.inference_mode():
        stages = mutate(load_stages(options.engine))
    return run_eval(options, stages.recognize, first_logits=stages.first_logits)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> EvalOptions:
    """One page of two tiles; a random model's reading of it, so truth is no use: parity must do."""
    folder = tmp_path_factory.mktemp("mutants")
    model = write_checkpoint(folder / "model")
    suite = folder / "suite"
    suite.mkdir()
    draw_page(suite / "wide.png", "Left half, right half", (1280, 720))
    (suite / "wide.txt").write_text(TRUTH, encoding="utf-8")
    (suite / "suite.toml").write_text(
        'name = "toy"\n[[case]]\nid = "wide"\npage = "wide.png"\ntruth = "wide.txt"\n'
        "decode = { max_new_tokens = 24 }\n",
        encoding="utf-8",
    )
    engine = EngineConfig(model=str(model), device="cpu", dtype="f32")
    return EvalOptions(suites=(str(suite),), ref="hf", engine=engine, cache=folder / "cache")


def test_the_undamaged_toy_model_passes_every_gate(toy: EvalOptions) -> None:
    outcome = evaluate(toy, untouched)
    outcome.raise_for_gates()
    parity = outcome.cases[0].parity
    assert parity is not None and parity.is_exact


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_damaged_toy_model_exits_seven(toy: EvalOptions, mutate: Mutate) -> None:
    with pytest.raises(GateFailed) as caught:
        evaluate(toy, mutate).raise_for_gates()
    assert caught.value.exit_code is ExitCode.GATE_FAILED


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory, nano_folder: Path) -> EvalOptions:
    return EvalOptions(
        suites=("bundled",),
        only=("slide-thanks",),
        ref="hf",
        engine=EngineConfig(model=str(nano_folder), device="cpu", dtype="f32"),
        cache=tmp_path_factory.mktemp("cache"),
    )


def parity_failures(outcome: EvalOutcome) -> set[str]:
    return {v.metric for v in outcome.failed} & {"exact_share", "logit_difference"}


def test_the_undamaged_bundled_model_equals_the_reference(bundled: EvalOptions) -> None:
    outcome = evaluate(bundled, untouched)
    assert parity_failures(outcome) == set()
    parity = outcome.cases[0].parity
    assert parity is not None and parity.is_exact
    assert parity.logit_difference is not None and parity.logit_difference < 1e-4


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_damaged_bundled_model_exits_seven(bundled: EvalOptions, mutate: Mutate) -> None:
    outcome = evaluate(bundled, mutate)
    assert parity_failures(outcome)
    with pytest.raises(GateFailed):
        outcome.raise_for_gates()
