"""Tiles of a single colour are encoded once: the paper below a letter's end, a title page's margin.

A born-digital page often leaves a tile or two bare, and they are alike to the last bit; at the
published size each costs the time of every other. A scan's paper is not bare: nothing is
gained there, and nothing changes.
Knows nothing about pages.

Letters: N tiles, S side in pixels, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# White, and the tints of slides; 0.4 MB each at the published size.
KEPT_COLOURS = 16
_STEP = 97  # pixels between those looked at first: hardly a printed tile passes


class PlainTiles:
    """encode: uint8 [N, 3, S, S] -> [N, Q, D], each row its tile's own whatever its company."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self._encode = encode
        self._known: dict[tuple[int, ...], Tensor] = {}

    def encode(self, tiles_N3SS: Tensor) -> Tensor:
        """As `encode` itself, for at least one tile; on the device that it answers on."""
        keys = [_colour_of(tile) for tile in tiles_N3SS]
        # Printed tiles all, of the plain ones the first of each colour that is not known yet.
        fresh = [
            at
            for at, key in enumerate(keys)
            if key is None or (key not in self._known and key not in keys[:at])
        ]
        if len(fresh) == len(keys):
            rows = list(self._encode(tiles_N3SS))
        else:
            rows = list(self._encode(tiles_N3SS[fresh])) if fresh else []
        by_place = dict(zip(fresh, rows, strict=True))
        colours = {key: by_place[at] for at in fresh if (key := keys[at])}
        known = self._known | colours
        for key, row in colours.items():
            if len(self._known) < KEPT_COLOURS:
                self._known[key] = row.clone()
        return torch.stack([known[key] if key else by_place[at] for at, key in enumerate(keys)])


def _colour_of(tile_3SS: Tensor) -> tuple[int, ...] | None:
    """(side, red, green, blue) of a tile of one colour, else None."""
    corner_311 = tile_3SS[:, :1, :1]
    for pixels in (tile_3SS[:, ::_STEP, ::_STEP], tile_3SS):
        if not bool((pixels == corner_311).all()):
            return None
    return tile_3SS.shape[-1], *corner_311.flatten().tolist()
