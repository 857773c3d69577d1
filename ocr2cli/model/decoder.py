"""Decoder: embeddings to logits, for whole sequences or for slots of a KV cache.

Prefill and decode are different functions with different shapes. Knows nothing about token
choice, scheduling or what the ids mean.

Letters: B sequences, T tokens, K new tokens of a sequence, D width, V vocabulary.
Source: model-spec 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ocr2cli.model.attention import CausalAttention, DensePlan, Plan, plan_slots
from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.layers import CosSin, RMSNorm, Rotary, SwiGLU
from ocr2cli.model.linear import Linear
from ocr2cli.model.moe import MixtureOfExperts


class Decoder(nn.Module):
    """Embedding, layers, norm and lm_head (not tied)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, is_dense=index < config.num_dense_layers)
            for index in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.max_positions)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Embeddings to logits float32 [B, T, V]: `logits(hidden(x))`."""
        return self.logits(self.hidden(x_BTD))

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """Whole sequences, causal, no cache, differentiable. Returns the normed [B, T, D]."""
        cos, sin = self.rotary.tables(x_BTD.device)
        cos_sin = cos[: x_BTD.shape[1]], sin[: x_BTD.shape[1]]
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_sin)
        return self.norm(x_BTD)

    def logits(self, h: Tensor) -> Tensor:
        """h: [..., D] as `hidden` returns it. Returns float32 [..., V]."""
        return self.lm_head(h).float()

    def prefill(self, x_TD: Tensor, cache: KVCache, slot: int) -> Tensor:
        """Feed T embeddings to a slot, after what it already holds.

        Returns the last position's logits, float32 [V]. Call under no_grad or inference_mode.
        """
        return self.prefill_together(x_TD[None], cache, [slot])[0]

    def prefill_together(self, x_BTD: Tensor, cache: KVCache, slots: Sequence[int]) -> Tensor:
        """The same for prompts of one length, each into its slot. Returns float32 [B, V]."""
        return self.logits(self.norm(self._extend_slots(x_BTD, cache, slots)[:, -1]))

    def decode(self, ids_B: Tensor, cache: KVCache, slots: Sequence[int]) -> Tensor:
        """One more token in each slot. ids: int64 [B]. Returns logits float32 [B, V]."""
        return self.verify(ids_B[:, None], cache, slots)[:, 0]

    def verify(self, ids_BK: Tensor, cache: KVCache, slots: Sequence[int]) -> Tensor:
        """K more tokens in each slot in one step. Returns logits float32 [B, K, V].

        The caller takes rejected tokens back with `cache.truncate`.
        """
        x_BKD = self._extend_slots(self.embed(ids_BK), cache, slots)
        return self.logits(self.norm(x_BKD))

    def decode_fixed(
        self, ids_B: Tensor, cache: KVCache, slots_B: Tensor, starts_B: Tensor, context: int
    ) -> Tensor:
        """`decode` in tensors of fixed shape, with no word to the host (for CUDA graphs).

        ids, slots, starts (each slot's length): int64 [B] on the cache's device. context: keys to
        look at, at least the largest start + 1. Touches no host state: `cache.lengths` is the
        caller's. Returns logits float32 [B, V].
        """
        plan = DensePlan(cache, slots_B, starts_B[:, None], context)
        x_BTD = self._extend(self.embed(ids_B[:, None]), cache, plan, starts_B[:, None])
        return self.logits(self.norm(x_BTD[:, 0]))

    def _extend_slots(self, x_BTD: Tensor, cache: KVCache, slots: Sequence[int]) -> Tensor:
        tokens = x_BTD.shape[1]
        starts = torch.tensor([cache.lengths[slot] for slot in slots], device=x_BTD.device)
        positions_BT = starts[:, None] + torch.arange(tokens, device=x_BTD.device)
        return self._extend(x_BTD, cache, plan_slots(cache, slots, tokens), positions_BT)

    def _extend(self, x_BTD: Tensor, cache: KVCache, plan: Plan, positions_BT: Tensor) -> Tensor:
        cos, sin = self.rotary.at(positions_BT)
        cos_sin = cos[:, None], sin[:, None]
        for index, layer in enumerate(self.layers):
            x_BTD = cast(DecoderLayer, layer).extend(x_BTD, cos_sin, cache, index, plan)
        return x_BTD

    def prepare(self) -> None:
        """Make it ready for a CPU's steps of a few tokens; afterwards it only runs.

        What is packed takes as much memory as the plain weights, which are given up one by one.
        """
        rows = self.norm.weight.dtype
        for module in self.modules():
            if isinstance(module, Linear | MixtureOfExperts | CausalAttention):
                module.prepare(rows)


class DecoderLayer(nn.Module):
    """Pre-norm: causal attention, then a dense SwiGLU or a mixture of experts."""

    def __init__(self, config: DecoderConfig, *, is_dense: bool) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = CausalAttention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp: nn.Module = (
            SwiGLU(config.hidden_size, config.dense_intermediate)
            if is_dense
            else MixtureOfExperts(config)
        )

    def forward(self, x_BTD: Tensor, cos_sin: CosSin) -> Tensor:
        x_BTD = x_BTD + self.attn(self.attn_norm(x_BTD), cos_sin)
        return x_BTD + self.mlp(self.ffn_norm(x_BTD))

    def extend(
        self, x_BTD: Tensor, cos_sin: CosSin, cache: KVCache, index: int, plan: Plan
    ) -> Tensor:
        """As forward, but over a cache; `index` is this layer's."""
        x_BTD = x_BTD + self.attn.extend(self.attn_norm(x_BTD), cos_sin, cache, index, plan)
        return x_BTD + self.mlp(self.ffn_norm(x_BTD))
