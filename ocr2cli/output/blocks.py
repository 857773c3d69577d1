"""A page's text in blocks that know their boxes, for the formats that show text beside its place.

Knows nothing about any format.
"""

from __future__ import annotations

from ocr2cli.output.markdown import FIGURE_PLACE
from ocr2cli.pages import PageResult, Status
from ocr2cli.text.grounding import Block, parse


def page_blocks(result: PageResult) -> tuple[Block, ...]:
    """The blocks in reading order; one without boxes where the text is not the model's own.

    The model's text is taken apart again, and used when its boxes are the result's: pages read
    from a text layer or put together from halves have other ones.
    """
    if result.status is Status.FAILED:
        return ()
    grounded = parse(result.raw)
    if result.boxes and grounded.boxes == result.boxes:
        return grounded.blocks
    return (Block("", (), FIGURE_PLACE.sub("", result.markdown)),)
