"""Model text to labelled blocks, boxes and markdown; a strict parser that evaluates nothing.

Knows nothing about pixels, figures' files or output formats: the caller names the figures.

Source: model-spec 10. Grammar: `<|ref|>LABEL<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>TEXT`,
repeated; text may come before the first block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ocr2cli.pages import Box
from ocr2cli.text.markup import neutralise

BoxUnits = tuple[int, int, int, int]

# Boxes are in thousandths of the page less one: 999 is the far edge.
BOX_MAX = 999
FIGURE_LABEL = "image"

MAX_BOXES_PER_BLOCK = 256
MAX_BLOCKS = 4096
MAX_LABEL = 1000

_REF, _REF_END = "<|ref|>", "<|/ref|>"
_DET, _DET_END = "<|det|>", "<|/det|>"
_SPACE = " \t\r\n"
_TAG = re.compile(r"<\|/?(?:ref|det)\|>|<\|grounding\|>|<image>")

# Digits are spelled out: \d takes every script's. Six are plenty for 0-999 and bound int().
_NUMBER = r"\s*([0-9]{1,6})\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_LIST = re.compile(r"\s*\[\s*\[[0-9,\s]*\](?:\s*,\s*\[[0-9,\s]*\])*\s*\]\s*")
_CUT_LIST = re.compile(r"\s*\[[\[\]0-9,\s]*\]|\s*\[[\[\]0-9,\s]*")
_STRAY_LIST = re.compile(r"<\|det\|>[\[\]0-9,\s]*<\|/det\|>")


@dataclass(frozen=True, slots=True)
class Block:
    """One labelled piece of the page, in reading order.

    label: as the model wrote it, "" for text outside any block. boxes: (x1, y1, x2, y2) in 0-999
    of the page, x1 < x2 and y1 < y2. text: what follows the boxes, exactly as written.
    """

    label: str
    boxes: tuple[BoxUnits, ...]
    text: str

    @property
    def is_figure(self) -> bool:
        return self.label == FIGURE_LABEL


@dataclass(frozen=True, slots=True)
class Grounded:
    """A page's text taken apart."""

    blocks: tuple[Block, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Every box with its label, in reading order."""
        return tuple(Box(block.label, box) for block in self.blocks for box in block.boxes)


def parse(raw: str) -> Grounded:
    """Blocks of a page's text. Never fails: what breaks the grammar stays as plain text.

    A tag that is never closed is dropped and what follows it stays; so does text after the last
    of `MAX_BLOCKS` blocks. A label or box list cut off by the end of the text is dropped.
    """
    blocks: list[Block] = []
    for label, box_text, start, end in _split(raw):
        boxes, text = _parse_boxes(box_text), raw[start:end]
        if label or boxes or text.strip():
            blocks.append(Block(label, boxes, text))
    return Grounded(tuple(blocks))


def text_spans(raw: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each piece of `raw` that is the page's text, without the white space around
    it: what is no label and no list of boxes."""
    for _, _, start, end in _split(raw):
        end = start + len(raw[start:end].rstrip(_SPACE))
        start = end - len(raw[start:end].lstrip(_SPACE))
        if start < end:
            yield start, end


def to_markdown(blocks: Iterable[Block], figure_name: Callable[[int], str]) -> str:
    """Markdown of a page. Every box of an `image` block becomes a link to its own figure.

    figure_name: (number of the figure on the page, from 0) -> path to write into the link, or ""
    for no link. No path is ever taken from the model's text.
    """
    pieces: list[str] = []
    num_figures = 0
    for block in blocks:
        if block.is_figure:
            for _ in block.boxes:
                name = figure_name(num_figures)
                num_figures += 1
                pieces += [f"![]({name})"] if name else []
        pieces.append(clean(block.text))
    return "\n\n".join(piece for piece in pieces if piece)


def clean(text: str) -> str:
    """One block's text for markdown: no stray tags, known commands, no foreign image or script.

    Source: model-spec 10.4, with the replacements made whatever the page holds.
    """
    text = _TAG.sub("", _STRAY_LIST.sub("", text))
    text = text.replace("\\coloneqq", ":=").replace("\\eqqcolon", "=:")
    text = re.sub(r"\n{3,}", "\n\n", text)
    return neutralise(text.strip("\n").rstrip())


def box_pixels(box: BoxUnits, width: int, height: int) -> BoxUnits:
    """A box in pixels of a page of width x height; 999 is the far edge. Source: model-spec 10.2."""
    x1, y1, x2, y2 = box
    return (
        int(x1 / BOX_MAX * width),
        int(y1 / BOX_MAX * height),
        int(x2 / BOX_MAX * width),
        int(y2 / BOX_MAX * height),
    )


def box_units(box: tuple[float, float, float, float]) -> BoxUnits:
    """A box in 0-1 of the page in the model's units, cut at its edges and never empty."""
    x1, y1, x2, y2 = (min(BOX_MAX, max(0, round(edge * BOX_MAX))) for edge in box)
    x1, y1 = min(x1, BOX_MAX - 1), min(y1, BOX_MAX - 1)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _split(raw: str) -> Iterator[tuple[str, str, int, int]]:
    """(label, box list, start and end of its text) of each block; the text before the first has no
    label."""
    label, box_text, text_start = "", "", 0
    position = raw.find(_REF)
    num_blocks = 0
    while position >= 0 and num_blocks < MAX_BLOCKS:
        block = _read_tags(raw, position)
        if block is None:
            position = raw.find(_REF, position + len(_REF))
            continue
        yield label, box_text, text_start, position
        label, box_text, text_start = block
        num_blocks += 1
        position = raw.find(_REF, text_start)
    text = _without_cut_tag(raw[text_start:])
    yield label, box_text, text_start, text_start + len(text)


def _read_tags(raw: str, position: int) -> tuple[str, str, int] | None:
    """(label, box list, end) of the tags that open at `position`; None when they break off."""
    start = position + len(_REF)
    end = raw.find(_REF_END, start, start + MAX_LABEL + len(_REF_END))
    if end < 0 or _REF in raw[start:end]:
        return None
    label = raw[start:end].strip()
    end += len(_REF_END)
    if not raw.startswith(_DET, end):
        return (label, "", end)
    start = end + len(_DET)
    next_block = raw.find(_REF, start)
    close = raw.find(_DET_END, start, next_block if next_block >= 0 else len(raw))
    if close < 0:
        # Boxes that never end: the block keeps its label, their digits are not page text.
        cut = _CUT_LIST.match(raw, start)
        return (label, "", cut.end() if cut else start)
    return (label, raw[start:close], close + len(_DET_END))


def _without_cut_tag(text: str) -> str:
    """The page's last text without a label that the end of the generation cut in two."""
    head, tag, tail = text.rpartition(_REF)
    is_cut = tag and len(tail) <= MAX_LABEL and "\n" not in tail and "<|" not in tail
    return head if is_cut else text


def _parse_boxes(box_text: str) -> tuple[BoxUnits, ...]:
    """Boxes of a list, clamped, without those that are broken, empty or over the limit."""
    if not _LIST.fullmatch(box_text):
        return ()
    boxes: list[BoxUnits] = []
    for found in _BOX.finditer(box_text):
        x1, y1, x2, y2 = (min(int(number), BOX_MAX) for number in found.groups())
        if x1 < x2 and y1 < y2 and len(boxes) < MAX_BOXES_PER_BLOCK:
            boxes.append((x1, y1, x2, y2))
    return tuple(boxes)
