"""A tile of one colour is encoded once, and no page's tokens tell."""

from __future__ import annotations

import torch
from torch import Tensor

from ocr2cli.engines.plain_tiles import KEPT_COLOURS, PlainTiles


class Spy:
    """Tokens [N, 2, 3] that say what each tile holds; counts the tiles it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, tiles: Tensor) -> Tensor:
        self.asked += len(tiles)
        return tiles.float().flatten(1).mean(1)[:, None, None] + torch.arange(6.0).view(2, 3)


def plain(value: int, side: int = 200) -> Tensor:
    return torch.full((3, side, side), value, dtype=torch.uint8)


def printed(at: int) -> Tensor:
    """White but for one pixel, which no coarse look finds."""
    tile = plain(255)
    tile[1, at, at + 1] = 254
    return tile


def test_bare_tiles_are_encoded_once_and_every_tile_keeps_its_place() -> None:
    spy = Spy()
    tiles = PlainTiles(spy.encode)
    batch = torch.stack([printed(3), plain(255), plain(250), plain(255), printed(3), plain(255)])
    assert torch.equal(tiles.encode(batch), Spy().encode(batch))
    assert spy.asked == 4  # two printed ones, equal or not, and two colours
    assert torch.equal(tiles.encode(batch.flip(0)), Spy().encode(batch.flip(0)))
    assert spy.asked == 6
    bare = torch.stack([plain(250), plain(255)])
    assert torch.equal(tiles.encode(bare), Spy().encode(bare))
    assert spy.asked == 6


def test_a_colour_is_all_three_channels_and_the_side() -> None:
    spy = Spy()
    tiles = PlainTiles(spy.encode)
    red = plain(255)
    red[0] = 200
    tiles.encode(torch.stack([plain(255), red]))
    tiles.encode(plain(255, side=64)[None])
    assert spy.asked == 3


def test_a_caller_may_change_what_it_got() -> None:
    tiles = PlainTiles(Spy().encode)
    tiles.encode(plain(255)[None]).zero_()
    assert torch.equal(tiles.encode(plain(255)[None]), Spy().encode(plain(255)[None]))


def test_a_document_in_a_thousand_tints_takes_no_more_memory() -> None:
    spy = Spy()
    tiles = PlainTiles(spy.encode)
    for value in range(200):
        assert torch.equal(tiles.encode(plain(value)[None]), Spy().encode(plain(value)[None]))
    assert len(tiles._known) == KEPT_COLOURS
