"""The compiled attention of a few tokens over cached bf16 keys, against float64 and by its bits."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_model import TOY, relative_error

from ocr2cli.model import attention, token_attention
from ocr2cli.model.attention import RaggedPlan
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.token_attention import TokenAttention

HEADS, ROOM, WIDTH = 3, 90, 32
# (slot, tokens it holds before, new tokens): neither in order nor of one length.
SEQUENCES = [(4, 70, 3), (0, 1, 3), (2, 0, 3), (3, 87, 3)]
SLOTS = [slot for slot, _, _ in SEQUENCES]
STARTS = [start for _, start, _ in SEQUENCES]


@pytest.fixture(scope="module")
def kernel() -> TokenAttention:
    found = token_attention.token_attention()
    assert found is not None, "numba is a dependency: pip install numba"
    return found


@pytest.fixture
def stored() -> tuple[Tensor, Tensor, Tensor]:
    """q [4, H, 3, C], keys and values [5, H, ROOM, C]. What no sequence holds is nan."""
    generator = torch.Generator().manual_seed(31)
    q = torch.randn(4, HEADS, 3, WIDTH, generator=generator).bfloat16()
    keys, values = torch.randn(2, 5, HEADS, ROOM, WIDTH, generator=generator).bfloat16()
    for slot in range(5):
        length = next((start + new for at, start, new in SEQUENCES if at == slot), 0)
        keys[slot, :, length:] = torch.nan
        values[slot, :, length:] = torch.nan
    return q, keys, values


def test_every_token_gets_the_exact_attention_over_all_up_to_itself(
    kernel: TokenAttention, stored: tuple[Tensor, Tensor, Tensor]
) -> None:
    q, keys, values = stored
    got_BTHC = kernel(q, keys, values, SLOTS, STARTS)
    assert got_BTHC.shape == (4, 3, HEADS, WIDTH)
    assert got_BTHC.dtype == torch.bfloat16
    for row, (slot, start, tokens) in enumerate(SEQUENCES):
        for token in range(tokens):
            seen = start + token + 1
            exact = F.scaled_dot_product_attention(
                q[row, :, token : token + 1].double(),
                keys[slot, :, :seen].double(),
                values[slot, :, :seen].double(),
            )[:, 0]
            # One rounding to bf16 is all that parts them.
            got = got_BTHC[row, token].double()
            assert torch.allclose(got, exact, rtol=2**-8, atol=1e-6), (slot, token)


def test_neither_company_nor_threads_nor_drafts_change_a_bit(
    kernel: TokenAttention, stored: tuple[Tensor, Tensor, Tensor]
) -> None:
    q, keys, values = stored
    together = kernel(q, keys, values, SLOTS, STARTS)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [
            kernel(q[row : row + 1, :, token : token + 1], keys, values, [slot], [start + token])
            for row, (slot, start, tokens) in enumerate(SEQUENCES)
            for token in range(tokens)
        ]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(alone).flatten(1), together.flatten(0, 1).flatten(1))


def test_large_scores_and_a_nan_stay_where_they_are(
    kernel: TokenAttention, stored: tuple[Tensor, Tensor, Tensor]
) -> None:
    q, keys, values = stored
    q[1] *= 300.0  # scores of thousands: exp() of them would overflow
    clean = kernel(q, keys, values, SLOTS, STARTS)
    assert clean.isfinite().all()
    keys[4, 1, 5, 7] = torch.nan
    spoilt = kernel(q, keys, values, SLOTS, STARTS)
    assert spoilt[0, :, 1].isnan().all()
    spoilt[0, :, 1] = clean[0, :, 1]
    assert torch.equal(spoilt, clean)


def test_the_plan_takes_the_kernel_where_it_is_the_fastest_and_agrees_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads, width = TOY.decoder.num_heads, TOY.decoder.head_dim
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 2, heads, 2, width, generator=generator).bfloat16()
    before = torch.randn(2, heads, 20, width, generator=generator).bfloat16()
    calls: list[Any] = []

    def attend(with_tiles: bool, with_numba: bool) -> Tensor:
        cache = KVCache(TOY.decoder, 2, 30, dtype=torch.bfloat16)
        for slot in range(2):
            cache.reserve(slot, 22)
            cache.write(0, slot, 0, *before)
        found = token_attention.token_attention() if with_numba else None
        monkeypatch.setattr(attention, "has_amx", lambda: with_tiles)
        monkeypatch.setattr(attention, "token_attention", lambda: calls.append(1) or found)
        return RaggedPlan([1, 0], [20, 20], [None, None]).attend(cache, 0, q, k, v)

    compiled = attend(with_tiles=False, with_numba=True)
    assert len(calls) == 1
    plain = attend(with_tiles=False, with_numba=False)
    tiled = attend(with_tiles=True, with_numba=True)
    assert len(calls) == 2, "a machine with tiles has a kernel of torch's"
    assert relative_error(plain.float(), compiled.float()) < 5e-3
    assert relative_error(tiled.float(), compiled.float()) < 5e-3


def test_float32_keys_and_other_devices_never_ask_for_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "has_amx", lambda: False)
    monkeypatch.setattr(attention, "token_attention", lambda: pytest.fail("asked"))
    assert attention.token_kernel(torch.device("cpu"), torch.float32) is None
    assert attention.token_kernel(torch.device("meta"), torch.bfloat16) is None


def test_without_numba_there_is_no_kernel_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "numba":
            raise ImportError("no numba here")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    token_attention.token_attention.cache_clear()
    try:
        assert token_attention.token_attention() is None
    finally:
        monkeypatch.undo()
        token_attention.token_attention.cache_clear()
