"""The name map: every stored name has a place or a reason, in every naming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_checkpoint import V1_CONFIG, V2_CONFIG, original_shapes

from ocr2cli.model.config import ClipConfig, ModelConfig, SamConfig
from ocr2cli.model.model import OcrModel
from ocr2cli.weights.names import (
    count_parameters,
    decoder_params,
    detect_naming,
    model_params,
    vision_params,
    why_ignored,
)
from ocr2cli.weights.params import Naming
from ocr2cli.weights.read_config import parse_config

V2 = ModelConfig()
V1 = ModelConfig(
    sam=SamConfig(downsample_channels=(512, 1024)), query_encoder=None, clip=ClipConfig()
)
INDEX = Path(__file__).parents[2] / "../shared/reference/deepseek-ocr-2" \
    "/model.safetensors.index.json"

# The published form at full size, from the second description in conftest.
FULL_V2: dict[str, Any] = {
    "language_config": {
        "hidden_size": 1280, "num_hidden_layers": 12, "intermediate_size": 6848,
        "first_k_dense_replace": 1, "n_routed_experts": 64, "n_shared_experts": 2,
        "moe_intermediate_size": 896, "vocab_size": 129280,
    },
    "vision_config": {"width": {
        "sam_vit_b": {
            "width": 768, "layers": 12, "heads": 12, "global_attn_indexes": [2, 5, 8, 11],
            "downsample_channels": [512, 1024], "window_size": 14, "neck_channels": 256,
            "mlp_dim": 3072,
        },
        "qwen2-0-5b": {"dim": 896, "layers": 24, "heads": 14, "kv_heads": 2, "mlp_dim": 4864},
    }},
}


def names_of(config: ModelConfig, naming: Naming) -> list[str]:
    return [piece.name for param in model_params(config) for piece in param.pieces(naming)]


def published_names() -> set[str]:
    """The real index where it is at hand, else the list generated from the sizes."""
    if INDEX.exists():
        return set(json.loads(INDEX.read_text())["weight_map"])
    return set(original_shapes(FULL_V2))


def test_every_published_name_has_exactly_one_place():
    names = names_of(V2, Naming.ORIGINAL)
    assert len(names) == 2707
    assert len(set(names)) == 2707
    assert set(names) == published_names()


def test_the_generated_list_is_the_published_one():
    assert set(original_shapes(FULL_V2)) == published_names()


@pytest.mark.parametrize(
    ("config", "ours"), [(V2_CONFIG, None), (V1_CONFIG, None), (FULL_V2, V2)],
    ids=["toy v2", "toy v1", "full v2"],
)
def test_shapes_are_those_of_the_second_description(config, ours):
    ours = ours or parse_config(config, "toy")
    stored = {p.name: p.shape for param in model_params(ours) for p in param.original}
    assert stored == original_shapes(config)


def test_parameter_counts_are_the_published_ones():
    assert count_parameters(V2) == 3_389_119_360
    assert count_parameters(V1) == 3_336_106_240


def test_gguf_tensor_counts_are_those_of_real_files():
    assert sum(len(p.gguf) for p in decoder_params(V2.decoder)) == 155
    assert sum(len(p.gguf) for p in vision_params(V2)) == 473


@pytest.mark.parametrize("config", [V2, V1], ids=["v2", "v1"])
def test_our_names_and_shapes_are_the_models(config):
    with torch.device("meta"):
        model = OcrModel(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {p.name: p.shape for p in model_params(config) if p.is_used} == wanted


def test_transformers_names_and_shapes_are_its_own():
    from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration

    config = DeepseekOcr2Config(
        vision_config={"encoder_config": {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2,
        }},
        text_config={
            "hidden_size": 1280, "num_hidden_layers": 12, "num_attention_heads": 10,
            "intermediate_size": 6848, "moe_intermediate_size": 896, "vocab_size": 129280,
            "num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 11,
        },
    )
    with torch.device("meta"):
        model = DeepseekOcr2ForConditionalGeneration(config)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = {p.name: p.shape for param in model_params(V2) for p in param.transformers}
    assert len(ours) == 617
    assert ours == theirs


@pytest.mark.parametrize("config", [V2, V1], ids=["v2", "v1"])
@pytest.mark.parametrize("naming", list(Naming))
def test_pieces_tile_their_parameter_without_gap_or_overlap(config, naming):
    if config is V1 and naming is Naming.TRANSFORMERS:
        return  # transformers has no v1 model
    with torch.device("meta"):
        for param in model_params(config):
            pieces = param.pieces(naming)
            ours = torch.empty(param.shape)
            boxes = [ours[p.index] if p.index else ours for p in pieces]
            for piece, box in zip(pieces, boxes, strict=True):
                squeezed = [size for size in piece.shape if size != 1]
                assert [size for size in box.shape if size != 1] == squeezed
            assert sum(box.numel() for box in boxes) == param.numel
            # Different starts: with the sizes above, no two boxes can overlap.
            assert len({box.storage_offset() for box in boxes}) == len(boxes)


def test_leftover_query_tables_are_ignored_and_the_used_ones_are_not():
    assert why_ignored("model.qwen2_model.query_512.weight")
    assert why_ignored("model.qwen2_model.query_1280.weight")
    assert not why_ignored("model.qwen2_model.query_768.weight")
    assert not why_ignored("model.qwen2_model.query_1024.weight")
    assert why_ignored("model.vision_model.embeddings.position_ids")
    for prefix in ("", "model.", "model.language_model.", "model.layers.3.self_attn.",
                   "model.qwen2_model.model.model.", "model.vision_tower.vision_encoder."):
        assert why_ignored(f"{prefix}rotary_emb.inv_freq")
    assert not why_ignored("model.layers.0.mlp.extra.weight")


@pytest.mark.parametrize("naming", list(Naming))
def test_a_naming_is_told_by_its_names(naming):
    assert detect_naming(names_of(V2, naming)) is naming


def test_names_of_another_model_are_no_naming():
    assert detect_naming({"transformer.h.0.attn.weight"}) is None
