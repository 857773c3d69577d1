"""Pages' views to visual tokens in decoder order, several pages at once.

Knows nothing about workers, messages or clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ocr2cli.model.vision import VisionEncoder
from ocr2cli.pages import Uint8Array, Views


def encode_pages(
    vision: VisionEncoder,
    pages: Sequence[Views],
    encode_tiles: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Each page's visual tokens, [S, D], on the encoder's device; views of one size go together.

    encode_tiles: uint8 [N, 3, S, S] -> [N, Q, D], in place of `vision.encode_views`.
    """
    device = vision.view_separator.device
    whole_BQD = vision.encode_views(_together([page.global_view[None] for page in pages], device))
    tiles = _together([page.tiles for page in pages], device)
    encode_tiles = encode_tiles or vision.encode_views
    tiles_NQD = encode_tiles(tiles) if tiles.shape[0] else whole_BQD[:0]
    parts = torch.split(tiles_NQD, [page.num_tiles for page in pages])
    return [
        vision.assemble(mine, whole_QD, page.grid)
        for page, mine, whole_QD in zip(pages, parts, whole_BQD, strict=True)
    ]


def _together(views: Sequence[Uint8Array], device: torch.device) -> Tensor:
    """All of them in one tensor in the host's memory, pinned for a card: torch keeps such memory
    for the next group, and the copy from it does not wait for the pages before."""
    shape = (sum(map(len, views)), *views[0].shape[1:])
    out = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return torch.cat([torch.from_numpy(each) for each in views], out=out)
