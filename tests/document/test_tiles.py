"""The tile rule against the reference's table and against Pillow's own functions."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ocr2cli.config import TileConfig
from ocr2cli.document.tiles import (
    make_views,
    num_visual_tokens,
    pick_grid,
    pixels_sha256,
    place_in_global_view,
    v1_tile_config,
    view_layout,
)
from ocr2cli.errors import UsageError
from ocr2cli.pages import PageImage, PageKey, Views

V2 = TileConfig()
GREY = (127, 127, 127)

# Every row of model-spec 2.8: page, grid, visual tokens, size and offset in the global view.
REFERENCE_TABLE = """
640x480    1x1  257 1024x768  0,128
640x488    1x1  257 1024x781  0,122
768x768    1x1  257 1024x1024 0,0
769x768    2x2  833 1024x1023 0,0
429x806    1x2  545 545x1024  240,0
800x600    3x2 1121 1024x768  0,128
1000x800   2x2  833 1024x819  0,102
1250x1000  2x2  833 1024x819  0,102
1500x1200  3x2 1121 1024x819  0,102
2500x2000  3x2 1121 1024x819  0,102
1024x1024  2x2  833 1024x1024 0,0
1536x1536  2x2  833 1024x1024 0,0
1152x768   3x2 1121 1024x683  0,170
1280x720   2x1  545 1024x576  0,224
1344x768   2x1  545 1024x585  0,220
2100x1200  3x2 1121 1024x585  0,220
1920x1080  2x1  545 1024x576  0,224
3840x2160  2x1  545 1024x576  0,224
1080x1920  1x2  545 576x1024  224,0
1190x1684  2x3 1121 724x1024  150,0
1191x1684  2x3 1121 724x1024  150,0
1684x1190  3x2 1121 1024x724  0,150
1224x1584  2x3 1121 791x1024  116,0
1224x2016  2x3 1121 622x1024  201,0
1240x1754  2x3 1121 724x1024  150,0
1654x2339  2x3 1121 724x1024  150,0
2480x3508  2x3 1121 724x1024  150,0
2550x3300  2x3 1121 791x1024  116,0
1000x1200  2x2  833 853x1024  86,0
1000x2000  1x2  545 512x1024  256,0
1000x400   2x1  545 1024x410  0,307
2000x800   3x1  689 1024x410  0,307
2000x400   5x1  977 1024x205  0,410
600x3000   1x5  977 205x1024  410,0
5000x500   6x1 1121 1024x102  0,461
900x2000   1x2  545 461x1024  282,0
"""


def _pair(text: str, separator: str) -> tuple[int, int]:
    left, right = text.split(separator)
    return int(left), int(right)


@pytest.mark.parametrize("row", REFERENCE_TABLE.strip().splitlines())
def test_every_row_of_the_reference_table(row: str) -> None:
    page, grid, tokens, size, offset = row.split()
    layout = view_layout(*_pair(page, "x"), V2)
    assert layout.grid == _pair(grid, "x")
    assert layout.visual_tokens == int(tokens)
    assert layout.global_size == _pair(size, "x")
    assert layout.global_offset == _pair(offset, ",")


# model-spec 2.2: pages whose shape lies exactly between two grids; the larger grid wins above
# this many pixels, and not at it.
@pytest.mark.parametrize(
    ("shape", "small", "large", "limit"),
    [
        ((9, 40), (1, 4), (1, 5), 1_474_560),
        ((5, 4), (2, 2), (3, 2), 1_769_472),
        ((7, 4), (2, 1), (3, 2), 1_769_472),
        ((5, 2), (2, 1), (3, 1), 884_736),
        ((7, 2), (3, 1), (4, 1), 1_179_648),
        ((9, 2), (4, 1), (5, 1), 1_474_560),
        ((11, 2), (5, 1), (6, 1), 1_769_472),
    ],
)
def test_a_tie_goes_to_the_larger_grid_when_the_page_has_half_its_pixels(
    shape: tuple[int, int], small: tuple[int, int], large: tuple[int, int], limit: int
) -> None:
    for factor in range(1, 1500):
        width, height = shape[0] * factor, shape[1] * factor
        if width > 768 or height > 768:
            expected = large if width * height > limit else small
            assert pick_grid(width, height, V2) == expected, (width, height)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((5, 6), (2, 2)),
        ((7, 12), (2, 3)),
        ((5, 12), (1, 2)),
        ((7, 24), (1, 3)),
        ((11, 60), (1, 6)),
    ],
)
def test_midpoints_that_doubles_break_never_become_ties(
    shape: tuple[int, int], grid: tuple[int, int]
) -> None:
    for factor in (200, 400, 831):
        assert pick_grid(shape[0] * factor, shape[1] * factor, V2) == grid


@pytest.mark.parametrize(("page", "grid"), [((143, 780), (1, 6)), ((4990, 5988), (2, 2))])
def test_pages_that_single_precision_gets_wrong(
    page: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert pick_grid(*page, V2) == grid


def _reference_grid(width: int, height: int, cfg: TileConfig) -> tuple[int, int]:
    """The rule as the reference writes it: a set of pairs, sorted by product only."""
    if width <= cfg.tile_size and height <= cfg.tile_size:
        return (1, 1)
    pairs = {
        (i, j)
        for n in range(cfg.min_tiles, cfg.max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if cfg.min_tiles <= i * j <= cfg.max_tiles
    }
    best, nearest = (1, 1), float("inf")
    for pair in sorted(pairs, key=lambda p: p[0] * p[1]):
        difference = abs(width / height - pair[0] / pair[1])
        if difference < nearest:
            nearest, best = difference, pair
        elif difference == nearest:
            area = cfg.tile_size * cfg.tile_size * pair[0] * pair[1]
            best = pair if width * height > 0.5 * area else best
    return best


@pytest.mark.parametrize("cfg", [V2, v1_tile_config("gundam")], ids=["v2", "v1"])
def test_the_grid_equals_the_reference_rule_over_many_sizes(cfg: TileConfig) -> None:
    draw = random.Random(1)
    sizes = [(w, h) for w in range(600, 1400, 23) for h in range(600, 1400, 19)]
    sizes += [(draw.randint(1, 9000), draw.randint(1, 9000)) for _ in range(6000)]
    sizes += [(b * k, a * k) for a in range(1, 13) for b in range(1, 13) for k in (70, 160, 410)]
    for width, height in sizes:
        expected = _reference_grid(width, height, cfg)
        assert pick_grid(width, height, cfg) == expected, (width, height)


def _pillow_placement(width: int, height: int, side: int) -> tuple[int, int, int, int]:
    """Where `ImageOps.pad` puts a white page on black, as the bounding box of what is not black."""
    page = Image.new("L", (width, height), 255)
    box = ImageOps.pad(page, (side, side), Image.Resampling.NEAREST, color=0).getbbox()
    assert box is not None
    return box


def test_the_placement_equals_pillows_pad_over_thousands_of_sizes() -> None:
    draw = random.Random(2)
    side = 128
    cfg = replace(V2, global_size=side)
    sizes = [(w, h) for w in range(1, 66) for h in range(1, 66)]
    sizes += [(draw.randint(1, 500), draw.randint(1, 500)) for _ in range(3000)]
    for width, height in sizes:
        if round(min(width, height) / max(width, height) * side) == 0:
            continue
        (w, h), (x, y) = place_in_global_view(width, height, cfg)
        assert (x, y, x + w, y + h) == _pillow_placement(width, height, side), (width, height)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_placement_equals_pillows_pad_at_full_size(width: int, height: int) -> None:
    size = ImageOps.contain(Image.new("1", (width, height)), (1024, 1024)).size
    placed, (x, y) = place_in_global_view(width, height, V2)
    if 0 not in size:
        assert placed == size
    assert x == round((1024 - placed[0]) * 0.5)
    assert y == round((1024 - placed[1]) * 0.5)


def _page(width: int, height: int, seed: int = 0) -> PageImage:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PageImage(PageKey("page", 0), rgb, 144.0, ("a warning",))


def _assert_views_equal_pillow(page: PageImage, views: Views, cfg: TileConfig) -> None:
    image = Image.fromarray(page.rgb)
    side = cfg.global_size
    padded = np.asarray(ImageOps.pad(image, (side, side), color=GREY))
    assert np.array_equal(views.global_view, padded.transpose(2, 0, 1))
    columns, rows = views.grid
    stretched = image.resize((cfg.tile_size * columns, cfg.tile_size * rows))
    for index, tile in enumerate(views.tiles):
        x, y = index % columns * cfg.tile_size, index // columns * cfg.tile_size
        expected = stretched.crop((x, y, x + cfg.tile_size, y + cfg.tile_size))
        assert np.array_equal(tile, np.asarray(expected).transpose(2, 0, 1)), index


@pytest.mark.parametrize("size", [(640, 488), (769, 768), (429, 806), (1224, 1584), (2000, 800)])
def test_real_size_views_equal_pillow_to_the_pixel(size: tuple[int, int]) -> None:
    page = _page(*size)
    views = make_views(page, V2)
    assert (
        views.num_tiles
        == len(views.tiles)
        == (0 if views.grid == (1, 1) else views.grid[0] * views.grid[1])
    )
    _assert_views_equal_pillow(page, views, V2)


@settings(max_examples=250, deadline=None)
@given(st.integers(2, 200), st.integers(2, 200))
def test_small_views_of_any_shape_equal_pillow_to_the_pixel(width: int, height: int) -> None:
    cfg = replace(V2, tile_size=48, global_size=64)
    page = _page(width, height)
    views = make_views(page, cfg)
    if round(min(width, height) / max(width, height) * 64) > 0:
        _assert_views_equal_pillow(page, views, cfg)


def test_views_are_contiguous_bytes_and_carry_the_page_along() -> None:
    page = _page(1224, 1584)
    views = make_views(page, V2, own_text="draft", seconds={"raster": 2.5})
    assert views.tiles.shape == (6, 3, 768, 768) and views.global_view.shape == (3, 1024, 1024)
    assert views.tiles.dtype == views.global_view.dtype == np.uint8
    assert views.tiles.flags.c_contiguous and views.global_view.flags.c_contiguous
    assert views.page_size == (1224, 1584) and views.key == page.key
    assert views.warnings == ("a warning",) and views.own_text == "draft"
    assert views.pixels_sha256 == pixels_sha256(page.rgb)
    assert views.seconds["raster"] == 2.5 and views.seconds["tile"] > 0


def test_the_pixel_digest_sees_the_pixels_and_the_shape() -> None:
    rgb = _page(6, 4).rgb
    changed = rgb.copy()
    changed[0, 0, 0] ^= 1
    digests = {pixels_sha256(x) for x in (rgb, changed, rgb.reshape(6, 4, 3))}
    assert len(digests) == 3


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (3000, 1), (1, 1), (1, 769)])
def test_a_strip_whose_side_rounds_to_zero_keeps_a_pixel(size: tuple[int, int]) -> None:
    page = PageImage(PageKey("strip", 0), np.zeros((size[1], size[0], 3), np.uint8), 72.0)
    views = make_views(page, V2)
    assert views.global_view.min() == 0, "the black strip must be visible in the global view"


@pytest.mark.parametrize(
    ("mode", "size", "grid", "tokens"),
    [
        ("tiny", (1190, 1684), (1, 1), 73),
        ("small", (1190, 1684), (1, 1), 111),
        ("base", (1190, 1684), (1, 1), 273),
        ("large", (1190, 1684), (1, 1), 421),
        ("gundam", (640, 488), (1, 1), 273),
        ("gundam", (429, 806), (1, 2), 493),
        ("gundam", (1190, 1684), (2, 3), 903),
        ("gundam", (1224, 1584), (2, 3), 903),
        ("gundam", (1920, 1080), (4, 2), 1093),
        ("gundam", (1024, 1024), (2, 2), 693),
        ("gundam", (2000, 2000), (3, 3), 1203),
        ("gundam", (800, 600), (3, 2), 893),
    ],
)
def test_v1_modes_give_the_documented_grids_and_tokens(
    mode: str, size: tuple[int, int], grid: tuple[int, int], tokens: int
) -> None:
    layout = view_layout(*size, v1_tile_config(mode), is_v1=True)
    assert (layout.grid, layout.visual_tokens) == (grid, tokens)


def test_v1_with_at_most_six_tiles_reads_a_slide_as_two() -> None:
    layout = view_layout(1920, 1080, replace(v1_tile_config("gundam"), max_tiles=6), is_v1=True)
    assert (layout.grid, layout.visual_tokens) == ((2, 1), 483)


@pytest.mark.parametrize(("side", "grid"), [(1357, (2, 2)), (1358, (3, 3))])
def test_v1_squares_get_nine_tiles_above_half_their_area(side: int, grid: tuple[int, int]) -> None:
    assert pick_grid(side, side, v1_tile_config("gundam")) == grid


@pytest.mark.parametrize(
    ("mode", "is_stretched"), [("tiny", True), ("small", True), ("base", False), ("large", False)]
)
def test_v1_modes_without_tiles_stretch_or_pad_the_page(mode: str, is_stretched: bool) -> None:
    cfg = v1_tile_config(mode)
    page = _page(300, 450)
    views = make_views(page, cfg)
    side = cfg.global_size
    image = Image.fromarray(page.rgb)
    padded = ImageOps.pad(image, (side, side), color=GREY)
    expected = image.resize((side, side)) if is_stretched else padded
    assert np.array_equal(views.global_view, np.asarray(expected).transpose(2, 0, 1))
    assert views.num_tiles == 0 and views.tiles.shape == (0, 3, 640, 640)


def test_an_unknown_v1_mode_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="tiny, small, base, large, gundam"):
        v1_tile_config("huge")


def test_visual_tokens_of_every_v2_grid() -> None:
    tokens = {n: num_visual_tokens((1, n), V2) for n in (1, 2, 3, 4, 5, 6)}
    assert tokens == {1: 257, 2: 545, 3: 689, 4: 833, 5: 977, 6: 1121}
