"""Decoder attention: plain multi-head, rotary, causal; over a batch or over cached slots.

Knows nothing about experts, logits or scheduling.

Letters: B sequences, T new tokens of each, L tokens in the cache, D width, H heads,
C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.layers import rotate
from ocr2cli.model.linear import Linear

Turn = tuple[Tensor, Tensor]

# Up to this many new tokens of a sequence are attended by two plain products: SDPA on a CPU
# re-orders all keys for them (3 times slower for one token in bf16).
FEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class RaggedPlan:
    """Where the T new tokens of each sequence go, known on the host. Same for all layers.

    slots, starts: slot and first new position of each sequence. masks: bool [T, start + T] for
    each, or None when nothing is hidden (T = 1).
    """

    slots: Sequence[int]
    starts: Sequence[int]
    masks: Sequence[Tensor | None]

    def attend(
        self, cache: KVCache, layer: int, q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor
    ) -> Tensor:
        """One sequence after the other, each over exactly its own tokens."""
        out_BTHC = torch.empty_like(q_BHTC.transpose(1, 2))
        for row, (slot, start) in enumerate(zip(self.slots, self.starts, strict=True)):
            cache.write(layer, slot, start, k_BHTC[row], v_BHTC[row])
            k_HLC, v_HLC = cache.read(layer, slot, start + q_BHTC.shape[2])
            y_HTC = attend_one(q_BHTC[row], k_HLC, v_HLC, self.masks[row])
            out_BTHC[row] = y_HTC.transpose(0, 1)
        return out_BTHC


@dataclass(frozen=True, slots=True)
class DensePlan:
    """The same in tensors of fixed shape: nothing is read on the host, so a graph can replay it.

    The sequences are the cache's first B slots. positions: int64 [B, T] on the device.
    span: keys looked at, at least the largest position + 1.
    """

    positions: Tensor
    span: int
    mask_B1TL: Tensor = field(init=False)

    def __post_init__(self) -> None:
        keys = torch.arange(self.span, device=self.positions.device)
        mask = keys <= self.positions[:, None, :, None]
        object.__setattr__(self, "mask_B1TL", mask)

    def attend(
        self, cache: KVCache, layer: int, q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor
    ) -> Tensor:
        """All sequences at once over `span` keys, what is not theirs masked."""
        batch = q_BHTC.shape[0]
        rows = torch.arange(batch, device=q_BHTC.device)[:, None]
        keys, values = cache.keys[layer], cache.values[layer]
        keys[rows, :, self.positions] = k_BHTC.transpose(1, 2)
        values[rows, :, self.positions] = v_BHTC.transpose(1, 2)
        y_BHTC = F.scaled_dot_product_attention(
            q_BHTC,
            keys[:batch, :, : self.span],
            values[:batch, :, : self.span],
            attn_mask=self.mask_B1TL,
        )
        return y_BHTC.transpose(1, 2)


Plan = RaggedPlan | DensePlan


class CausalAttention(nn.Module):
    """softmax(q.k / sqrt(C)) v with rotary q and k; no biases; as many key heads as heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, 3 * inner, bias=False)
        self.out = Linear(inner, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, turn: Turn) -> Tensor:
        """Whole sequences from position 0 on, no cache; differentiable."""
        q_BHTC, k_BHTC, v_BHTC = self._project(x_BTD, turn)
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True)
        return self.out(y_BHTC.transpose(1, 2).flatten(2))

    def extend(self, x_BTD: Tensor, turn: Turn, cache: KVCache, layer: int, plan: Plan) -> Tensor:
        """T more tokens of each slot: write their keys and values, attend to all so far."""
        y_BTHC = plan.attend(cache, layer, *self._project(x_BTD, turn))
        return self.out(y_BTHC.flatten(2))

    def _project(self, x_BTD: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, tokens, 3, self.num_heads, self.head_dim)
        qk_BTHC, v_BTHC = qkv.split((2, 1), dim=2)
        q_BHTC, k_BHTC = rotate(qk_BTHC.permute(2, 0, 3, 1, 4), *turn)
        return q_BHTC, k_BHTC, v_BTHC.squeeze(2).transpose(1, 2)


def attend_one(q_HTC: Tensor, k_HLC: Tensor, v_HLC: Tensor, mask_TL: Tensor | None) -> Tensor:
    """Attention of one sequence's T newest tokens over its L. Softmax in float32. [H, T, C].

    mask: bool, True where a token may look; None when T is 1.
    """
    tokens, channels = q_HTC.shape[1:]
    if tokens > FEW_TOKENS:
        is_whole = tokens == k_HLC.shape[1]
        return F.scaled_dot_product_attention(
            q_HTC, k_HLC, v_HLC, attn_mask=None if is_whole else mask_TL, is_causal=is_whole
        )
    # Keys on the left, in float32: exact scores, and on a CPU faster than the bf16 product even
    # with the conversion.
    scores_HLT = k_HLC.float() @ q_HTC.float().transpose(1, 2)
    scores_HTL = scores_HLT.transpose(1, 2) * channels**-0.5
    if mask_TL is not None:
        scores_HTL = scores_HTL.masked_fill(~mask_TL, float("-inf"))
    return scores_HTL.softmax(dim=-1).to(v_HLC.dtype) @ v_HLC


def plan_ragged(cache: KVCache, slots: Sequence[int], tokens: int) -> RaggedPlan:
    """Reserve `tokens` more positions in each slot and say what each may look at."""
    starts = [cache.reserve(slot, tokens) for slot in slots]
    masks = [causal_mask(start, tokens, cache.device) if tokens > 1 else None for start in starts]
    return RaggedPlan(slots, starts, masks)


def causal_mask(start: int, tokens: int, device: torch.device) -> Tensor:
    """bool [tokens, start + tokens]: row i is position start + i and sees up to itself."""
    column = torch.arange(start + tokens, device=device)
    return column[None, :] <= column[start:, None]
