"""KV cache: one preallocated row of keys and values for each slot and layer.

Knows nothing about attention, scheduling or which page holds a slot.

Letters: S slots, H heads, L tokens, C channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.host_memory import HostMemory


class KVCache:
    """Keys and values of `num_slots` sequences of at most `max_tokens_per_slot` tokens.

    keys, values: one tensor [S, H, L, C] a layer. Memory is reserved at once; on a CPU, where it is
    Linux, sequences take what they hold and `free` gives it back.
    lengths: tokens each slot holds, on the host: no step needs to ask the device.

    Raises: MemoryError, torch.OutOfMemoryError or RuntimeError when there is not so much.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_slots: int,
        max_tokens_per_slot: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_slots = num_slots
        self.max_tokens_per_slot = max_tokens_per_slot
        shape = (num_slots, config.num_heads, max_tokens_per_slot, config.head_dim)
        count = 2 * config.num_layers
        # Zeros on a GPU: its steps mask what is not a slot's own, and 0 * nan is nan. On a CPU
        # only written tokens are read, and zeros would touch all the memory at once.
        is_on_host = torch.device(device).type == "cpu"
        self._memories = [HostMemory(shape, dtype) for _ in range(count)] if is_on_host else []
        stored = [memory.tensor for memory in self._memories] or [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)
        ]
        self.keys, self.values = stored[0::2], stored[1::2]
        self.lengths = [0] * num_slots
        self.device = self.keys[0].device
        # float32, for `widen`. Only a CPU widens, and the system hands it out as it is written.
        is_wide = dtype == torch.float32 or self.device.type != "cpu"
        self._workspace = torch.empty(0 if is_wide else self.keys[0][0].numel())

    def free(self, slot: int) -> None:
        """Forget the slot's tokens, and on a CPU give their memory back; the next prefill starts
        at position 0."""
        self.lengths[slot] = 0
        for memory in self._memories:
            memory.give_back(memory.tensor[slot])

    def scrub(self, slot: int, start: int = 0) -> None:
        """Keep the slot's first `start` tokens and overwrite all behind them: a nan left there
        would reach the next sequence through the mask of a step that looks at the whole slot."""
        self.lengths[slot] = start
        for stored in (*self.keys, *self.values):
            stored[slot, :, start:].zero_()

    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` tokens: how a rejected draft is taken back."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"slot {slot} holds {self.lengths[slot]} tokens, not {length}")
        self.lengths[slot] = length

    def reserve(self, slot: int, count: int) -> int:
        """Make room for `count` more tokens; returns the first one's position.

        Raises: ValueError when the slot is full.
        """
        start = self.lengths[slot]
        if start + count > self.max_tokens_per_slot:
            raise ValueError(
                f"slot {slot} is full: {start} tokens and {count} more "
                f"do not fit in {self.max_tokens_per_slot}"
            )
        self.lengths[slot] = start + count
        return start

    def write(self, layer: int, slot: int, start: int, k_HTC: Tensor, v_HTC: Tensor) -> None:
        """Store T tokens of one slot from position `start` on."""
        stop = start + k_HTC.shape[1]
        self.keys[layer][slot, :, start:stop] = k_HTC
        self.values[layer][slot, :, start:stop] = v_HTC

    def widen(self, stored_HLC: Tensor) -> Tensor:
        """Keys or values in float32, in memory that the next call takes again.

        Fresh memory for every sequence and layer would cost more than the conversion: the system
        hands it out page by page, and it is in no processor's cache.
        """
        workspace_HLC = self._workspace[: stored_HLC.numel()].view(stored_HLC.shape)
        return workspace_HLC.copy_(stored_HLC)

    def read(self, layer: int, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Views (no copy) of the slot's first `length` keys and values: [H, length, C]."""
        return self.keys[layer][slot, :, :length], self.values[layer][slot, :, :length]
