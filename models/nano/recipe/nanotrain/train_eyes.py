"""Stage 1: the eyes learn to name characters on crops of views, before any decoder exists.

    python -m nanotrain.train_eyes --state DIR [--steps N] [--resume]

Runs on CPU and CUDA. Writes DIR/eyes.pt (weights, optimiser, step) and DIR/eyes.log (JSON lines).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanotrain import fonts, scenes, sizes
from nanotrain.characters import NUM_CLASSES
from nanotrain.feeding import Feeder, default_workers
from nanotrain.optim import Optimisers
from nanotrain.precision import autocast
from nanotrain.sight import EyeHeads, see_crops
from nanotrain.stock import Stock
from nanotrain.train_reader import IdealEyes

CHECKED_CROPS = 45  # held out, looked at every 100 steps


def crop_batches(
    tiles: int, globals_: int, seed: int
) -> Iterator[tuple[scenes.Crops, scenes.Crops]]:
    """Crops of tiles and of global views, for ever."""
    rng = Random(seed)
    chosen = fonts.ordinary(fonts.load_fonts(False))
    while True:
        yield (
            scenes.grouped(rng, scenes.crop_batch(rng, chosen, 768, tiles), 9),
            scenes.grouped(rng, scenes.crop_batch(rng, chosen, 1024, globals_), 16),
        )


def pixels_of(crops: scenes.Crops, device: str) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(crops.pixels)).to(device)
    if pixels.ndim == 3:
        return coloured(pixels.float() / 255) * 2 - 1
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def coloured(grey_BHW: Tensor, sheets_B: Tensor | None = None, num_sheets: int = 0) -> Tensor:
    """[B, 3, H, W] in 0..1: half as they are, the others in new paper and ink, some of them
    light on dark. sheets: int64 in 0..num_sheets, crops of one number share their colours; left
    out, each has its own."""
    device = grey_BHW.device
    count = len(grey_BHW) if sheets_B is None else num_sheets
    ink = 0.45 * torch.rand((count, 3, 1, 1), device=device)
    paper = 1 - 0.18 * torch.rand((count, 3, 1, 1), device=device)
    is_kept = torch.rand(count, 1, 1, 1, device=device) < 0.5
    is_dark = torch.rand(count, 1, 1, 1, device=device) < 0.08
    low = torch.where(is_kept, 0.0, torch.where(is_dark, paper, ink))
    high = torch.where(is_kept, 1.0, torch.where(is_dark, ink, paper))
    if sheets_B is not None:
        low, high = low[sheets_B], high[sheets_B]
    return low + (high - low) * grey_BHW[:, None]


def stock_batches(
    folder: Path, tiles: int, globals_: int, seed: int
) -> Iterator[tuple[scenes.Crops, scenes.Crops]]:
    """The same from a stock, waiting until it has crops of both views."""
    rng, stock = Random(seed), Stock(folder)
    last_look = time.time()
    while True:
        batch = (stock.batch(rng, 768, tiles, 9), stock.batch(rng, 1024, globals_, 16))
        if None not in batch:
            yield batch
        if None in batch or time.time() - last_look > 60:
            time.sleep(1.0)
            stock.look()
            last_look = time.time()


def eye_loss(
    vision, heads: EyeHeads, crops: scenes.Crops, device: str, ideal: IdealEyes | None = None
) -> dict[str, Tensor]:
    neck, tokens, guidance = see_crops(
        vision,
        pixels_of(crops, device),
        torch.from_numpy(crops.places).to(device),
        crops.side,
        [crops.group] * (len(crops.places) // crops.group),
    )
    patch_loss, _ = named_loss(heads.patches(neck), torch.from_numpy(crops.patches).to(device))
    slots = torch.from_numpy(crops.slots).to(device)
    # Once the tokens have an aim of their own, the slot head only watches.
    slot_loss, right = named_loss(heads.cells(tokens if ideal is None else tokens.detach()), slots)
    parts = {"patch": patch_loss, "slot": slot_loss, "guide": guidance, "right": right}
    if ideal is not None:
        parts["far"] = distance(
            ideal, tokens, slots, torch.from_numpy(crops.places).to(device), crops.side
        )
    return parts


def aims_of(
    ideal: IdealEyes, slots_BnS: Tensor, places_B2: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """(ideal tokens [B, n, D], mean square that characters make in them) of crops at their
    places."""
    cells = side // 64
    inner = torch.arange(4, device=places_B2.device)
    rows = places_B2[:, 0, None] * 4 + inner
    columns = places_B2[:, 1, None] * 4 + inner
    index = (rows[:, :, None] * cells + columns[:, None, :]).flatten(1)
    with torch.no_grad(), torch.autocast(places_B2.device.type, enabled=False):
        chars = ideal.chars(slots_BnS)
        has_text = (slots_BnS > 0).any(-1)
        # Batches without a character exist: their spread must not be 0 / 0.
        total = (chars - ideal.join.bias).square().mean(-1)[has_text].sum()
        spread = total.clamp(min=0.1) / has_text.sum().clamp(min=1)
        return chars + (ideal.tile_codes if side == 768 else ideal.global_codes)[index], spread


def distance(
    ideal: IdealEyes, tokens_BnD: Tensor, slots_BnS: Tensor, places_B2: Tensor, side: int
) -> Tensor:
    """Mean square of token minus ideal token a cell with text, in units of what characters make."""
    aims, spread = aims_of(ideal, slots_BnS, places_B2, side)
    count = (slots_BnS > 0).any(-1).sum().clamp(min=1)
    return (tokens_BnD.float() - aims).square().mean(-1).sum() / spread / count


def named_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, blanks at a quarter of the weight of characters; and the share of characters
    named right."""
    logits, labels = logits.flatten(0, -2), labels.flatten()
    is_char = labels > 0
    # Blank slots far from text are certain at once: a sample of them is enough.
    keep = is_char | (torch.rand(labels.shape, device=labels.device) < 0.25)
    losses = F.cross_entropy(logits[keep].float(), labels[keep], reduction="none")
    kept_char = is_char[keep]
    right = (logits[keep][kept_char].argmax(-1) == labels[keep][kept_char]).float().mean()
    return losses.sum() / kept_char.sum().clamp(min=1), right


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--globals", type=int, default=8, dest="globals_")
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, help="children that draw crops")
    parser.add_argument(
        "--stop-after", type=int, default=10**9, help="stop at this step, keep the schedule"
    )
    parser.add_argument(
        "--codes", type=Path, help="reader.pt whose ideal tokens the eyes should give"
    )
    parser.add_argument("--stock", type=Path, help="folder of drawn crops (stock.py)")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = sizes.new_model()
    vision = model.vision.to(device)
    heads = EyeHeads(128, 256, NUM_CLASSES, 16).to(device)
    optimisers = Optimisers(
        {"vision": vision, "heads": heads},
        muon_lr=args.muon_lr,
        adam_lr=args.adam_lr,
        total=args.steps,
    )
    ideal = None
    if args.codes:
        ideal = IdealEyes(256).to(device).requires_grad_(False)
        ideal.load_state_dict(
            torch.load(args.codes, map_location=device, weights_only=True)["ideal"]
        )
    step = 0
    kept = args.state / "eyes.pt"
    if args.resume and kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        vision.load_state_dict(state["vision"])
        heads.load_state_dict(state["heads"])
        optimisers.load_state_dict(state["optimisers"])
        step = state["step"]
    elif args.resume and (args.state / "joint.pt").exists():
        joint = torch.load(args.state / "joint.pt", map_location=device, weights_only=True)
        vision.load_state_dict(joint["vision"])
    if args.stock:
        sources = [partial(stock_batches, args.stock, args.tiles, args.globals_, step)]
    else:
        seeds = [1000 + step * 7 + i for i in range(args.workers or default_workers(device))]
        sources = [partial(crop_batches, args.tiles, args.globals_, seed) for seed in seeds]
    feeder = Feeder(sources)
    held = Random(5)
    check = [
        scenes.grouped(
            held,
            scenes.crop_batch(
                held, fonts.ordinary(fonts.load_fonts(True)), side, CHECKED_CROPS, held_out=True
            ),
            group,
        )
        for side, group in ((768, 9), (1024, 16))
    ]
    started, seen, sums = time.time(), 0, {}
    waited = 0.0
    while step < min(args.steps, args.stop_after):
        t0 = time.time()
        batches = feeder.take()
        waited += time.time() - t0
        loss = 0.0
        for crops in batches:
            with autocast(device):
                parts = eye_loss(vision, heads, crops, device, ideal)
            slot_weight = min(1.0, 0.2 + step / 1000)
            loss = loss + slot_weight * parts["slot"] + parts["patch"] + 0.3 * parts["guide"]
            if ideal is not None:
                loss = loss + 2.0 * parts["far"]
            for name, value in parts.items():
                sums[f"{name}{crops.side}"] = sums.get(f"{name}{crops.side}", 0.0) + float(
                    value.detach()
                )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {float(loss)} at step {step}; resume from {kept}")
        loss.backward()
        optimisers.step(step)
        sizes.impose_near_sight(vision)
        seen += sum(len(c.pixels) for c in batches)
        step += 1
        if step % 20 == 0 or step == args.steps:
            line = {
                "step": step,
                "seconds": round(time.time() - started, 1),
                "crops": seen,
                "waited": round(waited, 1),
                **{name: round(value / 20, 4) for name, value in sums.items()},
            }
            sums = {}
            if step % 100 == 0 or step == args.steps:
                with torch.no_grad(), autocast(device):
                    for crops in check:
                        found = eye_loss(vision, heads, crops, device, ideal)
                        for name in {"right", "far"} & set(found):
                            line[f"held_out_{name}{crops.side}"] = round(float(found[name]), 4)
            with (args.state / "eyes.log").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if step % 50 == 0 or step == min(args.steps, args.stop_after):
            unfinished = kept.with_suffix(".partial")
            torch.save(
                {
                    "vision": vision.state_dict(),
                    "heads": heads.state_dict(),
                    "optimisers": optimisers.state_dict(),
                    "step": step,
                },
                unfinished,
            )
            unfinished.replace(kept)
    feeder.close()


if __name__ == "__main__":
    main()
