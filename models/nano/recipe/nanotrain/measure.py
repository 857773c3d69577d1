"""Quick scores of a training state: greedy reading of held-out pages, from pixels or ideal tokens.

    python -m nanotrain.measure --state DIR [--ideal] [--pages 6] [--prompt plain]

For steering a run; the figures of the model card come from evaluate.py, through the program itself.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from nanotrain import album, batches, draw, drawn, fonts, truths, vocabulary
from nanotrain.export import model_of
from nanotrain.train_reader import IdealEyes
from nanotrain.writing import Prompts, write

MOST_IDS = 900  # of a page's text


def whole_cer(truth: str, output: str) -> float:
    truth, output = (re.sub(r"\s+", " ", text).strip() for text in (truth, output))
    return Levenshtein.distance(truth, output) / max(1, len(truth))


def without_grounding(text: str) -> str:
    """The plain text of the grounding prompt's answer: no labels, boxes, heading or table marks."""
    text = re.sub(r"<\|ref\|>.*?<\|/ref\|><\|det\|>.*?<\|/det\|>\n?", "", text, flags=re.S)
    text = text.replace("</td><td>", " ").replace("</tr>", "\n")
    text = re.sub(r"</?t(able|r|d)>", "", text)
    return re.sub(r"^#+ ", "", text, flags=re.M)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=6)
    parser.add_argument("--kinds", default="note,slide,poster,letter")
    parser.add_argument("--prompt", choices=("plain", "grounded"), default="plain")
    parser.add_argument("--ideal", action="store_true")
    parser.add_argument("--seen-fonts", action="store_true")
    parser.add_argument("--max-characters", type=int, default=300)
    parser.add_argument("--show", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = model_of(args.state).eval()
    ideal = IdealEyes(256)
    if args.ideal:
        ideal.load_state_dict(torch.load(args.state / "codes.pt", weights_only=True)["ideal"])
    chosen = fonts.load_fonts(not args.seen_fonts)
    prompt = truths.PLAIN_PROMPT if args.prompt == "plain" else truths.GROUNDING_PROMPT
    prompt_ids, _ = vocabulary.encode(prompt)
    for kind in args.kinds.split(","):
        rng, started = Random(77), time.time()
        texts: list[str] = []
        prompts: list[Prompts] = []
        for _ in range(args.pages):
            page = drawn.page_of_kind(
                rng, kind, chosen, held_out=True, max_characters=args.max_characters
            )
            truth = (truths.plain_truth if args.prompt == "plain" else truths.grounded_truth)(
                page
            ).text
            picture = draw.draw_page(page, rng)
            if args.ideal:
                noise = np.random.default_rng(1)
                slots = torch.from_numpy(batches._labels(page, noise, 0.0)).long()[None]
                tiles = (slots.shape[1] - 257) // 144
                with torch.inference_mode():
                    kept = torch.arange(slots.shape[1])[None]
                    visual = ideal(slots, kept, tiles, model.vision.view_separator)[0]
            else:
                visual = album.visual_tokens(model.vision, np.asarray(picture))
            texts.append(truth)
            places = torch.arange(len(visual))
            prompts.append(
                (visual[None], 1 + places[None], torch.tensor([prompt_ids]), 1 + len(visual))
            )
        outputs = map(vocabulary.decode, write(model.decoder, prompts, [MOST_IDS] * len(prompts)))
        scores, loops = [], 0
        for index, (truth, output) in enumerate(zip(texts, outputs, strict=True)):
            pair = (
                (truth, output)
                if args.prompt == "plain"
                else tuple(map(without_grounding, (truth, output)))
            )
            scores.append(whole_cer(*pair))
            loops += len(output) > 2 * len(truth)
            if index < args.show:
                print(
                    f"--- {kind} truth\n{truth}\n--- output, CER {scores[-1]:.3f}\n{output[:700]}"
                )
        print(
            f"{kind}: CER mean {np.mean(scores):.4f} median {np.median(scores):.4f} loops {loops} "
            f"characters {np.mean([len(text) for text in texts]):.0f} "
            f"seconds a page {(time.time() - started) / args.pages:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
