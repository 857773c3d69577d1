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
_WEIGHTS = 6_800_000_000


def _fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An `nvidia-smi` that answers with the script; $CARD is the card it was asked about."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\nfor CARD in "$@"; do :; done\n{script}\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _planned_batch(device: str = "cuda", decoders: int = 1) -> int:
    engine = EngineConfig(device=device)
    return choose.default_batch(engine, ModelConfig(), decoders, _WEIGHTS)


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


@pytest.mark.parametrize(
    ("free_mib", "decoders", "batch"),
    [(81_000, 1, 128), (81_000, 2, 60), (24_000, 1, 24), (12_000, 1, 1), (143_000, 1, 128)],
)
def test_a_card_reads_as_many_pages_together_as_its_memory_has_slots_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_mib: int, decoders: int, batch: int
) -> None:
    _fake_smi(tmp_path, monkeypatch, f"echo {free_mib}")
    assert _planned_batch(decoders=decoders) == batch


@pytest.mark.parametrize("script", ["echo '[N/A]'", "exit 9", "true", "echo no devices; exit 1"])
def test_a_card_that_tells_nothing_gets_the_usual_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    _fake_smi(tmp_path, monkeypatch, script)
    assert _planned_batch() == BATCH


def test_a_host_without_nvidias_program_gets_the_usual_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _planned_batch() == BATCH


def test_the_card_that_is_asked_is_the_one_torch_will_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Torch numbers the visible cards; NVIDIA's program numbers all."""
    _fake_smi(tmp_path, monkeypatch, '[ "$CARD" = 3 ] && echo 24000 || echo 81000')
    assert (_planned_batch("cuda:3"), _planned_batch("cuda:1")) == (24, 128)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert (_planned_batch("cuda:1"), _planned_batch("cuda:0")) == (24, 128)
    assert _planned_batch("cuda:2") == BATCH  # no such card: loading will say so


def test_a_cpu_keeps_its_batch_beside_a_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fake_smi(tmp_path, monkeypatch, "echo 81000")
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__,))
    assert (_planned_batch("cpu"), _planned_batch("auto")) == (BATCH, 128)
