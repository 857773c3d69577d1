"""One sequence on its way through the decoder: where it stands and what it has written.

Knows nothing about tensors, pages or how the next token is chosen.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto


class State(Enum):
    """Waiting for a slot; feeding its prompt; writing."""

    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """What the scheduler decides by, and the tokens so far.

    key: opaque, the caller's. arrival: 0, 1, 2...: the order of `add`; it survives a preemption,
    so a sequence that was sent back waits in front of later ones.
    num_prompt: prompt tokens. max_new: limit of new tokens, the end token included.
    slot: row of the KV cache, -1 while waiting. num_cached: tokens the cache holds of it.
    most_new: most new tokens it ever had; a preempted one needs at least that many again.
    token_ids: new tokens without the end token. logprobs: natural log, the end token's included.
    """

    key: Hashable
    arrival: int
    num_prompt: int
    max_new: int
    state: State = State.WAITING
    slot: int = -1
    num_cached: int = 0
    most_new: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and new tokens."""
        return self.num_prompt + len(self.token_ids)

    def restart(self) -> None:
        """Back to the waiting room with nothing written.

        The tokens are dropped, not replayed as a longer prompt: a prefill rounds differently
        from decode steps in bf16, and a preempted page must end in the same text.
        """
        self.most_new = max(self.most_new, len(self.token_ids))
        self.state, self.slot, self.num_cached = State.WAITING, -1, 0
        # New lists: what was kept by the old ones (`fixed_step.FixedStep`) is not of this sequence.
        self.token_ids, self.logprobs = [], []
