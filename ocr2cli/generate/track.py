"""One sequence being written: its rules, its guesses, and when it ends.

Knows nothing about batches, slots or the decoder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ocr2cli.config import DecodeConfig
from ocr2cli.generate.draft import Drafter, Guess
from ocr2cli.generate.greedy import Choice
from ocr2cli.generate.logits import NgramRule, Rules
from ocr2cli.generate.loops import LoopDetector, LoopLimits
from ocr2cli.generate.sequence import Sequence as Running
from ocr2cli.generate.step import UNREAD, Row
from ocr2cli.pages import FinishReason, PageError

NAN_LOGITS = PageError(
    "nan_logits",
    "the decoder's logits are not finite: the weights or the visual tokens are damaged. "
    "Check the model with `ocr2 doctor`, or try --dtype f32.",
)


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one sequence.

    key: as given to `add`. token_ids: new tokens, without the end token.
    logprobs: natural log of the model's probability of each, before bans and penalties; the end
    token's last when it came.
    finish_reason: None exactly when error is set. error: code nan_logits.
    seconds: wait (add to first prefill), prefill (its own), decode (the rest, wall clock).
    """

    key: Any
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None
    num_prompt: int
    seconds: Mapping[str, float]
    error: PageError | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How a sequence is written."""

    config: DecodeConfig
    ngram: NgramRule | None
    eos_id: int
    max_guess: int
    loops: LoopLimits


@dataclass(slots=True, eq=False)
class Track:
    """A scheduled sequence with its prompt and all that must be made anew when it restarts.

    prompt: [T, D] embeddings. draft: token ids likely to be written, or None.
    """

    running: Running
    policy: Policy
    prompt_TD: Tensor
    prompt_ids: Sequence[int]
    draft: Sequence[int] | None
    added_at: float = field(default_factory=time.perf_counter)
    started_at: float = 0.0
    prefill_s: float = 0.0
    rules: Rules = field(init=False)
    _drafter: Drafter = field(init=False)
    _loops: LoopDetector = field(init=False)

    def __post_init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Forget everything made on the way; the tokens are the scheduler's to forget."""
        policy = self.policy
        self.rules = Rules(policy.ngram, policy.config.dry, self.prompt_ids)
        self._drafter = Drafter(policy.config.draft, self.draft, policy.max_guess)
        self._loops = LoopDetector(policy.loops)

    @property
    def num_left(self) -> int:
        """New tokens it may still write."""
        return self.running.max_new - len(self.running.token_ids)

    def guess(self) -> Guess:
        """Tokens to try in the next step; they leave room for the one the step writes anyway."""
        return self._drafter.guess(min(self.policy.max_guess, self.num_left - 1))

    def row(self, guess: Guess) -> Row:
        """The next step's input."""
        written = self.running.token_ids
        return Row(self.running.slot, [written[-1], *guess.token_ids], written, self.rules)

    def row_unread(self) -> Row:
        """The input of a step that starts while the one before it is under way."""
        running = self.running
        return Row(running.slot, [UNREAD], running.token_ids, self.rules)

    def report(self, guess: Guess, accepted: int) -> None:
        """Of `guess`, the first `accepted` tokens were right."""
        if guess.lane:
            guess.lane.report(len(guess.token_ids), accepted)

    def take(self, choice: Choice) -> FinishReason | PageError | None:
        """Write one token. Returns why the sequence ended with it, or None."""
        if not choice.is_finite:
            return NAN_LOGITS
        running = self.running
        running.logprobs.append(choice.logprob)
        if choice.token == self.policy.eos_id:
            return FinishReason.STOP
        running.token_ids.append(choice.token)
        self.rules.push(choice.token)
        self._drafter.push(choice.token)
        if self._is_loop(choice):
            return FinishReason.LOOP
        return FinishReason.LENGTH if len(running.token_ids) >= running.max_new else None

    def finished(self, end: FinishReason | PageError) -> Finished:
        """The result, as of now."""
        running = self.running
        decode_s = time.perf_counter() - self.started_at - self.prefill_s
        return Finished(
            running.key,
            tuple(running.token_ids),
            tuple(running.logprobs),
            end if isinstance(end, FinishReason) else None,
            running.num_prompt,
            {
                "wait": self.started_at - self.added_at,
                "prefill": self.prefill_s,
                "decode": decode_s,
            },
            end if isinstance(end, PageError) else None,
        )

    def _is_loop(self, choice: Choice) -> bool:
        if not self.policy.config.detect_loops:
            return False
        return self._loops.is_loop(self.running.token_ids, overridden=choice.overridden)
