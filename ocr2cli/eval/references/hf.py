"""The transformers port `deepseek_ocr2` on the same weights, pixels, prompt ids and n-gram rule.

Knows transformers; shares with ours only the config reader, the tokenizer and (in the plain
variant) the views. The prompts and the rules of decoding are written here a second time, on
purpose: an error in ours must not be repeated in what it is compared with. Source: model-spec 5.1,
6.1, 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocr2cli.config import DecodeConfig, DryConfig, TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.errors import ModelError, UsageError, extra_hint
from ocr2cli.eval.cases import Case, file_sha256
from ocr2cli.eval.reference import Reference, ReferenceOutput
from ocr2cli.model.config import ModelConfig
from ocr2cli.pages import PageImage
from ocr2cli.text.tokenizer import Tokenizer
from ocr2cli.weights.digest import small_paths

if TYPE_CHECKING:
    import torch


def hf_reference(
    folder: Path,
    config: ModelConfig,
    *,
    weights_digest: str,
    device: str = "cpu",
    dtype: str = "float32",
    exempt_tokens: Sequence[str] = (),
    has_own_processor: bool = False,
) -> Reference:
    """transformers on a folder of safetensors; nothing is loaded before the first page.

    has_own_processor: let transformers cut the views too, which pads one pixel differently on a
    quarter of all page sizes (model-spec 12, row 1).
    Raises: UsageError when transformers is missing or too old, or the model is not v2.
    """
    versions = _versions()
    if config.is_v1:
        raise UsageError("--ref hf reads DeepSeek-OCR-2 only; for v1 give --ref llama.cpp.")
    reader = _Reader(folder, config, device, dtype, exempt_tokens, has_own_processor)
    identity = {
        "weights": weights_digest,
        "device": device,
        "dtype": dtype,
        "processor": "transformers" if has_own_processor else "ocr2",
        "exempt_tokens": " ".join(exempt_tokens),
        **{path.name: file_sha256(path) for path in small_paths(folder)},
        **versions,
    }
    return Reference("hf-processor" if has_own_processor else "hf", identity, reader.read)


def native_config(config: ModelConfig) -> Any:
    """Our sizes as a transformers config; its own defaults are not the model's values."""
    from transformers.models.deepseek_ocr2 import DeepseekOcr2Config

    sam, encoder, decoder = config.sam, config.query_encoder, config.decoder
    assert encoder is not None
    num_sparse = decoder.num_layers - decoder.num_dense_layers
    return DeepseekOcr2Config(
        vision_config={
            "sam_config": {
                "hidden_size": sam.hidden_size,
                "num_hidden_layers": sam.num_layers,
                "num_attention_heads": sam.num_heads,
                "mlp_dim": sam.mlp_hidden,
                "image_size": sam.image_size,
                "patch_size": sam.patch_size,
                "window_size": sam.window_size,
                "global_attn_indexes": list(sam.global_blocks),
                "output_channels": sam.neck_channels,
                "downsample_channels": list(sam.downsample_channels),
                "layer_norm_eps": sam.norm_eps,
            },
            "encoder_config": {
                "hidden_size": encoder.hidden_size,
                "intermediate_size": encoder.intermediate_size,
                "num_hidden_layers": encoder.num_layers,
                "num_attention_heads": encoder.num_heads,
                "num_key_value_heads": encoder.num_kv_heads,
                "rms_norm_eps": encoder.norm_eps,
                "rope_parameters": {"rope_type": "default", "rope_theta": encoder.rope_theta},
            },
        },
        text_config={
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_heads,
            "intermediate_size": decoder.dense_intermediate,
            "n_routed_experts": decoder.num_experts,
            "num_experts_per_tok": decoder.experts_per_token,
            "n_shared_experts": decoder.num_shared_experts,
            "moe_intermediate_size": decoder.expert_intermediate,
            "mlp_layer_types": ["dense"] * decoder.num_dense_layers + ["sparse"] * num_sparse,
            "rms_norm_eps": decoder.norm_eps,
            "max_position_embeddings": decoder.max_positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
        },
        image_token_id=config.image_token_id,
    )


class _Reader:
    """Owns the loaded model."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        device: str,
        dtype: str,
        exempt_tokens: Sequence[str],
        has_own_processor: bool,
    ) -> None:
        self._folder = folder
        self._config = config
        self._device = device
        self._dtype = dtype
        self._exempt_tokens = exempt_tokens
        self._has_own_processor = has_own_processor
        self._model: Any = None
        self._tokenizer: Tokenizer | None = None

    def read(self, case: Case, page: PageImage) -> ReferenceOutput:
        import torch

        model, tokenizer = self._load()
        inputs = self._own_views(page) if self._has_own_processor else self._our_views(page)
        num_tiles = int(inputs["num_local_patches"][0])
        encoder = self._config.query_encoder
        assert encoder is not None
        num_visual = encoder.tile_queries * num_tiles + encoder.global_queries + 1
        ids = _prompt_ids(case, tokenizer, num_visual, self._config.image_token_id)
        inputs["input_ids"] = torch.tensor([ids], device=self._device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            first = model(**inputs, logits_to_keep=1).logits[0, -1].float().cpu().numpy()
            new_ids = self._generate(inputs, case.decode, len(ids), tokenizer)
        return ReferenceOutput(tokenizer.decode(new_ids), tuple(new_ids), first)

    def _generate(
        self, inputs: dict[str, Any], decode: DecodeConfig, num_prompt: int, tokenizer: Tokenizer
    ) -> list[int]:
        from transformers import LogitsProcessorList

        room = self._config.decoder.max_positions - num_prompt
        limit = min(decode.max_new_tokens or room, room)
        exempt = set(tokenizer.ids_of(self._exempt_tokens))
        output = self._model.generate(
            **inputs,
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._config.eos_token_id,
            pad_token_id=self._config.eos_token_id,
            logits_processor=LogitsProcessorList(_processors(decode, num_prompt, exempt)),
        )
        new_ids: list[int] = output[0, num_prompt:].tolist()
        if new_ids and new_ids[-1] == self._config.eos_token_id:
            new_ids.pop()
        return new_ids

    def _our_views(self, page: PageImage) -> dict[str, Any]:
        import torch

        views = make_views(page, TileConfig())
        inputs = {
            "pixel_values": self._normalise(torch.from_numpy(views.global_view)[None]),
            "num_local_patches": [views.num_tiles],
        }
        if views.num_tiles:
            inputs["pixel_values_local"] = self._normalise(torch.from_numpy(views.tiles))
        return inputs

    def _own_views(self, page: PageImage) -> dict[str, Any]:
        from PIL import Image
        from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import (
            DeepseekOcr2ImageProcessorPil,
        )

        made = DeepseekOcr2ImageProcessorPil()(
            images=Image.fromarray(page.rgb), return_tensors="pt"
        )
        inputs: dict[str, Any] = {"num_local_patches": made["num_local_patches"].tolist()}
        for name in ("pixel_values", "pixel_values_local"):
            if name in made:
                inputs[name] = made[name].to(self._device, self._model.dtype)
        return inputs

    def _normalise(self, views_B3SS: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = (views_B3SS.float() / 255 - 0.5) / 0.5
        return scaled.to(self._device, self._model.dtype)

    def _load(self) -> tuple[Any, Tokenizer]:
        if self._model is None:
            self._tokenizer = Tokenizer.from_file(self._folder / "tokenizer.json")
            self._model = _load_model(self._folder, self._config, self._device, self._dtype)
        assert self._tokenizer is not None
        return self._model, self._tokenizer


_BEGIN = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
_PROMPTS = {
    "markdown": "<image>\n<|grounding|>Convert the document to markdown.",
    "ocr": "<image>\nFree OCR.",
    "figure": "<image>\nParse the figure.",
    "describe": "<image>\nDescribe this image in detail.",
    "locate": "<image>\nLocate <|ref|>{what}<|/ref|> in the image.",
}


def _prompt_ids(
    case: Case, tokenizer: Tokenizer, num_visual: int, image_token: int
) -> list[int]:
    """Begin token, prompt, and the image token in each of the page's places."""
    name, _, what = case.prompt.partition(":")
    text = (case.prompt_text or _PROMPTS[name].replace("{what}", what.strip())).strip()
    if "<image>" not in text:
        text = f"<image>\n{text}"
    before, _, after = text.partition("<image>")
    places = [image_token] * num_visual
    begin = tokenizer.ids_of([_BEGIN])
    return [*begin, *tokenizer.encode(before), *places, *tokenizer.encode(after)]


def _load_model(folder: Path, config: ModelConfig, device: str, dtype: str) -> Any:
    import torch
    import transformers
    from transformers.models.deepseek_ocr2 import DeepseekOcr2ForConditionalGeneration

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = DeepseekOcr2ForConditionalGeneration.from_pretrained(
            str(folder),
            config=native_config(config),
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"transformers cannot load {folder}: {first}") from error
    wrong = [*info["missing_keys"], *info["mismatched_keys"], *info["error_msgs"]]
    if wrong:
        raise ModelError(
            f"transformers misses {len(wrong)} tensors of {folder}, for example {wrong[0]}. "
            "Check that the checkpoint is whole."
        )
    return model.to(device).eval()


def _versions() -> dict[str, str]:
    try:
        import transformers
        from transformers.models import deepseek_ocr2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--ref hf needs transformers 5.23 or later. {extra_hint('hf')}"
        ) from error
    import torch

    return {"transformers": transformers.__version__, "torch": torch.__version__}


def _processors(decode: DecodeConfig, num_prompt: int, exempt: set[int]) -> list[Any]:
    """Logits processors that follow the settings; they see the prompt too and must skip it."""
    from transformers import LogitsProcessor

    class WindowedNgram(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            start = 0 if decode.ngram_over_prompt else num_prompt
            history = input_ids[0, start:].tolist()
            n, window = decode.no_repeat_ngram, decode.ngram_window or len(history)
            for token in banned_by_ngram(history, n, window) - exempt:
                scores[0, token] = -float("inf")
            return scores

    class Dry(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            assert decode.dry is not None
            penalties = dry_penalties(input_ids[0, num_prompt:].tolist(), decode.dry)
            for token, penalty in penalties.items():
                scores[0, token] -= penalty
            return scores

    if decode.dry is not None:
        return [Dry()]
    return [WindowedNgram()] if decode.no_repeat_ngram > 0 else []


def banned_by_ngram(history: list[int], n: int, window: int) -> set[int]:
    """Tokens that would repeat an n-gram that starts within the last `window` tokens.

    Source: model-spec 9.1.
    """
    if len(history) < n:
        return set()
    prefix = history[len(history) - n + 1 :]
    first = max(0, len(history) - window)
    return {
        history[s + n - 1]
        for s in range(first, len(history) - n + 1)
        if history[s : s + n - 1] == prefix
    }


def dry_penalties(history: list[int], dry: DryConfig) -> dict[int, float]:
    """What llama.cpp's DRY sampler takes from a logit, by token. Source: model-spec 9.3."""
    if dry.last_n == 0 or dry.multiplier == 0 or dry.base < 1:
        return {}
    recent = history if dry.last_n < 0 else history[-dry.last_n :]
    if len(recent) <= dry.allowed_length:
        return {}
    longest: dict[int, int] = {}
    for p in range(len(recent) - 1):
        length = 0
        while length <= p and recent[p - length] == recent[len(recent) - 1 - length]:
            length += 1
        if length >= dry.allowed_length:
            follower = recent[p + 1]
            longest[follower] = max(longest.get(follower, 0), length)
    # A power of the base may not leave float32; a base that is as good as 1 never does.
    most = int(88.7228391 / math.log(dry.base)) if dry.base > 1.000001 else len(recent)
    return {
        token: dry.multiplier * dry.base ** min(length - dry.allowed_length, most)
        for token, length in longest.items()
    }
