"""What a joint step learns from: drawn pages, and pages to read from ideal tokens.

Runs in children of the trainer (feeding.py); knows nothing about weights.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from random import Random

import numpy as np

from nanotrain import batches, draw, drawn, fonts, pages
from nanotrain.drawn import Like

BLANKS = 0.04  # share of the cells without text that a thinned page keeps
CHECKED_PAGES = 8  # held out, of each kind


Group = tuple[list[drawn.DrawnBatch], list[batches.PageBatch]]


def joint_groups(args: Namespace, seed: int, common_seed: int) -> Iterator[Group]:
    """(Drawn batches, batches to read from ideal tokens), for ever. common_seed: of the choices of
    kinds, views and lengths, the same for processes that share a step: each waits for the
    slowest."""
    rng, common = Random(seed), Random(common_seed)
    everything = fonts.load_fonts(False)
    book: drawn.PageSource = (
        drawn.DrawnPages(args.drawn)
        if args.drawn
        else drawn.FreshPages(
            everything,
            max_characters=args.max_characters,
            globals_share=args.globals_,
            uses=args.uses,
        )
    )
    ordinary = fonts.ordinary(everything)
    served = 0
    while True:
        share = 1.0 if common.random() < args.whole else BLANKS
        group = [
            book.batch(rng, kind, count, share, Like(common.random(), common.random()))
            for kind, count in counts_of_kinds(common, args.mix)
        ]
        if None in group:
            time.sleep(2.0)
        else:
            ideal = [
                batches.page_batch(
                    rng,
                    rng.choice((everything, ordinary)),
                    kind,
                    count,
                    max_characters=args.max_characters,
                    blank_share=1.0 if common.random() < args.whole else BLANKS,
                    length=common.random(),
                )
                for kind, count in counts_of_kinds(common, args.ideal)
            ]
            yield group, ideal
        served += 1
        if None in group or served % 20 == 0:
            book.look()


def kinds_of(*mixes: str) -> list[str]:
    """All kinds that the mixes name, each once."""
    parts = [part.split("=")[0] for mix in mixes for part in mix.split(",") if part]
    return list(dict.fromkeys(kind for part in parts for kind in part.split("/")))


def counts_of_kinds(rng: Random, mix: str) -> list[tuple[str, int]]:
    """'note=2,slide/letter=1' -> [('note', 2), ('letter', 1)]; kinds joined by / take turns by
    chance."""
    found = []
    for part in filter(None, mix.split(",")):
        kinds, count = part.split("=")
        found.append((rng.choice(kinds.split("/")), int(count)))
    return found


def held_out_batches(kinds: list[str]) -> dict[str, drawn.DrawnBatch]:
    rng, found = Random(11), {}
    chosen = fonts.load_fonts(True)
    for kind in kinds:
        arrays = []
        for _ in range(CHECKED_PAGES):
            page = drawn.page_of_kind(rng, kind, chosen, max_characters=300, held_out=True)
            picture = draw.draw_page(page, rng)
            arrays.append(drawn.page_arrays(page, np.asarray(picture), kind in pages.SMALL))
        found[kind] = drawn.drawn_batch(rng, arrays, 1.0)
    return found
