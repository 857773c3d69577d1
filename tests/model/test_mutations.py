"""The parity tests can fail: each classic mistake, put in on purpose, breaks parity.

A mutant replaces one function; the stage it belongs to must then leave the reference's result by
at least a hundred times the tolerance.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_parity import TOLERANCE
from torch import Tensor
from toy_model import normalise, relative_error

from ocr2cli.model import attention, layers, moe, query_encoder, sam
from ocr2cli.model.model import OcrModel
from ocr2cli.model.vision import VisionEncoder

BROKEN = 100 * TOLERANCE

_query_mask = query_encoder.query_mask
_position_terms = sam.position_terms
_attend = sam.attend_with_positions


@pytest.fixture(scope="module")
def tile_map(reference: Any, tiles: Tensor) -> Tensor:
    with torch.no_grad():
        return reference.model.vision_tower.sam_encoder(normalise(tiles[:1])).last_hidden_state


def causal_mask(count: int, device: torch.device | None = None) -> Tensor:
    return torch.ones(2 * count, 2 * count, dtype=torch.bool).tril()


def mask_without_order(count: int, device: torch.device | None = None) -> Tensor:
    mask = _query_mask(count)
    mask[count:] = True
    return mask


def mask_where_images_see_queries(count: int, device: torch.device | None = None) -> Tensor:
    mask = _query_mask(count)
    mask[:count] = True
    return mask


@pytest.mark.parametrize("mutant", [causal_mask, mask_without_order, mask_where_images_see_queries])
def test_a_wrong_query_mask_breaks_parity(
    reference: Any, ours: OcrModel, monkeypatch: pytest.MonkeyPatch, mutant: Any
) -> None:
    monkeypatch.setattr(query_encoder, "query_mask", mutant)
    image = torch.randn(1, 144, 24, generator=torch.Generator().manual_seed(0))
    tower = reference.model.vision_tower
    both = torch.cat([image, tower.query_768_resolution.weight[None]], dim=1)
    expected = tower.vision_encoder(inputs_embeds=both, num_patches=144).last_hidden_state
    error = relative_error(ours.vision.query_encoder(image), expected[:, 144:])
    assert error > BROKEN


def terms_of_scaled_q(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    return _position_terms(q * q.shape[-1] ** -0.5, rel_h, rel_w)


def rows_for_columns(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    return _position_terms(q, rel_w, rel_h)


def key_minus_query(table: Tensor, side: int) -> Tensor:
    return sam_relative_table(table, side).transpose(0, 1)


def cropped_table(table: Tensor, side: int) -> Tensor:
    middle = table.shape[0] // 2
    return sam_relative_table(table[middle - side + 1 : middle + side], side)


def positions_without_antialias(positions: Tensor, side: int) -> Tensor:
    planes = positions.permute(0, 3, 1, 2)
    return F.interpolate(planes, size=(side, side), mode="bicubic").permute(0, 2, 3, 1)


def windows_repeating_the_edge(x: Tensor, window: int) -> Tensor:
    missing = -x.shape[1] % window
    planes = F.pad(x.permute(0, 3, 1, 2), (0, missing, 0, missing), mode="replicate")
    return split_windows(planes.permute(0, 2, 3, 1), window)


def masking_filled_keys(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if rows.shape[-1] != 14:
        return _attend(q, k, v, rows, columns)
    inside = split_windows(torch.ones(1, 48, 48, 1), 14).flatten(1)[:, None, None, :] > 0
    bias = sam.spread_bias(rows, columns).masked_fill(~inside, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


sam_relative_table = sam.relative_table
split_windows = sam.split_windows


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("position_terms", terms_of_scaled_q),
        ("position_terms", rows_for_columns),
        ("relative_table", key_minus_query),
        ("relative_table", cropped_table),
        ("resize_positions", positions_without_antialias),
        ("split_windows", windows_repeating_the_edge),
        ("attend_with_positions", masking_filled_keys),
    ],
)
def test_a_wrong_sam_breaks_parity(
    ours: OcrModel,
    tiles: Tensor,
    tile_map: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    mutant: Any,
) -> None:
    monkeypatch.setattr(sam, name, mutant)
    monkeypatch.setattr(layers.Derived, "get", lambda self, value, key, make: make(value))
    error = relative_error(ours.vision.sam(normalise(tiles[:1])), tile_map)
    assert error > BROKEN


def global_first(self: VisionEncoder, tiles: Tensor, whole: Tensor, grid: Any) -> Tensor:
    return torch.cat((whole, tiles.flatten(0, 1), self.view_separator[None]))


def separator_between(self: VisionEncoder, tiles: Tensor, whole: Tensor, grid: Any) -> Tensor:
    return torch.cat((tiles.flatten(0, 1), self.view_separator[None], whole))


def tiles_interleaved(self: VisionEncoder, tiles: Tensor, whole: Tensor, grid: Any) -> Tensor:
    raster = tiles.transpose(0, 1).flatten(0, 1)
    return torch.cat((raster, whole, self.view_separator[None]))


@pytest.mark.parametrize("mutant", [global_first, separator_between, tiles_interleaved])
def test_a_wrong_order_of_rows_breaks_parity(
    ours: OcrModel, reference_pages: dict[int, Tensor], our_pages: dict[int, Tensor], mutant: Any
) -> None:
    page = our_pages[3]
    rows = mutant(ours.vision, page[:432].view(3, 144, -1), page[432:688], (3, 1))
    assert relative_error(rows, reference_pages[3]) > BROKEN


_choose = moe.Router.forward


def renormalised(self: moe.Router, x: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = _choose(self, x)
    return weights / weights.sum(dim=-1, keepdim=True), experts


def softmax_of_the_chosen(self: moe.Router, x: Tensor) -> tuple[Tensor, Tensor]:
    logits, experts = F.linear(x, self.weight).topk(self.experts_per_token, dim=-1)
    return logits.softmax(dim=-1), experts


def one_expert_fewer(self: moe.Router, x: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = _choose(self, x)
    return weights * (torch.arange(weights.shape[1]) < weights.shape[1] - 1), experts


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    (cos, _), (_, sin) = cos.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return pairs.flatten(-2)


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (moe.Router, "forward", renormalised),
        (moe.Router, "forward", softmax_of_the_chosen),
        (moe.Router, "forward", one_expert_fewer),
        (attention, "rotate", interleaved),
    ],
)
def test_a_wrong_decoder_breaks_parity(
    reference: Any,
    ours: OcrModel,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    mutant: Any,
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    ids = torch.randint(0, 60, (1, 40), generator=torch.Generator().manual_seed(1))
    expected = reference.model.language_model(input_ids=ids).last_hidden_state
    assert relative_error(ours.decoder.hidden(ours.decoder.embed(ids)), expected) > BROKEN
