"""What suits a device: how many tokens a step is fed, in which shapes, and when drafts pay."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ocr2cli.generate.loops import LoopLimits

# The full-size decoder's matrix products in bf16 on an AMD EPYC with avx512_bf16, one thread,
# relative to one token (CPU time, 2026-11-24): experts are read once for all tokens that chose
# them, so 9 tokens cost 3.2 of one, 72 cost 7.6. Beyond, on the same line: nobody measured it.
CPU_STEP_COSTS = (
    (1, 1.0), (2, 1.2), (4, 1.9), (8, 3.0), (16, 4.4), (32, 5.8), (64, 7.2), (72, 7.6),
    (128, 10.4), (256, 16.8), (512, 29.6),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tuning:
    """What changes speed and memory and never the tokens (but `loops`: when to give up).

    expected_new, prefill_tokens, prefill_chunk, admit_together, admit_patience: see `Scheduler`.
    prefill_together: most prompts of one length fed in one go.
    max_guess: most drafted tokens tried in one step.
    draft_batch_limit: with draft "auto", no drafts while more sequences than this decode
    together.
    step_costs: with draft "auto", what a step costs by the tokens it is fed: (tokens, cost),
    ascending, up to the most that such a step is fed, until steps were timed. Guesses are cut to
    where the expected tokens a second are most.
    batch_buckets, feed_buckets: see `StepRunner`.
    fixed_steps: run steps without drafts through `FixedStep` (as CUDA graphs on a CUDA device);
    the decoder must have `decode_fixed`.
    overlap: start such a step before the one before it is read, so that a device never waits for
    the host (elsewhere: async scheduling). A sequence's end is then noticed a step later.
    """

    expected_new: int = 512
    prefill_tokens: int = 2048
    prefill_chunk: int = 0
    prefill_together: int = 1
    admit_together: int = 1
    admit_patience: int = 0
    max_guess: int = 15
    draft_batch_limit: int = 32
    step_costs: tuple[tuple[int, float], ...] = CPU_STEP_COSTS
    batch_buckets: tuple[int, ...] = ()
    feed_buckets: tuple[int, ...] = ()
    fixed_steps: bool = False
    overlap: bool = False
    loops: LoopLimits = field(default_factory=LoopLimits)

    @property
    def most_fed(self) -> int:
        """Most tokens one step feeds a sequence, padding included."""
        return max((1 + self.max_guess, *self.feed_buckets))


# Every step of a GPU has one of a few shapes, so that each is captured as a graph once.
# Prompts go together: alone, each would wait longer for its kernels to be launched than for them
# (19 ms instead of 5 on an H200). In a long run slots fall free one by one, some 8 steps apart, and
# would be filled so: of 128 slots two are empty meanwhile.
GPU_TUNING = Tuning(
    prefill_tokens=8 * 1_152,
    prefill_together=8,
    admit_together=4,
    admit_patience=32,
    draft_batch_limit=16,
    fixed_steps=True,
    overlap=True,
    batch_buckets=(1, 2, 4, 8, 16, 32, 64, 128, 192, 256),
    feed_buckets=(1, 4, 8, 16),
)


def tuning_for(device: torch.device) -> Tuning:
    """What suits the device best."""
    return GPU_TUNING if device.type == "cuda" else Tuning()
