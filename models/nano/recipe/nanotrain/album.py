"""An album of seen pages: drawn, cut into views and run through the eyes once, then read many
times.

    python -m nanotrain.album --state DIR --pages 400 --seed 1

Appends DIR/album/NAME.npz until the count is reached; each holds one page's visual tokens and
texts.
Knows nothing about the decoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch

from nanotrain import batches, cells, draw, fonts, pages
from nanotrain.export import model_of
from ocr2cli.config import TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.model.vision import VisionEncoder
from ocr2cli.pages import PageImage, PageKey

KINDS: tuple[pages.Kind, ...] = ("note", "slide", "poster", "letter")


def visual_tokens(
    vision: VisionEncoder, picture: np.ndarray, *, with_global: bool = True
) -> torch.Tensor:
    """All visual tokens of an RGB page, [V, D], separator last; as the program makes them.

    with_global False leaves the global view's tokens zero: it costs as much as two tiles, and a
    page with tiles is read from the tiles.
    """
    views = make_views(
        PageImage(PageKey("page", 0), np.ascontiguousarray(picture), 144.0), TileConfig()
    )
    with torch.inference_mode():
        seen = vision.view_separator.new_zeros(256, len(vision.view_separator))
        if with_global or not len(views.tiles):
            seen = vision.encode_views(torch.from_numpy(views.global_view)[None])[0]
        tiles = seen.new_zeros(0, 144, seen.shape[-1])
        if len(views.tiles):
            tiles = torch.cat(
                [vision.encode_views(torch.from_numpy(tile)[None]) for tile in views.tiles]
            )
        return vision.assemble(tiles, seen, views.grid)


def write_page(path: Path, page: pages.Page, tokens: torch.Tensor, has_global: bool) -> None:
    tiles, view = cells.page_windows(page.width, page.height)
    glyphs = pages.glyphs_of(page)
    has_text = np.concatenate(
        [(cells.slot_labels(glyphs, w) > 0).any(1) for w in [*tiles, view]] + [[False]]
    )
    arrays = {
        "tokens": tokens.float().numpy().astype(np.float16),
        "has_text": has_text,
        "token_places": batches.token_places(page),
        "num_tiles": np.array(len(tiles)),
        "has_global": np.array(has_global),
    }
    for name, row in zip(("plain", "grounded"), batches.page_rows(page), strict=True):
        arrays |= {f"{name}_{part}": a for part, a in zip(batches.TEXT_PARTS, row, strict=True)}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--weights", default="1,5,2,2", help="shares of note, slide, poster, letter"
    )
    parser.add_argument(
        "--globals", type=float, default=0.2, dest="globals_", help="share with a global view"
    )
    parser.add_argument("--max-characters", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vision = model_of(args.state).vision.eval()
    folder = args.state / "album"
    folder.mkdir(exist_ok=True)
    rng = Random(args.seed)
    chosen = fonts.ordinary(fonts.load_fonts(False))
    shares = [float(x) for x in args.weights.split(",")]
    for index in range(args.pages):
        if index % 40 == 39:
            # The eyes may still be learning beside this.
            vision = model_of(args.state).vision.eval()
        kind = rng.choices(KINDS, shares)[0]
        page = pages.random_page(rng, kind, chosen, max_characters=args.max_characters)
        picture = np.asarray(draw.draw_page(page, rng))
        has_global = kind == "note" or rng.random() < args.globals_
        tokens = visual_tokens(vision, picture, with_global=has_global)
        write_page(folder / f"{args.seed}-{index:05d}-{kind}.npz", page, tokens, has_global)


if __name__ == "__main__":
    main()
