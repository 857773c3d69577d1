"""Ours against transformers' deepseek_ocr2: same random weights, same pixels, float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TOY, normalise, random_views, relative_error
from torch import Tensor

from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.model import OcrModel

TOLERANCE = 1e-5
GRIDS = {0: (1, 1), 2: (1, 2), 3: (3, 1), 6: (2, 3)}
NUM_STEPS = 64


@pytest.mark.parametrize("side", [768, 1024])
def test_sam_map_equals_the_reference(reference: Any, ours: OcrModel, side: int) -> None:
    pixels = normalise(random_views(1, side, seed=side))
    expected = reference.model.vision_tower.sam_encoder(pixels).last_hidden_state
    assert relative_error(ours.vision.sam(pixels), expected) < TOLERANCE


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


@pytest.mark.parametrize("num_tiles", GRIDS)
def test_page_rows_equal_the_reference(reference: Any, ours: OcrModel, num_tiles: int) -> None:
    views, tiles = _page(num_tiles)
    features = reference.model.get_image_features(
        normalise(views), normalise(tiles) if num_tiles else None, [num_tiles]
    )
    rows = _rows(ours, views, tiles)
    assert rows.shape[0] == 144 * num_tiles + 257
    assert relative_error(rows, features.pooler_output[0]) < TOLERANCE


def test_decoder_hidden_equals_the_reference(reference: Any, ours: OcrModel) -> None:
    ids = torch.randint(0, 60, (2, 37), generator=torch.Generator().manual_seed(5))
    expected = reference.model.language_model(input_ids=ids).last_hidden_state
    hidden = ours.decoder.hidden(ours.decoder.embed(ids))
    assert relative_error(hidden, expected) < TOLERANCE
    logits = reference.lm_head(expected)
    assert relative_error(ours.decoder.logits(hidden), logits) < TOLERANCE


@pytest.mark.parametrize("num_tiles", GRIDS)
def test_greedy_ids_equal_the_reference(reference: Any, ours: OcrModel, num_tiles: int) -> None:
    views, tiles = _page(num_tiles)
    rows = _rows(ours, views, tiles)
    prompt = [0] + [TOY.image_token_id] * rows.shape[0] + [7, 11, 13]
    out = reference.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        pixel_values=normalise(views),
        pixel_values_local=normalise(tiles) if num_tiles else None,
        num_local_patches=[num_tiles],
        max_new_tokens=NUM_STEPS,
        min_new_tokens=NUM_STEPS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    x = ours.decoder.embed(torch.tensor(prompt))
    x[1 : 1 + rows.shape[0]] = rows
    ids, logits = _greedy(ours, x)
    assert relative_error(logits, torch.cat(out.logits)) < TOLERANCE
    assert ids == out.sequences[0, len(prompt) :].tolist()
    assert len(set(ids)) > 3, "a text of one repeated id would prove little"


def _page(num_tiles: int) -> tuple[Tensor, Tensor]:
    return random_views(1, 1024, seed=num_tiles), random_views(num_tiles, 768, seed=100 + num_tiles)


def _rows(model: OcrModel, views: Tensor, tiles: Tensor) -> Tensor:
    tokens = model.vision.encode_views(tiles) if tiles.shape[0] else torch.zeros(0, 144, 32)
    global_QD = model.vision.encode_views(views)[0]
    return model.vision.assemble(tokens, global_QD, GRIDS[tiles.shape[0]])


def _greedy(model: OcrModel, x_TD: Tensor) -> tuple[list[int], Tensor]:
    cache = KVCache(TOY.decoder, 1, x_TD.shape[0] + NUM_STEPS)
    steps = [model.decoder.prefill(x_TD, cache, 0)[None]]
    while len(steps) < NUM_STEPS:
        steps.append(model.decoder.decode(steps[-1].argmax(-1), cache, [0]))
    logits = torch.cat(steps)
    return logits.argmax(-1).tolist(), logits
