"""What is planned differently for a CUDA device; the parent plans and imports no torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines import choose, host
from ocr2cli.engines.native import ENCODE_PAGES, encode_credit
from ocr2cli.model.config import ModelConfig
from ocr2cli.weights.hub import ModelFiles

FULL_PAGE, TYPICAL_PAGE, BATCH = 8192, 2400, 32


@pytest.mark.parametrize(
    ("device", "dtype", "has_driver", "expected"),
    [
        ("cuda", "auto", False, True),
        ("cuda:1", "bf16", False, True),
        ("auto", "auto", True, True),
        ("auto", "auto", False, False),
        ("auto", "int8", True, False),
        ("cpu", "auto", True, False),
        ("mps", "auto", True, False),
    ],
)
def test_a_cuda_device_is_expected_where_asked_for_or_where_auto_finds_a_driver(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, has_driver: bool, expected: bool
) -> None:
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__ if has_driver else "/nowhere/nvidiactl",))
    assert host.expects_cuda(device, dtype) == expected
    groups = 2 if expected else 1
    assert encode_credit(EngineConfig(device=device, dtype=dtype)) == groups * ENCODE_PAGES


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda", BATCH * TYPICAL_PAGE), ("cpu", FULL_PAGE), ("auto", FULL_PAGE)],
)
def test_a_small_host_does_not_shrink_a_cache_that_lies_on_the_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, expected: int
) -> None:
    """With auto the card may turn out to be out of torch's reach: the host's memory counts."""
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__,))
    monkeypatch.setattr(choose, "host_memory_available", lambda: 8 << 30)
    cfg = RunConfig(inputs=(), engine=EngineConfig(device=device))
    files = ModelFiles("some", tmp_path)
    spec = choose.native_spec(cfg, files, ModelConfig(), "", num_bytes=7 << 30)
    assert (spec.batch_size, spec.kv_tokens) == (BATCH, expected)
