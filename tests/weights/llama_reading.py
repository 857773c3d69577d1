"""Our greedy text for a page, as the model is, or with one of llama.cpp's known differences.

Each variant puts one divergence of the specification into our code, so that a difference between
the texts is explained by an experiment and not by a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, DryConfig, EngineConfig, RunConfig, TileConfig
from ocr2cli.document import tiles
from ocr2cli.model import clip, sam

Places = tuple[tuple[int, int], tuple[int, int]]


def read(
    model: Path, pages: Sequence[Path], *, num_tokens: int, dry: bool, variants: Iterable[str] = ()
) -> list[str]:
    """Raw text of each page, in float32, with the named VARIANTS in place.

    Only the rule that is asked for: no loop detector, no second try. The prompt is "Free OCR.".
    """
    decode = DecodeConfig(
        max_new_tokens=num_tokens, no_repeat_ngram=0, detect_loops=False,
        dry=DryConfig() if dry else None,
    )  # fmt: skip
    engine = EngineConfig(
        model=str(model), dtype="f32", prompt="ocr", batch_size=len(pages),
        kv_tokens=2500 * len(pages),
    )  # fmt: skip
    cfg = RunConfig(
        inputs=tuple(map(str, pages)), runner="inline", engine=engine, decode=decode,
        recover_loops=False,
    )  # fmt: skip
    with ExitStack() as stack:
        for name in variants:
            stack.enter_context(VARIANTS[name]())
        results = list(iter_pages(cfg))
    for result in results:
        if result.error:
            raise RuntimeError(f"{result.key.document}: {result.error.message}")
    return [result.raw for result in results]


@contextmanager
def tanh_gelu() -> Iterator[None]:
    """Row 7: ggml_gelu is the tanh approximation."""
    exact = F.gelu
    with mock.patch.object(sam.F, "gelu", lambda x: exact(x, approximate="tanh")):
        yield


@contextmanager
def plain_bicubic() -> Iterator[None]:
    """Row 6: positions of the tiles resized without antialias."""

    def resize(pos_1GGD: Tensor, side: int) -> Tensor:
        if pos_1GGD.shape[1] == side:
            return pos_1GGD
        x = pos_1GGD.permute(0, 3, 1, 2).float()
        resized = F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)
        return resized.to(pos_1GGD.dtype).permute(0, 2, 3, 1)

    with mock.patch.object(sam, "resize_positions", resize):
        yield


@contextmanager
def pad_half_up() -> Iterator[None]:
    """Row 2: a half pixel of padding is rounded up, not to the even number."""
    official = tiles.place_in_global_view

    def place(width: int, height: int, cfg: TileConfig) -> Places:
        size, (x, y) = official(width, height, cfg)
        if cfg.stretch_global or width == height:
            return size, (x, y)
        gaps = [math.floor((cfg.global_size - side) / 2 + 0.5) for side in size]
        return size, (gaps[0] if x else 0, gaps[1] if y else 0)

    with mock.patch.object(tiles, "place_in_global_view", place):
        yield


@contextmanager
def flat_clip_positions() -> Iterator[None]:
    """Not in the specification: v1's CLIP table is resized as if it were one [256, D] picture.

    llama.cpp (deepseekocr.cpp, build) reads the table as [class last], resizes the flat 256 x D
    plane to G x G, repeats that D times and takes the memory as [G * G, D].
    """
    official = clip.ClipEncoder.positions_for

    def positions(self: clip.ClipEncoder, num_image: int) -> Tensor:
        table = self.position_embedding.weight
        if num_image == table.shape[0] - 1:
            return official(self, num_image)
        side, width = math.isqrt(num_image), table.shape[1]
        plane = F.interpolate(
            table[None, None, :-1].float(), size=(side, side), mode="bicubic", align_corners=False
        )
        flat = plane.flatten().repeat(width).view(num_image, width).to(table.dtype)
        return torch.cat((flat, table[-1:]))

    with mock.patch.object(clip.ClipEncoder, "positions_for", positions):
        yield


VARIANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "pad half up (row 2)": pad_half_up,
    "plain bicubic (row 6)": plain_bicubic,
    "tanh GELU (row 7)": tanh_gelu,
    "flat CLIP positions (v1 tiles)": flat_clip_positions,
}
