"""Ours against transformers' deepseek_ocr2: same random weights, same pixels, float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_model import TOY, normalise, random_views, relative_error

from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.model import OcrModel

TOLERANCE = 1e-5
NUM_STEPS = 64


@pytest.mark.parametrize("side", [768, 1024])
def test_sam_map_equals_the_reference(reference: Any, ours: OcrModel, side: int) -> None:
    pixels = normalise(random_views(1, side, seed=side))
    expected = reference.model.vision_tower.sam_encoder(pixels).last_hidden_state
    assert relative_error(ours.vision.sam(pixels), expected) < TOLERANCE


def test_an_almost_even_map_is_normed_as_in_the_reference(reference: Any, ours: OcrModel) -> None:
    """There the number that keeps a norm from dividing by 0 counts: elsewhere no error shows it."""
    x_BGGD = 1e-3 * torch.randn(1, 48, 48, 16, generator=torch.Generator().manual_seed(48))
    theirs, sam = reference.model.vision_tower.sam_encoder, ours.vision.sam
    for layer, block in zip(theirs.layers, sam.blocks, strict=True):
        assert relative_error(block(x_BGGD), layer(x_BGGD)) < TOLERANCE
    neck = sam.neck(x_BGGD.permute(0, 3, 1, 2))
    assert relative_error(neck, theirs.neck(x_BGGD)) < TOLERANCE


@pytest.mark.parametrize("count", [144, 256])
def test_query_encoder_equals_the_reference(reference: Any, ours: OcrModel, count: int) -> None:
    image = torch.randn(2, count, 24, generator=torch.Generator().manual_seed(count))
    tower = reference.model.vision_tower
    table = tower.query_768_resolution if count == 144 else tower.query_1024_resolution
    queries = table.weight.expand(2, -1, -1)
    output = tower.vision_encoder(
        inputs_embeds=torch.cat([image, queries], dim=1), num_patches=count
    )
    expected = output.last_hidden_state[:, count:]
    assert relative_error(ours.vision.query_encoder(image), expected) < TOLERANCE


@pytest.mark.parametrize("num_tiles", [0, 2, 3, 6])
def test_page_rows_equal_the_reference(
    reference_pages: dict[int, Tensor], our_pages: dict[int, Tensor], num_tiles: int
) -> None:
    assert our_pages[num_tiles].shape[0] == 144 * num_tiles + 257
    assert relative_error(our_pages[num_tiles], reference_pages[num_tiles]) < TOLERANCE


def test_decoder_hidden_equals_the_reference(reference: Any, ours: OcrModel) -> None:
    ids = torch.randint(0, 60, (2, 37), generator=torch.Generator().manual_seed(5))
    expected = reference.model.language_model(input_ids=ids).last_hidden_state
    hidden = ours.decoder.hidden(ours.decoder.embed(ids))
    assert relative_error(hidden, expected) < TOLERANCE
    logits = reference.lm_head(expected)
    assert relative_error(ours.decoder.logits(hidden), logits) < TOLERANCE


@pytest.mark.parametrize("num_tiles", [0, 2, 3, 6])
def test_greedy_ids_equal_the_reference(
    reference: Any,
    ours: OcrModel,
    reference_pages: dict[int, Tensor],
    our_pages: dict[int, Tensor],
    num_tiles: int,
) -> None:
    theirs = reference.generate(
        inputs_embeds=_prompt(ours, reference_pages[num_tiles])[None],
        max_new_tokens=NUM_STEPS,
        min_new_tokens=NUM_STEPS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids, logits = _greedy(ours, _prompt(ours, our_pages[num_tiles]))
    assert relative_error(logits, torch.cat(theirs.logits)) < TOLERANCE
    assert ids == theirs.sequences[0].tolist()
    assert len(set(ids)) > 3, "a text of one repeated id would prove little"


def test_a_whole_page_through_the_reference_s_own_front_door(
    reference: Any, ours: OcrModel, our_pages: dict[int, Tensor], views: Tensor, tiles: Tensor
) -> None:
    rows = our_pages[2]
    prompt = [0] + [TOY.image_token_id] * rows.shape[0] + [7, 11, 13]
    output = reference(
        input_ids=torch.tensor([prompt]),
        pixel_values=normalise(views),
        pixel_values_local=normalise(tiles[:2]),
        num_local_patches=[2],
    )
    logits = ours.decoder(_prompt(ours, rows)[None])
    assert relative_error(logits, output.logits) < TOLERANCE


def _prompt(model: OcrModel, rows_SD: Tensor) -> Tensor:
    begin, end = model.decoder.embed(torch.tensor([0, 7, 11, 13])).split((1, 3))
    return torch.cat((begin, rows_SD, end))


def _greedy(model: OcrModel, x_TD: Tensor) -> tuple[list[int], Tensor]:
    cache = KVCache(TOY.decoder, 1, x_TD.shape[0] + NUM_STEPS)
    steps = [model.decoder.prefill(x_TD, cache, 0)[None]]
    while len(steps) < NUM_STEPS:
        steps.append(model.decoder.decode(steps[-1].argmax(-1), cache, [0]))
    logits = torch.cat(steps)
    return logits.argmax(-1).tolist(), logits
