"""A page's text in blocks that know their boxes, for the formats that show text beside its place.

Knows nothing about any format.
"""

from __future__ import annotations

from ocr2cli.output.markdown import FIGURE_PLACE
from ocr2cli.pages import PageResult, Status
from ocr2cli.text.grounding import Block, parse


def page_blocks(result: PageResult) -> tuple[Block, ...]:
    """The blocks in reading order; one without boxes where these do not belong to the text.

    The model's text is taken apart again, and used when its boxes are the result's: pages put
    together from halves have other ones. A text layer's paragraphs have a box each.
    """
    if result.status is Status.FAILED:
        return ()
    if result.extra.get("source") == "text-layer":
        texts = result.markdown.split("\n\n")
        if len(texts) == len(result.boxes):
            pairs = zip(result.boxes, texts, strict=True)
            return tuple(Block(box.label, (box.box,), text) for box, text in pairs)
    grounded = parse(result.raw)
    if result.boxes and grounded.boxes == result.boxes:
        return grounded.blocks
    return (Block("", (), FIGURE_PLACE.sub("", result.markdown)),)
