"""Which arithmetic `--dtype auto` takes, by device, size and what the processor can multiply."""

from __future__ import annotations

import pytest
import torch

from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines import device, loading
from ocr2cli.engines.choose import plan_engine
from ocr2cli.engines.device import pick_device, pick_dtype, pick_matrices
from ocr2cli.engines.loading import load_decoder, load_vision, place
from ocr2cli.errors import EngineError, UsageError
from ocr2cli.model import processor
from ocr2cli.weights.hub import resolve_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL, LARGE = 10_000_000, 3_400_000_000
BF16, F32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("name", "where", "size", "has_products", "arithmetic", "matrices"),
    [
        ("auto", CPU, LARGE, True, BF16, BF16),
        ("auto", CPU, LARGE, False, F32, BF16),
        ("auto", CPU, SMALL, True, F32, F32),
        ("auto", CPU, SMALL, False, F32, F32),
        ("auto", CUDA, LARGE, False, BF16, BF16),
        ("auto", torch.device("mps"), LARGE, False, BF16, BF16),
        ("int8", CPU, LARGE, False, F32, BF16),
        ("int8", CPU, LARGE, True, BF16, BF16),
        # what was asked for is what is done
        ("bf16", CPU, LARGE, False, BF16, BF16),
        ("f32", CPU, LARGE, False, F32, F32),
        ("f16", CPU, LARGE, False, torch.float16, torch.float16),
    ],
)
def test_auto_takes_bf16_only_where_it_is_fast(
    name: str,
    where: torch.device,
    size: int,
    has_products: bool,
    arithmetic: torch.dtype,
    matrices: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "has_bf16_products", lambda: has_products)
    monkeypatch.setattr(device, "nvidia_generation", lambda on: 9 if on == CUDA else None)
    assert pick_dtype(name, where, size) == arithmetic
    assert pick_matrices(name, where, size) == matrices


@pytest.mark.parametrize(
    "name", ["meta", "xpu", "hip", "cpu:3", "cuda:-1", "cuda:01", "cuda:1000", "mps:0", "CPU", ""]
)
def test_what_is_no_device_is_a_usage_error_before_any_worker_starts(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}: write cpu, cuda, cuda:1 or mps"):
        pick_device(name)
    with pytest.raises(UsageError, match=f"--device {name}: write"):
        plan_engine(RunConfig(engine=EngineConfig(device=name)))


def test_a_device_of_this_tool_that_is_not_here_is_the_engines_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("cpu") == CPU and pick_device("cuda:0") == torch.device("cuda:0")
    for name in ("cuda:1", "cuda:99", "mps"):
        with pytest.raises(EngineError, match=f"--device {name}"):
            pick_device(name)


@pytest.mark.parametrize(("generation", "arithmetic"), [(7, torch.float16), (8, BF16), (12, BF16)])
def test_a_card_older_than_bf16_gets_f16(
    generation: int, arithmetic: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "nvidia_generation", lambda on: generation)
    assert pick_dtype("auto", CUDA, LARGE) == pick_matrices("auto", CUDA, LARGE)
    assert pick_dtype("auto", CUDA, LARGE) == arithmetic
    assert pick_dtype("bf16", CUDA, LARGE) == BF16


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_float32_is_float32_in_every_command(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval` and `bench` load no vision encoder of their own; all ask where a model goes."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    place(resolve_model("nano"), EngineConfig(dtype=dtype, device="cpu"))
    assert torch.backends.cudnn.allow_tf32 == (dtype == "bf16")


@pytest.mark.parametrize(("generation", "is_used"), [(8, True), (9, True), (10, False)])
def test_attention_of_cudnn_that_gave_wrong_answers_is_switched_off(
    generation: int, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "nvidia_generation", lambda on: generation)
    try:
        place(resolve_model("nano"), EngineConfig(device="cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled() == is_used
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_a_large_model_on_a_processor_without_bf16_products_is_loaded_narrow_and_not_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "has_bf16_products", lambda: False)
    monkeypatch.setattr(device, "SMALL_MODEL", 1_000)  # nano then counts as large
    files, engine = resolve_model("nano"), EngineConfig()
    assert place(files, engine) == (CPU, F32, BF16)
    for module in (load_vision(files, engine), load_decoder(files, engine)):
        assert {p.dtype for p in module.parameters()} == {F32, BF16}
        assert not any(p.is_meta for p in module.parameters())


def test_bf16_that_was_asked_for_where_it_is_slow_gets_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files, told = resolve_model("nano"), []
    for has_products in (False, True):
        monkeypatch.setattr(loading, "has_bf16_products", lambda chosen=has_products: chosen)
        caplog.clear()
        load_decoder(files, EngineConfig(dtype="bf16"))
        load_vision(files, EngineConfig(dtype="bf16"))
        load_decoder(files, EngineConfig(dtype="f32"))
        told.append([record.getMessage() for record in caplog.records])
    assert len(told[0]) == 1 and "--dtype auto" in told[0][0]
    assert told[1] == []


def test_where_a_model_runs_and_how_many_pages_together_is_told_to_who_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "ocr2")
    engine = EngineConfig(device="cpu", dtype="f32", batch_size=3, kv_tokens=9000)
    plan_engine(RunConfig(engine=engine))
    load_vision(resolve_model("nano"), engine)
    load_decoder(resolve_model("nano"), EngineConfig(device="cpu", dtype="int8"))
    model, encoder, decoder = (record.getMessage() for record in caplog.records)
    assert model.startswith("model: nano, ") and "up to 3 pages together" in model
    assert encoder == "encoder: cpu, float32"
    assert decoder.startswith("decoder: cpu, ") and decoder.endswith(", its weights in int8")
