"""What the decoder writes by itself on pages it has seen, and what should have come after it.

A decoder that learns from the truth's own text never stands where a mistake has led it, and once
there reads a line twice, leaves one out or does not end. Here it writes freely, and learns what
should come next after all it wrote: whatever goes on in the truth from where the writing is
nearest to it in edit distance (optimal completion distillation, Sabour, Chan and Norouzi, 2018).
It begins somewhere in the truth: a stretch of a long page costs as little as a short page.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from torch import Tensor

from nanotrain.batches import TEXT_PARTS, PageBatch, Row, TextRows, stack_rows
from nanotrain.vocabulary import EOS_ID
from ocr2cli.model.attention import plan_slots
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.kv_cache import KVCache

# Pages written on at once: a step of one page costs nearly what one of many does.
TOGETHER = {"cpu": 48, "cuda": 192}
STRETCH = 160  # ids that it writes on a page at most
BEYOND = 32  # of those so many at most where the truth has come to its end
LATELY, MOST_WRONG = 6, 3  # of so many last ids so many may be wrong for the place to be certain


class Written:
    """Pages with the decoder's own writing, made for many pages at once and taken a few a step."""

    def __init__(self, decoder: Decoder, device: str) -> None:
        self.decoder, self.device = decoder, device
        self.waiting: list[PageBatch] = []

    def take(
        self, rng: Random, seen: list[PageBatch], count: int, grounded: float
    ) -> list[PageBatch]:
        """So many batches, fewer while few pages were seen. grounded: share with that prompt."""
        if len(self.waiting) < count and len(seen) >= count:
            chosen, rows = [], 0
            for batch in rng.sample(seen, len(seen)):
                if rows < TOGETHER[self.device.partition(":")[0]]:
                    chosen.append(batch)
                    rows += len(batch.kept)
            which = [int(rng.random() < grounded) for _ in chosen]
            self.waiting += written_batches(self.decoder, chosen, which, rng, self.device)
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


def written_batches(
    decoder: Decoder, seen: list[PageBatch], which: list[int], rng: Random, device: str
) -> list[PageBatch]:
    """The same pages with a stretch of the decoder's writing after the beginning of their text, and
    what should follow it as targets. which: for each batch which of its texts."""
    prompts, most, begun = [], [], []
    for batch, text in zip(seen, which, strict=True):
        truths = [_row_of(batch.texts[text], row) for row in range(len(batch.kept))]
        lengths = [int((truth[1] >= 0).sum()) for truth in truths]
        # The same for all pages of a batch, so that their prompts are equally long.
        given = rng.randrange(max(1, min(lengths) - STRETCH // 2))
        prompts.append(_prompts(batch, truths, given, device))
        most += [min(STRETCH, length - given + BEYOND) for length in lengths]
        begun += [(truth, given) for truth in truths]
    texts = iter(
        corrected(truth, given, ids)
        for (truth, given), ids in zip(begun, write(decoder, prompts, most), strict=True)
    )
    return [
        PageBatch(
            batch.kept,
            batch.slots,
            batch.token_places,
            [stack_rows([next(texts) for _ in batch.kept])],
            batch.num_tiles,
            batch.num_visual,
            batch.tokens,
            is_written=True,
        )
        for batch in seen
    ]


Prompts = tuple[Tensor, Tensor, Tensor, int]


def _prompts(batch: PageBatch, truths: list[Row], given: int, device: str) -> Prompts:
    """(visual tokens [B, V, D], their positions [B, V], ids after them [B, T], position of the
    first)."""
    tokens = torch.as_tensor(batch.tokens, device=device).float()
    positions = torch.as_tensor(batch.kept, device=device) + 1
    ids = np.stack([truth[0][: _start(truth[1]) + 1 + given] for truth in truths])
    return tokens, positions, torch.as_tensor(ids, device=device), batch.num_visual + 1


def _row_of(text: TextRows, row: int) -> Row:
    # A trainer's batches are tensors on its device.
    parts = (torch.as_tensor(getattr(text, part)[row]) for part in TEXT_PARTS)
    return tuple(part.cpu().numpy() for part in parts)


def _start(targets: np.ndarray) -> int:
    """Where the first target stands: at the last id of the prompt."""
    return int(np.argmax(targets >= 0))


@torch.no_grad()
def write(decoder: Decoder, prompts: list[Prompts], most: list[int]) -> list[list[int]]:
    """What the decoder writes after each prompt, greedily, without EOS, at most so many ids."""
    limits = iter(most)
    longest = max(
        1 + tokens.shape[1] + ids.shape[1] + next(limits)
        for tokens, _, ids, _ in prompts
        for _ in range(len(ids))
    )
    device = prompts[0][0].device
    cache = KVCache(decoder.config, len(most), longest, device=device)
    bos = decoder.embed.weight[:1]
    last, starts = [], []
    for tokens, positions, ids, start in prompts:
        count, length = ids.shape
        x = torch.cat([bos.expand(count, 1, -1), tokens, decoder.embed(ids)], 1)
        text_at = (start + torch.arange(length, device=device)).expand(count, -1)
        at = torch.cat([positions.new_zeros(count, 1), positions, text_at], 1)
        slots = list(range(len(starts), len(starts) + count))
        last.append(_extend(decoder, cache, slots, x, at))
        starts += [start + length] * count
    following = torch.cat(last).argmax(-1)
    places = torch.tensor(starts, device=device)
    found: list[list[int]] = [[] for _ in most]
    slots = list(range(len(most)))
    while slots:
        new = following.tolist()
        going = [
            index
            for index, (slot, token) in enumerate(zip(slots, new, strict=True))
            if token != EOS_ID and len(found[slot]) < most[slot]
        ]
        for index in going:
            found[slots[index]].append(new[index])
        slots = [slots[index] for index in going]
        if slots:
            rows = torch.tensor(going, device=device)
            ids, places = following[rows], places[rows]
            x = decoder.embed(ids)[:, None]
            following = _extend(decoder, cache, slots, x, places[:, None]).argmax(-1)
            places = places + 1
    return found


def _extend(
    decoder: Decoder, cache: KVCache, slots: list[int], x_BTD: Tensor, positions_BT: Tensor
) -> Tensor:
    """Logits [B, V] after the last of some more rows in each slot; rows may leave positions out."""
    cos, sin = decoder.rotary.at(positions_BT)
    turn = cos[:, None], sin[:, None]
    plan = plan_slots(cache, slots, x_BTD.shape[1])
    for index, layer in enumerate(decoder.layers):
        x_BTD = layer.extend(x_BTD, turn, cache, index, plan)
    return decoder.logits(decoder.norm(x_BTD[:, -1]))


def corrected(truth: Row, given: int, written: list[int]) -> Row:
    """TEXT_PARTS of the truth's first `given` ids and what was written after them, with what should
    follow each as target."""
    ids, targets = truth[:2]
    start = _start(targets)
    right = targets[start:][targets[start:] >= 0]
    text = np.concatenate([right[:given], np.asarray(written, np.int64)])
    # Nothing before the writing can be nearer to it than its beginning is: so the last given id is
    # all that need be looked at of what stands before it.
    known = max(0, given - 1)
    rest = what_follows(text[known:], right[known:-1])
    after = np.concatenate([np.arange(known), np.where(rest < 0, rest, rest + known)])
    parts = [np.concatenate([ids[: start + 1], text])]
    for values in truth[1:]:
        nothing = 0 if values.ndim > 1 else -1
        due = values[start + np.maximum(after, 0)]
        due[after < 0] = nothing
        before = np.full((start, *values.shape[1:]), nothing, values.dtype)
        parts.append(np.concatenate([before, due]))
    return tuple(parts)


def what_follows(written: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """int64 [m + 1]: for each prefix of what was written the place in the truth of what should come
    next (its length: the end), -1 where too much was wrong lately to say.

    Of places that are equally near one is taken that the id just written leads to, and of those the
    next after the last place. At the end nothing is uncertain: whatever is written beyond it, only
    to stop is right."""
    columns = np.arange(len(truth) + 1)
    row = columns.copy()
    wrong = np.zeros(len(written) + 1, np.int64)
    place = np.zeros(len(written) + 1, np.int64)
    for index, token in enumerate(written):
        new = row + 1
        new[1:] = np.minimum(new[1:], row[:-1] + (truth != token))
        row = np.minimum.accumulate(new - columns) + columns
        wrong[index + 1] = row.min()
        near = np.flatnonzero(row == wrong[index + 1])
        led = near[(near > 0) & (truth[near - 1] == token)]
        near = led if len(led) else near
        place[index + 1] = near[np.argmin(np.abs(near - place[index] - 1))]
    before = np.concatenate([np.zeros(LATELY, np.int64), wrong])[: len(wrong)]
    is_lost = (wrong - before > MOST_WRONG) & (place < len(truth))
    return np.where(is_lost, -1, place)
