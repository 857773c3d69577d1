"""config.json to ModelConfig: the original form (v2 and v1) and transformers' native one.

Knows the keys and the defaults of each form; knows nothing about tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocr2cli.errors import ModelError
from ocr2cli.model.config import (
    ClipConfig,
    DecoderConfig,
    ModelConfig,
    QueryEncoderConfig,
    SamConfig,
)

MAX_CONFIG_BYTES = 1_000_000
# Far above any model of this family; a lying config must not make us build a billion layers.
MAX_COUNT = 4096
MAX_SIZE = 10_000_000
MAX_EXPERTS = 65_536


def read_config(folder: Path) -> ModelConfig:
    """Sizes of the model in `folder`, from its config.json.

    Raises: ModelError naming the file and the key.
    """
    path = folder / "config.json"
    return parse_config(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most a megabyte. Raises: ModelError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}). A model folder holds config.json, "
            "tokenizer.json and *.safetensors."
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes; it is no config.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}). Download the file again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object. Download the file again.")
    return value


def parse_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """Sizes from a parsed config.json; `where` names it in errors. Raises: ModelError."""
    top = Section(data, where)
    is_native = data.get("model_type") == "deepseek_ocr2"
    config = _native(top) if is_native else _original(top)
    check_config(config, where)
    return config


class Section:
    """A JSON object whose values are checked as they are taken out."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data = data
        self._where = where

    def __contains__(self, key: str) -> bool:
        return self._data.get(key) is not None

    def section(self, key: str) -> Section:
        value = self._data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "a JSON object")
        return Section(value or {}, f"{self._where}: {key}")

    def count(self, key: str, default: int) -> int:
        """Layers, heads, experts: 1 to 4096."""
        return self.whole(key, default, low=1, high=MAX_COUNT)

    def whole(self, key: str, default: int, *, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self._data.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._data.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise self.error(key, "a positive number")
        return float(value)

    def wholes(self, key: str, default: tuple[int, ...], *, low: int) -> tuple[int, ...]:
        value = self._data.get(key)
        if value is None:
            return default
        is_list = isinstance(value, list) and len(value) <= MAX_COUNT
        if not is_list or not all(type(v) is int and low <= v <= MAX_SIZE for v in value):
            raise self.error(key, f"a list of whole numbers of at least {low}")
        return tuple(value)

    def words(self, key: str) -> tuple[str, ...]:
        value = self._data.get(key) or []
        if not isinstance(value, list) or len(value) > MAX_COUNT:
            raise self.error(key, "a list of words")
        return tuple(str(word) for word in value)

    def token_id(self, key: str, default: int) -> int:
        """An id; of a list the first, which is the one the model ends with."""
        value = self._data.get(key)
        if isinstance(value, list) and value:
            return Section({key: value[0]}, self._where).whole(key, default, low=0)
        return self.whole(key, default, low=0)

    def require(self, key: str, *allowed: object) -> None:
        """Refuse a setting whose computation this program does not have."""
        value = self._data.get(key)
        if value is not None and value not in allowed:
            wanted = " or ".join(repr(choice) for choice in allowed)
            raise ModelError(
                f"{self._where}: {key} is {value!r}; only {wanted} can be run. "
                "This is another model than DeepSeek-OCR and DeepSeek-OCR-2."
            )

    def error(self, key: str, wanted: str) -> ModelError:
        shown = repr(self._data.get(key))[:60]
        return ModelError(f"{self._where}: {key} is {shown}, not {wanted}. Download it again.")


def _original(top: Section) -> ModelConfig:
    """deepseek-ai's config.json. What it leaves out has the value of the published model.

    The keys after the published ones (window_size, kv_heads, ...) are ours: `ocr2 convert` adds
    them for models of other sizes, which the original form has no place for.
    """
    vision = top.section("vision_config")
    width = vision.section("width")
    is_v2, is_v1 = "qwen2-0-5b" in width, "clip-l-14-224" in width
    if is_v2 == is_v1:
        raise top.error(
            "vision_config",
            "that of DeepSeek-OCR-2 (width.qwen2-0-5b) or DeepSeek-OCR (width.clip-l-14-224)",
        )
    encoder = _original_encoder(width.section("qwen2-0-5b")) if is_v2 else None
    clip = _original_clip(width.section("clip-l-14-224")) if is_v1 else None
    sam = _original_sam(vision, width.section("sam_vit_b"), encoder)
    text = top.section("language_config") if "language_config" in top else top
    # The published file has the text keys in both places; transformers 5 puts the base at the top.
    theta = _rope_theta(text, _rope_theta(top, DecoderConfig().rope_theta))
    decoder = _original_decoder(text, theta)
    return ModelConfig(
        sam=sam, query_encoder=encoder, clip=clip, decoder=decoder,
        bos_token_id=text.token_id("bos_token_id", 0),
        eos_token_id=text.token_id("eos_token_id", 1),
        image_token_id=top.whole("image_token_id", ModelConfig().image_token_id, low=0),
    )


def _original_sam(
    vision: Section, section: Section, encoder: QueryEncoderConfig | None
) -> SamConfig:
    default = SamConfig()
    hidden = section.whole("width", default.hidden_size)
    first, last = _two(section, "downsample_channels", (512, 1024))
    return SamConfig(
        hidden_size=hidden,
        num_layers=section.count("layers", default.num_layers),
        num_heads=section.count("heads", default.num_heads),
        mlp_hidden=section.whole("mlp_dim", 4 * hidden),
        patch_size=section.whole("patch_size", default.patch_size),
        image_size=vision.whole("image_size", default.image_size),
        window_size=section.count("window_size", default.window_size),
        global_blocks=section.wholes("global_attn_indexes", default.global_blocks, low=0),
        neck_channels=section.whole("neck_channels", default.neck_channels),
        # The published v2 config says 1024 where the weights have the encoder's 896.
        downsample_channels=(first, encoder.hidden_size if encoder else last),
    )


def _original_encoder(section: Section) -> QueryEncoderConfig:
    default = QueryEncoderConfig()
    return QueryEncoderConfig(
        hidden_size=section.whole("dim", default.hidden_size),
        intermediate_size=section.whole("mlp_dim", default.intermediate_size),
        num_layers=section.count("layers", default.num_layers),
        num_heads=section.count("heads", default.num_heads),
        num_kv_heads=section.count("kv_heads", default.num_kv_heads),
        norm_eps=section.number("norm_eps", default.norm_eps),
        rope_theta=_rope_theta(section, default.rope_theta),
    )


def _original_clip(section: Section) -> ClipConfig:
    default = ClipConfig()
    width = section.whole("width", default.hidden_size)
    side = section.whole("image_size", 224) // section.whole("patch_size", 14)
    return ClipConfig(
        hidden_size=width,
        intermediate_size=section.whole("mlp_dim", 4 * width),
        num_layers=section.count("layers", default.num_layers),
        num_heads=section.count("heads", default.num_heads),
        num_positions=side * side + 1,
    )


def _original_decoder(text: Section, rope_theta: float) -> DecoderConfig:
    text.require("moe_layer_freq", 1)
    text.require("scoring_func", "softmax")
    text.require("use_mla", False)
    default = DecoderConfig()
    return _decoder(text, default, num_dense=text.whole(
        "first_k_dense_replace", default.num_dense_layers, low=0, high=MAX_COUNT
    ), rope_theta=rope_theta)


def _decoder(
    text: Section, default: DecoderConfig, *, num_dense: int, rope_theta: float
) -> DecoderConfig:
    """The decoder's keys, which both forms share."""
    text.require("attention_bias", False)
    text.require("hidden_act", "silu")
    text.require("n_group", 1)
    text.require("norm_topk_prob", False)
    text.require("routed_scaling_factor", 1.0)
    text.require("tie_word_embeddings", False)
    text.require("topk_method", "greedy")
    heads = text.count("num_attention_heads", default.num_heads)
    text.require("num_key_value_heads", heads)
    return DecoderConfig(
        vocab_size=text.whole("vocab_size", default.vocab_size),
        hidden_size=text.whole("hidden_size", default.hidden_size),
        num_layers=text.count("num_hidden_layers", default.num_layers),
        num_heads=heads,
        num_dense_layers=num_dense,
        dense_intermediate=text.whole("intermediate_size", default.dense_intermediate),
        num_experts=text.count("n_routed_experts", default.num_experts),
        experts_per_token=text.count("num_experts_per_tok", default.experts_per_token),
        num_shared_experts=text.count("n_shared_experts", default.num_shared_experts),
        expert_intermediate=text.whole("moe_intermediate_size", default.expert_intermediate),
        norm_eps=text.number("rms_norm_eps", default.norm_eps),
        rope_theta=rope_theta,
        max_positions=text.whole("max_position_embeddings", default.max_positions),
    )


def _native(top: Section) -> ModelConfig:
    """transformers' `deepseek_ocr2`. What it leaves out has transformers' class default, which
    is often not the published model's value: transformers saves only what differs from it.
    """
    vision, text = top.section("vision_config"), top.section("text_config")
    encoder = _native_encoder(vision.section("encoder_config"))
    sam = _native_sam(vision.section("sam_config"))
    # Ids may stand beside text_config in files written by hand.
    bos, eos = top.token_id("bos_token_id", 1), top.token_id("eos_token_id", 2)
    return ModelConfig(
        sam=sam, query_encoder=encoder, clip=None, decoder=_native_decoder(text),
        bos_token_id=text.token_id("bos_token_id", bos),
        eos_token_id=text.token_id("eos_token_id", eos),
        image_token_id=top.whole("image_token_id", 128_815, low=0),
    )


def _native_sam(section: Section) -> SamConfig:
    default = SamConfig()
    for key, value in (("hidden_act", "gelu"), ("use_abs_pos", True), ("use_rel_pos", True),
                       ("qkv_bias", True), ("num_channels", 3)):
        section.require(key, value)
    hidden = section.whole("hidden_size", default.hidden_size)
    return SamConfig(
        hidden_size=hidden,
        num_layers=section.count("num_hidden_layers", default.num_layers),
        num_heads=section.count("num_attention_heads", default.num_heads),
        mlp_hidden=section.whole("mlp_dim", int(hidden * section.number("mlp_ratio", 4.0))),
        patch_size=section.whole("patch_size", default.patch_size),
        image_size=section.whole("image_size", default.image_size),
        window_size=section.count("window_size", default.window_size),
        global_blocks=section.wholes("global_attn_indexes", default.global_blocks, low=0),
        neck_channels=section.whole("output_channels", default.neck_channels),
        downsample_channels=_two(section, "downsample_channels", default.downsample_channels),
        norm_eps=section.number("layer_norm_eps", default.norm_eps),
    )


def _native_encoder(section: Section) -> QueryEncoderConfig:
    section.require("hidden_act", "silu")
    section.require("use_sliding_window", False)
    return QueryEncoderConfig(
        hidden_size=section.whole("hidden_size", 4096),
        intermediate_size=section.whole("intermediate_size", 22016),
        num_layers=section.count("num_hidden_layers", 32),
        num_heads=section.count("num_attention_heads", 32),
        num_kv_heads=section.count("num_key_value_heads", 32),
        norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(section, 10_000.0),
    )


def _native_decoder(text: Section) -> DecoderConfig:
    defaults = DecoderConfig(
        vocab_size=102_400, hidden_size=4096, num_layers=32, num_heads=32,
        dense_intermediate=11_008, num_experts=64, num_shared_experts=2,
        expert_intermediate=1407, max_positions=2048,
    )
    text.require("mlp_bias", False)
    kinds = text.words("mlp_layer_types")
    num_dense = kinds.count("dense")
    layers = text.count("num_hidden_layers", defaults.num_layers)
    if kinds != ("dense",) * num_dense + ("sparse",) * (layers - num_dense):
        raise text.error("mlp_layer_types", f"'dense' layers, then 'sparse' ones, {layers} in all")
    if "num_experts_per_tok" not in text:
        raise text.error("num_experts_per_tok", "a whole number")
    return _decoder(text, defaults, num_dense=num_dense, rope_theta=_rope_theta(text, 10_000.0))


def _rope_theta(section: Section, default: float) -> float:
    """transformers 4 saves rope_theta and rope_scaling, 5 rope_parameters, whatever the form.

    Where several say it the last one counts, as in transformers.
    """
    theta = section.number("rope_theta", default)
    for key in ("rope_parameters", "rope_scaling"):
        rope = section.section(key)
        rope.require("type", "default")
        rope.require("rope_type", "default")
        theta = rope.number("rope_theta", theta)
    return theta


def _two(section: Section, key: str, default: tuple[int, int]) -> tuple[int, int]:
    values = section.wholes(key, default, low=1)
    if len(values) != 2:
        raise section.error(key, "a list of two whole numbers")
    return values[0], values[1]


def check_config(config: ModelConfig, where: str) -> None:
    """Sizes that must fit one another; the message names both."""
    sam, decoder, encoder = config.sam, config.decoder, config.query_encoder
    rules = [
        (sam.hidden_size % sam.num_heads == 0, "SAM's width is not a multiple of its heads"),
        (decoder.hidden_size % (2 * decoder.num_heads) == 0,
         "the decoder's width is not a multiple of twice its heads"),
        (decoder.num_dense_layers <= decoder.num_layers, "more dense layers than layers"),
        (decoder.experts_per_token <= decoder.num_experts, "more experts per token than experts"),
        (sam.image_size % sam.patch_size == 0, "SAM's image size is not a multiple of its patch"),
        (all(block < sam.num_layers for block in sam.global_blocks),
         "a global attention block beyond SAM's last"),
        (decoder.num_layers * decoder.num_experts <= MAX_EXPERTS, "too many experts in all"),
        (config.bos_token_id < decoder.vocab_size, "bos_token_id is outside the vocabulary"),
        (config.eos_token_id < decoder.vocab_size, "eos_token_id is outside the vocabulary"),
        (config.image_token_id < decoder.vocab_size, "image_token_id is outside the vocabulary"),
    ]
    if encoder is not None:
        rules += [
            (encoder.hidden_size % (2 * encoder.num_heads) == 0,
             "the query encoder's width is not a multiple of twice its heads"),
            (encoder.num_heads % encoder.num_kv_heads == 0,
             "the query encoder's heads are not a multiple of its key-value heads"),
            (sam.downsample_channels[1] == encoder.hidden_size,
             "SAM's last width is not the query encoder's"),
        ]
    if config.clip is not None:
        rules.append((config.clip.hidden_size == sam.downsample_channels[1],
                      "SAM's last width is not CLIP's"))
    for holds, complaint in rules:
        if not holds:
            raise ModelError(f"{where}: {complaint}. The file is damaged or of another model.")
