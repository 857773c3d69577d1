"""The tile rule: which square views the model gets of a page, equal to the reference to the pixel.

Knows nothing about files, about rasterisation or about what the model does with a view.

Source: model-spec 2.2 to 2.4 (v2) and 13.3 (v1); deepseek-ai's `dynamic_preprocess` and Pillow's
`ImageOps.pad`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ocr2cli.config import V1_MODES, TileConfig
from ocr2cli.errors import UsageError
from ocr2cli.pages import PageImage, Uint8Array, Views

if TYPE_CHECKING:
    from PIL import Image

# Bump when a change alters any view of any page: resume looks at it.
TILE_RULE = 1

# int(0.5 * 255): the mean the reference normalises with, so that padding becomes almost zero.
PADDING_GREY = 127

# One visual token stands for 64 x 64 pixels: 16-pixel patches, halved twice by the convolutions.
PIXELS_PER_TOKEN = 64


def v1_tile_config(mode: str) -> TileConfig:
    """The tile rule's numbers for one of v1's five modes.

    Raises: UsageError for an unknown mode. Source: model-spec 13.3.
    """
    if mode not in V1_MODES:
        raise UsageError(f"there is no mode {mode!r}; choose one of {', '.join(V1_MODES)}")
    return V1_MODES[mode]


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """What the model gets of a page, known from the page's size alone.

    grid: (columns, rows), (1, 1) when there are no tiles. global_size: (width, height) of the
    page inside the global view, in pixels. global_offset: (x, y) of its top left corner there.
    """

    grid: tuple[int, int]
    num_tiles: int
    global_size: tuple[int, int]
    global_offset: tuple[int, int]
    visual_tokens: int


def view_layout(width: int, height: int, cfg: TileConfig, *, is_v1: bool = False) -> ViewLayout:
    """Grid, global view and visual tokens of a page of width x height pixels; touches no pixel."""
    grid = pick_grid(width, height, cfg)
    size, offset = place_in_global_view(width, height, cfg)
    return ViewLayout(
        grid=grid,
        num_tiles=num_tiles(grid),
        global_size=size,
        global_offset=offset,
        visual_tokens=num_visual_tokens(grid, cfg, is_v1=is_v1),
    )


def pick_grid(width: int, height: int, cfg: TileConfig) -> tuple[int, int]:
    """Grid of tiles for a page: (columns, rows), or (1, 1) for no tiles.

    The grid nearest in aspect ratio wins. Of two equally near ones the larger wins when the page
    has more than half the pixels of that grid.

    Source: `find_closest_aspect_ratio`. IEEE doubles throughout: single precision sees ties that
    the reference does not (model-spec 12, row 3).
    """
    if not cfg.is_tiled or (width <= cfg.tile_size and height <= cfg.tile_size):
        return (1, 1)
    best_distance = float("inf")
    best = (1, 1)
    for columns, rows in _candidate_grids(cfg.min_tiles, cfg.max_tiles):
        distance = abs(width / height - columns / rows)
        # The distance of a tie is left alone, as in the reference: it is equal.
        is_large = width * height > 0.5 * cfg.tile_size * cfg.tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and is_large):
            best_distance, best = distance, (columns, rows)
    return best


def num_tiles(grid: tuple[int, int]) -> int:
    """Tiles of a grid; the grid (1, 1) means none."""
    return 0 if grid == (1, 1) else grid[0] * grid[1]


def num_visual_tokens(grid: tuple[int, int], cfg: TileConfig, is_v1: bool = False) -> int:
    """Rows the encoder makes for one page, separator included.

    v2: 144 a tile, 256 for the global view, 1 separator. v1 ends every row of its token raster
    with a newline token, over all tiles and in the global view. Source: model-spec 1 and 13.2.
    """
    per_tile = cfg.tile_size // PIXELS_PER_TOKEN
    per_global = cfg.global_size // PIXELS_PER_TOKEN
    if not is_v1:
        return num_tiles(grid) * per_tile**2 + per_global**2 + 1
    columns, rows = grid
    raster = per_tile * rows * (per_tile * columns + 1) if num_tiles(grid) else 0
    return raster + per_global * (per_global + 1) + 1


def place_in_global_view(
    width: int, height: int, cfg: TileConfig
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size (w, h) and offset (x, y) of the page inside the square global view, in pixels.

    Source: Pillow's `ImageOps.pad`; `round` takes halves to the even number, in both places.
    A strip whose short side rounds to 0 keeps one pixel, where the reference gives a grey view.
    """
    side = cfg.global_size
    if width == height or cfg.stretch_global:
        return (side, side), (0, 0)
    if width > height:
        short = max(1, round(height / width * side))
        return (side, short), (0, round((side - short) * 0.5))
    short = max(1, round(width / height * side))
    return (short, side), (round((side - short) * 0.5), 0)


def make_views(
    page: PageImage,
    cfg: TileConfig,
    *,
    digest: str = "",
    own_text: str = "",
    seconds: Mapping[str, float] | None = None,
) -> Views:
    """All views of one page, as bytes; normalisation is the encoder's.

    page.rgb: uint8 [H, W, 3]. Result: global_view uint8 [3, G, G], tiles uint8 [N, 3, T, T] in
    row-major order, both C-contiguous. digest: of the pixels, where it is known already.
    seconds: of the earlier stages; "tile" is added.

    Source: `image.resize` (stretched, BICUBIC) for the tiles, `ImageOps.pad` for the global view.
    """
    from PIL import Image

    start = perf_counter()
    height, width = page.rgb.shape[:2]
    grid = pick_grid(width, height, cfg)
    image = Image.fromarray(page.rgb)
    tiles = _cut_tiles(image, grid, cfg.tile_size)
    global_view = _make_global_view(image, cfg)
    digest = digest or pixels_sha256(page.rgb)
    return Views(
        key=page.key,
        global_view=global_view,
        tiles=tiles,
        grid=grid,
        page_size=(width, height),
        pixels_sha256=digest,
        own_text=own_text,
        warnings=page.warnings,
        seconds={**(seconds or {}), "tile": perf_counter() - start},
    )


def pixels_sha256(rgb: Uint8Array) -> str:
    """Digest of a page's pixels and size. rgb: uint8 [H, W, 3]."""
    digest = hashlib.sha256(f"{rgb.shape[1]}x{rgb.shape[0]}:".encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.hexdigest()


@cache
def _candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) by number of tiles. The order among equal numbers changes no result."""
    sides = range(1, max_tiles + 1)
    grids = [(c, r) for c in sides for r in sides if min_tiles <= c * r <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def _cut_tiles(image: Image.Image, grid: tuple[int, int], side: int) -> Uint8Array:
    """uint8 [N, 3, side, side]. One resize of the whole page; tiles are windows of it."""
    from PIL import Image

    if num_tiles(grid) == 0:
        return np.empty((0, 3, side, side), np.uint8)
    columns, rows = grid
    size = (columns * side, rows * side)
    stretched = image.resize(size, Image.Resampling.BICUBIC)
    tiles = np.empty((rows, columns, 3, side, side), np.uint8)
    for channel, band in enumerate(stretched.split()):
        raster = np.asarray(band).reshape(rows, side, columns, side)
        tiles[:, :, channel] = raster.transpose(0, 2, 1, 3)
    return tiles.reshape(rows * columns, 3, side, side)


def _make_global_view(image: Image.Image, cfg: TileConfig) -> Uint8Array:
    """uint8 [3, G, G]: the whole page, resized to fit and padded with grey."""
    from PIL import Image

    side = cfg.global_size
    (width, height), (x, y) = place_in_global_view(image.width, image.height, cfg)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    view = np.full((3, side, side), PADDING_GREY, np.uint8)
    for channel, band in enumerate(resized.split()):
        view[channel, y : y + height, x : x + width] = np.asarray(band)
    return view
