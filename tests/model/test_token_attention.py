"""The compiled attention of a few tokens over cached bf16 keys, against float64 and by its bits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_model import TOY, randomise, relative_error

from ocr2cli.model import attention
from ocr2cli.model.attention import CausalAttention, RaggedPlan
from ocr2cli.model.compiled import token_attention
from ocr2cli.model.compiled.token_attention import TokenAttention
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.layers import Rotary, rotate

CUDA = torch.device("cuda")
HEADS, ROOM, WIDTH = 3, 90, 32
# (slot, tokens it holds before, new tokens): neither in order nor of one length.
SEQUENCES = [(4, 70, 3), (0, 1, 3), (2, 0, 3), (3, 87, 3)]
SLOTS = [slot for slot, _, _ in SEQUENCES]
STARTS = [start for _, start, _ in SEQUENCES]


DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def kernels() -> dict[torch.dtype, TokenAttention]:
    found = {dtype: token_attention.token_attention(dtype) for dtype in DTYPES}
    assert all(found.values()), "numba is a dependency: pip install numba"
    return found  # type: ignore[return-value]


class Case(NamedTuple):
    """What goes in, and what is stored before: beyond a sequence's own tokens all is nan."""

    qkv: Tensor  # [4, 3, 3, H, C]
    cos: Tensor  # [4, 3, C]
    sin: Tensor
    keys: Tensor  # [5, H, ROOM, C]
    values: Tensor


def make_case(dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(31)
    qkv = torch.randn(4, 3, 3, HEADS, WIDTH, generator=generator).to(dtype)
    keys, values = torch.randn(2, 5, HEADS, ROOM, WIDTH, generator=generator).to(dtype)
    for slot in range(5):
        before = next((start for at, start, _ in SEQUENCES if at == slot), 0)
        keys[slot, :, before:] = torch.nan
        values[slot, :, before:] = torch.nan
    positions = torch.tensor([[start + token for token in range(3)] for start in STARTS])
    return Case(qkv, *Rotary(WIDTH, 10_000.0, ROOM).at(positions), keys, values)


def run(kernel: TokenAttention, case: Case, row: int | None = None, token: int = 0) -> Tensor:
    """All of it, or one token of one sequence."""
    if row is None:
        return kernel(*case, SLOTS, STARTS)
    part = (slice(row, row + 1), slice(token, token + 1))
    new = (each[part].contiguous() for each in (case.qkv, case.cos, case.sin))
    return kernel(*new, case.keys, case.values, [SLOTS[row]], [STARTS[row] + token])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_token_gets_the_exact_attention_over_all_up_to_itself(
    kernels: dict[torch.dtype, TokenAttention], dtype: torch.dtype
) -> None:
    case = make_case(dtype)
    got_BTHC = run(kernels[dtype], case)
    assert got_BTHC.shape == (4, 3, HEADS, WIDTH) and got_BTHC.dtype == dtype
    q_BHTC, k_BHTC, v_BHTC = case.qkv.permute(2, 0, 3, 1, 4)
    q_BHTC, k_BHTC = (
        rotate(each, case.cos[:, None], case.sin[:, None]) for each in (q_BHTC, k_BHTC)
    )
    for row, (slot, start, tokens) in enumerate(SEQUENCES):
        # Turned and stored with torch's bits, and nothing else was touched.
        stop = start + tokens
        assert torch.equal(case.keys[slot, :, start:stop], k_BHTC[row])
        assert torch.equal(case.values[slot, :, start:stop], v_BHTC[row])
        assert bool(case.keys[slot, :, stop:].isnan().all())
        for token in range(tokens):
            seen = start + token + 1
            exact = F.scaled_dot_product_attention(
                q_BHTC[row, :, token : token + 1].double(),
                case.keys[slot, :, :seen].double(),
                case.values[slot, :, :seen].double(),
            )[:, 0]
            # In bf16 one rounding is all that parts them.
            near = 2**-8 if dtype == torch.bfloat16 else 2e-6
            got = got_BTHC[row, token].double()
            assert torch.allclose(got, exact, rtol=near, atol=2e-6), (slot, token)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_company_nor_threads_nor_drafts_change_a_bit(
    kernels: dict[torch.dtype, TokenAttention], dtype: torch.dtype
) -> None:
    threads = torch.get_num_threads()
    case = make_case(dtype)
    try:
        torch.set_num_threads(2)
        together = run(kernels[dtype], make_case(dtype))
        torch.set_num_threads(1)
        alone = [
            run(kernels[dtype], case, row, token)
            for row, (_, _, tokens) in enumerate(SEQUENCES)
            for token in range(tokens)
        ]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(alone).flatten(1), together.flatten(0, 1).flatten(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_and_a_nan_stay_where_they_are(
    kernels: dict[torch.dtype, TokenAttention], dtype: torch.dtype
) -> None:
    case = make_case(dtype)
    case.qkv[1, :, 0] *= 300.0  # scores of thousands: exp() of them would overflow
    clean = run(kernels[dtype], case)
    assert clean.isfinite().all()
    case.keys[4, 1, 5, 7] = torch.nan
    spoilt = run(kernels[dtype], case)
    assert spoilt[0, :, 1].isnan().all()
    spoilt[0, :, 1] = clean[0, :, 1]
    assert torch.equal(spoilt, clean)


def test_operands_that_do_not_fit_are_refused(
    kernels: dict[torch.dtype, TokenAttention],
) -> None:
    case = make_case(torch.float32)
    for slots, starts in (([4, 0, 2, 5], STARTS), (SLOTS, [70, 1, 0, 88])):
        with pytest.raises(AssertionError):
            kernels[torch.float32](*case, slots, starts)
    with pytest.raises(AssertionError):
        kernels[torch.bfloat16](*case, SLOTS, STARTS)
    qkv, cos, sin, *cached = case
    half = cos.shape[-1] // 2
    with pytest.raises(AssertionError):  # what lies behind it would be read
        kernels[torch.float32](qkv, cos[..., :half], sin[..., :half], *cached, SLOTS, STARTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_decoder_takes_the_kernel_where_it_is_the_fastest_and_agrees_without_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    attention_layer = CausalAttention(TOY.decoder).eval()
    randomise(attention_layer, seed=2)
    attention_layer = attention_layer.to(dtype).requires_grad_(False)
    heads, width = TOY.decoder.num_heads, TOY.decoder.head_dim
    generator = torch.Generator().manual_seed(5)
    x_BTD = torch.randn(2, 2, TOY.decoder.hidden_size, generator=generator).to(dtype)
    before = torch.randn(2, heads, 20, width, generator=generator).to(dtype)
    turn = Rotary(width, 10_000.0, 30).at(torch.tensor([[20, 21], [20, 21]]))
    calls: list[torch.dtype] = []

    def attend(with_tiles: bool, with_numba: bool) -> tuple[Tensor, Tensor]:
        cache = KVCache(TOY.decoder, 2, 30, dtype=dtype)
        for slot in range(2):
            cache.reserve(slot, 22)
            cache.write(0, slot, 0, *before)
        found = token_attention.token_attention(dtype) if with_numba else None
        monkeypatch.setattr(attention, "has_amx", lambda: with_tiles)
        monkeypatch.setattr(attention, "token_attention", lambda kind: calls.append(kind) or found)
        attention_layer.kernel = None
        attention_layer.prepare(dtype)
        plan = RaggedPlan([1, 0], [20, 20], [None, None])
        y_BTD = attention_layer.extend(x_BTD, tuple(t[:, None] for t in turn), cache, 0, plan)
        return y_BTD.float(), cache.keys[0][:, :, :22].float()

    compiled, stored = attend(with_tiles=False, with_numba=True)
    plain, stored_plainly = attend(with_tiles=False, with_numba=False)
    assert calls == [dtype, dtype]
    tiled, _ = attend(with_tiles=True, with_numba=True)
    tiles_win = dtype == torch.bfloat16
    assert calls == [dtype] * (2 if tiles_win else 3), "with tiles torch has a kernel for bf16"
    near = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert relative_error(plain, compiled) < near and relative_error(tiled, compiled) < near
    assert torch.equal(stored, stored_plainly)


def test_other_dtypes_and_devices_never_ask_for_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "has_amx", lambda: False)
    monkeypatch.setattr(attention, "token_attention", lambda dtype: pytest.fail("asked"))
    layer = CausalAttention(TOY.decoder)
    layer.prepare(torch.float16)
    del layer.qkv
    layer.qkv = SimpleNamespace(weight=SimpleNamespace(device=CUDA))  # type: ignore[assignment]
    layer.prepare(torch.float32)
    assert layer.kernel is None


def test_numba_told_not_to_compile_gives_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    token_attention.token_attention.cache_clear()
    assert token_attention.token_attention(torch.float32) is None
    token_attention.token_attention.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_without_numba_there_is_no_kernel_and_no_error() -> None:
    token_attention.token_attention.cache_clear()
    assert token_attention.token_attention(torch.float32) is None
    token_attention.token_attention.cache_clear()
