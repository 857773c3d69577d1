"""The compiled attention over maps: exact, each map and head for itself, only where it can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from toy_model import randomise, relative_error

from ocr2cli.model.compiled import map_attention
from ocr2cli.model.compiled.dot_columns import FEATURES
from ocr2cli.model.compiled.map_attention import MapAttention, pack_positions
from ocr2cli.model.config import SamConfig
from ocr2cli.model.processor import can_run, host_features
from ocr2cli.model.sam import SamAttention, position_terms, relative_table, spread_bias

HEADS, CHANNELS = 2, 64
needs_instruction = pytest.mark.skipif(
    not can_run(FEATURES, host_features()), reason="this processor has no bf16 dot products"
)


@pytest.fixture(scope="module")
def kernel() -> MapAttention:
    return MapAttention()


def operands(side: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [B, N, 3, H, C] and two tables [2 * side - 1, C], bf16."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, side * side, 3, HEADS, CHANNELS, generator=generator)
    tables = torch.randn(2, 2 * side - 1, CHANNELS, generator=generator) * 0.3
    return qkv.bfloat16(), *tables.bfloat16()


def exact(qkv: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    side = (len(by_row) + 1) // 2
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    tables = (relative_table(table, side).double() for table in (by_row, by_column))
    bias = spread_bias(*position_terms(q, *tables))
    y_BHNC = (q @ k.transpose(-1, -2) * CHANNELS**-0.5 + bias).softmax(dim=-1) @ v
    return y_BHNC.transpose(1, 2)


def attend(kernel: MapAttention, qkv: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    return kernel(qkv, pack_positions(by_row), pack_positions(by_column))


@needs_instruction
@pytest.mark.parametrize("side", [1, 2, 5, 8, 14, 17, 48])
def test_every_token_gets_the_exact_attention_over_its_map(kernel: MapAttention, side: int) -> None:
    """Odd numbers of tokens, of fewer and more than a block of rows or of keys."""
    batch = 3 if side < 20 else 1
    inputs = operands(side, batch)
    got = attend(kernel, *inputs)
    assert got.shape == (batch, side * side, HEADS, CHANNELS) and got.dtype == torch.bfloat16
    expected = exact(*inputs)
    # A rounding of each share and one of the result.
    assert relative_error(got.double(), expected) < 4e-3
    error = (got.double() - expected).abs()
    assert bool((error <= 2**-8 * expected.abs() + 0.02).all())


@needs_instruction
def test_neither_company_nor_threads_change_a_bit(kernel: MapAttention) -> None:
    qkv, *tables = operands(14, batch=4)
    together = attend(kernel, qkv, *tables)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):  # three: a head is cut into parts for them
            torch.set_num_threads(count)
            assert torch.equal(attend(kernel, qkv, *tables), together)
            for place in range(4):
                alone = attend(kernel, qkv[place : place + 1].contiguous(), *tables)
                assert torch.equal(alone[0], together[place])
        large = operands(33, seed=2)
        torch.set_num_threads(1)
        whole = attend(kernel, *large)
        torch.set_num_threads(7)
        assert torch.equal(attend(kernel, *large), whole)
    finally:
        torch.set_num_threads(threads)


@needs_instruction
@pytest.mark.parametrize("side", [8, 20], ids=["a block of keys", "two"])
def test_large_scores_do_not_overflow_and_the_largest_wins(kernel: MapAttention, side: int) -> None:
    qkv, *tables = operands(side)
    qkv[0, :, 0] *= 300.0
    got = attend(kernel, qkv, *tables)
    assert bool(got.isfinite().all())
    assert relative_error(got.double(), exact(qkv, *tables)) < 4e-3


@needs_instruction
@pytest.mark.parametrize("growth", [0.02, -0.02, 1.0])
def test_keys_of_any_block_may_hold_the_largest_score(kernel: MapAttention, growth: float) -> None:
    """From block to block it grows a little, falls, or leaves nothing of what was before."""
    qkv, *tables = operands(40)
    along = torch.linspace(-1.0, 1.0, 1600)[:, None, None] * growth * 100
    qkv[0, :, 0], qkv[0, :, 1, :, :1] = 0.5, along[..., :1].bfloat16()
    got = attend(kernel, qkv, *tables)
    expected = exact(qkv, *tables)
    assert relative_error(got.double(), expected) < 4e-3
    error = (got.double() - expected).abs()
    assert bool((error <= 2**-8 * expected.abs() + 0.02).all())


@needs_instruction
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_a_nan_is_heard_where_it_counts_and_nowhere_else(kernel: MapAttention, part: int) -> None:
    qkv, *tables = operands(5, batch=2)
    clean = attend(kernel, qkv, *tables)
    qkv[1, 7, part, 1, 3] = torch.nan
    spoilt = attend(kernel, qkv, *tables)
    struck = {0: (1, 7, 1), 1: (1, slice(None), 1), 2: (1, slice(None), 1, 3)}[part]
    assert bool(spoilt[struck].isnan().all())
    spoilt[struck] = clean[struck]
    assert torch.equal(spoilt, clean)


@needs_instruction
def test_wrong_operands_are_refused(kernel: MapAttention) -> None:
    qkv, *tables = operands(5)
    assert kernel.takes(64) and kernel.takes(128)
    assert not kernel.takes(32) and not kernel.takes(80) and not kernel.takes(0)
    for bad in (qkv.float(), qkv[:, :24], qkv.transpose(3, 4), qkv[..., :32].contiguous()):
        with pytest.raises(AssertionError):
            attend(kernel, bad, *tables)
    with pytest.raises(AssertionError):
        attend(kernel, qkv, operands(40)[1], tables[1])


_AT_THE_EDGE = """
import ctypes, mmap
import torch
from ocr2cli.model.compiled.map_attention import MapAttention, pack_positions

page = mmap.PAGESIZE
size = 9 * 3 * 64 * 2
whole = mmap.mmap(-1, (size // page + 2) * page)
last = size // page + 1
start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
c = ctypes.CDLL(None)
assert c.mprotect(ctypes.c_void_p(start + last * page), ctypes.c_size_t(page), 0) == 0
qkv = torch.frombuffer(whole, dtype=torch.bfloat16, count=size // 2, offset=last * page - size)
qkv = qkv.view(1, 9, 3, 1, 64).fill_(0.5)
tables = [pack_positions(torch.zeros(5, 64).bfloat16()) for _ in range(2)]
assert bool((MapAttention()(qkv, *tables) == 0.5).all())
print("read to the edge")
"""


@needs_instruction
@pytest.mark.skipif(sys.platform != "linux", reason="guards a page of memory by Linux's means")
def test_nothing_behind_the_last_token_is_read() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AT_THE_EDGE], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "read to the edge", done.stderr[-2000:]


@needs_instruction
@pytest.mark.parametrize("side", [14, 9])
def test_sam_takes_it_when_prepared_and_stays_near(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another side than its tables the map gets resized ones, as without it."""
    monkeypatch.setattr(map_attention, "has_amx", lambda: False)
    map_attention.map_attention.cache_clear()
    config = SamConfig(hidden_size=128, num_heads=2, window_size=14)
    attention = SamAttention(config, 14).eval()
    randomise(attention, seed=3)
    attention = attention.bfloat16().requires_grad_(False)
    x = torch.randn(2, side, side, 128, generator=torch.Generator().manual_seed(4)).bfloat16()
    with torch.no_grad():
        plain = attention(x)
        attention.prepare()
        assert attention.kernel is not None
        assert relative_error(attention(x).float(), plain.float()) < 0.02
    map_attention.map_attention.cache_clear()


def test_other_dtypes_and_widths_keep_torchs_ways() -> None:
    float32 = SamAttention(SamConfig(hidden_size=128, num_heads=2), 14)
    float32.prepare()
    narrow = SamAttention(SamConfig(hidden_size=64, num_heads=2), 14).bfloat16()
    narrow.prepare()
    meta = SamAttention(SamConfig(hidden_size=128, num_heads=2), 14).bfloat16().to("meta")
    meta.prepare()
    assert float32.kernel is narrow.kernel is meta.kernel is None


@pytest.fixture
def fresh() -> Iterator[None]:
    map_attention.map_attention.cache_clear()
    yield
    map_attention.map_attention.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_processor_with_tiles_or_without_the_instruction_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(map_attention, "host_features", lambda: frozenset({"avx2", "fma"}))
    assert map_attention.map_attention() is None
    map_attention.map_attention.cache_clear()
    every = frozenset().union(*FEATURES)
    monkeypatch.setattr(map_attention, "host_features", lambda: every)
    monkeypatch.setattr(map_attention, "has_amx", lambda: True)
    assert map_attention.map_attention() is None


@pytest.mark.usefixtures("fresh", "without_numba")
def test_without_numba_there_is_none_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_attention, "has_amx", lambda: False)
    host_features.cache_clear()
    assert map_attention.map_attention() is None
    host_features.cache_clear()
