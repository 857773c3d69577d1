"""Prefill, decode, verify and the fixed-shape step agree with the plain whole-sequence forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from toy_model import TOY, randomise, relative_error

from ocr2cli.model import attention, linear, moe
from ocr2cli.model.attention import causal_mask
from ocr2cli.model.compiled.token_products import token_products
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.layers import Rotary, rotate
from ocr2cli.model.moe import MixtureOfExperts
from ocr2cli.weights.load import matrix_names

TOLERANCE = 1e-5
LENGTHS = (23, 5, 40)
# Widths that compiled products take; those of TOY they leave to the other ways.
EVEN = replace(TOY.decoder, dense_intermediate=64, expert_intermediate=32)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    model = Decoder(TOY.decoder).eval()
    randomise(model, seed=4)
    return model


@pytest.fixture(scope="module")
def even() -> Decoder:
    model = Decoder(EVEN).eval()
    randomise(model, seed=6)
    return model


@pytest.fixture(scope="module")
def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 64, (length,), generator=generator) for length in LENGTHS]


def filled_cache(
    decoder: Decoder, texts: list[Tensor], *, upto: int = -1, spare_slots: int = 0
) -> KVCache:
    """One slot for each text, holding all but its last tokens; other memory is rubbish."""
    cache = KVCache(TOY.decoder, len(texts) + spare_slots, 64)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(7.0)
    for slot, text in enumerate(texts):
        decoder.prefill(decoder.embed(text[:upto]), cache, slot)
    return cache


def plain_logits(decoder: Decoder, text: Tensor) -> Tensor:
    return decoder(decoder.embed(text)[None])[0]


def test_prefill_gives_the_last_row_of_the_plain_forward(
    decoder: Decoder, texts: list[Tensor]
) -> None:
    logits = decoder.prefill(decoder.embed(texts[0]), KVCache(TOY.decoder, 1, 64), 0)
    assert logits.dtype == torch.float32
    assert relative_error(logits, plain_logits(decoder, texts[0])[-1]) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_prefill_in_chunks_equals_prefill_at_once(
    decoder: Decoder, texts: list[Tensor], chunk: int
) -> None:
    cache = KVCache(TOY.decoder, 2, 64)
    for part in decoder.embed(texts[2]).split(chunk):
        logits = decoder.prefill(part, cache, 1)
    assert cache.lengths == [0, 40]
    assert relative_error(logits, plain_logits(decoder, texts[2])[-1]) < TOLERANCE


def test_decode_gives_each_slot_its_own_next_logits(decoder: Decoder, texts: list[Tensor]) -> None:
    cache = filled_cache(decoder, texts)
    order = [2, 0, 1]
    ids = torch.stack([texts[slot][-1] for slot in order])
    logits = decoder.decode(ids, cache, order)
    for row, slot in enumerate(order):
        assert relative_error(logits[row], plain_logits(decoder, texts[slot])[-1]) < TOLERANCE
    assert cache.lengths == list(LENGTHS)


@pytest.mark.parametrize("count", [4, 10])
def test_verify_gives_all_drafted_positions_in_one_step(decoder: Decoder, count: int) -> None:
    texts = [torch.arange(30) % 64, torch.arange(45) * 7 % 64]
    cache = filled_cache(decoder, texts, upto=-count)
    logits = decoder.verify(torch.stack([text[-count:] for text in texts]), cache, [0, 1])
    for row, text in enumerate(texts):
        assert relative_error(logits[row], plain_logits(decoder, text)[-count:]) < TOLERANCE


def test_a_rejected_draft_leaves_no_trace(decoder: Decoder, texts: list[Tensor]) -> None:
    cache = filled_cache(decoder, texts)
    decoder.verify(torch.tensor([[9, 9, 9]]), cache, [0])
    cache.truncate(0, LENGTHS[0] - 1)
    logits = decoder.decode(texts[0][-1:], cache, [0])
    assert relative_error(logits[0], plain_logits(decoder, texts[0])[-1]) < TOLERANCE


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0], [1]])
@pytest.mark.parametrize("spare_slots", [0, 9])
def test_the_fixed_shape_step_equals_decode(
    decoder: Decoder, texts: list[Tensor], order: list[int], spare_slots: int
) -> None:
    cache = filled_cache(decoder, texts, spare_slots=spare_slots)
    before = list(cache.lengths)
    starts = torch.tensor(before)[order]
    ids = torch.stack([texts[slot][-1] for slot in order])
    fixed = decoder.decode_fixed(ids, cache, torch.tensor(order), starts, 48)
    assert cache.lengths == before, "the step must not touch host state"
    assert relative_error(fixed, decoder.decode(ids, cache, order)) < TOLERANCE


def test_padding_rows_disturb_no_sequence(decoder: Decoder, texts: list[Tensor]) -> None:
    cache = filled_cache(decoder, texts, spare_slots=1)
    ids, slots = torch.tensor([5, 0, 0]), torch.tensor([1, 3, 3])
    starts = torch.tensor([cache.lengths[1], 0, 0])
    padded = decoder.decode_fixed(ids, cache, slots, starts, 16)
    assert relative_error(padded[:1], decoder.decode(ids[:1], cache, [1])) < TOLERANCE
    assert bool(padded.isfinite().all())


@pytest.mark.parametrize("count", [1, 3])
def test_the_way_of_a_gpu_equals_the_way_of_a_cpu(
    decoder: Decoder, texts: list[Tensor], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    ids = torch.stack([text[-count:] for text in texts])
    expected = decoder.verify(ids, filled_cache(decoder, texts, upto=-count), [0, 1, 2])
    monkeypatch.setattr(attention, "prefers_dense", lambda device, tokens: tokens <= 4)
    cache = filled_cache(decoder, texts, upto=-count)
    assert relative_error(decoder.verify(ids, cache, [0, 1, 2]), expected) < TOLERANCE
    assert cache.lengths == list(LENGTHS)


def test_whole_prompts_together_equal_each_alone(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(0, 64, (3, 21), generator=torch.Generator().manual_seed(5))
    cache = KVCache(TOY.decoder, 4, 40)
    expected = [decoder.prefill(decoder.embed(one), cache, slot) for slot, one in enumerate(ids)]
    following = decoder.decode(ids[:, 0], cache, [0, 1, 2])
    monkeypatch.setattr(attention, "prefers_together", lambda device: True)
    cache = KVCache(TOY.decoder, 4, 40)
    together = decoder.prefill_together(decoder.embed(ids), cache, [3, 0, 1])
    assert relative_error(together, torch.stack(expected)) < TOLERANCE
    assert cache.lengths == [21, 21, 0, 21]
    assert relative_error(decoder.decode(ids[:, 0], cache, [3, 0, 1]), following) < TOLERANCE


WAYS = ["plain", "packed", "compiled"]


def same_decoder(decoder: Decoder, dtype: torch.dtype, way: str = "plain") -> Decoder:
    model = copy.deepcopy(decoder).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if way == "packed":  # as on a processor without the instructions
            patch.setattr(linear, "token_products", lambda rows, weights: None)
            patch.setattr(attention, "token_attention", lambda rows: None)
        if way != "plain":
            model.prepare()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_company_and_drafts_change_no_bit_of_a_sequence(
    even: Decoder, dtype: torch.dtype, way: str
) -> None:
    """On a CPU one token alone, in a batch, and drafted give equal logits, bit by bit."""
    model = same_decoder(even, dtype, way)
    texts = torch.randint(0, 64, (3, 60), generator=torch.Generator().manual_seed(7))

    def prefilled() -> KVCache:
        cache = KVCache(TOY.decoder, 3, 64, dtype=dtype)
        for slot in range(3):
            model.prefill(model.embed(texts[slot, : 40 + slot]), cache, slot)
        return cache

    def next_ids(slot: int, count: int) -> Tensor:
        return texts[slot, 40 + slot : 40 + slot + count]

    cache = prefilled()
    alone = torch.stack(
        [
            torch.cat([model.decode(id_1, cache, [slot]) for id_1 in next_ids(slot, 6).split(1)])
            for slot in range(3)
        ]
    )
    cache = prefilled()
    ids_BK = torch.stack([next_ids(slot, 6) for slot in range(3)])
    together = [model.decode(ids_B, cache, [0, 1, 2]) for ids_B in ids_BK.T]
    assert torch.equal(torch.stack(together, dim=1), alone)
    assert torch.equal(model.verify(ids_BK, prefilled(), [0, 1, 2]), alone)
    assert torch.equal(model.verify(ids_BK[2:], prefilled(), [2]), alone[2:])


def test_the_decoder_can_be_trained(decoder: Decoder, texts: list[Tensor]) -> None:
    with torch.enable_grad():
        logits = decoder(decoder.embed(texts[0])[None])
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], texts[0][1:])
        gradients = torch.autograd.grad(loss, list(decoder.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_a_plan_masks_only_many_tokens_after_others() -> None:
    """Few tokens are attended one by one, and a whole prompt needs no mask to be causal."""
    cache = KVCache(TOY.decoder, 3, 64)
    few, many = attention.FEW_TOKENS, attention.FEW_TOKENS + 1

    def shapes(tokens: int) -> list[torch.Size | None]:
        plan = attention.plan_slots(cache, [0, 2], tokens)
        assert isinstance(plan, attention.RaggedPlan)
        return [None if mask is None else mask.shape for mask in plan.masks]

    assert shapes(many) == [None, None]
    cache.free(2)
    assert shapes(many) == [(many, 2 * many), None]
    assert shapes(few) == shapes(1) == [None, None]


def test_keys_of_the_future_are_hidden() -> None:
    assert causal_mask(2, 3, torch.device("cpu")).int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_rotary_products_depend_on_distance_only() -> None:
    cos, sin = Rotary(16, 10_000.0, 200).tables(torch.device("cpu"))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(6))

    def product(i: int, j: int) -> float:
        return float(rotate(q[None], cos[i], sin[i]) @ rotate(k[None], cos[j], sin[j]).T)

    assert product(7, 2) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(7, 2) != pytest.approx(product(2, 7), abs=1e-2)


def test_rotary_pairs_the_two_halves() -> None:
    cos, sin = Rotary(4, 100.0, 2).tables(torch.device("cpu"))
    turned = rotate(torch.tensor([1.0, 0.0, 0.0, 0.0]), cos[1], sin[1])
    assert turned.tolist() == pytest.approx([0.5403023, 0.0, 0.8414710, 0.0])


def dense_experts(layer: MixtureOfExperts, x_TD: Tensor) -> Tensor:
    """The plain path: every expert on every token, the not chosen ones times zero."""
    weights_TK, experts_TK = layer.router(x_TD)
    share_TE = torch.zeros(x_TD.shape[0], layer.router.num_experts)
    share_TE = share_TE.scatter(1, experts_TK, weights_TK)
    gate, up = torch.einsum("td,eid->eti", x_TD, layer.experts_gate_up).chunk(2, dim=-1)
    y_ETD = torch.einsum("eti,edi->etd", gate * gate.sigmoid() * up, layer.experts_down)
    return torch.einsum("te,etd->td", share_TE, y_ETD) + layer.shared(x_TD)


@pytest.mark.parametrize("tokens", [1, 2, 50])
@pytest.mark.parametrize("way", ["each", "grouped", "all"])
def test_sorted_experts_equal_the_plain_sum(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, tokens: int, way: str
) -> None:
    layer = decoder.layers[1].mlp
    assert isinstance(layer, MixtureOfExperts)
    if way == "grouped" and not hasattr(torch.nn.functional, "grouped_mm"):
        assert not moe.can_group(torch.zeros(1))
        way = "each"
    monkeypatch.setattr(moe, "can_group", lambda rows: way == "grouped")
    monkeypatch.setattr(moe, "prefers_all", lambda rows: way == "all")
    x_TD = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(tokens))
    assert relative_error(layer(x_TD), dense_experts(layer, x_TD)) < TOLERANCE


@pytest.mark.parametrize(
    ("generation", "groups"),
    [(None, False), (7, False), (8, False), (9, True), (10, True), (12, False)],
)
def test_experts_are_grouped_only_on_cards_whose_torch_asks_the_host_nothing(
    monkeypatch: pytest.MonkeyPatch, generation: int | None, groups: bool
) -> None:
    """On other cards torch's grouped product reads the groups' ends on the host, and the capture
    of a decode step fails."""

    class Rows:
        is_cuda, dtype, device = True, torch.bfloat16, torch.device("cuda")

    monkeypatch.setattr(moe, "nvidia_generation", lambda device: generation)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", None, raising=False)
    assert moe.can_group(Rows()) == groups
    Rows.dtype = torch.float32
    assert not moe.can_group(Rows())


def test_an_expert_that_overflows_is_heard_only_where_it_was_chosen(decoder: Decoder) -> None:
    layer = copy.deepcopy(decoder.layers[1].mlp)
    assert isinstance(layer, MixtureOfExperts)
    x_TD = torch.randn(9, 32, generator=torch.Generator().manual_seed(5))
    weights_TK, experts_TK = layer.router(x_TD)
    expert = int(experts_TK[0, 0])
    uses = (experts_TK == expert).any(dim=1)
    expected = layer._run_all(x_TD, weights_TK, experts_TK)
    layer.experts_down.data[expert] = torch.inf
    got = layer._run_all(x_TD, weights_TK, experts_TK)
    assert not uses.all()
    assert torch.equal(got[~uses], expected[~uses])
    assert not bool(got[uses].isfinite().any())


def test_six_experts_in_bf16_are_added_up_in_float32_and_rounded_once() -> None:
    numbers = torch.Generator().manual_seed(6)
    y_TKD = torch.randn(300, 6, 32, generator=numbers).bfloat16()
    weights_TK = torch.randn(300, 64, generator=numbers).softmax(dim=1).topk(6).values
    exact_TD = (y_TKD.double() * weights_TK.double()[..., None]).sum(dim=1)
    error_TD = (moe.sum_by_weight(y_TKD, weights_TK).double() - exact_TD).abs()
    assert bool((error_TD <= exact_TD.abs() * 2**-8 + 1e-6).all())


def test_short_sort_keys_keep_the_order_of_experts() -> None:
    experts_R = torch.randint(0, 64, (6 * 500,), generator=torch.Generator().manual_seed(2))
    keys = moe.sort_keys(experts_R.to("meta"))
    assert keys.dtype == torch.int16
    order = experts_R.to(keys.dtype).argsort(stable=True)
    assert torch.equal(order, experts_R.argsort(stable=True))


def test_chosen_probabilities_sum_to_less_than_one(decoder: Decoder) -> None:
    layer = decoder.layers[1].mlp
    assert isinstance(layer, MixtureOfExperts)
    weights_TK, experts_TK = layer.router(torch.randn(9, 32))
    assert weights_TK.dtype == torch.float32
    assert bool((weights_TK.sum(dim=1) < 1).all())
    assert all(len(set(row)) == 3 for row in experts_TK.tolist())


def test_router_works_in_float32_in_a_bf16_model() -> None:
    layer = MixtureOfExperts(TOY.decoder).bfloat16()
    x_TD = torch.randn(4, 32).bfloat16()
    expected = torch.softmax(x_TD.double() @ layer.router.weight.double().T, dim=-1)
    assert torch.allclose(layer.router.probabilities(x_TD).double(), expected, atol=1e-6)


def test_a_bf16_decoder_stays_near_float32(decoder: Decoder, texts: list[Tensor]) -> None:
    low = same_decoder(decoder, torch.bfloat16)
    cache = KVCache(TOY.decoder, 1, 64, dtype=torch.bfloat16)
    low.prefill(low.embed(texts[2][:-1]), cache, 0)
    logits = low.decode(texts[2][-1:], cache, [0])[0]
    assert logits.dtype == torch.float32
    assert relative_error(logits, plain_logits(decoder, texts[2])[-1]) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_equal_bits(
    decoder: Decoder, texts: list[Tensor], dtype: torch.dtype
) -> None:
    plain, packed = (same_decoder(decoder, dtype, way) for way in ("plain", "packed"))
    assert torch.equal(plain_logits(packed, texts[2]), plain_logits(plain, texts[2]))
    assert packed.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_products_stay_near_and_keep_the_weights_as_they_are(
    even: Decoder, texts: list[Tensor], dtype: torch.dtype
) -> None:
    plain, compiled = (same_decoder(even, dtype, way) for way in ("plain", "compiled"))
    mixture = cast(MixtureOfExperts, compiled.layers[-1].mlp)
    if token_products(dtype, dtype) is not None:  # else it is packed, as above
        assert all(m.products for m in compiled.modules() if isinstance(m, linear.Linear))
        assert mixture.products and not mixture.packed
        assert {p.device.type for p in compiled.parameters()} == {"cpu"}
    near = 1e-5 if dtype == torch.float32 else 0.02
    logits = plain_logits(plain, texts[2])
    assert relative_error(plain_logits(compiled, texts[2]), logits) < near
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_packing_gives_the_plain_weights_up(decoder: Decoder) -> None:
    packed = same_decoder(decoder, torch.float32, "packed")
    if not linear.can_pack(decoder.lm_head.weight):
        assert packed.lm_head.weight.device.type == "cpu"
        return
    kept = {name for name, p in packed.named_parameters() if p.device.type != "meta"}
    assert all("norm" in name or "embed" in name or "router" in name for name in kept)


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_bf16_weight_under_float32_rows_gives_the_float32_products_bits(
    rows: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "WIDENED_ITEMS", 1 << 10)  # a weight of several uneven pieces
    weight = torch.randn(83, 48).bfloat16()
    bias = torch.randn(83).bfloat16() if has_bias else None
    x = torch.randn(rows, 2, 48)
    wide = None if bias is None else bias.float()
    expected = linear.linear(x, weight.float(), wide)
    assert torch.equal(linear.linear(x, weight, bias), expected)
    assert torch.equal(linear.linear(x[:, 0], weight, bias), expected[:, 0])


@pytest.mark.parametrize("rows", [1, 16, 3 * 288, 4 * 288])
def test_a_widened_product_of_a_row_is_its_own_in_any_number_of_rows(rows: int) -> None:
    """A tile has 288 image tokens and queries: three printed tiles, or these and a bare one."""
    weight, bias = torch.randn(768, 256).bfloat16(), torch.randn(768)
    x = torch.randn(2 * linear.STEADY_ROWS + 1, 256)
    for company in (1120, 4 * 288, len(x)):
        shared = min(rows, company)
        whole = linear.linear(x[:company], weight, bias)
        assert torch.equal(linear.linear(x[:shared], weight, bias), whole[:shared])


@pytest.mark.parametrize("way", ["plain", "compiled"])
def test_a_decoder_of_bf16_matrices_writes_the_bits_of_the_float32_one(
    even: Decoder, texts: list[Tensor], way: str
) -> None:
    rounded = same_decoder(even, torch.bfloat16).state_dict()
    whole = same_decoder(even, torch.float32)
    whole.load_state_dict({name: value.float() for name, value in rounded.items()})
    narrow = copy.deepcopy(whole)
    for name in matrix_names(narrow):
        owner, _, part = name.rpartition(".")
        setattr(narrow.get_submodule(owner), part, nn.Parameter(rounded[name], requires_grad=False))
    held = {p.dtype for p in narrow.parameters()}
    assert held == {torch.float32, torch.bfloat16}
    if way == "compiled":
        whole.prepare()
        narrow.prepare()
    for text in texts:
        assert torch.equal(plain_logits(narrow, text), plain_logits(whole, text))
    caches = [KVCache(TOY.decoder, 2, 64) for _ in range(2)]
    for model, cache in zip((whole, narrow), caches, strict=True):
        for slot, text in enumerate(texts[:2]):
            model.prefill(model.embed(text[:-1]), cache, slot)
    last = torch.stack([text[-1] for text in texts[:2]])
    steps = [m.decode(last, c, [0, 1]) for m, c in zip((whole, narrow), caches, strict=True)]
    assert torch.equal(*steps)
