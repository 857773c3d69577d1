"""A stock of crops on disk: drawn once by renderers, read many times by the eyes' trainer.

    python -m nanotrain.stock --folder DIR --chunks 200 --seed 1

Grey pixels are stored (a third of the bytes); the trainer gives each crop new colours whenever it
is read. Several renderers may write to one folder, each with its own seed. Knows nothing about
tensors.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from random import Random

import numpy as np

from nanotrain import fonts, scenes

CHUNK = 576  # crops a file; a multiple of 9 and 16
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 256, 256, 3] to uint8 [n, 256, 256]."""
    return (pixels.astype(np.float32) @ _GREY + 0.5).astype(np.uint8)


def write_chunk(path: Path, crops: scenes.Crops) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as out:
        np.savez(
            out,
            pixels=grey(crops.pixels),
            places=crops.places.astype(np.uint8),
            slots=crops.slots.astype(np.uint8),
            patches=crops.patches.astype(np.uint8),
        )
    partial.replace(path)


class Stock:
    """All crops of a folder, in memory. Looks for new chunks when told to.

    limit: chunks a side that are kept; the oldest go first.
    """

    def __init__(self, folder: Path, *, limit: int = 150) -> None:
        self.folder, self.limit = folder, limit
        self.known: set[str] = set()
        self.chunks: dict[int, list[dict[str, np.ndarray]]] = {768: [], 1024: []}
        self.look()

    def look(self) -> None:
        """Take up the chunks that came since the last look."""
        for path in sorted(self.folder.glob("*.npz"), key=lambda p: p.stat().st_mtime):
            if path.name in self.known:
                continue
            self.known.add(path.name)
            with np.load(path, allow_pickle=False) as data:
                chunks = self.chunks[int(path.name.split("-")[0])]
                chunks.append(dict(data))
                del chunks[: -self.limit]

    def batch(self, rng: Random, side: int, count: int, group: int) -> scenes.Crops | None:
        """`count` crops, any chunk's as likely as another's; None while there is no chunk."""
        chunks = self.chunks[side]
        if not chunks:
            return None
        chosen = [(rng.choice(chunks), rng.randrange(CHUNK)) for _ in range(count)]
        parts = [
            np.stack([chunk[name][at] for chunk, at in chosen])
            for name in ("pixels", "places", "slots", "patches")
        ]
        pixels, places, slots, patches = parts
        crops = scenes.Crops(
            side,
            pixels,
            places.astype(np.int64),
            slots.astype(np.int64),
            patches.astype(np.int64),
        )
        return scenes.grouped(rng, crops, group)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--odd-fonts",
        type=float,
        default=0.7,
        help="share of chunks in all cuts (italic, light, condensed ...), not only ordinary ones",
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = Random(args.seed)
    everything = fonts.load_fonts(False)
    for index in range(args.chunks):
        side = 1024 if index % 5 in (1, 3) else 768
        is_odd = rng.random() < args.odd_fonts
        chosen = everything if is_odd else fonts.ordinary(everything)
        crops = scenes.crop_batch(rng, chosen, side, CHUNK)
        write_chunk(args.folder / f"{side}-{args.seed}-{index:05d}.npz", crops)


if __name__ == "__main__":
    main()
