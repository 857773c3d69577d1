"""Decoder attention: plain multi-head, rotary, causal; over a batch or over cached slots.

Knows nothing about experts, logits or scheduling.

Letters: B sequences, T new tokens of each, L tokens in the cache, D width, H heads,
C channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.compiled.token_attention import TokenAttention, token_attention
from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.layers import CosSin, rotate
from ocr2cli.model.linear import Linear
from ocr2cli.model.processor import has_amx

Widen = Callable[[Tensor], Tensor]

# What a score that must not count is lowered by: finite in float16, and its share is an exact 0.
HIDDEN = torch.finfo(torch.float16).min
# Up to this many new tokens of a sequence are attended one by one, each over exactly its keys.
FEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class RaggedPlan:
    """Where the T new tokens of each sequence go, known on the host. Same for all layers.

    slots, starts: slot and first new position of each sequence. masks: bool [T, start + T] for
    each, or None when T is a few or starts at 0.
    """

    slots: Sequence[int]
    starts: Sequence[int]
    masks: Sequence[Tensor | None]

    def attend(
        self, cache: KVCache, layer: int, q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor
    ) -> Tensor:
        """Each sequence over exactly its own tokens."""
        tokens = q_BHTC.shape[2]
        for row, (slot, start) in enumerate(zip(self.slots, self.starts, strict=True)):
            cache.write(layer, slot, start, k_BHTC[row], v_BHTC[row])
        out_BTHC = torch.empty_like(q_BHTC.transpose(1, 2))
        for row, (slot, start) in enumerate(zip(self.slots, self.starts, strict=True)):
            k_HLC, v_HLC = cache.read(layer, slot, start + tokens)
            y_HTC = attend_one(q_BHTC[row], k_HLC, v_HLC, self.masks[row], cache.widen)
            out_BTHC[row] = y_HTC.transpose(0, 1)
        return out_BTHC


class DensePlan:
    """The same in tensors of fixed shape: nothing is read on the host, so a graph can replay it.

    slots: int64 [B]; positions: int64 [B, T], both on the cache's device. span: keys looked at,
    at least the largest position + 1; what is not a sequence's own is masked.
    """

    def __init__(self, cache: KVCache, slots_B: Tensor, positions_BT: Tensor, span: int) -> None:
        self.slots_B, self.positions_BT, self.span = slots_B, positions_BT, span
        batch, tokens = positions_BT.shape
        # Gathering the slots' keys copies them: reading all slots in place is less traffic as
        # soon as the batch is a third of them.
        self.num_rows = cache.num_slots if 3 * batch >= cache.num_slots else batch
        self.is_whole = self.num_rows == cache.num_slots
        rows_RT = positions_BT
        if self.is_whole:
            rows_RT = positions_BT.new_zeros(self.num_rows, tokens)
            rows_RT[slots_B] = positions_BT
        keys = torch.arange(span, device=positions_BT.device)
        is_hidden_R1TL = keys > rows_RT[:, None, :, None]
        # To be added to scores: out of bools every layer's attention would make it for itself.
        mask_R1TL = is_hidden_R1TL.new_zeros(is_hidden_R1TL.shape, dtype=cache.keys[0].dtype)
        self.mask_R1TL = mask_R1TL.masked_fill(is_hidden_R1TL, HIDDEN)
        self._queries_RHTC: Tensor | None = None

    def attend(
        self, cache: KVCache, layer: int, q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor
    ) -> Tensor:
        """All sequences at once. Returns [B, T, H, C]."""
        keys, values = cache.keys[layer], cache.values[layer]
        place = (self.slots_B[:, None], slice(None), self.positions_BT)
        keys[place] = k_BHTC.transpose(1, 2)
        values[place] = v_BHTC.transpose(1, 2)
        keys, values = keys[:, :, : self.span], values[:, :, : self.span]
        if not self.is_whole:
            keys, values = keys[self.slots_B], values[self.slots_B]
            return _attend_masked(q_BHTC, keys, values, self.mask_R1TL)
        if self._queries_RHTC is None:
            self._queries_RHTC = q_BHTC.new_zeros(self.num_rows, *q_BHTC.shape[1:])
        self._queries_RHTC[self.slots_B] = q_BHTC  # in other slots nobody asks
        y_RTHC = _attend_masked(self._queries_RHTC, keys, values, self.mask_R1TL)
        return y_RTHC[self.slots_B]


class PromptPlan:
    """Whole prompts of one length in fresh slots: causal, all at once. slots: int64 [B]."""

    def __init__(self, slots_B: Tensor) -> None:
        self.slots_B = slots_B

    def attend(
        self, cache: KVCache, layer: int, q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor
    ) -> Tensor:
        """Returns [B, T, H, C]."""
        tokens = q_BHTC.shape[2]
        cache.keys[layer][self.slots_B, :, :tokens] = k_BHTC
        cache.values[layer][self.slots_B, :, :tokens] = v_BHTC
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True)
        return y_BHTC.transpose(1, 2)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


Plan = RaggedPlan | DensePlan | PromptPlan


class CausalAttention(nn.Module):
    """softmax(q.k / sqrt(C)) v with rotary q and k; no biases; as many key heads as heads."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, 3 * inner, bias=False)
        self.out = Linear(inner, config.hidden_size, bias=False)
        self.kernel: TokenAttention | None = None

    def prepare(self, rows: torch.dtype) -> None:
        """Compile a few tokens' attention in that dtype where it is the fastest way: float32 on a
        CPU, and bf16 on one without matrix tiles. Without numba, torch's."""
        if self.qkv.weight.device.type not in ("cpu", "meta"):  # int8 weights have their shape only
            return
        if rows == torch.float32 or (rows == torch.bfloat16 and not has_amx()):
            self.kernel = token_attention(rows)

    def forward(self, x_BTD: Tensor, cos_sin: CosSin) -> Tensor:
        """Whole sequences from position 0 on, no cache; differentiable."""
        q_BHTC, k_BHTC, v_BHTC = self._project(x_BTD, cos_sin)
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True)
        return self.out(y_BHTC.transpose(1, 2).flatten(2))

    def extend(
        self, x_BTD: Tensor, cos_sin: CosSin, cache: KVCache, layer: int, plan: Plan
    ) -> Tensor:
        """T more tokens of each slot: write their keys and values, attend to all so far."""
        batch, tokens, _ = x_BTD.shape
        if self.kernel is not None and isinstance(plan, RaggedPlan) and tokens <= FEW_TOKENS:
            qkv_BT3HC = self.qkv(x_BTD).view(batch, tokens, 3, self.num_heads, self.head_dim)
            cos, sin = (part[:, 0] for part in cos_sin)
            keys, values = cache.keys[layer], cache.values[layer]
            y_BTHC = self.kernel(qkv_BT3HC, cos, sin, keys, values, plan.slots, plan.starts)
            return self.out(y_BTHC.flatten(2))
        y_BTHC = plan.attend(cache, layer, *self._project(x_BTD, cos_sin))
        return self.out(y_BTHC.flatten(2))

    def _project(self, x_BTD: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, tokens, 3, self.num_heads, self.head_dim)
        qk_BTHC, v_BTHC = qkv.split((2, 1), dim=2)
        q_BHTC, k_BHTC = rotate(qk_BTHC.permute(2, 0, 3, 1, 4), *cos_sin)
        return q_BHTC, k_BHTC, v_BTHC.squeeze(2).transpose(1, 2)


def attend_one(
    q_HTC: Tensor,
    k_HLC: Tensor,
    v_HLC: Tensor,
    mask_TL: Tensor | None,
    widen: Widen = Tensor.float,
) -> Tensor:
    """Attention of one sequence's T newest tokens over its L. Softmax in float32. [H, T, C].

    mask: bool, True where a token may look; only read when T is more than a few. widen: makes
    keys or values float32; what it returned is not used after its next call.
    """
    tokens, length = q_HTC.shape[1], k_HLC.shape[1]
    if tokens > FEW_TOKENS:
        is_whole = tokens == length
        # A batch of one: SDPA has its fast path for four dimensions only.
        return F.scaled_dot_product_attention(
            q_HTC[None],
            k_HLC[None],
            v_HLC[None],
            attn_mask=None if is_whole else mask_TL,
            is_causal=is_whole,
        )[0]
    # Token by token over exactly its own keys, in the very operations of a step of one token:
    # a draft's tokens get the bits that they get when decoded one at a time.
    stops = range(length - tokens + 1, length + 1)
    parts = [
        _attend_token(q_H1C, k_HLC[:, :stop], v_HLC[:, :stop], widen)
        for q_H1C, stop in zip(q_HTC.split(1, dim=1), stops, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _attend_token(q_H1C: Tensor, k_HLC: Tensor, v_HLC: Tensor, widen: Widen) -> Tensor:
    """One token over all keys, its scores in float32. Which way is chosen by dtype and machine."""
    if q_H1C.dtype == torch.float32 or has_amx():
        # Reads keys and values once, as they lie: twice the speed of the plain products. Without
        # tiles SDPA re-orders all bf16 keys for each call, 3 times slower than plain products.
        return F.scaled_dot_product_attention(q_H1C[None], k_HLC[None], v_HLC[None])[0]
    return attend_token_plainly(q_H1C, k_HLC, v_HLC, widen)


def attend_token_plainly(
    q_H1C: Tensor, k_HLC: Tensor, v_HLC: Tensor, widen: Widen = Tensor.float
) -> Tensor:
    """The same in plain products of float32: exact, and on a CPU faster than a bf16 product,
    conversion included. The keys stand on the left: the product reads them as they lie."""
    scores_HL1 = widen(k_HLC) @ q_H1C.float().transpose(1, 2)
    share_HL1 = (scores_HL1 * q_H1C.shape[-1] ** -0.5).softmax(dim=1)
    return (share_HL1.transpose(1, 2) @ widen(v_HLC)).to(q_H1C.dtype)


def plan_slots(cache: KVCache, slots: Sequence[int], tokens: int) -> Plan:
    """Reserve `tokens` more positions in each slot and say what each may look at."""
    starts = [cache.reserve(slot, tokens) for slot in slots]
    if prefers_dense(cache.device, tokens):
        first_B = torch.tensor(starts, device=cache.device)
        positions_BT = first_B[:, None] + torch.arange(tokens, device=cache.device)
        # Rounded up: kernels like aligned masks.
        span = min(-(-(max(starts) + tokens) // 64) * 64, cache.max_tokens_per_slot)
        return DensePlan(cache, torch.tensor(slots, device=cache.device), positions_BT, span)
    if prefers_together(cache.device) and not any(starts):
        return PromptPlan(torch.tensor(slots, device=cache.device))
    is_many = tokens > FEW_TOKENS
    masks = [causal_mask(at, tokens, cache.device) if is_many and at else None for at in starts]
    return RaggedPlan(slots, starts, masks)


def prefers_dense(device: torch.device, tokens: int) -> bool:
    """A GPU wants few large kernels for a decode step; a CPU wants no masked work."""
    return device.type != "cpu" and tokens <= FEW_TOKENS


def prefers_together(device: torch.device) -> bool:
    """Whether whole prompts of one length are attended at once; on a CPU each prompt's bits are its
    own whatever its company."""
    return device.type != "cpu"


def causal_mask(start: int, tokens: int, device: torch.device) -> Tensor:
    """bool [tokens, start + tokens]: row i is position start + i and sees up to itself."""
    column = torch.arange(start + tokens, device=device)
    return column[None, :] <= column[start:, None]
