"""The greedy choice: the highest logit after bans and penalties, the lowest id among equals.

Knows nothing about sequences or where penalties come from.

Letters: N rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ocr2cli.generate.logits import BAN

# The published vocabulary has 1,010 of these.
PIECE = 128


class Choice(NamedTuple):
    """The greedy token at one position.

    logprob: natural log of the model's own probability of the token, before bans and penalties,
    so that it says what the model saw; nan when the logits are not finite.
    overridden: a ban took away a token the model preferred.
    """

    token: int
    logprob: float
    overridden: bool

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.logprob)


def choose(logits_NV: Tensor, penalties: dict[int, dict[int, float]]) -> list[Choice]:
    """Greedy: the highest logit after penalties, the lowest id among equals.

    logits: float32 [N, V], left as they were. penalties: row -> token -> amount to subtract.
    """
    triples = [(row, token, cost) for row, of in penalties.items() for token, cost in of.items()]
    if triples:
        ids_N, is_overridden_N = _choose_penalised(logits_NV, triples)
    else:
        ids_N = first_argmax(logits_NV)
        is_overridden_N = torch.zeros_like(ids_N, dtype=torch.bool)
    return unpack(pack(logits_NV, ids_N, is_overridden_N))


def pack(logits_NV: Tensor, ids_N: Tensor, is_overridden_N: Tensor) -> Tensor:
    """Ids, log-probabilities and overrides as float32 [3, N]: one copy to the host.

    float32 holds ids exactly below 2^24.
    """
    # The fused kernel is four times faster here than logsumexp; a row with a logit that is not
    # finite becomes nan.
    logprobs_N = logits_NV.log_softmax(-1).gather(1, ids_N[:, None])[:, 0]
    return torch.stack((ids_N.float(), logprobs_N, is_overridden_N.float()))


def unpack(packed_3N: Tensor) -> list[Choice]:
    """`pack`'s answer on the host."""
    tokens, logprobs, overrides = packed_3N.tolist()
    return list(map(Choice, map(int, tokens), logprobs, map(bool, overrides)))


def first_argmax(logits_NV: Tensor) -> Tensor:
    """Index of the highest logit of each row, the lowest of equals: int64 [N].

    torch's argmax gives the first of equals too, but a CPU takes ten times longer for it than
    for amax: find the piece that holds the maximum, then the place in it.
    """
    rows, vocab = logits_NV.shape
    if vocab % PIECE or logits_NV.device.type != "cpu":
        return logits_NV.argmax(-1)
    pieces = logits_NV.view(rows, vocab // PIECE, PIECE)
    piece_N = pieces.amax(-1).argmax(-1)
    inside_N = pieces[torch.arange(rows), piece_N].argmax(-1)
    return piece_N * PIECE + inside_N


def _choose_penalised(
    logits_NV: Tensor, triples: Sequence[tuple[int, int, float]]
) -> tuple[Tensor, Tensor]:
    """triples: (row, token, cost), no pair twice. Returns ids, and True where a banned token
    stood before the chosen one."""
    device = logits_NV.device
    rows = torch.tensor([row for row, _, _ in triples], device=device)
    tokens = torch.tensor([token for _, token, _ in triples], device=device)
    costs = torch.tensor([cost for _, _, cost in triples], device=device)
    # Write, choose, write back: exact, and no copy of [N, V].
    own = logits_NV[rows, tokens]
    logits_NV[rows, tokens] = own - costs
    ids_N = first_argmax(logits_NV)
    logits_NV[rows, tokens] = own
    chosen = logits_NV[rows, ids_N[rows]]
    is_preferred = (own > chosen) | ((own == chosen) & (tokens < ids_N[rows]))
    is_overridden_N = torch.zeros_like(ids_N, dtype=torch.bool)
    is_overridden_N[rows[is_preferred & (costs == BAN)]] = True
    return ids_N, is_overridden_N
