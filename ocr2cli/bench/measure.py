"""The measurements: encode, prefill and decode of a batch, and what the machine can do at most.

Knows nothing about how results are shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ocr2cli.bench.workload import Subject
from ocr2cli.config import DecodeConfig
from ocr2cli.generate.generator import Generator
from ocr2cli.pages import Views

PROMPT_TOKENS = 5  # begin token and "\nFree OCR."


@dataclass(slots=True)
class Timing:
    """Seconds of a batch of pages by stage, and the tokens they stand for."""

    num_pages: int
    new_tokens: int
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    decode_steps: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def seconds_a_page(self) -> float:
        return (self.encode_s + self.prefill_s + self.decode_s) / self.num_pages

    @property
    def decode_tokens_s(self) -> float:
        return self.num_pages * self.new_tokens / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """matmul: FLOP/s of a large product in the model's dtype. memory: bytes/s read."""

    matmul: float
    memory: float


def measure_ours(subject: Subject, pages: Sequence[Views], new_tokens: int) -> Timing:
    """Encode the pages one after the other, then decode them together. Greedy, no end token."""
    timing = Timing(len(pages), new_tokens)
    with torch.inference_mode():
        started = now(subject.device)
        visual = [encode(subject, page) for page in pages]
        timing.encode_s = now(subject.device) - started
        timing.prompt_tokens = sum(tokens.shape[0] + PROMPT_TOKENS for tokens in visual)
        _decode(subject, visual, timing)
    return timing


def encode(subject: Subject, page: Views) -> torch.Tensor:
    """One page's visual tokens, [S, D]."""
    vision = subject.model.vision
    tiles = torch.from_numpy(page.tiles)
    globals_1QD = vision.encode_views(torch.from_numpy(page.global_view)[None])
    tiles_NQD = vision.encode_views(tiles) if tiles.shape[0] else globals_1QD[:0]
    return vision.assemble(tiles_NQD, globals_1QD[0], page.grid)


def _decode(subject: Subject, visual: Sequence[torch.Tensor], timing: Timing) -> None:
    decoder = subject.model.decoder
    longest = max(tokens.shape[0] for tokens in visual) + PROMPT_TOKENS + timing.new_tokens
    generator = Generator(
        decoder,
        DecodeConfig(max_new_tokens=timing.new_tokens, detect_loops=False),
        eos_id=-1,
        num_slots=len(visual),
        kv_tokens=len(visual) * (longest + 1),
    )
    text = torch.full((PROMPT_TOKENS,), 5, device=subject.device)
    for number, tokens in enumerate(visual):
        prompt = torch.cat((tokens, decoder.embed(text)))
        generator.add(number, prompt, [5] * prompt.shape[0])
    started = now(subject.device)
    finished = []
    while generator.has_work:
        finished += generator.step()
    total = now(subject.device) - started
    timing.prefill_s = sum(one.seconds["prefill"] for one in finished)
    timing.decode_s = total - timing.prefill_s
    timing.decode_steps = generator.statistics.decode_steps


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Medians of a few runs: what a product and a read reach on this machine right now."""
    side = 2048 if device.type == "cpu" else 8192
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    product = median_seconds(lambda: left @ right, device)
    big = torch.ones(1 << 28, dtype=torch.int8, device=device).view(torch.int64)
    read = median_seconds(lambda: big.max(), device)
    return Ceilings(2 * side**3 / product, big.numel() * 8 / read)


def median_seconds(work: Callable[[], object], device: torch.device, runs: int = 5) -> float:
    """Median seconds of `work` after one run that does not count."""
    work()
    seconds = []
    for _ in range(runs):
        started = now(device)
        work()
        seconds.append(now(device) - started)
    return statistics.median(seconds)


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Most bytes the device, or this process on a CPU, has held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
