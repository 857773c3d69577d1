"""`ocr2 info` and `models path`: what is planned, and that looking downloads nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command_line import run_main

from ocr2cli.errors import ExitCode


@pytest.mark.parametrize("argv", [("models", "path"), ("info", "--model")])
def test_who_only_looks_downloads_nothing(argv, tmp_path, monkeypatch, capsys) -> None:
    """Both fetched 6.8 GB to print a path or a size."""
    from ocr2cli.weights import hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "pull_model", lambda *_, **__: pytest.fail("downloaded"))
    assert run_main(*argv, "deepseek-ocr-2") == ExitCode.MODEL
    assert "ocr2 models pull deepseek-ocr-2" in capsys.readouterr().err


def test_info_plans_the_memory_of_every_worker(capsys) -> None:
    """Encoders hold the vision weights, decoders the others and the cache of their batch."""
    def plan(*flags: str) -> dict[str, Any]:
        assert run_main("info", "--json", "--device", "cpu", *flags) == ExitCode.OK
        facts = json.loads(capsys.readouterr().out)
        assert facts["parameters"] == 12_682_880 and facts["kv_bytes_per_token"] == 7168
        return facts["memory_plan"]

    wide = plan("--dtype", "f32", "--batch-size", "8", "--kv-tokens", "10000", "--decoders", "2")
    encoder, decoder, cache = (wide[f"{name}_bytes"] for name in ("encoder", "decoder", "kv_cache"))
    assert encoder + decoder == 4 * 12_682_880 and cache == 10_000 * 2 * 7168
    assert (wide["batch_size"], wide["dtype"]) == (8, "float32")
    assert wide["total_bytes"] == encoder + 2 * (decoder + cache)
    narrow, small = plan("--dtype", "bf16"), plan("--dtype", "int8")
    assert narrow["encoder_bytes"] * 2 == encoder and narrow["decoder_bytes"] * 2 == decoder
    assert small["decoder_bytes"] < narrow["decoder_bytes"]


def test_info_answers_where_a_run_would_be_refused(capsys) -> None:
    assert run_main("info", "--device", "cuda:77") == ExitCode.OK
    assert "memory_plan" in (out := capsys.readouterr().out) and "cuda:77" in out
