"""The peer of the same run: transformers' `deepseek_ocr2` with the same sizes and random weights.

Knows transformers; shares pages and clock with ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ocr2cli.bench.measure import PROMPT_TOKENS, Timing, now
from ocr2cli.bench.workload import Subject, fill_randomly
from ocr2cli.errors import UsageError
from ocr2cli.eval.references.hf import native_config
from ocr2cli.pages import Views


def measure_hf(subject: Subject, pages: Sequence[Views], new_tokens: int) -> Timing:
    """The same pages and tokens by `generate`, all pages in one batch.

    encode is measured on its own; prefill is `generate` of one token less that encode; decode is
    what the further tokens add. Raises: UsageError without transformers.
    """
    model = _make(subject)
    inputs = _inputs(subject, model, pages)
    timing = Timing(len(pages), new_tokens, prompt_tokens=int(inputs["input_ids"].numel()))
    with torch.inference_mode():
        started = now(subject.device)
        model.model.get_image_features(
            **{name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
        )
        timing.encode_s = now(subject.device) - started
        one = _generate_s(subject, model, inputs, 1)
        timing.prefill_s = max(0.0, one - timing.encode_s)
        timing.decode_s = max(0.0, _generate_s(subject, model, inputs, new_tokens) - one)
    timing.decode_steps = new_tokens - 1
    return timing


def _make(subject: Subject) -> Any:
    try:
        from transformers import DeepseekOcr2ForConditionalGeneration
        from transformers.initialization import no_init_weights
    except ImportError:
        raise UsageError("--against hf needs transformers: pip install 'ocr2cli[hf]'") from None
    default = torch.get_default_dtype()
    torch.set_default_dtype(subject.dtype)
    try:
        with no_init_weights():
            model = DeepseekOcr2ForConditionalGeneration(native_config(subject.config))
    finally:
        torch.set_default_dtype(default)
    fill_randomly(model)
    return model.to(subject.device).eval()


def _inputs(subject: Subject, model: Any, pages: Sequence[Views]) -> dict[str, Any]:
    encoder = subject.config.query_encoder
    assert encoder is not None
    num_visual = encoder.tile_queries * pages[0].num_tiles + encoder.global_queries + 1
    ids = [0, *[subject.config.image_token_id] * num_visual, *[5] * (PROMPT_TOKENS - 1)]
    input_ids = torch.tensor([ids] * len(pages), device=subject.device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": _normal(subject, [page.global_view for page in pages]),
        "pixel_values_local": _normal(subject, [tile for page in pages for tile in page.tiles]),
        "num_local_patches": [page.num_tiles for page in pages],
    }


def _normal(subject: Subject, views: Sequence[Any]) -> torch.Tensor:
    stacked = torch.stack([torch.from_numpy(view) for view in views]).to(subject.device)
    return ((stacked.float() / 255 - 0.5) / 0.5).to(subject.dtype)


def _generate_s(subject: Subject, model: Any, inputs: dict[str, Any], new_tokens: int) -> float:
    started = now(subject.device)
    model.generate(
        **inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    return now(subject.device) - started
