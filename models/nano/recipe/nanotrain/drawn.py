"""Drawn pages on disk, cut into crops as the program does, to train eyes and reader together.

    python -m nanotrain.drawn --folder DIR --pages 1000 --seed 1

Each file holds one page: the grey crops of its views, the labels of every visual token and both
texts. Several processes may write to one folder, each with its own seed. Knows nothing about
tensors.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from nanotrain import batches, cells, draw, fonts, layouts, pages
from nanotrain.characters import TINY
from nanotrain.scenes import CROP
from nanotrain.stock import grey
from ocr2cli.config import TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.pages import PageImage, PageKey


@dataclass
class DrawnBatch:
    """Pages of one kind. pixels: uint8 [B, C, 256, 256], the crops of the tiles, then of the global
    view if it is there; is_seen: bool [B, C], the crops that the eyes look at, the others being
    blank; page: kept tokens, labels and texts as for the reader; slots: uint8 [B, V, 16], the
    labels of the tokens of all views."""

    pixels: np.ndarray
    is_seen: np.ndarray
    has_global: bool
    page: batches.PageBatch
    slots: np.ndarray


def crops_of_view(view: np.ndarray) -> np.ndarray:
    """uint8 [3, side, side] to grey [n, 256, 256], row by row."""
    n = view.shape[1] // CROP
    cut = (
        view.transpose(1, 2, 0)
        .reshape(n, CROP, n, CROP, 3)
        .swapaxes(1, 2)
        .reshape(n * n, CROP, CROP, 3)
    )
    return grey(cut)


def page_arrays(page: pages.Page, picture: np.ndarray, has_global: bool) -> dict[str, np.ndarray]:
    views = make_views(
        PageImage(PageKey("page", 0), np.ascontiguousarray(picture), 144.0), TileConfig()
    )
    tiles, view = cells.page_windows(page.width, page.height)
    glyphs = pages.glyphs_of(page)
    slots = [cells.slot_labels(glyphs, window) for window in [*tiles, view]]
    crops = [crops_of_view(np.asarray(tile)) for tile in views.tiles]
    if has_global or not tiles:
        crops.append(crops_of_view(np.asarray(views.global_view)))
    arrays = {
        "pixels": np.concatenate(crops),
        "slots": np.concatenate([*slots, np.zeros((1, 16), np.int64)]).astype(np.uint8),
        "token_places": batches.token_places(page),
        "num_tiles": np.array(len(tiles)),
        "has_global": np.array(has_global or not tiles),
    }
    for name, row in zip(("plain", "grounded"), batches.page_rows(page), strict=True):
        arrays |= {
            f"{name}_{part}": a
            for part, a in zip(("ids", "targets", "cells", "places"), row, strict=True)
        }
    return arrays


@dataclass(frozen=True)
class KnownPage:
    path: Path
    length: int
    has_global: bool


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

    def batch(self, rng: Random, kind: str, count: int, blank_share: float) -> DrawnBatch | None:
        """Pages of about one length, all with the global view or all without it."""
        pool = self.pages.get(kind, [])
        first = rng.choice(pool) if pool else None
        if first is None:
            return None
        pool = [page for page in pool if page.has_global == first.has_global]
        if len(pool) < 5 * count:
            return None
        chosen = sorted(rng.sample(pool, 5 * count), key=lambda page: page.length)
        start = rng.randrange(len(chosen) - count + 1)
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
    parts = ("ids", "targets", "cells", "places")
    texts = [
        batches.stack_rows([tuple(page[f"{name}_{part}"] for part in parts) for page in chosen])
        for name in ("plain", "grounded")
    ]
    slots = np.stack([page["slots"] for page in chosen])
    num_visual = slots.shape[1]
    has_global = bool(chosen[0]["has_global"])
    num_tiles = int(chosen[0]["num_tiles"])
    pixels = np.stack([page["pixels"] for page in chosen])
    wanted = (slots > 0).any(2)
    for row, tokens in zip(wanted, batches.needed_tokens(texts), strict=True):
        row[tokens[tokens >= 0]] = True
    crop_of, crops = crop_of_tokens(num_tiles), pixels.shape[1]
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
    return DrawnBatch(pixels, is_seen, has_global, page, slots)


# Points of body type on structured pages: what the eyes can make out so far.
STRUCTURED_BODY = (15.0, 21.0)


def page_of_kind(
    rng: Random,
    kind: str,
    chosen: tuple[fonts.Font, ...],
    *,
    max_characters: int,
    held_out: bool = False,
) -> pages.Page:
    """kind: one of pages.py's, large print in one column, or a look of layouts.py."""
    if kind in layouts.LOOKS:
        return layouts.structured_page(
            rng,
            kind,
            chosen,
            held_out=held_out,
            max_characters=max_characters,
            body_points=STRUCTURED_BODY,
        )
    return pages.random_page(rng, kind, chosen, max_characters=max_characters, held_out=held_out)


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
        chosen = everything if rng.random() < 0.7 else fonts.ordinary(everything)
        page = page_of_kind(
            rng, kind, chosen, max_characters=args.max_characters, held_out=args.held_out
        )
        picture = np.asarray(draw.draw_page(page, rng))
        arrays = page_arrays(page, picture, kind == "note" or rng.random() < args.globals_)
        path = args.folder / f"{args.seed}-{index:05d}-{kind}.npz"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as out:
            np.savez(out, **arrays)
        partial.replace(path)


if __name__ == "__main__":
    main()
