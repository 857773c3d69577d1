"""int8 on the bundled model: the text of a real page, and what a worker holds."""

from __future__ import annotations

from pathlib import Path

import jiwer
import pytest

from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig
from ocr2cli.engines.loading import load_decoder
from ocr2cli.model.quantized import Int8Linear, Int8MixtureOfExperts
from ocr2cli.pages import PageResult
from ocr2cli.weights.hub import resolve_model

PAGE = Path(__file__).parents[2] / "eval" / "bundled" / "pages" / "note-kettle.png"


def read(dtype: str) -> PageResult:
    cfg = RunConfig(
        inputs=(str(PAGE),),
        runner="inline",
        engine=EngineConfig(dtype=dtype, prompt="ocr", batch_size=1, kv_tokens=2048),
        decode=DecodeConfig(max_new_tokens=40),
    )
    (page,) = iter_pages(cfg)
    return page


def test_the_bundled_model_reads_a_page_in_int8_nearly_as_in_float32() -> None:
    whole, small = read("f32"), read("int8")
    assert whole.raw and small.new_tokens
    # the same picture, other sums: a word may turn, most must not
    assert jiwer.cer(whole.raw, small.raw) < 0.2
    assert whole.confidence != small.confidence
    assert whole.confidence == pytest.approx(small.confidence, abs=0.1)


def test_every_matrix_of_the_decoder_is_quantised_and_the_workers_arithmetic_is_float32() -> None:
    decoder = load_decoder(resolve_model("nano"), EngineConfig(dtype="int8"))
    mixtures = [m for m in decoder.modules() if isinstance(m, Int8MixtureOfExperts)]
    assert mixtures and isinstance(decoder.lm_head, Int8Linear)
    held = {str(p.dtype) for p in decoder.parameters() if not p.is_meta}
    assert held == {"torch.float32"}
    # nothing of a quantised matrix is left: what stays is embedding, norms and routers
    kept = sum(p.numel() for p in decoder.parameters() if not p.is_meta)
    assert kept < 1.2 * decoder.embed.weight.numel()
