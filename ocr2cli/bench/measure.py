"""The measurements: encode, prefill and decode of a batch, and what the machine can do at most.

Knows nothing about how results are shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ocr2cli.bench.workload import Subject, Work
from ocr2cli.config import DecodeConfig
from ocr2cli.generate.generator import Generator, Tuning
from ocr2cli.pages import Views

# Pages are encoded one after the other, so two of them tell the time of any number.
ENCODED_PAGES = 2


@dataclass(slots=True)
class Timing:
    """Seconds of a batch of pages by stage, and the tokens they stand for.

    encode_s: of all pages, from the mean of those that were encoded.
    """

    num_pages: int
    new_tokens: int
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    decode_steps: int = 0

    @property
    def seconds_a_page(self) -> float:
        return (self.encode_s + self.prefill_s + self.decode_s) / self.num_pages

    @property
    def decode_tokens_s(self) -> float:
        """Without each page's first token: that one comes with the prefill."""
        rest = self.num_pages * (self.new_tokens - 1)
        return rest / self.decode_s if self.decode_s else 0.0

    def seconds_a_page_of(self, new_tokens: int) -> float:
        """Worked out: encode and prefill as measured, `new_tokens` at the measured rate."""
        rate = self.decode_tokens_s
        decode_s = new_tokens / rate if rate else 0.0
        return (self.encode_s + self.prefill_s) / self.num_pages + decode_s


@dataclass(frozen=True, slots=True)
class Ceilings:
    """matmul: FLOP/s of a large product in the model's dtype. memory: bytes/s read."""

    matmul: float
    memory: float


def measure_ours(subject: Subject, work: Work) -> Timing:
    """Encode pages one after the other, then decode all together. Greedy, no end token.

    Every stage runs once before it counts: kernels are chosen and memory is touched at first use.
    """
    timing = Timing(work.num_pages, work.new_tokens)
    with torch.inference_mode():
        encode(subject, work.pages[0])
        started = now(subject.device)
        for page in work.pages:
            encode(subject, page)
        timing.encode_s = (now(subject.device) - started) * work.num_pages / len(work.pages)
        _decode(subject, work.prompts[:1], Timing(1, 2))
        _decode(subject, work.prompts, timing)
    return timing


def encode(subject: Subject, page: Views) -> torch.Tensor:
    """One page's visual tokens, [S, D]."""
    vision = subject.model.vision
    tiles = torch.from_numpy(page.tiles)
    globals_1QD = vision.encode_views(torch.from_numpy(page.global_view)[None])
    tiles_NQD = vision.encode_views(tiles) if tiles.shape[0] else globals_1QD[:0]
    return vision.assemble(tiles_NQD, globals_1QD[0], page.grid)


def _decode(subject: Subject, prompts: Sequence[torch.Tensor], timing: Timing) -> None:
    longest = max(prompt.shape[0] for prompt in prompts) + timing.new_tokens
    generator = Generator(
        subject.model.decoder,
        DecodeConfig(max_new_tokens=timing.new_tokens, detect_loops=False),
        eos_id=-1,
        num_slots=len(prompts),
        kv_tokens=len(prompts) * (longest + 1),
        # All prompts in the first step: every decode step then has all pages in it.
        tuning=Tuning(prefill_tokens=len(prompts) * longest),
    )
    for number, prompt in enumerate(prompts):
        generator.add(number, prompt, [5] * prompt.shape[0])
    started = now(subject.device)
    finished = []
    while generator.has_work:
        finished += generator.step()
    total = now(subject.device) - started
    timing.prompt_tokens = sum(prompt.shape[0] for prompt in prompts)
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
