"""Batches for the decoder: labels of every visual token, both texts, and where each character
stands.

Knows nothing about tensors; runs in a child process. Pages are laid out here, never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nanotrain import cells, pages, truths, vocabulary
from nanotrain.characters import TINY
from nanotrain.fonts import Font


@dataclass
class TextRows:
    """ids, targets, cells, slots, rows: int64 [B, T]; places: float32 [B, T, 2] in 0..1 of the
    page; num_targets: how many ids are to be learned. cells, slots, rows: of the next character,
    or -1."""

    ids: np.ndarray
    targets: np.ndarray
    cells: np.ndarray
    slots: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    num_targets: int = 0


@dataclass
class PageBatch:
    """tokens: float16 [B, V, D], seen visual tokens, an array or (once a trainer has seen them) a
    tensor on its device, or None for ideal ones. kept: int64 [B,
    V], the visual tokens that are there; the last is the separator. slots: uint8
    [B, V, 16], their labels. token_places: float32 [B, V, 2], their cells' middles in 0..1 of
    the page.
    texts: plain, then grounded, with cells that count kept tokens; is_written: one text, which the
    decoder wrote itself."""

    kept: np.ndarray
    slots: np.ndarray
    token_places: np.ndarray
    texts: list[TextRows]
    num_tiles: int
    num_visual: int
    tokens: Any = None
    is_written: bool = False


LENGTH_STEP = 32  # few different lengths: a CPU compiles kernels for each
Row = tuple[np.ndarray, ...]
TEXT_PARTS = ("ids", "targets", "cells", "slots", "rows", "places")  # of a row, in order


def text_row(truth: truths.Truth, prompt: str, page: pages.Page) -> Row:
    """TEXT_PARTS of one page's prompt and truth; targets are the next ids."""
    prompt_ids, _ = vocabulary.encode(prompt)
    text_ids, starts = vocabulary.encode(truth.text)
    n, end = len(prompt_ids), len(prompt_ids) + len(text_ids)
    ids = np.array([*prompt_ids, *text_ids])
    targets, aims, slots, rows = (np.full(end + 1, -1) for _ in range(4))
    places = np.zeros((end + 1, 2), np.float32)
    targets[n - 1 : end] = [*text_ids, vocabulary.EOS_ID]
    windows = cells.page_windows(page.width, page.height)
    aims[n - 1 : end - 1] = cells.token_of(truth.places, windows)[starts]
    slots[n - 1 : end - 1] = cells.slot_of(truth.places, windows)[starts]
    rows[n - 1 : end - 1] = cells.row_of(truth.places, windows)[starts]
    places[n - 1 : end - 1] = truth.places[starts] / np.array([page.width, page.height], np.float32)
    return ids, targets[:end], aims[:end], slots[:end], rows[:end], places[:end]


def stack_rows(rows: list[Row]) -> TextRows:
    """Pad to the longest, rounded up, with EOS and nothing to learn."""
    shape = (len(rows), -(-max(len(row[0]) for row in rows) // LENGTH_STEP) * LENGTH_STEP)
    out = TextRows(
        np.full(shape, vocabulary.EOS_ID),
        *(np.full(shape, -1) for _ in range(4)),
        np.zeros((*shape, 2), np.float32),
    )
    for index, row in enumerate(rows):
        for name, values in zip(TEXT_PARTS, row, strict=True):
            getattr(out, name)[index, : len(values)] = values
    out.num_targets = int((out.targets >= 0).sum())
    return out


def page_rows(page: pages.Page) -> list[Row]:
    """The plain text, then the grounded one."""
    return [
        text_row(truths.plain_truth(page), truths.PLAIN_PROMPT, page),
        text_row(truths.grounded_truth(page), truths.GROUNDING_PROMPT, page),
    ]


def token_places(page: pages.Page) -> np.ndarray:
    """float32 [V, 2]: middle of each visual token's cell, 0..1 of the page; separator at (0, 0)."""
    tiles, view = cells.page_windows(page.width, page.height)
    parts = []
    for window in [*tiles, view]:
        n = window.side // 64
        rows, columns = np.divmod(np.arange(n * n), n)
        x = (columns * 64 + 32 + window.left) / window.sx / page.width
        y = (rows * 64 + 32 + window.top) / window.sy / page.height
        parts.append(np.stack([x, y], axis=1))
    return np.concatenate([*parts, np.zeros((1, 2))]).astype(np.float32)


def shaken(glyphs: pages.Glyphs, noise: np.random.Generator, page: pages.Page) -> pages.Glyphs:
    """Middles moved by a few pixels of the view, as the eyes will misjudge them."""
    n = len(glyphs.label)
    dx = noise.normal(0, 2.5 / page.scale[0], n).astype(np.float32)
    dy = noise.normal(0, 2.5 / page.scale[1]) + noise.normal(0, 0.7 / page.scale[1], n)
    return pages.Glyphs(
        glyphs.label,
        glyphs.x0 + dx,
        glyphs.x1 + dx,
        glyphs.middle + dy.astype(np.float32),
        glyphs.size,
    )


def thinned(
    rng: Random,
    has_text: np.ndarray,
    needed: list[np.ndarray],
    share: float,
    present: np.ndarray | None = None,
) -> np.ndarray:
    """Which tokens of each page to keep: int64 [B, V], rising, the separator last.

    has_text: bool [B, tokens], text large enough to read. needed: tokens that texts point at.
    share: of the others to keep, at least; all rows are filled up to one length with them.
    present: bool [B, tokens], those that can be kept, on each page at least as many as any page
    has to keep.
    """
    if present is None:
        present = np.ones_like(has_text)
    must = has_text & present
    for row, tokens in zip(must, needed, strict=True):
        row[tokens[tokens >= 0]] = True
    must[:, -1] = True
    blank = (present & ~must).sum(1)
    count = int(np.ceil(must.sum(1) + share * blank).max())
    count = min(-(-count // LENGTH_STEP) * LENGTH_STEP, int(present.sum(1).min()))
    out = np.zeros((len(must), count), np.int64)
    for index, row in enumerate(must):
        free = np.nonzero(~row & present[index])[0].tolist()
        extra = rng.sample(free, count - int(row.sum()))
        row[extra] = True
        out[index] = np.nonzero(row)[0]
    return out


def needed_tokens(texts: list[TextRows]) -> list[np.ndarray]:
    """The tokens that each page's texts point at; -1 among them for none."""
    count = len(texts[0].cells)
    return [np.concatenate([text.cells[row] for text in texts]) for row in range(count)]


def thin(
    rng: Random,
    has_text: np.ndarray,
    texts: list[TextRows],
    share: float,
    present: np.ndarray | None = None,
) -> np.ndarray:
    """As `thinned`, and the texts' cells are made to count the kept tokens."""
    count = len(has_text)
    kept = thinned(rng, has_text, needed_tokens(texts), share, present)
    for text in texts:
        for row in range(count):
            known = text.cells[row] >= 0
            text.cells[row, known] = np.searchsorted(kept[row], text.cells[row, known])
    return kept


def start_at(length: float, pages: int, count: int) -> int:
    """The first of `count` neighbours among sorted pages. length: 0 for the shortest, below 1."""
    return int(length * (pages - count + 1))


def page_batch(
    rng: Random,
    fonts: tuple[Font, ...],
    kind: pages.Kind,
    count: int,
    *,
    max_characters: int,
    held_out: bool = False,
    misread: float = 0.02,
    smallest: float = 41.0,
    blank_share: float = 0.1,
    length: float | None = None,
) -> PageBatch:
    """blank_share: how many of the cells without text that can be read stay; 1 keeps all, as at
    reading. length: 0 for the shortest of the pages that were laid out, up to 1; else by chance."""
    # Pages of about one length share a batch: less padding.
    pool = [
        pages.random_page(
            rng, kind, fonts, max_characters=max_characters, held_out=held_out, smallest=smallest
        )
        for _ in range(5 * count if not held_out else count)
    ]
    pool.sort(key=lambda page: page.num_characters())
    start = start_at(rng.random() if length is None else length, len(pool), count)
    laid = pool[start : start + count]
    noise = np.random.default_rng(rng.randrange(1 << 40))
    slots = np.stack([_labels(page, noise, misread) for page in laid])
    places = np.stack([token_places(page) for page in laid])
    texts = [stack_rows(list(rows)) for rows in zip(*map(page_rows, laid), strict=True)]
    kept = thin(rng, (slots > TINY).any(2), texts, blank_share)
    tiles = (slots.shape[1] - 257) // 144
    return PageBatch(
        kept,
        np.take_along_axis(slots, kept[..., None], 1),
        np.take_along_axis(places, kept[..., None], 1),
        texts,
        tiles,
        slots.shape[1],
    )


def _labels(page: pages.Page, noise: np.random.Generator, misread: float) -> np.ndarray:
    """Slot labels of all visual tokens with some misjudged; uint8 [V, 16], the separator's
    empty."""
    glyphs = shaken(pages.glyphs_of(page), noise, page)
    tiles, view = cells.page_windows(page.width, page.height)
    labels = np.concatenate([cells.slot_labels(glyphs, window) for window in [*tiles, view]])
    wrong = (labels > 3) & (noise.random(labels.shape) < misread)
    labels[wrong] = np.where(
        noise.random(wrong.sum()) < 0.2, 0, noise.integers(4, 150, wrong.sum())
    )
    return np.concatenate([labels, np.zeros((1, 16), np.int64)]).astype(np.uint8)


class Album:
    """Seen pages on disk (album.py), read once and kept in memory; looks for new ones now and
    then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: dict[str, list[dict[str, np.ndarray]]] = {}
        self.known: set[str] = set()
        self.look()

    def look(self) -> None:
        for path in sorted(self.folder.glob("*.npz")):
            if path.name in self.known or ".partial" in path.name:
                continue
            self.known.add(path.name)
            with np.load(path, allow_pickle=False) as data:
                self.pages.setdefault(path.stem.rsplit("-", 1)[1], []).append(dict(data))

    def batch(self, rng: Random, kind: str, count: int, blank_share: float) -> PageBatch | None:
        """Some pages of one kind and of about one length; None when there are too few."""
        pool = self.pages.get(kind, [])
        # Whole pages need the global view's tokens, which not every page of the album has.
        with_global = [page for page in pool if page["has_global"]]
        if blank_share == 1.0 and len(with_global) >= 2 * count:
            pool = with_global
        if len(pool) < 2 * count:
            return None
        chosen = sorted(
            rng.sample(pool, min(len(pool), 5 * count)), key=lambda page: len(page["plain_ids"])
        )
        start = rng.randrange(len(chosen) - count + 1)
        chosen = chosen[start : start + count]
        texts = [
            stack_rows([tuple(page[f"{name}_{part}"] for part in TEXT_PARTS) for page in chosen])
            for name in ("plain", "grounded")
        ]
        has_text = np.stack([page["has_text"] for page in chosen])
        num_visual = has_text.shape[1]
        is_whole = all(page["has_global"] for page in chosen)
        present = np.ones_like(has_text)
        present[:, num_visual - 257 : num_visual - 1] = is_whole
        kept = thin(rng, has_text, texts, blank_share, present)
        places = np.stack(
            [page["token_places"][rows] for page, rows in zip(chosen, kept, strict=True)]
        )
        tokens = np.stack([page["tokens"][rows] for page, rows in zip(chosen, kept, strict=True)])
        slots = np.zeros((*kept.shape, 16), np.uint8)
        return PageBatch(
            kept,
            slots,
            places,
            texts,
            int(chosen[0]["num_tiles"]),
            len(chosen[0]["has_text"]),
            tokens,
        )
