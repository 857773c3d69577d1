"""A page's prompt as the decoder takes it: its tokens' rows, the page's visual tokens among them.

Knows nothing about workers, tries or slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocr2cli.model.decoder import Decoder


def embed_prompt(
    decoder: Decoder, ids: Sequence[int], visual_SD: Tensor, image_token_id: int
) -> Tensor:
    """[T, D] on the decoder's device; `ids` hold the image token once for each visual token."""
    ids_T = torch.tensor(ids, device=decoder.embed.weight.device)
    x_TD: Tensor = decoder.embed(ids_T)
    x_TD[ids_T == image_token_id] = visual_SD.to(x_TD.device, x_TD.dtype)
    return x_TD
