"""Drawn pages, cut into crops as the program does, to train eyes and reader together.

    python -m nanotrain.drawn --folder DIR --pages 1000 --seed 1

Kept on disk where cores are few (each file holds one page: the grey crops of its views, the labels
of every visual token and both texts; several processes may write to one folder, each with its own
seed), or drawn as batches want them where there are many. Knows nothing about tensors.
"""

from __future__ import annotations

import argparse
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
from PIL import Image

from nanotrain import batches, cells, draw, fonts, layouts, pages
from nanotrain.characters import TINY
from nanotrain.moving import STAYS
from nanotrain.scenes import CROP
from ocr2cli.config import TileConfig
from ocr2cli.document.tiles import PADDING_GREY, pick_grid, place_in_global_view


@dataclass
class DrawnBatch:
    """Pages of one kind. is_seen: bool [B, C], of the crops of the tiles, then of the global view
    if it is there, those that the eyes look at, the others being blank; pixels: uint8 [crops to
    look at, 256, 256], page after page; page: kept tokens, labels and texts as for the reader;
    slots: uint8 [B, V, 16], the labels of the tokens of all views."""

    pixels: np.ndarray
    is_seen: np.ndarray = field(metadata=STAYS)
    has_global: bool
    page: batches.PageBatch
    slots: np.ndarray


def page_crops(picture: np.ndarray, has_global: bool) -> np.ndarray:
    """uint8 [H, W, 3] to grey crops [C, 256, 256]: tile after tile, each row by row, then the
    global view if it is wanted or the only one.

    The program's views, made from a grey page: a third of the work, and each pixel within rounding.
    """
    page = Image.fromarray(picture).convert("L")
    config = TileConfig()
    columns, rows = pick_grid(page.width, page.height, config)
    crops = []
    if (columns, rows) != (1, 1):
        side = config.tile_size
        wide = page.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        n = side // CROP
        cut = np.asarray(wide).reshape(rows, n, CROP, columns, n, CROP)
        crops.append(cut.transpose(0, 3, 1, 4, 2, 5).reshape(-1, CROP, CROP))
    if has_global or not crops:
        side = config.global_size
        (width, height), (x, y) = place_in_global_view(page.width, page.height, config)
        view = np.full((side, side), PADDING_GREY, np.uint8)
        view[y : y + height, x : x + width] = page.resize((width, height), Image.Resampling.BICUBIC)
        n = side // CROP
        crops.append(view.reshape(n, CROP, n, CROP).swapaxes(1, 2).reshape(-1, CROP, CROP))
    return np.concatenate(crops)


def page_arrays(page: pages.Page, picture: np.ndarray, has_global: bool) -> dict[str, np.ndarray]:
    tiles, view = cells.page_windows(page.width, page.height)
    glyphs = pages.glyphs_of(page)
    slots = [cells.slot_labels(glyphs, window) for window in [*tiles, view]]
    arrays = {
        "pixels": page_crops(picture, has_global),
        "slots": np.concatenate([*slots, np.zeros((1, 16), np.int64)]).astype(np.uint8),
        "token_places": batches.token_places(page),
        "num_tiles": np.array(len(tiles)),
        "has_global": np.array(has_global or not tiles),
    }
    for name, row in zip(("plain", "grounded"), batches.page_rows(page), strict=True):
        arrays |= {f"{name}_{part}": a for part, a in zip(batches.TEXT_PARTS, row, strict=True)}
    return arrays


@dataclass(frozen=True)
class KnownPage:
    path: Path
    length: int
    has_global: bool


@dataclass(frozen=True)
class Like:
    """What pages that are learned from together should be like: numbers from 0 to 1 that decide
    whether they have the global view too, and how long they are among those at hand."""

    view: float
    length: float


class PageSource(Protocol):
    """Where drawn batches come from."""

    def batch(
        self, rng: Random, kind: str, count: int, blank_share: float, like: Like
    ) -> DrawnBatch | None:
        """Pages of one kind and about one length, all with the global view or all without it; None
        while there are too few."""

    def look(self) -> None:
        """Take notice of pages that were added."""


class FreshPages:
    """Pages drawn as they are wanted. Each is used about `uses` times, in other company and
    colours: drawing costs more than learning from a page does."""

    def __init__(
        self,
        everything: tuple[fonts.Font, ...],
        *,
        max_characters: int,
        globals_share: float,
        uses: float,
    ) -> None:
        self.everything, self.max_characters = everything, max_characters
        self.globals_share, self.uses = globals_share, uses
        self.pages: dict[tuple[str, bool], deque[dict[str, np.ndarray]]] = {}

    def batch(
        self, rng: Random, kind: str, count: int, blank_share: float, like: Like
    ) -> DrawnBatch:
        has_global = kind in pages.SMALL or like.view < self.globals_share
        pool = self.pages.setdefault((kind, has_global), deque(maxlen=2 * count))
        # A batch may be smaller than a page's uses are many: it still gets a new one now and then.
        wanted = int(count / self.uses + rng.random())
        for _ in range(max(wanted, count - len(pool))):
            pool.append(
                draw_arrays(
                    rng,
                    kind,
                    self.everything,
                    max_characters=self.max_characters,
                    globals_share=float(has_global),
                )
            )
        chosen = sorted(pool, key=lambda page: len(page["plain_ids"]))
        start = batches.start_at(like.length, len(chosen), count)
        return drawn_batch(rng, chosen[start : start + count], blank_share)

    def look(self) -> None:
        """Nothing is added from outside."""


class DrawnPages:
    """All pages of a folder by kind, read when a batch wants them: the system's cache holds what
    fits, and several processes share it. Looks for new ones when told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()
        self.pages: dict[str, list[KnownPage]] = {}
        self.look()

    def look(self) -> None:
        for path in sorted(self.folder.glob("*.npz")):
            if path.name in self.known:
                continue
            self.known.add(path.name)
            kind = path.stem.rsplit("-", 1)[1]
            with np.load(path, allow_pickle=False) as data:
                page = KnownPage(path, len(data["plain_ids"]), bool(data["has_global"]))
            self.pages.setdefault(kind, []).append(page)

    def batch(
        self, rng: Random, kind: str, count: int, blank_share: float, like: Like
    ) -> DrawnBatch | None:
        """Pages of about one length, all with the global view or all without it, as often as they
        were drawn so."""
        pool = self.pages.get(kind, [])
        share = sum(page.has_global for page in pool) / max(1, len(pool))
        pool = [page for page in pool if page.has_global == (like.view < share)]
        if len(pool) < 5 * count:
            return None
        chosen = sorted(rng.sample(pool, 5 * count), key=lambda page: page.length)
        start = batches.start_at(like.length, len(chosen), count)
        arrays = []
        for page in chosen[start : start + count]:
            with np.load(page.path, allow_pickle=False) as data:
                arrays.append(dict(data))
        return drawn_batch(rng, arrays, blank_share)


def crop_of_tokens(num_tiles: int) -> np.ndarray:
    """int64 [V - 1]: the crop, in the order of `DrawnBatch.pixels`, that each visual token lies
    in; the separator, which is last, lies in none."""
    parts, first = [], 0
    for side in [12] * num_tiles + [16]:
        rows, columns = np.divmod(np.arange(side * side), side)
        parts.append(first + rows // 4 * (side // 4) + columns // 4)
        first += (side // 4) ** 2
    return np.concatenate(parts)


def seen_crops(
    rng: Random, wanted: np.ndarray, share: float, crop_of: np.ndarray, count: int
) -> np.ndarray:
    """bool [B, count]: crops that hold a wanted token (bool [B, V - 1]), a share of the blank ones,
    and as many more as give every page room for what the fullest page keeps and every view a
    rounded number: a CPU compiles kernels for each new shape."""
    is_seen = np.zeros((len(wanted), count), bool)
    for row, tokens in zip(is_seen, wanted, strict=True):
        row[np.unique(crop_of[tokens])] = True
        row |= np.array([rng.random() < share for _ in row])
    most = max(wanted.sum(1).max(), (16 * is_seen.sum(1)).min())
    for row in is_seen:
        blank = np.nonzero(~row)[0].tolist()
        lacking = -(-(int(most) - 16 * int(row.sum())) // 16)
        row[rng.sample(blank, max(0, min(lacking, len(blank))))] = True
        for start, n, step in _views(count):
            view = row[start : start + n]
            blank = np.nonzero(~view)[0].tolist()
            view[rng.sample(blank, -int(view.sum()) % step)] = True
    return is_seen


def _views(count: int) -> list[tuple[int, int, int]]:
    """(first crop, crops, step of the numbers to look at) of each view among a page's crops."""
    tiles = [(start, 9, 3) for start in range(0, count - 8, 9)]
    return tiles if count % 9 == 0 else [*tiles[: (count - 16) // 9], (count - 16, 16, 4)]


BLANK_CROPS = 0.12  # share of the blank crops that a thinned page keeps


def drawn_batch(rng: Random, chosen: list[dict[str, np.ndarray]], blank_share: float) -> DrawnBatch:
    texts = [
        batches.stack_rows(
            [tuple(page[f"{name}_{part}"] for part in batches.TEXT_PARTS) for page in chosen]
        )
        for name in ("plain", "grounded")
    ]
    slots = np.stack([page["slots"] for page in chosen])
    num_visual = slots.shape[1]
    has_global = bool(chosen[0]["has_global"])
    num_tiles = int(chosen[0]["num_tiles"])
    wanted = (slots > 0).any(2)
    for row, tokens in zip(wanted, batches.needed_tokens(texts), strict=True):
        row[tokens[tokens >= 0]] = True
    crop_of, crops = crop_of_tokens(num_tiles), len(chosen[0]["pixels"])
    wanted = wanted[:, :-1] & (crop_of < crops)
    is_seen = seen_crops(rng, wanted, max(blank_share, BLANK_CROPS), crop_of, crops)
    present = np.ones((len(chosen), num_visual), bool)
    present[:, :-1] = (crop_of < crops) & is_seen[:, np.minimum(crop_of, crops - 1)]
    kept = batches.thin(rng, (slots > TINY).any(2), texts, blank_share, present)
    places = np.stack([page["token_places"][rows] for page, rows in zip(chosen, kept, strict=True)])
    page = batches.PageBatch(
        kept,
        np.take_along_axis(slots, kept[..., None], 1),
        places,
        texts,
        num_tiles,
        num_visual,
    )
    seen = [page["pixels"][rows] for page, rows in zip(chosen, is_seen, strict=True)]
    return DrawnBatch(np.concatenate(seen), is_seen, has_global, page, slots)


SMALL_PRINT = "text"  # a kind of its own: a letter's prose in 10 to 16 pt
SMALLEST_BODY = 10.0  # points of body type on structured pages, A4


def page_of_kind(
    rng: Random,
    kind: str,
    chosen: tuple[fonts.Font, ...],
    *,
    max_characters: int,
    held_out: bool = False,
) -> pages.Page:
    """kind: one of pages.py's, large print in one column, "text", or a look of layouts.py. Small
    print and columns have up to four and two times as many characters."""
    if kind in layouts.LOOKS:
        low, high = layouts.BODY[kind]
        return layouts.structured_page(
            rng,
            kind,
            chosen,
            held_out=held_out,
            max_characters=max_characters * (2 if kind == "columns" else 1),
            body_points=(max(low, SMALLEST_BODY), high),
        )
    if kind == SMALL_PRINT:
        return pages.random_page(
            rng,
            "letter",
            chosen,
            held_out=held_out,
            max_characters=4 * max_characters,
            smallest=SMALLEST_BODY * layouts.VIEW_PIXELS_A_POINT,
        )
    return pages.random_page(rng, kind, chosen, max_characters=max_characters, held_out=held_out)


def draw_arrays(
    rng: Random,
    kind: str,
    everything: tuple[fonts.Font, ...],
    *,
    max_characters: int,
    globals_share: float,
    held_out: bool = False,
) -> dict[str, np.ndarray]:
    """One page of the kind, laid out, drawn and cut. globals_share: how many pages with tiles have
    the global view too."""
    chosen = everything if rng.random() < 0.7 else fonts.ordinary(everything)
    page = page_of_kind(rng, kind, chosen, max_characters=max_characters, held_out=held_out)
    picture = np.asarray(draw.draw_page(page, rng))
    return page_arrays(page, picture, kind in pages.SMALL or rng.random() < globals_share)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="note,slide")
    parser.add_argument("--weights", default="1,1")
    parser.add_argument("--globals", type=float, default=0.15, dest="globals_")
    parser.add_argument("--max-characters", type=int, default=300)
    parser.add_argument("--held-out", action="store_true", help="held-out fonts and texts")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = Random(args.seed)
    everything = fonts.load_fonts(args.held_out)
    shares = [float(x) for x in args.weights.split(",")]
    for index in range(args.pages):
        kind = rng.choices(args.kinds.split(","), shares)[0]
        arrays = draw_arrays(
            rng,
            kind,
            everything,
            max_characters=args.max_characters,
            globals_share=args.globals_,
            held_out=args.held_out,
        )
        path = args.folder / f"{args.seed}-{index:05d}-{kind}.npz"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as out:
            np.savez(out, **arrays)
        partial.replace(path)


if __name__ == "__main__":
    main()
