"""A page's prompt as the decoder takes it: its tokens' rows, the page's visual tokens among them.

Knows nothing about workers, tries or slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocr2cli.model.decoder import Decoder

# Rows kept on the host: the words of a run's prompt, or of many requests' to a server.
_MOST_ROWS = 4096


class PromptEmbedder:
    """Prompts are made in the host's memory, where pages wait for a slot: on a card nothing is
    planned for them, and to make one there would wait for the step under way.

    The tokens beside a page's visual ones are few and mostly the same: each one's row is asked for
    once.
    """

    def __init__(self, decoder: Decoder, image_token_id: int) -> None:
        self._decoder = decoder
        self._image_token_id = image_token_id
        self._rows: dict[int, Tensor] = {}

    def embed(self, ids: Sequence[int], visual_SD: Tensor) -> Tensor:
        """[T, D] on the host, pinned for a card, in the decoder's dtype; `ids` hold the image token
        once for each visual token."""
        weight = self._decoder.embed.weight
        x_TD = torch.empty(
            len(ids), weight.shape[1], dtype=weight.dtype, pin_memory=weight.device.type == "cuda"
        )
        is_image_T = torch.tensor(ids) == self._image_token_id
        x_TD[is_image_T] = visual_SD.to(x_TD.device, x_TD.dtype)
        words = [token for token in ids if token != self._image_token_id]
        if words:
            self._ask_for(words)
            x_TD[~is_image_T] = torch.stack([self._rows[word] for word in words])
        return x_TD

    def _ask_for(self, words: Sequence[int]) -> None:
        if len(self._rows) > _MOST_ROWS:
            self._rows.clear()
        missing = sorted(set(words) - self._rows.keys())
        if missing:
            ids = torch.tensor(missing, device=self._decoder.embed.weight.device)
            self._rows.update(zip(missing, self._decoder.embed(ids).cpu(), strict=True))
