"""Sizes and vocabulary from GGUF metadata, and the other way round.

Knows the keys llama.cpp reads and writes for this family; knows nothing about tensor data.
Source: model-spec 7.3 and 7.4; llama.cpp `conversion/` and `tools/mtmd/clip.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ocr2cli.errors import ModelError
from ocr2cli.model.config import (
    ClipConfig,
    DecoderConfig,
    ModelConfig,
    QueryEncoderConfig,
    SamConfig,
)
from ocr2cli.text.vocabulary import tokenizer_json
from ocr2cli.weights.read_config import Section, check_config
from ocr2cli.weights.read_gguf import GgufHeader
from ocr2cli.weights.weight_file import StoredTensor

ARCHITECTURE = "deepseek2-ocr"
PROJECTOR_V2, PROJECTOR_V1 = "deepseekocr2", "deepseekocr"
# llama.cpp compiles the query encoder's theta in; a file of ours that needs another says so here.
THETA_KEY = "clip.vision.rope.freq_base"
# Written where the id is not the published model's; else it is that of the token of this name.
IMAGE_KEY = "ocr2.image_token_id"
IMAGE_TOKEN = "<image>"


def gguf_config(text: GgufHeader, vision: GgufHeader, where: tuple[str, str]) -> ModelConfig:
    """Sizes of a GGUF pair. where: the two files' names for errors. Raises: ModelError."""
    if text.metadata.get("general.architecture") != ARCHITECTURE:
        raise ModelError(
            f"{where[0]}: general.architecture is {_shown(text, 'general.architecture')}, not "
            f"'{ARCHITECTURE}'. Give the text half with --model and the vision half with --mmproj."
        )
    if vision.metadata.get("clip.projector_type") not in (PROJECTOR_V2, PROJECTOR_V1):
        raise ModelError(
            f"{where[1]}: clip.projector_type is {_shown(vision, 'clip.projector_type')}, not "
            f"'{PROJECTOR_V2}' or '{PROJECTOR_V1}'. Give the mmproj file of this model."
        )
    sizes = _Shapes(vision.table, where[1])
    keys = Section(vision.metadata, where[1])
    is_v2 = vision.metadata["clip.projector_type"] == PROJECTOR_V2
    ids = Section(text.metadata, where[0])
    config = ModelConfig(
        sam=_sam(keys, sizes),
        query_encoder=_query_encoder(keys, sizes) if is_v2 else None,
        clip=None if is_v2 else _clip(keys, sizes),
        decoder=_decoder(text, where[0]),
        bos_token_id=ids.token_id("tokenizer.ggml.bos_token_id", 0),
        eos_token_id=ids.token_id("tokenizer.ggml.eos_token_id", 1),
        image_token_id=ids.token_id(IMAGE_KEY, _image_token(text)),
    )
    check_config(config, " and ".join(where))
    return config


def gguf_tokenizer_json(text: GgufHeader, where: str) -> str:
    """The text of the `tokenizer.json` that equals the file's vocabulary. Raises: ModelError."""
    def strings(key: str) -> list[str]:
        value = text.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{where}: {key} is no list of strings. Download the file again.")
        return [str(item) for item in value]

    types = text.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or not all(isinstance(kind, int) for kind in types):
        raise ModelError(f"{where}: it has no tokenizer.ggml.token_type. Download it again.")
    if text.metadata.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(
            f"{where}: tokenizer.ggml.model is {_shown(text, 'tokenizer.ggml.model')}; this "
            "family has the byte-level 'gpt2'. Use a GGUF file of DeepSeek-OCR."
        )
    pre = text.metadata.get("tokenizer.ggml.pre", "")
    result = tokenizer_json(
        strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges"),
        [int(kind) for kind in types], pre=str(pre),
    )
    if any("\ud800" <= letter <= "\udfff" for letter in result):
        raise ModelError(f"{where}: a token of its vocabulary is not UTF-8. Download it again.")
    return result


class _Shapes:
    """Tensor sizes by name. They are read where metadata is known to be wrong or missing."""

    def __init__(self, table: Mapping[str, StoredTensor], where: str) -> None:
        self._table, self._where = table, where

    def size(self, name: str, axis: int, default: int) -> int:
        """The size of one axis, row-major; `default` when the tensor is not there."""
        stored = self._table.get(name)
        if stored is None:
            return default
        if not -len(stored.shape) <= axis < len(stored.shape):
            raise ModelError(f"{self._where}: {name} has {len(stored.shape)} axes.")
        return stored.shape[axis]


def _sam(keys: Section, sizes: _Shapes) -> SamConfig:
    default = SamConfig()
    window = keys.count("clip.vision.window_size", default.window_size)
    layers = keys.count("clip.vision.sam.block_count", default.num_layers)
    patch = sizes.size("v.sam.patch_embd.weight", -1, default.patch_size)
    grid = sizes.size("v.sam.pos_embd.weight", -2, default.image_size // default.patch_size)
    rows = [
        sizes.size(f"v.sam.blk.{block}.attn.pos_h.weight", 0, 2 * window - 1)
        for block in range(layers)
    ]
    first = sizes.size("v.sam.net_2.weight", 0, default.downsample_channels[0])
    last = sizes.size("v.sam.net_3.weight", 0, default.downsample_channels[1])
    hidden = keys.whole("clip.vision.sam.embedding_length", default.hidden_size)
    return SamConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=keys.count("clip.vision.sam.head_count", default.num_heads),
        mlp_hidden=sizes.size("v.sam.blk.0.mlp.lin1.weight", 0, 4 * hidden),
        patch_size=patch,
        image_size=grid * patch,
        window_size=window,
        # No key says which blocks see the whole grid; their tables are longer than a window's.
        global_blocks=tuple(b for b, count in enumerate(rows) if count != 2 * window - 1),
        neck_channels=sizes.size("v.sam.neck.0.weight", 0, default.neck_channels),
        downsample_channels=(first, last),
    )


def _query_encoder(keys: Section, sizes: _Shapes) -> QueryEncoderConfig:
    default = QueryEncoderConfig()
    stated = keys.whole("clip.vision.feed_forward_length", default.intermediate_size)
    return QueryEncoderConfig(
        hidden_size=keys.whole("clip.vision.embedding_length", default.hidden_size),
        intermediate_size=sizes.size("v.blk.0.ffn_up.weight", 0, stated),
        num_layers=keys.count("clip.vision.block_count", default.num_layers),
        num_heads=keys.count("clip.vision.attention.head_count", default.num_heads),
        num_kv_heads=keys.count("clip.vision.attention.head_count_kv", default.num_kv_heads),
        norm_eps=_short(keys.number("clip.vision.attention.layer_norm_epsilon", default.norm_eps)),
        rope_theta=keys.number(THETA_KEY, default.rope_theta),
        tile_queries=sizes.size("v.resample_query_768.weight", 0, default.tile_queries),
        global_queries=sizes.size("v.resample_query_1024.weight", 0, default.global_queries),
    )


def _clip(keys: Section, sizes: _Shapes) -> ClipConfig:
    # The file's epsilon (1e-6) and feed_forward_length are not CLIP's: llama.cpp overrides both.
    default = ClipConfig()
    width = keys.whole("clip.vision.embedding_length", default.hidden_size)
    return ClipConfig(
        hidden_size=width,
        intermediate_size=sizes.size("v.blk.0.ffn_up.weight", 0, 4 * width),
        num_layers=keys.count("clip.vision.block_count", default.num_layers),
        num_heads=keys.count("clip.vision.attention.head_count", default.num_heads),
        num_positions=sizes.size("v.position_embd.weight", 0, default.num_positions),
    )


def _decoder(text: GgufHeader, where: str) -> DecoderConfig:
    """rope.dimension_count is 0 in real files and not read: heads are width / head_count wide."""
    default = DecoderConfig()
    p = f"{ARCHITECTURE}."
    keys = Section(text.metadata, where)
    heads = keys.count(f"{p}attention.head_count", default.num_heads)
    keys.require(f"{p}attention.head_count_kv", heads)
    keys.require(f"{p}expert_weights_norm", False)
    keys.require(f"{p}expert_weights_scale", 1.0)
    keys.require(f"{p}expert_gating_func", 1)
    keys.require(f"{p}expert_group_count", 1)
    vocab = keys.whole(f"{p}vocab_size", default.vocab_size)
    eps = keys.number(f"{p}attention.layer_norm_rms_epsilon", default.norm_eps)
    return DecoderConfig(
        vocab_size=_Shapes(text.table, where).size("token_embd.weight", 0, vocab),
        hidden_size=keys.whole(f"{p}embedding_length", default.hidden_size),
        num_layers=keys.count(f"{p}block_count", default.num_layers),
        num_heads=heads,
        num_dense_layers=keys.whole(f"{p}leading_dense_block_count", 0, low=0, high=4096),
        dense_intermediate=keys.whole(f"{p}feed_forward_length", default.dense_intermediate),
        num_experts=keys.count(f"{p}expert_count", default.num_experts),
        experts_per_token=keys.count(f"{p}expert_used_count", default.experts_per_token),
        num_shared_experts=keys.count(f"{p}expert_shared_count", default.num_shared_experts),
        expert_intermediate=keys.whole(
            f"{p}expert_feed_forward_length", default.expert_intermediate
        ),
        norm_eps=_short(eps),
        rope_theta=keys.number(f"{p}rope.freq_base", default.rope_theta),
        max_positions=keys.whole(f"{p}context_length", default.max_positions),
    )


def _image_token(text: GgufHeader) -> int:
    tokens = text.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        for number, token in enumerate(tokens):
            if token == IMAGE_TOKEN:
                return number
    return ModelConfig().image_token_id


def _short(value: float) -> float:
    """A float32 of the file as the decimal it was made from: 1e-06, not 9.99999997e-07."""
    return float(f"{value:.7g}")


def _shown(header: GgufHeader, key: str) -> str:
    return repr(header.metadata.get(key))[:60]
