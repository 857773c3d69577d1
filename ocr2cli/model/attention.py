"""Decoder attention: plain multi-head, rotary, causal; over a batch or over cached slots.

Knows nothing about experts, logits or scheduling.

Letters: B sequences, T new tokens of each, L tokens in the cache, D width, H heads,
C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.layers import rotate

Turn = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Where the T new tokens of each sequence go: the same for all layers of a step.

    slots, starts: slot and first new position of each sequence. masks: for each sequence bool
    [T, start + T], or None when there is nothing to hide (T = 1) or is_causal says it.
    """

    slots: Sequence[int]
    starts: Sequence[int]
    masks: Sequence[Tensor | None]
    is_causal: bool


class CausalAttention(nn.Module):
    """softmax(q.k / sqrt(C)) v with rotary q and k; no biases; as many key heads as heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, turn: Turn) -> Tensor:
        """Whole sequences from position 0 on, no cache; differentiable."""
        q_BHTC, k_BHTC, v_BHTC = self._project(x_BTD, turn)
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True)
        return self._merge(y_BHTC)

    def extend(
        self, x_BTD: Tensor, turn: Turn, cache: KVCache, layer: int, plan: SlotPlan
    ) -> Tensor:
        """T more tokens of each slot: write their keys and values, attend to all so far."""
        q_BHTC, k_BHTC, v_BHTC = self._project(x_BTD, turn)
        y_BHTC = torch.empty_like(q_BHTC)
        for row, (slot, start) in enumerate(zip(plan.slots, plan.starts, strict=True)):
            cache.write(layer, slot, start, k_BHTC[row], v_BHTC[row])
            k_HLC, v_HLC = cache.read(layer, slot, start + x_BTD.shape[1])
            y_BHTC[row] = F.scaled_dot_product_attention(
                q_BHTC[row],
                k_HLC,
                v_HLC,
                attn_mask=plan.masks[row],
                is_causal=plan.is_causal,
            )
        return self._merge(y_BHTC)

    def _project(self, x_BTD: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q_BHTC, k_BHTC, v_BHTC = qkv.permute(2, 0, 3, 1, 4)
        return rotate(q_BHTC, *turn), rotate(k_BHTC, *turn), v_BHTC

    def _merge(self, y_BHTC: Tensor) -> Tensor:
        return self.out(y_BHTC.transpose(1, 2).flatten(2))


def plan_slots(cache: KVCache, slots: Sequence[int], tokens: int) -> SlotPlan:
    """Reserve `tokens` more positions in each slot and say what each may look at."""
    starts = [cache.reserve(slot, tokens) for slot in slots]
    is_causal = tokens > 1 and not any(starts)
    masks: list[Tensor | None] = [None] * len(starts)
    if tokens > 1 and not is_causal:
        masks = [_causal_mask(start, tokens, cache.device) for start in starts]
    return SlotPlan(slots, starts, masks, is_causal)


def _causal_mask(start: int, tokens: int, device: torch.device) -> Tensor:
    column = torch.arange(start + tokens, device=device)
    return column[None, :] <= column[start:, None]
