"""Document -> one HTML file: each page's picture beside its text, boxes lit on hover.

Self-contained: pictures are inside, nothing is fetched. Knows nothing about markdown's syntax.
"""

from __future__ import annotations

import base64
import html
import re
from collections import Counter

import numpy as np
from PIL import Image

from ocr2cli.output.assembly import Assembly
from ocr2cli.output.blocks import page_blocks
from ocr2cli.output.figures import crop, encode, without_colour
from ocr2cli.output.html_shell import head, tail
from ocr2cli.output.html_text import text_html
from ocr2cli.output.summary import BADLY_READ
from ocr2cli.pages import Box, PageImage, PageResult, Status, Uint8Array
from ocr2cli.printing import printable
from ocr2cli.text.grounding import Block

_MAX_WIDTH = 1000  # pixels of the page's picture
_QUALITY = 75
_TYPED = re.compile(r"`([^`]+)`")


def write_html(assembly: Assembly) -> None:
    """Stages `<stem>.html`, page by page."""
    with assembly.new_file(".html") as stream:
        stream.write(head(printable(assembly.name), _subtitle(assembly)).encode())
        for result in assembly.pages():
            image = None if result.status is Status.FAILED else assembly.image(result)
            stream.write(_section(result, image, _mark(assembly)).encode())
        stream.write(tail().encode())


def _subtitle(assembly: Assembly) -> str:
    counts: Counter[str] = Counter()
    for result in assembly.pages():
        counts[result.status.value] += 1
        counts["unsure"] += _mood(result, _mark(assembly)) == "unsure"
    pages = f"{assembly.num_pages:,} page{'' if assembly.num_pages == 1 else 's'}"
    states = [f"{counts[s.value]} {s.value}" for s in Status if s is not Status.OK]
    states.append(f"{counts['unsure']} of low confidence")
    return ", ".join([pages, *(state for state in states if not state.startswith("0 "))])


def _mark(assembly: Assembly) -> float:
    """Confidence below which a page is marked: most of it is misread, or the user asked for it."""
    return max(BADLY_READ, assembly.settings.min_confidence)


def _section(result: PageResult, image: PageImage | None, mark: float) -> str:
    number, mood = result.key.page + 1, _mood(result, mark)
    name = "No page" if result.is_of_no_page else f"Page {number}"
    sure = "" if result.confidence is None else f"<span>confidence {result.confidence:.2f}</span>"
    if mood == "unsure":
        sure += '<span class="warning">low: check the text against the picture</span>'
    return (
        f'<section id="page-{number}" class="{mood}" data-rank="{_rank(result):.4f}">\n'
        f'<h2>{name}<span class="status">{result.status.value}</span>{sure}</h2>\n'
        f"{_body(result, image)}\n</section>\n"
    )


def _body(result: PageResult, image: PageImage | None) -> str:
    if result.status is Status.FAILED:
        return _failure(result)
    return (
        f'<div class="pair">\n{_scan(result, image)}\n'
        f'<div class="text">{_text(result, image)}</div>\n</div>'
    )


def _failure(result: PageResult) -> str:
    """Why it failed; what messages have in backticks is to be typed."""
    error = result.error
    reason = f"{error.message} ({error.code})" if error else "No reason was recorded."
    shown = _TYPED.sub(r"<code>\1</code>", html.escape(printable(reason)))
    return f'<p class="failure">{shown}</p>'


def _mood(result: PageResult, mark: float) -> str:
    if not result.status.is_good:
        return "bad"
    is_unsure = result.confidence is not None and result.confidence < mark
    return "unsure" if is_unsure else "fine"


def _rank(result: PageResult) -> float:
    """What the sort puts first: pages that failed, then the least sure; blank pages last."""
    if not result.status.is_good:
        return -1.0
    return 2.0 if result.confidence is None else result.confidence


def _scan(result: PageResult, image: PageImage | None) -> str:
    if image is None:
        return '<p class="empty">No picture: the input has gone or has changed since.</p>'
    rects = "".join(
        _rect(block, index, box)
        for index, block in enumerate(_boxed_blocks(result))
        for box in block.boxes
    )
    picture = _scaled(image.rgb)
    alternative = f"page {result.key.page + 1} as scanned"
    return (
        f'<figure class="scan">{_img(picture, alternative)}'
        f'<svg viewBox="0 0 999 999" preserveAspectRatio="none">{rects}</svg></figure>'
    )


def _boxed_blocks(result: PageResult) -> tuple[Block, ...]:
    """The page's blocks; bare boxes where the text does not belong to them."""
    blocks = page_blocks(result)
    if any(block.boxes for block in blocks):
        return blocks
    return tuple(Block(box.label, (box.box,), "") for box in result.boxes)


def _rect(block: Block, index: int, box: tuple[int, int, int, int]) -> str:
    x1, y1, x2, y2 = box
    label = html.escape(printable(block.label))
    return (
        f'<rect class="{label}" data-block="{index}" x="{x1}" y="{y1}" width="{x2 - x1}" '
        f'height="{y2 - y1}"><title>{label}</title></rect>'
    )


def _text(result: PageResult, image: PageImage | None) -> str:
    pieces = [
        f'<div class="block" data-block="{index}">{_figures(block, image)}{text_html(block.text)}'
        "</div>"
        for index, block in enumerate(page_blocks(result))
        if block.text.strip() or block.is_figure
    ]
    return "\n".join(pieces) or '<p class="empty">No text.</p>'


def _figures(block: Block, image: PageImage | None) -> str:
    if image is None or not block.is_figure:
        return ""
    cuts = (crop(image.rgb, Box(block.label, box)) for box in block.boxes)
    return "".join(_img(_scaled(cut), "figure") for cut in cuts)


def _scaled(rgb: Uint8Array) -> Uint8Array:
    height, width = rgb.shape[:2]
    if width <= _MAX_WIDTH:
        return rgb
    size = (_MAX_WIDTH, max(1, round(height * _MAX_WIDTH / width)))
    return np.asarray(Image.fromarray(rgb, "RGB").resize(size, Image.Resampling.LANCZOS))


def _img(rgb: Uint8Array, alternative: str) -> str:
    data = base64.b64encode(encode(without_colour(rgb), "JPEG", _QUALITY)).decode()
    height, width = rgb.shape[:2]
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{alternative}" '
        f'width="{width}" height="{height}">'
    )
