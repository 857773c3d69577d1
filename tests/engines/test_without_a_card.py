"""The code for a card on one that is not there: the host's texts, and nothing a card forbids."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretend_card import PretendCard, pretend_card
from toy_engine import draw_pages, write_toy_model

from ocr2cli.batch import iter_pages
from ocr2cli.bench.measure import measure_ours
from ocr2cli.bench.workload import make_subject, make_work
from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig, TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.engines.choose import plan_engine
from ocr2cli.engines.native import EncodeWorker
from ocr2cli.generate.fixed_step import FixedStep
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.tuning import tuning_for
from ocr2cli.pages import PageImage, PageKey, PageResult, Status

# Compute capabilities, Volta and Turing, Ampere, Hopper, and a dtype: each takes other ways.
WAYS = ((7, "f16"), (8, "bf16"), (9, "bf16"), (9, "f32"))
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More than are decoded together: pages of one view, of tiles, and with a bare tile."""
    folder = tmp_path_factory.mktemp("pages")
    sizes = {"a": (320, 240), "b": (240, 320), "bare": (1600, 300), "c": (300, 300),
             "tiled": (900, 300)}  # fmt: skip
    draw_pages(folder, sizes)
    return sorted(folder.iterdir())


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[PretendCard]:
    with pretend_card(monkeypatch, getattr(request, "param", 9)) as card:
        yield card


@pytest.fixture(autouse=True)
def _nothing_went_wrong(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A worker that a card's error ended would read the same pages alone, and right."""
    yield
    said = caplog.get_records("call")
    assert [one.getMessage() for one in said if one.levelno >= logging.WARNING] == []


def config(
    model: Path, pages: list[Path], device: str, dtype: str = "f32", **decode: Any
) -> RunConfig:
    return RunConfig(
        inputs=tuple(map(str, pages)),
        runner="inline",
        engine=EngineConfig(model=str(model), device=device, dtype=dtype, batch_size=3),
        decode=DecodeConfig(**{"max_new_tokens": 40, **decode}),
    )


def read(
    model: Path, pages: list[Path], device: str, dtype: str = "f32", **decode: Any
) -> dict[str, PageResult]:
    return {r.key.document: r for r in iter_pages(config(model, pages, device, dtype, **decode))}


def tokens(results: dict[str, PageResult]) -> dict[str, tuple[int, ...]]:
    return {name: result.token_ids for name, result in results.items()}


@pytest.fixture(scope="module")
def on_host(model: Path, pages: list[Path]) -> dict[str, PageResult]:
    return read(model, pages, "cpu")


def test_a_card_reads_what_the_host_reads(
    card: PretendCard, model: Path, pages: list[Path], on_host: dict[str, PageResult]
) -> None:
    assert tokens(read(model, pages, "cuda")) == tokens(on_host)
    assert card.replays > 40  # two rounds of pages of 40 tokens


def test_what_an_encoder_answers_is_on_the_host(card: PretendCard, model: Path) -> None:
    """The decoder is another process, which is sent no memory of a card."""
    worker = plan_engine(config(model, [], "cuda")).stages[1].make_worker()
    assert isinstance(worker, EncodeWorker)
    page = PageImage(PageKey("p", 0), np.full((300, 900, 3), 90, np.uint8), 144.0)
    with torch.inference_mode():
        (answer,) = worker.encode([make_views(page, TileConfig())])
    assert worker.vision.view_separator.is_cuda and not answer.tokens.is_cuda


def test_the_first_version_of_the_model_is_read_on_a_card_too(
    tmp_path: Path, pages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_toy_model(tmp_path / "v1", is_v1=True)
    expected = tokens(read(first, pages[:3], "cpu"))
    with pretend_card(monkeypatch) as card:
        assert tokens(read(first, pages[:3], "cuda")) == expected
    assert card.replays > 20


@pytest.mark.parametrize(("card", "dtype"), WAYS, indirect=["card"])
def test_a_captured_step_is_the_plain_step_in_every_dtype_and_generation(
    card: PretendCard, dtype: str, model: Path, pages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = tokens(read(model, pages, "cuda", dtype))
    num_replays = card.replays
    monkeypatch.setattr(FixedStep, "_try_to_capture", lambda *_: False)
    assert tokens(read(model, pages, "cuda", dtype)) == captured
    assert 40 < num_replays == card.replays


@pytest.mark.parametrize("card", [None], indirect=True)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_an_apple_device_reads_what_the_host_reads(
    card: PretendCard, dtype: str, model: Path, pages: list[Path], on_host: dict[str, PageResult]
) -> None:
    found = read(model, pages, "mps", dtype)
    assert {name: one.status for name, one in found.items()} == {
        name: one.status for name, one in on_host.items()
    }
    assert dtype != "f32" or tokens(found) == tokens(on_host)


def test_drafts_on_a_card_change_no_text(
    card: PretendCard, model: Path, pages: list[Path], on_host: dict[str, PageResult]
) -> None:
    for draft in ("ngram", "auto"):
        assert tokens(read(model, pages, "cuda", draft=draft)) == tokens(on_host)


def test_a_page_that_loops_is_read_again_on_the_card_as_on_the_host(
    tmp_path: Path, pages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of zero write one token for ever, until a rule forbids it: the end token wins then.
    The rule is not the run's, and the step goes by a graph all the same."""
    shapes: list[Any] = []
    try_to_capture = FixedStep._try_to_capture

    def noted(step: FixedStep, *shape: Any) -> bool:
        shapes.append(shape)
        return try_to_capture(step, *shape)

    monkeypatch.setattr(FixedStep, "_try_to_capture", noted)
    stuck = write_toy_model(tmp_path / "stuck", scale=0.0)
    asked: dict[str, Any] = {"no_repeat_ngram": 0, "max_new_tokens": 600}
    expected = read(stuck, pages[:2], "cpu", **asked)
    with pretend_card(monkeypatch) as card:
        found = read(stuck, pages[:2], "cuda", **asked)
    assert tokens(found) == tokens(expected)
    assert {one.status for one in found.values()} == {Status.RECOVERED}
    assert [other for _, _, other in shapes if other] and card.replays > 100


def test_every_graph_keeps_its_answer_and_nothing_else(
    card: PretendCard, model: Path, pages: list[Path]
) -> None:
    """What a step leaves behind in a graph's memory is another graph's at the next step."""
    read(model, pages, "cuda")
    assert card.graphs and all(len(graph.held()) <= 1 for graph in card.graphs)


def generator(num_slots: int, device: str) -> tuple[Generator, list[torch.Tensor]]:
    subject = make_subject(EngineConfig(model="random-tiny", device=device, dtype="f32"))
    work = make_work(subject, num_slots + 1, 1, encoded=0)
    box = Generator(
        subject.model.decoder, DecodeConfig(max_new_tokens=60, detect_loops=False), eos_id=-1,
        num_slots=num_slots, kv_tokens=1000, max_context=200,
        tuning=replace(tuning_for(CUDA), batch_buckets=(1, 2, 4)),
    )  # fmt: skip
    return box, [prompt[:20].clone() for prompt in work.prompts]


def test_from_step_to_step_the_host_never_waits_for_all_that_the_card_was_told(
    card: PretendCard,
) -> None:
    """It waits for what the step before chose, which the step after does not need."""
    box, prompts = generator(3, "cuda")
    for key, prompt in enumerate(prompts[:3]):
        box.add(key, prompt, [5] * len(prompt))
    for _ in range(4):
        box.step()
    card.waits.clear()
    before = card.replays
    while box.num_running == 3:
        box.step()
    assert card.waits == [] and card.replays - before > 50


def test_a_prompt_that_comes_later_changes_no_other_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def texts(device: str) -> dict[Any, Any]:
        box, prompts = generator(2, device)
        found: dict[Any, Any] = {}
        for key, prompt in enumerate(prompts):
            box.add(key, prompt, [5] * len(prompt), max_new_tokens=(30, 50, 40)[key])
            found.update((one.key, one.token_ids) for _ in range(7) for one in box.step())
        while box.has_work:
            found.update((one.key, one.token_ids) for one in box.step())
        return found

    expected = texts("cpu")
    with pretend_card(monkeypatch) as card:
        assert texts("cuda") == expected
    assert card.replays > 40


def test_the_bench_runs_on_a_card(card: PretendCard) -> None:
    subject = make_subject(EngineConfig(model="random-tiny", device="cuda", dtype="bf16"))
    timing = measure_ours(subject, make_work(subject, 2, 6, encoded=1))
    assert timing.decode_steps > 3 and timing.decode_s > 0 and timing.encode_s > 0
