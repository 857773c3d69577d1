"""The compiled products of few rows: exact, each row for itself, nothing read beyond the ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from llvmlite import binding
from torch import Tensor

from ocr2cli.model import quantized
from ocr2cli.model.compiled import dot_rows, token_products
from ocr2cli.model.compiled.dot_rows import Numbers
from ocr2cli.model.compiled.token_products import TokenProducts
from ocr2cli.model.processor import can_run, host_features

ALL = {
    name: value
    for name, value in vars(dot_rows).items()
    if isinstance(value, Numbers)
}  # fmt: skip
HERE = sorted(n for n, numbers in ALL.items() if can_run(numbers.features, host_features()))
FLOATS = [name for name in HERE if not ALL[name].is_whole]
BYTES = [name for name in HERE if ALL[name].is_whole]
DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "float": torch.float32}
EXPERTS, CHANNELS, WIDTH = 5, 140, 192


@pytest.fixture(scope="module")
def kernels() -> dict[str, TokenProducts]:
    return {name: TokenProducts(ALL[name]) for name in HERE}


def operands(name: str, rows: int, channels: int = CHANNELS) -> tuple[Tensor, Tensor]:
    """x [rows, WIDTH] and weights [EXPERTS, channels, WIDTH]."""
    generator = torch.Generator().manual_seed(rows)
    x_MK = torch.randn(rows, WIDTH, generator=generator)
    weight_ENK = torch.randn(EXPERTS, channels, WIDTH, generator=generator)
    if ALL[name].name == "bf16":
        x_MK = x_MK.bfloat16()
    if ALL[name].name != "float":
        weight_ENK = weight_ENK.bfloat16()
    return x_MK, weight_ENK


def experts_of(rows: int, uses: int = 1) -> np.ndarray[Any, Any]:
    """In no order, one expert without rows."""
    return np.random.default_rng(rows).integers(0, EXPERTS - 1, rows * uses)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 7, 103, 260])
def test_every_row_meets_its_expert_and_nothing_else(
    kernels: dict[str, TokenProducts], name: str, rows: int
) -> None:
    x_MK, weight_ENK = operands(name, rows)
    experts_R = experts_of(rows, uses=2)
    got_RN = kernels[name].grouped(x_MK, weight_ENK, experts_R, uses=2)
    assert got_RN.shape == (2 * rows, CHANNELS) and got_RN.dtype == x_MK.dtype
    for row, expert in enumerate(experts_R):
        exact = weight_ENK[expert].double() @ x_MK[row // 2].double()
        size = weight_ENK[expert].double().abs() @ x_MK[row // 2].double().abs()
        error = (got_RN[row].double() - exact).abs()
        if x_MK.dtype == torch.bfloat16:  # one rounding of the result
            assert bool((error <= exact.abs() * 2**-8 + size * 1e-6).all())
        else:
            assert bool((error <= size * 1e-6).all())


@pytest.mark.parametrize("name", FLOATS)
def test_neither_company_nor_place_nor_threads_change_a_bit(
    kernels: dict[str, TokenProducts], name: str
) -> None:
    x_MK, weight_ENK = operands(name, 211)
    experts_R = experts_of(211)
    run = kernels[name].grouped
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together_RN = run(x_MK, weight_ENK, experts_R)
        torch.set_num_threads(1)
        assert torch.equal(run(x_MK, weight_ENK, experts_R), together_RN)
        for first, count in ((0, 1), (3, 2), (50, 7), (100, 111)):
            part = slice(first, first + count)
            alone_RN = run(x_MK[part], weight_ENK, experts_R[part])
            assert torch.equal(alone_RN, together_RN[part]), (first, count)
        # The same channels in another matrix, at another place of it.
        moved_EnK = weight_ENK[:, 36:72].contiguous()
        assert torch.equal(run(x_MK, moved_EnK, experts_R), together_RN[:, 36:72])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("short", [s for s in ("", "SHORT_") if f"{s}FLOAT" in HERE])
def test_a_bf16_weight_under_float32_rows_has_the_bits_of_its_float32_self(
    kernels: dict[str, TokenProducts], short: str
) -> None:
    x_MK, weight_ENK = operands("WIDENED", 9)
    wide_MN = kernels[short + "FLOAT"].product(x_MK, weight_ENK[0].float())
    assert torch.equal(kernels[short + "WIDENED"].product(x_MK, weight_ENK[0]), wide_MN)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(
    kernels: dict[str, TokenProducts], name: str, bad: float
) -> None:
    x_MK, weight_ENK = operands(name, 8)
    clean_MN = kernels[name].product(x_MK, weight_ENK[0])
    x_MK[5, 7] = bad
    spoilt_MN = kernels[name].product(x_MK, weight_ENK[0])
    assert not bool(spoilt_MN[5].isfinite().any())
    spoilt_MN[5] = clean_MN[5]
    assert torch.equal(spoilt_MN, clean_MN)


@pytest.mark.parametrize("name", FLOATS)
def test_a_large_sum_is_rounded_to_the_nearest_and_may_overflow(
    kernels: dict[str, TokenProducts], name: str
) -> None:
    """1 + 2^-8 and 1 + 3 * 2^-8 lie between two bf16 numbers: they go to the even one."""
    x_MK, weight_ENK = operands(name, 4)
    x_MK.zero_()
    x_MK[:3, 0], x_MK[1, 1], x_MK[2, 1] = 1.0, 2**-8, 3 * 2**-8
    x_MK[3, :2] = 3e38
    weight_ENK[0, :, :2] = 1.0
    got_MN = kernels[name].product(x_MK, weight_ENK[0]).float()
    narrow = x_MK.dtype == torch.bfloat16
    expected = [1.0, 1.0 if narrow else 1 + 2**-8, 1 + 2**-6 if narrow else 1 + 3 * 2**-8]
    for row, value in enumerate(expected):
        assert bool((got_MN[row] == value).all()), (row, value)
    assert bool(got_MN[3].isinf().all())


def test_no_kind_of_numbers_is_given_the_code_that_was_kept_for_another() -> None:
    assert len({numbers.variant for numbers in ALL.values()}) == len(ALL) > 5


@pytest.mark.parametrize("name", BYTES)
def test_bytes_have_exact_sums_to_the_far_ends(
    kernels: dict[str, TokenProducts], name: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    width = 6848
    weight_ENK = torch.randint(
        -127, 128, (EXPERTS, 24, width), generator=generator, dtype=torch.int8
    )
    x_M2K = torch.randint(-128, 128, (7, 2, width), generator=generator, dtype=torch.int8)
    weight_ENK[0], weight_ENK[1], x_M2K[0], x_M2K[1] = 127, -127, 127, -128
    scales_EN = torch.rand(EXPERTS, 24, generator=generator)
    row_scales_M1 = torch.rand(7, 1, generator=generator)
    shifts_EN = weight_ENK.sum(dim=2, dtype=torch.int32) * 128
    experts_R = np.array([0, 1, 2, 0, 1, 4, 4, 2, 1, 0, 1, 0, 2, 2])
    got_RN = kernels[name].scaled(
        x_M2K, row_scales_M1, weight_ENK, scales_EN, shifts_EN, experts_R, uses=2
    )
    for row, expert in enumerate(experts_R):
        high_N, low_N = quantized.exact_product(x_M2K[row // 2], weight_ENK[expert])
        expected_N = (high_N * 256 + low_N) * scales_EN[expert] * row_scales_M1[row // 2]
        assert torch.equal(got_RN[row], expected_N), row


def test_shapes_that_it_does_not_take_are_named_and_wrong_operands_refused(
    kernels: dict[str, TokenProducts],
) -> None:
    kernel = kernels[FLOATS[0]]
    step = ALL[FLOATS[0]].step
    assert kernel.takes(8, step) and kernel.takes(4, 3 * step)
    assert not kernel.takes(6, step) and not kernel.takes(8, step + 1) and not kernel.takes(4, 0)
    x_MK, weight_ENK = operands(FLOATS[0], 3)
    rows = np.zeros(3, np.int64)
    for bad_x, bad_weight in (
        (x_MK[:2], weight_ENK),
        (x_MK[:, :-step], weight_ENK),
        (x_MK, weight_ENK.transpose(1, 2)),
        (x_MK.double(), weight_ENK),
        (x_MK.view(torch.int16).view(3, -1, x_MK.shape[1]), weight_ENK),  # as many bytes
        (x_MK, weight_ENK.double()),
    ):
        with pytest.raises(AssertionError):
            kernel.grouped(bad_x, bad_weight, rows)


def test_rows_that_do_not_lie_one_after_the_other_are_no_trouble(
    kernels: dict[str, TokenProducts],
) -> None:
    x_MK, weight_ENK = operands(FLOATS[0], 12)
    spread = x_MK[::3]
    assert torch.equal(
        kernels[FLOATS[0]].product(spread, weight_ENK[0]),
        kernels[FLOATS[0]].product(spread.contiguous(), weight_ENK[0]),
    )


_AT_THE_EDGE = """
import ctypes, mmap, sys
import torch
from ocr2cli.model.compiled import dot_rows
from ocr2cli.model.compiled.token_products import TokenProducts

numbers = getattr(dot_rows, sys.argv[1])
narrow = {"bf16": (2, 2), "float": (4, 4), "widened": (4, 2)}[numbers.name]
kinds = {2: torch.bfloat16, 4: torch.float32}
page = mmap.PAGESIZE
c = ctypes.CDLL(None, use_errno=True)
def at_the_edge(rows, width, item):
    "A matrix whose last byte is the last one that may be read."
    size = rows * width * item
    whole = mmap.mmap(-1, (size // page + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    last = size // page + 1
    assert c.mprotect(ctypes.c_void_p(start + last * page), page, 0) == 0
    kept.append(whole)
    return torch.frombuffer(whole, dtype=kinds[item], count=rows * width, offset=last * page - size)
kept = []
x = at_the_edge(7, 96, narrow[0]).view(7, 96)
weight = at_the_edge(20, 96, narrow[1]).view(20, 96)
x.fill_(1.0), weight.fill_(2.0)
assert bool((TokenProducts(numbers).product(x, weight) == 192.0).all())
print("read to the edge")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guards a page of memory by Linux's means")
@pytest.mark.parametrize("name", FLOATS)
def test_nothing_behind_a_weight_or_a_row_is_read(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AT_THE_EDGE, name], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "read to the edge", done.stderr[-2000:]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing remembered of what this processor can do, before and after."""
    for each in (token_products.token_products, host_features):
        each.cache_clear()
    yield
    for each in (token_products.token_products, host_features):
        each.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_each_processor_gets_the_fastest_way_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow, byte = torch.float32, torch.bfloat16, torch.int8
    desktop = {"avx2", "fma"}
    server = {*desktop, "avx512f", "avx512vl", "avx512vnni"}
    expected: list[tuple[set[str], bool, list[Numbers | None]]] = [
        (set(), False, [None, None, None, None]),
        (desktop, False,
         [dot_rows.SHORT_FLOAT, dot_rows.SHORT_WIDENED, None, dot_rows.SHORT_SIGNED]),
        ({*desktop, "avxvnni"}, False,
         [dot_rows.SHORT_FLOAT, dot_rows.SHORT_WIDENED, None, dot_rows.SHORT_INT8]),
        ({"neon"}, False, [dot_rows.SHORT_FLOAT, dot_rows.SHORT_WIDENED, None, None]),
        (server, False, [dot_rows.FLOAT, dot_rows.WIDENED, None, dot_rows.INT8]),
        ({*server, "avx512bf16"}, False,
         [dot_rows.FLOAT, dot_rows.WIDENED, dot_rows.BF16, dot_rows.INT8]),
        ({*server, "avx512bf16"}, True, [dot_rows.FLOAT, dot_rows.WIDENED, None, None]),
    ]  # fmt: skip
    for features, tiles, ways in expected:
        monkeypatch.setattr(
            binding, "get_host_cpu_features", lambda chosen=features: dict.fromkeys(chosen, True)
        )
        monkeypatch.setattr(token_products, "has_amx", lambda chosen=tiles: chosen)
        host_features.cache_clear()
        asked = [(wide, wide), (wide, narrow), (narrow, narrow), (byte, byte)]
        assert [token_products._numbers_here(*pair) for pair in asked] == ways, features
        assert token_products._numbers_here(narrow, wide) is None


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("name", "value"), [("CPU_NAME", "generic"), ("CPU_FEATURES", "+sse2"), ("DISABLE_JIT", 1)]
)
def test_numba_set_to_another_processor_or_to_none_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    """Another's instructions may lack the ones asked for, and LLVM ends the process then."""
    from numba import config

    monkeypatch.setattr(config, name, value)
    assert token_products.token_products(torch.float32, torch.float32) is None


@pytest.mark.usefixtures("fresh")
def test_a_processor_that_llvm_does_not_know_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> dict[str, bool]:
        raise RuntimeError("no information about this host")

    monkeypatch.setattr(binding, "get_host_cpu_features", unknown)
    assert token_products.token_products(torch.float32, torch.float32) is None


@pytest.mark.usefixtures("fresh", "without_numba")
def test_without_numba_there_is_no_product_and_no_error() -> None:
    assert token_products.token_products(torch.float32, torch.float32) is None
