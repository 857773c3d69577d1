"""Where another program's greedy text leaves ours: how far its token was behind, at every place.

Two programs add up in another order, so logits differ in the sixth digit; where the first two
tokens are that close, either may win and the rest of the text is another one. Such a place is a
near tie. It explains a text only if we write the same to the end after following it there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from llama_reading import VARIANTS
from PIL import Image
from torch import Tensor

from ocr2cli.config import DryConfig, EngineConfig
from ocr2cli.eval.stages import ModelStages, load_stages
from ocr2cli.generate.logits import dry as apply_dry
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.pages import PageImage, PageKey

# In logits. The two programs resize pictures by code of their own, and one grey level in a tenth of
# a page's pixels moves a toy's logits by up to 0.008, two of them by 0.016 from each other. The
# near ties seen are closer than that; choices that a reader would call one are several tenths.
NEAR_TIE = 0.02


@dataclass(frozen=True, slots=True)
class Turn:
    """They wrote `theirs` where we would write `ours`, whose logit leads by `lead`."""

    after: str
    ours: str
    theirs: str
    lead: float

    @property
    def is_near_tie(self) -> bool:
        return self.lead < NEAR_TIE

    def __str__(self) -> str:
        return (
            f"after {len(self.after)} characters {self.ours!r} leads {self.theirs!r} "
            f"by {self.lead:.4f}"
        )


def follow(
    model: Path, page: Path, text: str, *, num_tokens: int, dry: bool, variants: Iterable[str] = ()
) -> list[Turn]:
    """Read the page in float32, but write `text`; returns every place where we would not have.

    text: greedy, ended by the end token or by num_tokens. Where several tokens spell what comes
    next in it, the likeliest is taken for the one that was written.
    """
    with torch.inference_mode(), ExitStack() as stack:
        for name in variants:
            stack.enter_context(VARIANTS[name]())
        return list(_turns(_stages(model), page, text.encode(), num_tokens, dry=dry))


def _turns(
    stages: ModelStages, page: Path, text: bytes, num_tokens: int, *, dry: bool
) -> Iterator[Turn]:
    eos = stages.config.eos_token_id
    spelled: list[int] = []
    place = 0
    for logits_V in _logits(stages, page, num_tokens, spelled):
        scores_V = apply_dry(spelled, logits_V, DryConfig()) if dry else logits_V
        rest = text[place:]
        ours = int(scores_V.argmax())
        after = text[:place].decode(errors="replace")
        theirs = _written(stages, scores_V, rest) if rest else eos
        if theirs is None:
            yield Turn(after, _spell(stages, ours), rest[:8].decode(errors="replace"), math.inf)
            return
        if theirs != ours:
            lead = float(scores_V[ours] - scores_V[theirs])
            yield Turn(after, _spell(stages, ours), _spell(stages, theirs), lead)
        if theirs == eos:
            return
        spelled.append(theirs)
        place += len(stages.tokenizer.bytes_of(theirs))


def _logits(
    stages: ModelStages, page: Path, num_tokens: int, spelled: list[int]
) -> Iterator[Tensor]:
    """float32 [V] of each next token; whoever asks adds the token to `spelled` first."""
    rgb = np.asarray(Image.open(page).convert("RGB"))
    visual_SD = stages.visual_tokens(stages.views(PageImage(PageKey(page.stem, 0), rgb, 0.0)))
    x_TD = stages.embeddings(stages.prompt("ocr", "", len(visual_SD)), visual_SD)
    decoder = stages.model.decoder
    cache = KVCache(decoder.config, 1, len(x_TD) + num_tokens)
    yield decoder.prefill(x_TD, cache, 0)
    for _ in range(num_tokens - 1):
        yield decoder.decode(torch.tensor(spelled[-1:]), cache, [0])[0]


def _written(stages: ModelStages, scores_V: Tensor, rest: bytes) -> int | None:
    """The likeliest token that `rest` begins with; None when it shows no token's bytes."""
    for token in scores_V.argsort(descending=True).tolist():
        spelling = stages.tokenizer.bytes_of(token)
        if spelling and rest.startswith(spelling):
            return int(token)
    return None


def _spell(stages: ModelStages, token: int) -> str:
    if token == stages.config.eos_token_id:
        return "(end)"
    return stages.tokenizer.bytes_of(token).decode(errors="replace")


@lru_cache(maxsize=1)
def _stages(model: Path) -> ModelStages:
    return load_stages(EngineConfig(model=str(model), dtype="f32"))
