"""The nouns travel between processes: nothing of them may stay behind."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import torch

from ocr2cli.pages import Ask, PageKey, Views, VisualTokens

ASK = Ask(prompt="<image>\nFree OCR.", max_new_tokens=7, view="top")
FACTS = {
    "grid": (2, 3), "page_size": (10, 20), "pixels_sha256": "ab", "own_text": "words",
    "warnings": ("odd",), "seconds": {"raster": 1.5}, "ask": ASK,
}  # fmt: skip


def test_visual_tokens_arrive_whole() -> None:
    sent = VisualTokens(PageKey("a", 1), torch.arange(6.0).reshape(3, 2).bfloat16(), **FACTS)
    came = pickle.loads(pickle.dumps(sent))
    assert torch.equal(came.tokens, sent.tokens) and came.tokens.dtype == torch.bfloat16
    for field in fields(VisualTokens):
        if field.name != "tokens":
            assert getattr(came, field.name) == getattr(sent, field.name), field.name


def test_views_arrive_whole() -> None:
    pixels = np.arange(12, dtype=np.uint8)
    sent = Views(PageKey("a", 1), pixels.reshape(3, 2, 2), pixels.reshape(1, 3, 2, 2), **FACTS)
    came = pickle.loads(pickle.dumps(sent))
    for field in fields(Views):
        mine, theirs = getattr(sent, field.name), getattr(came, field.name)
        assert np.array_equal(mine, theirs) if hasattr(mine, "shape") else mine == theirs
