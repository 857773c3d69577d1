"""The peer of the same run: transformers' `deepseek_ocr2` with the same sizes and random weights.

Knows transformers; shares pages and clock with ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from ocr2cli.bench.measure import Timing, now
from ocr2cli.bench.workload import Subject, Work, fill_randomly
from ocr2cli.errors import UsageError, extra_hint
from ocr2cli.eval.references.hf import native_config
from ocr2cli.pages import Views


def measure_hf(subject: Subject, work: Work) -> Timing:
    """The same pages and prompts; `generate` decodes all prompts in one batch.

    prefill is `generate` until the first token; decode is the median of the further tokens' steps,
    as with ours. Every stage runs once before it counts. Raises: UsageError without transformers.
    """
    model = _make(subject)
    prompts = torch.stack(list(work.prompts)).to(subject.device)
    timing = Timing(work.num_pages, work.new_tokens, prompt_tokens=prompts.shape[:2].numel())
    with torch.inference_mode():
        _encode(subject, model, work.pages[:1])
        started = now(subject.device)
        for page in work.pages:  # as its users do: `generate` is given one page after the other
            _encode(subject, model, [page])
        timing.encode_s = (now(subject.device) - started) * work.num_pages / len(work.pages)
        _step_seconds(subject, model, prompts[:1], 2)
        timing.prefill_s, *steps = _step_seconds(subject, model, prompts, work.new_tokens)
        timing.decode_s = statistics.median(steps) * len(steps)
    timing.decode_steps = len(steps)
    return timing


def _make(subject: Subject) -> Any:
    try:
        from transformers import DeepseekOcr2ForConditionalGeneration
        from transformers.initialization import no_init_weights
    except ImportError:
        raise UsageError(f"--against hf needs transformers. {extra_hint('hf')}") from None
    default = torch.get_default_dtype()
    torch.set_default_dtype(subject.dtype)
    try:
        with no_init_weights(), subject.device:
            model = DeepseekOcr2ForConditionalGeneration(native_config(subject.config))
    finally:
        torch.set_default_dtype(default)
    fill_randomly(model)
    return model.to(subject.device).eval()


def _encode(subject: Subject, model: Any, pages: Sequence[Views]) -> None:
    model.model.get_image_features(
        pixel_values=_normal(subject, [page.global_view for page in pages]),
        pixel_values_local=_normal(subject, [tile for page in pages for tile in page.tiles]),
        num_local_patches=[page.num_tiles for page in pages],
    )


def _normal(subject: Subject, views: Sequence[Any]) -> torch.Tensor:
    stacked = torch.stack([torch.from_numpy(view) for view in views]).to(subject.device)
    return ((stacked.float() / 255 - 0.5) / 0.5).to(subject.dtype)


def _step_seconds(
    subject: Subject, model: Any, prompts: torch.Tensor, new_tokens: int
) -> list[float]:
    """Seconds until each token of `generate`: the first one's are the prefill's."""
    marks = [now(subject.device)]

    def mark(ids: torch.Tensor, scores: torch.Tensor, **others: Any) -> torch.Tensor:
        marks.append(now(subject.device))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    model.generate(
        inputs_embeds=prompts, attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long,
        device=subject.device), min_new_tokens=new_tokens, max_new_tokens=new_tokens,
        do_sample=False, pad_token_id=0, stopping_criteria=[mark],
    )  # fmt: skip
    return [stop - start for start, stop in pairwise(marks)]
