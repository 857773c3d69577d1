"""Cases read by the real pipeline with a toy checkpoint: order, groups, PDF pages, faults."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pymupdf
import pytest
import torch
from eval_toys import draw_page
from toy_checkpoint_hf import write_checkpoint

from ocr2cli import batch
from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig
from ocr2cli.eval.cases import Case
from ocr2cli.eval.recognize import batch_recognizer
from ocr2cli.eval.stages import load_stages
from ocr2cli.generate.track import NAN_LOGITS
from ocr2cli.pages import PageKey, PageResult, Status

DECODE = DecodeConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = write_checkpoint(tmp_path_factory.mktemp("toy") / "model")
    return EngineConfig(model=str(folder), device="cpu", dtype="f32")


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """An image under two prompts, two pages of one PDF in reverse, and a file that is gone."""
    image, document = tmp_path / "a.png", tmp_path / "b.pdf"
    draw_page(image, "image")
    pdf = pymupdf.open()
    for text in ("first", "second"):
        pdf.new_page(width=200, height=150).insert_text((20, 60), text, fontsize=30)
    pdf.save(document)
    return [
        Case("second", "toy", document, page=1, decode=DECODE),
        Case("image", "toy", image, decode=DECODE),
        Case("gone", "toy", tmp_path / "gone.png", decode=DECODE),
        Case("prompted", "toy", image, prompt="markdown", decode=DECODE),
        Case("first", "toy", document, page=0, decode=DECODE),
        Case("beyond", "toy", document, page=7, decode=DECODE),
        Case("image", "other suite", image, decode=replace(DECODE, max_new_tokens=3)),
    ]


def test_every_case_gets_its_own_result_in_order(engine: EngineConfig, cases: list[Case]) -> None:
    results = batch_recognizer(engine, RasterConfig())(cases)
    assert [r.status is Status.FAILED for r in results] == [
        False, False, True, False, False, True, False,
    ]  # fmt: skip
    stages = load_stages(engine)
    readable = [i for i in range(len(cases)) if i not in (2, 5)]
    alone = stages.recognize([cases[i] for i in readable])
    assert [results[i].token_ids for i in readable] == [r.token_ids for r in alone]
    assert len({r.token_ids for r in alone}) >= 4
    error = results[2].error
    assert error is not None and "gone.png" in error.message


def test_a_page_whose_logits_are_not_finite_fails_with_the_decoders_own_words(
    engine: EngineConfig, cases: list[Case]
) -> None:
    stages = load_stages(engine)
    with torch.no_grad():
        stages.model.decoder.norm.weight.fill_(math.nan)
    (page,) = stages.recognize(cases[:1])
    assert (page.status, page.error) == (Status.FAILED, NAN_LOGITS)


def test_a_case_without_a_mode_of_its_own_has_the_engines(
    engine: EngineConfig, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    def iter_pages(cfg, jobs):  # type: ignore[no-untyped-def]
        modes.append(cfg.engine.mode)
        return []

    monkeypatch.setattr(batch, "iter_pages", iter_pages)
    two = [cases[1], replace(cases[0], mode="tiny")]
    batch_recognizer(replace(engine, mode="large"), RasterConfig())(two)
    assert modes == ["large", "tiny"]


def test_pages_of_equal_settings_are_read_in_one_run_without_recovery(
    engine: EngineConfig, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, int, bool, int]] = []

    def iter_pages(cfg, jobs):  # type: ignore[no-untyped-def]
        runs.append((cfg.engine.prompt, cfg.decode.max_new_tokens, cfg.recover_loops, len(jobs)))
        return [PageResult(PageKey(job.key.document, job.key.page), Status.OK) for job in jobs][1:]

    monkeypatch.setattr(batch, "iter_pages", iter_pages)
    results = batch_recognizer(engine, RasterConfig())(cases)
    assert runs == [("ocr", 6, False, 4), ("markdown", 6, False, 1), ("ocr", 3, False, 1)]
    # the runner lost the first of each group: said, and failed
    assert [r.error.code for r in results if r.error] == [
        "internal", "unreadable", "internal", "internal",
    ]  # fmt: skip
