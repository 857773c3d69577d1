from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ocr2cli.engines import embedding
from ocr2cli.engines.embedding import PromptEmbedder

IMAGE = 9


class Words:
    """A decoder's table of 10 tokens, and what was asked of it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.asked: list[list[int]] = []
        self.table = nn.Embedding(10, 4, dtype=dtype)

    @property
    def embed(self) -> Any:
        return self

    @property
    def weight(self) -> torch.Tensor:
        return self.table.weight

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        self.asked.append(ids.tolist())
        return self.table(ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [[0, IMAGE, IMAGE, 3, 3, 1], [IMAGE, IMAGE, 5], [IMAGE, IMAGE]])
@torch.inference_mode()
def test_visual_tokens_stand_in_their_places_among_the_words_rows(
    dtype: torch.dtype, ids: list[int]
) -> None:
    words: Any = Words(dtype)
    visual = torch.randn(2, 4)
    got = PromptEmbedder(words, IMAGE).embed(ids, visual)
    wanted = words.table(torch.tensor(ids))
    wanted[torch.tensor(ids) == IMAGE] = visual.to(dtype)
    assert torch.equal(got, wanted) and got.dtype == dtype


@torch.inference_mode()
def test_each_words_row_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words: Any = Words(torch.float32)
    prompts = PromptEmbedder(words, IMAGE)
    for ids in ([1, IMAGE, 2], [2, IMAGE, 1], [1, IMAGE, 3, 2]):
        got = prompts.embed(ids, torch.zeros(1, 4))
        assert torch.equal(got[0], words.table.weight[ids[0]])
    assert words.asked == [[1, 2], [3]]
    monkeypatch.setattr(embedding, "_MOST_ROWS", 2)
    prompts.embed([4, IMAGE], torch.zeros(1, 4))
    prompts.embed([1, IMAGE], torch.zeros(1, 4))
    assert words.asked[2:] == [[4], [1]], "a server's requests have ever new words"
