"""What loading does besides reading weights: it compiles ahead what the model will ask for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ocr2cli.engines import loading
from ocr2cli.engines.loading import Place, compile_for_decoder, compile_for_vision, meanwhile
from ocr2cli.model import attention, linear
from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.decoder import Decoder
from ocr2cli.weights.load import matrix_names

CPU = torch.device("cpu")
FILES: Any = SimpleNamespace()


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The model's number of parameters, as `meanwhile` is told."""
    told = {"parameters": loading.SMALL_MODEL}
    monkeypatch.setattr(loading, "config_of", lambda files: None)
    monkeypatch.setattr(loading, "count_parameters", lambda config: told["parameters"])
    return told


def test_a_large_models_kernels_are_there_when_its_weights_are(size: dict[str, int]) -> None:
    done: list[str] = []
    may_end = threading.Event()

    def work() -> None:
        may_end.wait(30)
        done.append("compiled")

    with meanwhile(work, if_large=FILES):
        done.append("read")  # the work has not held it up
        may_end.set()
    assert done == ["read", "compiled"]


def test_a_small_model_starts_no_compiler(size: dict[str, int]) -> None:
    size["parameters"] -= 1
    with meanwhile(lambda: pytest.fail("compiled"), if_large=FILES):
        pass


def test_a_compiler_that_fails_costs_nothing_and_an_error_of_reading_is_heard(
    size: dict[str, int],
) -> None:
    def fail() -> None:
        raise RuntimeError("no such instruction")

    with meanwhile(fail, if_large=FILES):
        pass
    with pytest.raises(OSError, match="cut short"), meanwhile(fail, if_large=FILES):
        raise OSError("cut short")
    assert not [thread for thread in threading.enumerate() if thread.name == "compile"]


@pytest.mark.parametrize(
    ("rows", "matrices"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_what_is_compiled_ahead_is_what_the_decoder_asks_for(
    monkeypatch: pytest.MonkeyPatch, rows: torch.dtype, matrices: torch.dtype
) -> None:
    asked: dict[str, set[Any]] = {"ahead": set(), "later": set()}
    for place, module in (("ahead", loading), ("later", linear), ("later", attention)):
        kept = asked[place]
        if module is not attention:
            monkeypatch.setattr(module, "token_products", lambda *kinds, kept=kept: kept.add(kinds))
        if module is not linear:
            monkeypatch.setattr(module, "token_attention", lambda kind, kept=kept: kept.add(kind))
    compile_for_decoder(Place(CPU, rows, matrices), int8=False)

    small = DecoderConfig(
        vocab_size=64, hidden_size=64, num_layers=2, num_heads=2, dense_intermediate=64,
        num_experts=4, experts_per_token=2, expert_intermediate=64,
    )  # fmt: skip
    decoder = Decoder(small).to(rows).requires_grad_(False)
    for name in matrix_names(decoder):
        owner, _, part = name.rpartition(".")
        weight = decoder.get_parameter(name).to(matrices)
        setattr(decoder.get_submodule(owner), part, torch.nn.Parameter(weight, requires_grad=False))
    # Between the router's size and the others', as a real model's.
    monkeypatch.setattr(linear, "WORTH_COMPILING", 4 * 64 + 1)
    decoder.prepare()
    assert asked["ahead"] == asked["later"]


def test_ahead_of_int8_weights_the_products_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(loading, "token_products", lambda *kinds: asked.append(kinds))
    monkeypatch.setattr(loading, "token_attention", asked.append)
    monkeypatch.setattr(loading, "has_amx", lambda: False)
    here = Place(CPU, torch.bfloat16, torch.bfloat16)
    compile_for_decoder(here, int8=True)
    assert asked == [(torch.int8, torch.int8), torch.bfloat16]
    asked.clear()
    monkeypatch.setattr(loading, "map_attention", lambda: asked.append("map"))
    elsewhere = Place(torch.device("cuda"), torch.bfloat16, torch.bfloat16)
    compile_for_decoder(elsewhere, int8=False)
    compile_for_vision(elsewhere)
    compile_for_vision(here._replace(dtype=torch.float32))
    assert asked == []
    compile_for_vision(here)
    assert asked == ["map"]
