"""int8 matrices: near the float ones, exact in whole numbers, a row's result its own."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_decoder import decoder, filled_cache, texts  # noqa: F401  (fixtures)
from torch import Tensor
from toy_model import TOY, randomise

from ocr2cli.model import quantized
from ocr2cli.model.compiled.token_products import token_products
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.moe import MixtureOfExperts
from ocr2cli.model.quantized import Int8Linear, Int8Weight, expect_int8, int8_product, quantise_rows

# Rounding to steps of a 127th of the largest of a hundred normal numbers, about three deviations,
# is an error of 0.7 % in the weight. With inputs as coarse it would be 1 % together.
NEAR = 0.009


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def to_int8(module: Any) -> Any:
    """A copy with its matrices quantised, as loading does it."""
    with torch.device("meta"):
        twin = deepcopy(module).to("meta")
    matrices = expect_int8(twin)
    state = {
        name: matrices[name].take(name.rpartition(".")[2], value) if name in matrices else value
        for name, value in module.state_dict().items()
    }
    twin.load_state_dict(state, assign=True)
    return twin.eval()


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows of very different size, as activations have them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 3, count)[:, None]
    return torch.randn(count, width, generator=generator) * sizes


def test_a_weight_is_within_half_a_step_of_its_channels_scale() -> None:
    weight = rows(48, 160)
    values, scales, sums = quantized.quantise_channels(weight)
    assert torch.equal(sums, values.sum(1, dtype=torch.int32))
    assert values.dtype == torch.int8 and int(values.abs().max()) == quantized.LEVELS
    error = (values * scales[:, None] - weight).abs()
    assert bool((error <= scales[:, None] * 0.5001).all())


def test_a_weight_of_many_pieces_and_16_bits_is_quantised_as_its_float32_self() -> None:
    weight = rows(700, 512).bfloat16()
    piece = quantized._QUANTISED_ITEMS // 512
    assert 700 % piece and 2 * piece < 700
    values, scales, sums = quantized.quantise_channels(weight)
    for found, whole in zip(
        (values, scales, sums), quantized.quantise_channels(weight.float()), strict=True
    ):
        assert torch.equal(found, whole)
    alone = [quantized.quantise_channels(row.float()) for row in weight.split(1)]
    assert torch.equal(values, torch.cat([each for each, _, _ in alone]))
    assert torch.equal(scales, torch.cat([scale for _, scale, _ in alone]))


@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_a_row_keeps_two_bytes_of_each_number(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "torch":
        monkeypatch.setattr(quantized, "row_bytes", lambda levels: None)
    x = rows(300, 512, seed=7)
    assert quantized._QUANTISED_ITEMS < 300 * 512, "more than one piece"
    values, scales = quantise_rows(x)
    assert values.dtype == torch.int8 and values.shape == (300, 2, 512)
    numbers = 256 * values[:, 0].long() + values[:, 1]
    assert bool((numbers.abs().amax(1) == quantized.ROW_LEVELS).all())
    assert bool(((numbers * scales - x).abs() <= scales * 0.51).all())


def test_the_compiled_way_to_bytes_has_torchs_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number that there is, halves that round to the even one, and rows of one kind."""
    most = quantized.ROW_LEVELS
    every = torch.arange(-most, most + 1).float()[None]
    halves = torch.cat((every[:, 1:] - 0.5, torch.tensor([[float(most)]])), 1)
    tiny = torch.full((1, 40), 1e-44)
    spread = rows(3, 100)[:, ::3]
    inputs = [every, halves, tiny, torch.zeros(2, 7), rows(9, 1), rows(130, 640), spread]
    compiled = [quantise_rows(x) for x in inputs]
    monkeypatch.setattr(quantized, "row_bytes", lambda levels: None)
    for x, (values, scales) in zip(inputs, compiled, strict=True):
        plain_values, plain_scales = quantise_rows(x)
        assert torch.equal(scales, plain_scales)
        assert torch.equal(values, plain_values)
    assert torch.equal(256 * compiled[0][0][0, 0].long() + compiled[0][0][0, 1], every[0].long())


@pytest.mark.parametrize("bias", [False, True])
def test_an_int8_linear_is_near_the_float_one_in_every_row(bias: bool) -> None:
    plain = quantized.Linear(160, 96, bias=bias)
    with torch.no_grad():
        plain.weight.copy_(rows(1, 96 * 160, seed=1).view(96, 160))
    layer = to_int8(torch.nn.Sequential(plain))[0]
    assert isinstance(layer, Int8Linear) and layer.weight.is_meta
    x = rows(7, 160, seed=2).view(7, 1, 160)
    for ours, theirs in zip(layer(x), plain(x), strict=True):
        assert distance(ours, theirs) < NEAR
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("width", [36, 896, 1280, 6848])
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_every_machine_gets_the_same_sums(width: int, sign: int) -> None:
    # the largest values are where sums of 16 bits saturate and float32 loses whole numbers
    generator = torch.Generator().manual_seed(width)
    x = torch.randint(-128, 128, (9, 2, width), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (24, width), generator=generator, dtype=torch.int8)
    if sign:
        x.fill_(127)
        x[4:, 1] = -128
        weight.fill_(127 * sign)
        # Of equal products even a sum that is too long may come out even, and right.
        x[2:4] = torch.randint(126, 128, (2, 2, width), generator=generator, dtype=torch.int8)
        weight[1::2] = sign * torch.randint(126, 128, (12, width), generator=generator).char()
    weight[:, 0] = 127 * (sign or 1)  # the scale of each channel is 1
    high, low = ((x[:, part].double() @ weight.double().T).float() for part in (0, 1))
    assert torch.equal(quantized.exact_product(x[:, 1], weight), low)
    got = int8_product(x, torch.ones(9, 1), Int8Weight.of(weight.float()))
    assert torch.equal(got, high * 256 + low)


def test_without_exact_onednn_products_the_bits_stay_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, x = rows(40, 1280, seed=3), quantise_rows(rows(9, 1280, seed=4))
    here = int8_product(*x, Int8Weight.of(weight))
    monkeypatch.setattr(quantized, "has_exact_onednn", lambda: False)
    plain = Int8Weight.of(weight)
    assert plain.values.shape == weight.shape
    assert torch.equal(int8_product(*x, plain), here)


def test_a_row_gets_the_same_bits_in_any_company() -> None:
    layer = to_int8(torch.nn.Sequential(quantized.Linear(896, 128, bias=False)))[0]
    x = rows(300, 896, seed=5)
    whole = layer(x)
    for first, count in ((0, 1), (17, 1), (31, 2), (40, 8), (100, 33), (299, 1)):
        part = slice(first, first + count)
        assert torch.equal(layer(x[part]), whole[part]), (first, count)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(bad: float) -> None:
    layer = to_int8(torch.nn.Sequential(quantized.Linear(64, 32, bias=False)))[0]
    x = rows(3, 64)
    good = layer(x)
    x[1, 5] = bad
    y = layer(x)
    assert not bool(torch.isfinite(y[1]).any())
    assert torch.equal(y[[0, 2]], good[[0, 2]])


def test_a_row_of_zeros_gives_zeros() -> None:
    layer = to_int8(torch.nn.Sequential(quantized.Linear(64, 32, bias=False)))[0]
    assert not layer(torch.zeros(2, 64)).any()


def test_experts_in_int8_are_near_the_float_ones(decoder: Decoder) -> None:  # noqa: F811
    mixture = decoder.layers[-1].mlp
    small = to_int8(torch.nn.Sequential(mixture))[0]
    assert small.experts_gate_up.is_meta and small.experts_down.is_meta
    x = torch.randn(50, TOY.decoder.hidden_size, generator=torch.Generator().manual_seed(1))
    assert distance(small(x), mixture(x)) < 2 * NEAR  # two products one after the other
    for first in (0, 30):  # alone and together
        assert torch.equal(small(x[first : first + 1]), small(x)[first : first + 1])


@pytest.mark.parametrize("tokens", [1, 7, 50])
def test_experts_take_a_long_prompt_in_parts_and_give_the_same_bits(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TOY.decoder, hidden_size=64, expert_intermediate=64)
    mixture = MixtureOfExperts(config).eval()
    randomise(mixture, seed=3)
    small = to_int8(torch.nn.Sequential(mixture))[0]
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens))
    with torch.no_grad():
        whole = small(x)
        # three tokens' results at a time, or less than one's
        for most in (3 * config.experts_per_token * 2 * 64 * 4, 1):
            monkeypatch.setattr(quantized, "_EXPERT_BYTES", most)
            assert torch.equal(small(x), whole)


def test_the_int8_decoder_keeps_embedding_norms_and_router_whole(
    decoder: Decoder,  # noqa: F811
) -> None:
    left = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, value in to_int8(decoder).state_dict().items()
        if not value.is_meta
    }
    assert left == {"embed", "norm", "attn_norm", "ffn_norm", "router"}


def test_an_int8_decoder_gives_each_slot_the_bits_it_gets_alone(
    decoder: Decoder,  # noqa: F811
    texts: list[Tensor],  # noqa: F811
) -> None:
    small = to_int8(decoder)
    small.prepare()  # as a worker does: there is nothing left to pack
    ids = torch.stack([text[-1] for text in texts])
    together = small.decode(ids, filled_cache(small, texts), range(len(texts)))
    for slot, text in enumerate(texts):
        alone = small.decode(text[-1:], filled_cache(small, [text]), [0])[0]
        assert torch.equal(alone, together[slot])
        assert distance(together[slot], decoder(decoder.embed(text)[None])[0, -1]) < 0.1


def test_compiled_products_give_an_int8_decoder_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In widths that they take, where the machine has them; without them it is onednn's turn."""
    config = replace(
        TOY.decoder, hidden_size=64, dense_intermediate=128, expert_intermediate=64, num_layers=2
    )
    whole = Decoder(config).eval()
    randomise(whole, seed=8)
    ids = torch.randint(0, 64, (33,), generator=torch.Generator().manual_seed(9))
    compiled = to_int8(whole)
    monkeypatch.setattr(quantized, "token_products", lambda rows, weights: None)
    other = to_int8(whole)
    is_compiled = token_products(torch.int8, torch.int8) is not None
    for model, expected in ((compiled, is_compiled), (other, False)):
        model.prepare()
        assert isinstance(model.layers[-1].mlp.gate_up, quantized.Int8Experts) == expected
        assert (model.lm_head.int8.products is not None) == expected
    with torch.no_grad():
        logits = [model(model.embed(ids)[None]) for model in (compiled, other)]
    assert torch.equal(*logits)
    assert distance(logits[0], whole(whole.embed(ids)[None])) < 0.1


def test_signed_and_shifted_rows_have_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which way the rows go in depends on the machine; the far ends of a byte are the risk."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randint(-127, 128, (48, 320), generator=generator, dtype=torch.int8)
    x = torch.randint(-128, 128, (5, 320), generator=generator, dtype=torch.int8)
    x[0], x[1], x[2] = 127, -128, 0
    expected = quantized.exact_product(x, weight)
    packed = torch.ops.onednn.qlinear_prepack(weight, [8, 320])
    if not quantized.has_exact_onednn():  # no VNNI: unsigned bytes saturate, and are not used
        plain = Int8Weight(weight, torch.ones(48), torch.zeros(48, dtype=torch.int32))
        low = torch.stack((torch.zeros_like(x), x), 1)
        assert torch.equal(int8_product(low, torch.ones(5, 1), plain), expected)
        return
    for with_tiles in (False, True):
        monkeypatch.setattr(quantized, "has_amx", lambda chosen=with_tiles: chosen)
        assert torch.equal(quantized._onednn_product(x, packed), expected)


_PRODUCT = """
import torch
from ocr2cli.model.quantized import Int8Weight, has_exact_onednn, int8_product, quantise_rows
if has_exact_onednn():
    for count in (1, 2, 8, 100):
        int8_product(*quantise_rows(torch.randn(count, 256)), Int8Weight.of(torch.randn(96, 256)))
"""


def test_an_int8_product_is_no_plain_loop_on_this_machine() -> None:
    """Where oneDNN has no kernel for the types it has a plain loop, a thousand times slower. Its
    own log names the kernel of each product."""
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCT],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    products = [line for line in done.stdout.splitlines() if ",exec,cpu,matmul," in line]
    assert products or not quantized.has_exact_onednn()
    assert not [line for line in products if "ref" in line.split(",matmul,")[1].split(",")[0]]
