"""transformers loads the bundled folder and gives the same token ids as ocr2cli."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest


@pytest.fixture(scope="module")
def both(nano_folder):
    from nanotrain.agree import load_both

    return load_both(nano_folder)


@pytest.mark.parametrize(("kind", "prompt"), [("note", "plain"), ("slide", "grounded")])
def test_the_same_token_ids(kind, prompt, both, two_fonts, plain_words) -> None:
    from nanotrain import agree, draw, pages, truths, vocabulary

    from ocr2cli.config import TileConfig
    from ocr2cli.document.tiles import make_views
    from ocr2cli.pages import PageImage, PageKey

    rng = Random(5)
    page = pages.random_page(rng, kind, two_fonts, max_characters=40)
    pixels = np.ascontiguousarray(np.asarray(draw.draw_page(page, rng)))
    views = make_views(PageImage(PageKey(kind, 0), pixels, 144.0), TileConfig())
    text = truths.PLAIN_PROMPT if prompt == "plain" else truths.GROUNDING_PROMPT
    ids, _ = vocabulary.encode(text)
    ours = agree.ours(both[0], views, ids, 48)
    assert ours == agree.theirs(both[1], views, ids, 48)
    assert len(ours) > 1
