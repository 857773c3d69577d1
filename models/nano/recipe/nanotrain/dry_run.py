"""Ten steps of each stage, eager and compiled, on whatever device there is, with times.

    python -m nanotrain.dry_run [--steps 10] [--device cpu|cuda] [--backend inductor|aot_eager]

Proves that the code for a GPU runs: same functions, same sizes, only the device differs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from random import Random

import numpy as np
import torch

from nanotrain import batches, draw, drawn, fonts, pages, scenes, sizes
from nanotrain.characters import NUM_CLASSES
from nanotrain.optim import Optimisers
from nanotrain.precision import autocast
from nanotrain.reading import ReadHeads
from nanotrain.seeing_pages import seen_losses
from nanotrain.sight import EyeHeads
from nanotrain.train_eyes import eye_loss
from nanotrain.train_reader import IdealEyes, ideal_losses


def eyes_step(device: str, backend: str, count: int) -> Callable[[int], float]:
    model = sizes.new_model()
    vision, heads = model.vision.to(device), EyeHeads(128, 256, NUM_CLASSES, 16).to(device)
    optimisers = Optimisers(
        {"vision": vision, "heads": heads}, muon_lr=1e-3, adam_lr=1e-3, total=100
    )
    crops = scenes.crop_batch(Random(1), fonts.load_fonts(False), 768, count)
    loss_of = torch.compile(eye_loss, backend=backend) if backend else eye_loss

    def step(index: int) -> float:
        with autocast(device):
            parts = loss_of(vision, heads, crops, device)
        loss = parts["slot"] + parts["patch"] + 0.3 * parts["guide"]
        loss.backward()
        optimisers.step(index)
        sizes.impose_near_sight(vision)
        return float(loss.detach())

    return step


def reader_step(device: str, backend: str, count: int) -> Callable[[int], float]:
    model = sizes.new_model()
    decoder, ideal, heads = (
        model.decoder.to(device),
        IdealEyes(256).to(device),
        ReadHeads(256, sizes.NANO.decoder.num_layers).to(device),
    )
    separator = model.vision.view_separator.detach().to(device)
    optimisers = Optimisers(
        {"decoder": decoder, "ideal": ideal, "heads": heads}, muon_lr=1e-3, adam_lr=1e-3, total=100
    )
    batch = batches.page_batch(
        Random(1), fonts.load_fonts(False), "slide", count, max_characters=120
    )
    loss_of = torch.compile(ideal_losses, backend=backend) if backend else ideal_losses

    def step(index: int) -> float:
        with autocast(device):
            out = loss_of(decoder, ideal, separator, heads, batch, device)
        loss = out.total()
        loss.backward()
        optimisers.step(index)
        return float(loss.detach())

    return step


def joint_step(device: str, backend: str, count: int) -> Callable[[int], float]:
    """`count` small images and as many pages of six tiles, eyes and reader together."""
    model = sizes.new_model().to(device)
    vision, decoder = model.vision, model.decoder
    ideal = IdealEyes(256).to(device).requires_grad_(False)
    heads = ReadHeads(256, sizes.NANO.decoder.num_layers).to(device)
    optimisers = Optimisers(
        {"vision": vision, "decoder": decoder, "heads": heads},
        muon_lr=1e-3,
        adam_lr=1e-3,
        total=100,
    )
    rng, chosen = Random(1), fonts.ordinary(fonts.load_fonts(False))
    made = []
    for kind in ("note", "letter"):
        arrays = []
        for _ in range(count):
            page = pages.random_page(rng, kind, chosen, max_characters=120)
            picture = np.asarray(draw.draw_page(page, rng))
            arrays.append(drawn.page_arrays(page, picture, kind == "note"))
        made.append(drawn.drawn_batch(rng, arrays, 0.1))
    losses_of = torch.compile(seen_losses, backend=backend) if backend else seen_losses

    def step(index: int) -> float:
        total = 0.0
        for batch in made:
            with autocast(device):
                out, far = losses_of(
                    vision, ideal, decoder, heads, batch, device, noise=0.05, num_texts=1, own=0.15
                )
            loss = out.total() + far
            loss.backward()
            total += float(loss.detach())
        optimisers.step(index)
        sizes.impose_near_sight(vision)
        return total

    return step


STAGES = {"eyes": eyes_step, "reader": reader_step, "joint": joint_step}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--backend", default="inductor", help="of torch.compile; aot_eager is quick"
    )
    parser.add_argument("--crops", type=int, default=12)
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--stages", default=",".join(STAGES))
    args = parser.parse_args()
    for name in args.stages.split(","):
        count = args.crops if name == "eyes" else args.pages
        for backend in ("", args.backend):
            step = STAGES[name](args.device, backend, count)
            started = time.time()
            first = step(0)
            warm = time.time()
            for index in range(1, args.steps):
                last = step(index)
            if args.device == "cuda":
                torch.cuda.synchronize()
            each = (time.time() - warm) / max(1, args.steps - 1)
            print(
                f"{name} {backend or 'eager'} on {args.device}: "
                f"loss {first:.3f} -> {last:.3f}, "
                f"first step {warm - started:.1f} s, then {each:.2f} s a step of {count}",
                flush=True,
            )


if __name__ == "__main__":
    main()
