"""Self-tests of the vision encoder that need no reference, and v1 against a plain restatement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from toy_model import TOY, TOY_V1, normalise, random_views, randomise, relative_error

from ocr2cli.model import attention, query_encoder, sam
from ocr2cli.model.config import ModelConfig
from ocr2cli.model.model import OcrModel
from ocr2cli.model.query_encoder import QueryEncoder, query_mask
from ocr2cli.model.vision import VisionEncoder

TOLERANCE = 1e-5


def test_the_query_mask_for_two_image_tokens() -> None:
    assert query_mask(2).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]


def test_the_full_model_has_3389119360_parameters() -> None:
    with torch.device("meta"):
        model = OcrModel(ModelConfig())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in _parts(model)}
    assert count == {"sam": 94_979_328, "vision": 454_385_280, "decoder": 2_934_734_080}
    assert count["vision"] + count["decoder"] == 3_389_119_360


def _parts(model: OcrModel) -> list[tuple[str, torch.nn.Module]]:
    return [("sam", model.vision.sam), ("vision", model.vision), ("decoder", model.decoder)]


@pytest.fixture(scope="module")
def encoder() -> QueryEncoder:
    assert TOY.query_encoder is not None
    model = QueryEncoder(TOY.query_encoder).eval()
    randomise(model, seed=8)
    return model


def test_changing_a_query_changes_no_image_row_and_no_earlier_query(encoder: QueryEncoder) -> None:
    image = torch.randn(1, 144, 24, generator=torch.Generator().manual_seed(9))
    before = _rows_of_first_layer(encoder, image), encoder(image)
    with torch.no_grad():
        encoder.tile_queries[100] += 1
    after = _rows_of_first_layer(encoder, image), encoder(image)
    with torch.no_grad():
        encoder.tile_queries[100] -= 1
    assert torch.equal(before[0][:, :144], after[0][:, :144])
    assert torch.equal(before[1][:, :100], after[1][:, :100])
    assert bool((before[1][:, 100:] != after[1][:, 100:]).any(dim=-1).all())


def _rows_of_first_layer(encoder: QueryEncoder, image: Tensor) -> Tensor:
    rows: list[Tensor] = []
    hook = encoder.layers[0].register_forward_hook(lambda *call: rows.append(call[2]))
    encoder(image)
    hook.remove()
    return rows[0]


def test_a_view_of_a_size_the_model_never_saw_is_refused(encoder: QueryEncoder) -> None:
    with pytest.raises(ValueError, match="no query table for 100 image tokens"):
        encoder(torch.zeros(1, 100, 24))


def test_a_card_without_shared_key_heads_under_a_mask_gets_each_head_its_own(
    encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(1, 144, 24, generator=torch.Generator().manual_seed(9))
    shared = encoder(image)
    attend, seen = F.scaled_dot_product_attention, []

    def noted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append((q.shape[1] == k.shape[1] == v.shape[1], options["enable_gqa"]))
        return attend(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(query_encoder, "has_masked_gqa", lambda device: False)
    assert relative_error(encoder(image), shared) < TOLERANCE
    assert set(seen) == {(True, False)}


@pytest.mark.parametrize("chunk", [100 * 24 * 24, 2 * 24**4, 1 << 21])
@pytest.mark.parametrize("attend", [sam._attend_in_chunks, sam._attend_plainly])
def test_chunked_attention_equals_the_whole_bias(
    monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Tensor], chunk: int
) -> None:
    generator = torch.Generator().manual_seed(10)
    qkv = torch.randn(2, 24 * 24, 3, 3, 8, generator=generator)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    rows, columns = torch.randn(2, 2, 3, 24 * 24, 24, generator=generator)
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=sam.spread_bias(rows, columns))
    monkeypatch.setattr(sam, "BIAS_CHUNK", chunk)
    monkeypatch.setattr(sam, "SCORES_CHUNK", chunk)
    assert relative_error(attend(q, k, v, rows, columns), whole) < TOLERANCE


def test_both_ways_of_attending_a_map_come_close_to_the_exact_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which one runs depends on the machine; no machine's suite would see the other."""
    generator = torch.Generator().manual_seed(12)
    for side in (6, 24):
        q, k, v = torch.randn(3, 2, 3, side * side, 32, generator=generator).bfloat16()
        rows, columns = torch.randn(2, 2, 3, side * side, side, generator=generator).bfloat16()
        bias = sam.spread_bias(rows.double(), columns.double())
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias)
        for with_tiles in (False, True):
            monkeypatch.setattr(sam, "has_amx", lambda chosen=with_tiles: chosen)
            monkeypatch.setattr(sam, "SCORES_CHUNK", 24**3)
            got = sam.attend_with_positions(q, k, v, rows, columns)
            assert got.dtype == torch.bfloat16
            assert relative_error(got.double(), exact) < (8e-3 if with_tiles else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "chunk"), [(6, 7 * 36**2), (12, 144 * 50)])
def test_a_map_has_the_same_bits_alone_and_in_company(
    monkeypatch: pytest.MonkeyPatch, side: int, chunk: int, dtype: torch.dtype
) -> None:
    """The chunks cut between the heads of one map, and within the rows of a large one."""
    generator = torch.Generator().manual_seed(13)
    monkeypatch.setattr(sam, "SCORES_CHUNK", chunk)
    qkv = torch.randn(5, side * side, 3, 3, 16, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    rows, columns = torch.randn(2, 5, 3, side * side, side, generator=generator).to(dtype)
    together = sam._attend_plainly(q, k, v, rows, columns)
    for index in range(5):
        one = slice(index, index + 1)
        alone = sam._attend_plainly(q[one], k[one], v[one], rows[one], columns[one])
        assert torch.equal(alone[0], together[index])


def test_attention_takes_the_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain fallback is right too, and more than twice as slow: it takes the shapes it gets."""
    monkeypatch.setattr(sam, "has_amx", lambda: True)
    q, k, v = torch.randn(3, 1, 2, 24 * 24, 8).bfloat16()
    rows, columns = torch.randn(2, 1, 2, 24 * 24, 24).bfloat16()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        sam.attend_with_positions(q, k, v, rows, columns)
        sam.attend_with_positions(q[:, :, :196], k[:, :, :196], v[:, :, :196], *_terms(14))
        q, k, v = q.float(), k.float(), v.float()
        attention.attend_one(q[0], k[0], v[0], None)
        attention.attend_one(q[0, :, :40], k[0], v[0], torch.ones(40, 576, dtype=torch.bool))
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["aten::_scaled_dot_product_flash_attention_for_cpu"] == 5
    assert "aten::_scaled_dot_product_attention_math" not in counts


def _terms(side: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.randn(2, 1, 2, side * side, side).bfloat16()
    return rows, columns


def test_the_product_of_places_equals_the_spread_bias() -> None:
    rows, columns = torch.randn(2, 5, 9, 14, generator=torch.Generator().manual_seed(11))
    product = torch.cat((rows, columns), dim=-1) @ sam.key_places(14, rows)
    assert torch.equal(product, sam.spread_bias(rows, columns))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_map_reads_the_same_with_its_bias_as_a_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """With gradients on, a CPU attends as a GPU does."""
    generator = torch.Generator().manual_seed(14)
    q, k, v = torch.randn(3, 2, 2, 24 * 24, 8, generator=generator).to(dtype)
    rows, columns = torch.randn(2, 2, 2, 24 * 24, 24, generator=generator).to(dtype)
    with torch.enable_grad():
        summed = sam.attend_with_positions(q, k, v, rows, columns)
        monkeypatch.setattr(sam, "prefers_product", lambda q_BHNC: True)
        assert torch.equal(sam.attend_with_positions(q, k, v, rows, columns), summed)


@pytest.mark.parametrize("side", [14, 48, 64, 3])
def test_windows_come_back_as_they_were(side: int) -> None:
    x = torch.randn(2, side, side, 4)
    windows = sam.split_windows(x, 14)
    assert windows.shape[0] == 2 * (-(-side // 14)) ** 2
    assert torch.equal(sam.join_windows(windows, 14, side), x)


def test_windows_are_filled_with_zeros_at_the_right_and_bottom() -> None:
    windows = sam.split_windows(torch.ones(1, 48, 48, 1), 14)
    assert windows[3, :, :6].eq(1).all()
    assert windows[3, :, 6:].eq(0).all()
    assert windows[12, 6:].eq(0).all()


def test_bf16_positions_are_resized_in_float32_and_rounded_once() -> None:
    positions = torch.randn(1, 64, 64, 8, generator=torch.Generator().manual_seed(3)).bfloat16()
    exact = sam.resize_positions(positions.double(), 48)
    error = (sam.resize_positions(positions, 48).double() - exact).abs()
    assert bool((error <= exact.abs() * 2**-8 + 1e-6).all())


def test_kept_tables_follow_the_weights(ours: OcrModel) -> None:
    encoder = ours.vision.sam
    pixels = normalise(random_views(1, 768, seed=12))
    first = encoder(pixels)
    before = encoder.blocks[1].attn.rel_pos_h.clone()
    encoder.blocks[1].attn.rel_pos_h.mul_(2)
    changed = encoder(pixels)
    encoder.blocks[1].attn.rel_pos_h.copy_(before)
    assert relative_error(changed, first) > 1e-3
    assert torch.equal(encoder(pixels), first)


def test_a_view_does_not_see_its_batch(ours: OcrModel, our_pages: dict[int, Tensor]) -> None:
    """The six tiles were encoded together; one alone gives the same rows."""
    alone = ours.vision.encode_views(random_views(6, 768, seed=2)[4:5])[0]
    assert relative_error(our_pages[6][4 * 144 : 5 * 144], alone) < TOLERANCE


def test_the_vision_encoder_can_be_trained() -> None:
    model = VisionEncoder(TOY)
    randomise(model, seed=13)
    with torch.enable_grad():
        rows = model(normalise(random_views(1, 768, seed=14)))
        page = model.assemble(rows, torch.zeros(256, 32), (1, 1))
        loss = (page * torch.randn(page.shape)).sum()
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    assert unused == ["query_encoder.global_queries"]


def test_v1_equals_a_plain_restatement(vision_v1: VisionEncoder) -> None:
    views = random_views(1, 640, seed=15)
    image = vision_v1.sam(normalise(views))[0].flatten(1).T
    expected = _clip_restated(vision_v1, image)
    assert image.shape == (100, 24)
    assert relative_error(vision_v1.encode_views(views)[0], expected) < TOLERANCE


def test_v1_at_1024_needs_no_resized_positions(vision_v1: VisionEncoder) -> None:
    image = torch.randn(256, 24, generator=torch.Generator().manual_seed(16))
    expected = _clip_restated(vision_v1, image)
    features = torch.cat((vision_v1.clip(image[None])[0], image), dim=-1)
    assert relative_error(vision_v1.projector(features), expected) < TOLERANCE


def _clip_restated(model: VisionEncoder, image_nD: Tensor) -> Tensor:
    """Section 13.1 word by word, one token matrix, no fused anything."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    image = image_nD.double()
    side = int(image.shape[0] ** 0.5)
    table = weights["clip.position_embedding.weight"]
    square = table[1:].T.reshape(1, 24, 16, 16)
    if side != 16:
        square = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)
    positions = torch.cat((table[:1], square.flatten(2)[0].T))
    x = torch.cat((weights["clip.class_embedding"][None], image)) + positions
    x = _layer_norm(x, weights, "clip.pre_norm")
    for k in range(2):
        name = f"clip.layers.{k}"
        x = x + _clip_attention(_layer_norm(x, weights, f"{name}.norm1"), weights, name)
        y = _affine(_layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
        x = x + _affine(y / (1 + torch.exp(-1.702 * y)), weights, f"{name}.mlp.fc2")
    features = torch.cat((x[1:], image), dim=1)
    return _affine(features, weights, "projector").float()


def _clip_attention(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    q, k, v = _affine(x, weights, f"{name}.attn.qkv").split(24, dim=1)
    heads = []
    for h in range(3):
        part = slice(8 * h, 8 * h + 8)
        share = torch.softmax(q[:, part] @ k[:, part].T / 8**0.5, dim=1)
        heads.append(share @ v[:, part])
    return _affine(torch.cat(heads, dim=1), weights, f"{name}.attn.out")


def _affine(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def test_v1_lays_tiles_out_as_one_raster_with_newlines(vision_v1: VisionEncoder) -> None:
    """Row by row: tile rows side by side, a newline after each, the global view, the separator."""
    columns, rows, side = 2, 3, 10
    tiles = torch.randn(columns * rows, side * side, 32)
    whole = torch.randn(256, 32)
    expected = []
    for y in range(rows * side):
        for x in range(columns * side):
            tile = (y // side) * columns + x // side
            expected.append(tiles[tile, (y % side) * side + x % side])
        expected.append(vision_v1.image_newline)
    for y in range(16):
        expected += [*whole[16 * y : 16 * y + 16], vision_v1.image_newline]
    expected.append(vision_v1.view_separator)
    page = vision_v1.assemble(tiles, whole, (columns, rows))
    assert page.shape[0] == 903
    assert torch.equal(page, torch.stack(expected))


@pytest.mark.parametrize(("side", "count"), [(8, 73), (10, 111), (16, 273), (20, 421)])
def test_v1_without_tiles_has_the_nominal_lengths(
    vision_v1: VisionEncoder, side: int, count: int
) -> None:
    page = vision_v1.assemble(torch.zeros(0, 100, 32), torch.zeros(side * side, 32), (1, 1))
    assert page.shape[0] == count


def test_both_ways_of_attending_a_token_come_close_to_the_exact_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which one runs depends on the machine; no machine's suite would see the other."""
    generator = torch.Generator().manual_seed(11)
    q, k, v = (torch.randn(4, n, 32, generator=generator).bfloat16() for n in (3, 200, 200))
    exact = [
        F.scaled_dot_product_attention(
            q[:, t : t + 1].double(), k[:, : 198 + t].double(), v[:, : 198 + t].double()
        )
        for t in range(3)
    ]
    for with_tiles in (False, True):
        monkeypatch.setattr(attention, "has_amx", lambda chosen=with_tiles: chosen)
        got = attention.attend_one(q, k, v, None)
        assert relative_error(got.double(), torch.cat(exact, dim=1)) < 5e-3
        for t in range(3):  # a draft's tokens get the bits of a step of one token
            alone = attention.attend_one(q[:, t : t + 1], k[:, : 198 + t], v[:, : 198 + t], None)
            assert torch.equal(alone[:, 0], got[:, t])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = False


PLACES = ["cpu", "cpu, as on a card"]
if torch.cuda.is_available():  # there by the real compiler
    PLACES.append(pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("config", [TOY, TOY_V1], ids=["v2", "v1"])
def test_a_compiled_encoder_gives_the_same_tokens_for_any_number_of_views(
    config: ModelConfig, place: str, tiles: Tensor, views: Tensor, monkeypatch
) -> None:
    """Each block is one graph, made twice for tiles (one number of them, then any) and once more
    for global views; never again for other numbers."""
    if place == "cpu, as on a card":
        monkeypatch.setattr(sam, "prefers_product", lambda q_BHNC: True)
        monkeypatch.setattr(sam, "_attend_plainly", _with_a_bias_of_products)
    vision = VisionEncoder(config).eval()
    randomise(vision, seed=12)
    vision.to(place.split(",")[0])
    batches = (tiles[:3], tiles[:2], tiles[:4], views)
    with torch.inference_mode():
        expected = [vision.encode_views(batch) for batch in batches]
        calls: list[int] = []
        vision.compile_blocks(backend=_counting(calls, is_real=place == "cuda"))
        found = [vision.encode_views(batch) for batch in batches]
        num_graphs = len(calls)
        vision.encode_views(tiles)
    for mine, plain in zip(found, expected, strict=True):
        assert relative_error(mine, plain) < TOLERANCE
    second = vision.clip if config.is_v1 else vision.query_encoder
    assert num_graphs >= 3 and len(calls) == num_graphs
    assert num_graphs <= 3 * (len(vision.sam.blocks) + len(second.layers))


def _with_a_bias_of_products(q, k, v, by_row, by_column) -> Tensor:
    bias = torch.cat((by_row, by_column), dim=-1) @ sam.key_places(by_row.shape[-1], by_row)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _counting(calls: list[int], *, is_real: bool) -> Callable[..., Any]:
    """A backend that notes each graph; one that is not real runs it as it is."""
    compiler = torch._dynamo.lookup_backend("inductor") if is_real else None

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        calls.append(len(inputs))
        return compiler(graph, inputs) if compiler else graph.forward

    return backend


@pytest.mark.usefixtures("fresh_compiler")
def test_a_block_that_the_compiler_refuses_runs_as_it_is(views: Tensor) -> None:
    def refuse(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("no compiler is installed")

    vision = VisionEncoder(TOY).eval()
    randomise(vision, seed=12)
    with torch.inference_mode():
        expected = vision.encode_views(views)
        vision.compile_blocks(backend=refuse)
        assert torch.equal(vision.encode_views(views), expected)
