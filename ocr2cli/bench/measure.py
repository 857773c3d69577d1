"""The measurements: encode, prefill and decode of a batch, and what the machine can do at most.

Knows nothing about how results are shown.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ocr2cli.bench.workload import Subject, Work
from ocr2cli.config import DecodeConfig
from ocr2cli.engines.encoding import encode_pages
from ocr2cli.engines.native import ENCODE_PAGES
from ocr2cli.generate.generator import Finished, Generator
from ocr2cli.generate.tuning import tuning_for

# Groups of pages that are encoded to tell the time of any number.
ENCODED_GROUPS = 2


@dataclass(slots=True)
class Timing:
    """Seconds of a batch of pages by stage, and the tokens they stand for.

    encode_s: of all pages, from the mean of those that were encoded. decode_s: the median step's
    seconds times the steps, so that a neighbour's burst on a shared machine does not count.
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
    """Encode pages in groups of `pages_at_once`, then decode all together. Greedy, no end token.

    Every stage runs once before it counts: kernels are chosen and memory is touched at first use.
    """
    timing = Timing(work.num_pages, work.new_tokens)
    gc.freeze()  # as a worker does once its model is loaded
    with torch.inference_mode():
        at_once = pages_at_once(subject.device)
        groups = [work.pages[at : at + at_once] for at in range(0, len(work.pages), at_once)]
        encode_pages(subject.model.vision, groups[0])
        started = now(subject.device)
        for group in groups:
            encode_pages(subject.model.vision, group)
        timing.encode_s = (now(subject.device) - started) * work.num_pages / len(work.pages)
        _decode(subject, work.prompts, timing)
    return timing


def pages_at_once(device: torch.device) -> int:
    """A CPU gains nothing from several; a GPU gets as many as the encoder's worker takes."""
    return 1 if device.type == "cpu" else ENCODE_PAGES


def _decode(subject: Subject, prompts: Sequence[torch.Tensor], timing: Timing) -> None:
    longest = max(prompt.shape[0] for prompt in prompts) + timing.new_tokens
    tuning = tuning_for(subject.device)
    generator = Generator(
        subject.model.decoder,
        DecodeConfig(max_new_tokens=timing.new_tokens, detect_loops=False),
        eos_id=-1,
        num_slots=len(prompts),
        kv_tokens=len(prompts) * (longest + 1),
        max_context=longest + 1,
        # All prompts in the first step: every decode step then has all pages in it.
        tuning=replace(tuning, prefill_tokens=len(prompts) * longest),
    )
    # A GPU captures a graph for the batch it will have; a CPU is warm after one page.
    warmers = prompts[:1] if subject.device.type == "cpu" else prompts
    _run(generator, warmers, 2)
    num_warming = generator.statistics.decode_steps
    step_seconds, finished = _run(generator, prompts, timing.new_tokens)
    timing.prompt_tokens = sum(prompt.shape[0] for prompt in prompts)
    timing.prefill_s = sum(one.seconds["prefill"] for one in finished)
    timing.decode_steps = generator.statistics.decode_steps - num_warming
    timing.decode_s = statistics.median(step_seconds) * timing.decode_steps


def _run(
    generator: Generator, prompts: Sequence[torch.Tensor], new_tokens: int
) -> tuple[list[float], list[Finished]]:
    """(Seconds from tokens to tokens of steps that all prompts were in, what was written).

    Tokens are on the host when they are counted, so the clock needs no word from the device,
    which may be at the next step by then.
    """
    for number, prompt in enumerate(prompts):
        generator.add(number, prompt, [5] * prompt.shape[0], max_new_tokens=new_tokens)
    seconds: list[float] = []
    finished: list[Finished] = []
    while generator.has_work:
        before, started = replace(generator.statistics), time.perf_counter()
        finished += generator.step()
        after = generator.statistics
        if after.prefill_tokens == before.prefill_tokens and after.new_tokens > before.new_tokens:
            seconds.append(time.perf_counter() - started)
    return seconds, finished


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

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
