"""Shows that transformers and ocr2cli read the same token ids from the same folder.

    python -m nanotrain.agree --model models/nano --pages 10

Both in float32, greedy, on the same views; a difference is printed with its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch

from nanotrain import draw, fonts, pages, truths, vocabulary
from ocr2cli.config import TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.model import OcrModel
from ocr2cli.pages import PageImage, PageKey, Views
from ocr2cli.weights.load import load_model


def ours(model: OcrModel, views: Views, prompt_ids: list[int], limit: int) -> list[int]:
    with torch.inference_mode():
        seen = model.vision.encode_views(torch.from_numpy(views.global_view)[None])[0]
        tiles = seen.new_zeros(0, 144, seen.shape[-1])
        if len(views.tiles):
            tiles = model.vision.encode_views(torch.from_numpy(views.tiles))
        visual = model.vision.assemble(tiles, seen, views.grid)
        embed = model.decoder.embed
        cache = KVCache(model.decoder.config, 1, len(visual) + len(prompt_ids) + limit + 2)
        start = torch.cat((embed(torch.tensor([0])), visual, embed(torch.tensor(prompt_ids))))
        logits = model.decoder.prefill(start, cache, 0)
        out: list[int] = []
        while len(out) < limit:
            out.append(int(logits.argmax()))
            if out[-1] == vocabulary.EOS_ID:
                break
            logits = model.decoder.decode(torch.tensor(out[-1:]), cache, [0])[0]
    return out


def theirs(model: torch.nn.Module, views: Views, prompt_ids: list[int], limit: int) -> list[int]:
    """transformers' model on our views: its own processor resizes with one pixel's difference."""
    count = 257 + 144 * len(views.tiles)
    ids = torch.tensor([[0, *[vocabulary.IMAGE_ID] * count, *prompt_ids]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _normalised(views.global_view[None]),
    }
    if len(views.tiles):
        inputs |= {
            "pixel_values_local": _normalised(views.tiles),
            "num_local_patches": torch.tensor([len(views.tiles)]),
        }
    out = model.generate(
        **inputs, max_new_tokens=limit, do_sample=False, eos_token_id=1, pad_token_id=2
    )
    return out[0, ids.shape[1] :].tolist()


def _normalised(views: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(views)).float() / 127.5 - 1


def load_both(folder: Path) -> tuple[OcrModel, torch.nn.Module]:
    from transformers import AutoModelForImageTextToText

    model = load_model(folder, dtype=torch.float32, device="cpu")
    other = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval(), other.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--limit", type=int, default=400)
    args = parser.parse_args()
    model, other = load_both(args.model)
    rng = Random(4711)
    held_out = fonts.load_fonts(True)
    same = 0
    for index in range(args.pages):
        kind = ("note", "slide", "poster", "letter")[index % 4]
        page = pages.random_page(rng, kind, held_out, held_out=True, max_characters=200)
        pixels = np.ascontiguousarray(np.asarray(draw.draw_page(page, rng)))
        views = make_views(PageImage(PageKey(kind, index), pixels, 144.0), TileConfig())
        prompt = truths.PLAIN_PROMPT if index % 2 else truths.GROUNDING_PROMPT
        prompt_ids, _ = vocabulary.encode(prompt)
        a = ours(model, views, prompt_ids, args.limit)
        b = theirs(other, views, prompt_ids, args.limit)
        same += a == b
        if a != b:
            at = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            print(f"page {index + 1} ({kind}): differs at token {at} of {len(a)} / {len(b)}")
    print(f"{same} of {args.pages} pages give the same token ids")


if __name__ == "__main__":
    main()
