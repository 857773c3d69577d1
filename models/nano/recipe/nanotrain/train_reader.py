"""Stage 2: the decoder learns to follow lines and spell cells out, from ideal visual tokens.

    python -m nanotrain.train_reader --state DIR [--steps N] [--resume]

The ideal token of a cell is a sum of learned codes, one for each character at its place in the cell
(IdealEyes); no page is drawn and no eye runs, so a page costs little. Stage 3 teaches the eyes to
give these tokens. Runs on CPU and CUDA. Writes DIR/reader.pt and DIR/reader.log (JSON lines).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from nanotrain import batches, fonts, sizes
from nanotrain.characters import NUM_CLASSES
from nanotrain.feeding import Feeder, default_workers
from nanotrain.optim import Optimisers
from nanotrain.precision import autocast
from nanotrain.reading import ReadHeads, ReadLosses, Text, read

CHAR_WIDTH = 48
# kind -> pages a step
MIXES = {
    "notes": {"note": 16},
    "slides": {"note": 8, "slide": 6},
    "seen": {"note": 1, "slide": 6, "poster": 1, "letter": 1},
    "large": {"note": 6, "slide": 6, "letter": 2},
    "all": {"note": 6, "slide": 5, "poster": 3, "letter": 2},
}

CHECKED_PAGES = 6  # held out, looked at every 100 steps


def place_code(side: int, width: int) -> Tensor:
    """Where a cell lies in its view, in 17 directions of the token: [side * side, width].

    Smooth and narrow on purpose: random codes of full width are what the eyes could not learn.
    """
    across = (torch.arange(side) + 0.5) / side
    waves = torch.cat(
        [
            f(2 * torch.pi * k * across)[:, None]
            for k in (0.5, 1, 2, 4)
            for f in (torch.sin, torch.cos)
        ],
        1,
    )
    rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    kind = torch.full((side * side, 1), 1.0 if side == 12 else -1.0)
    features = torch.cat((rows, columns, kind), dim=1)
    directions = torch.linalg.qr(
        torch.randn(width, 17, generator=torch.Generator().manual_seed(3))
    )[0].T
    return 1.9 * features @ directions


class IdealEyes(nn.Module):
    """Visual tokens from slot labels: what the eyes will be taught to give."""

    def __init__(self, width: int, slots: int = 16) -> None:
        super().__init__()
        self.codes = nn.Embedding(NUM_CLASSES, CHAR_WIDTH)
        self.join = nn.Linear(slots * CHAR_WIDTH, width)
        self.tile_codes = nn.Parameter(place_code(12, width))
        self.global_codes = nn.Parameter(place_code(16, width))
        nn.init.normal_(self.codes.weight)

    def forward(
        self, slots_BVS: Tensor, kept_BV: Tensor, num_tiles: int, separator: Tensor
    ) -> Tensor:
        """Tokens [B, V, D] of a page's kept cells; the last row is the separator's."""
        return self.chars(slots_BVS) + self.place_codes(num_tiles, separator)[kept_BV]

    def chars(self, slots: Tensor) -> Tensor:
        """The characters' share of the tokens, [..., D]."""
        return self.join((self.codes(slots) * (slots > 0)[..., None]).flatten(-2))

    def place_codes(self, num_tiles: int, separator: Tensor) -> Tensor:
        return torch.cat(
            [*[self.tile_codes] * num_tiles, self.global_codes, (separator - self.join.bias)[None]]
        )


def text_of(rows: batches.TextRows, device: str) -> Text:
    return Text(
        *(
            torch.as_tensor(a, device=device)
            for a in (getattr(rows, name) for name in batches.TEXT_PARTS)
        )
    )


def page_groups(
    args: argparse.Namespace, mix: dict[str, int], seed: int
) -> Iterator[list[batches.PageBatch]]:
    """Batches of each kind, for ever; from the album where there is one."""
    rng = Random(seed)
    chosen = fonts.ordinary(fonts.load_fonts(False))
    album = batches.Album(args.album) if args.album else None
    served = 0
    while True:
        group = []
        for kind, count in mix.items():
            share = 1.0 if rng.random() < args.whole else 0.1
            batch = None
            if album is not None and rng.random() < args.seen:
                batch = album.batch(rng, kind, count, share)
            group.append(
                batch
                or batches.page_batch(
                    rng, chosen, kind, count, max_characters=args.max_characters, blank_share=share
                )
            )
        yield group
        served += 1
        if album is not None and served % 30 == 0:
            album.look()


def ideal_losses(
    decoder: nn.Module,
    ideal: IdealEyes,
    separator: Tensor,
    heads: ReadHeads,
    batch: batches.PageBatch,
    device: str,
    noise: float = 0.03,
    num_texts: int = 2,
    own: float = 0.0,
) -> ReadLosses:
    kept = torch.as_tensor(batch.kept, device=device)
    if batch.tokens is not None:
        visual = torch.as_tensor(batch.tokens, device=device).float()
    else:
        visual = ideal(
            torch.as_tensor(batch.slots, device=device).long(), kept, batch.num_tiles, separator
        )
    if noise:
        visual = visual + blur(visual, batch.tokens is None) * torch.randn_like(visual)
    places = torch.as_tensor(batch.token_places, device=device)
    return read(
        decoder,
        heads,
        visual,
        kept,
        places,
        torch.as_tensor(batch.slots, device=device),
        [text_of(t, device) for t in batch.texts[:num_texts]],
        num_visual=batch.num_visual,
        noise=noise,
        own=own,
    )


# What characters make is 1.15 a channel; the eyes miss the ideal tokens by about half of it.
IDEAL_BLUR, SEEN_BLUR = 0.5, 0.05


def blur(visual_BVD: Tensor, is_ideal: bool) -> Tensor | float:
    """How far to shake the tokens a channel: [B, 1, 1], ideal ones from not at all up to as far as
    the eyes miss them, each page its own; what the eyes gave a little."""
    if not is_ideal:
        return SEEN_BLUR
    return IDEAL_BLUR * torch.rand_like(visual_BVD[:, :1, :1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="length of the schedule")
    parser.add_argument(
        "--stop-after", type=int, default=10**9, help="stop at this step, keep the schedule"
    )
    parser.add_argument("--mix", choices=MIXES, default="notes")
    parser.add_argument("--max-characters", type=int, default=160)
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument(
        "--grounded", type=float, default=0.0, help="share of steps with both prompts"
    )
    parser.add_argument(
        "--freeze-codes", action="store_true", help="keep the ideal tokens as they are"
    )
    parser.add_argument("--album", type=Path, help="folder of seen pages (album.py)")
    parser.add_argument("--seen", type=float, default=0.8, help="share of batches from the album")
    parser.add_argument(
        "--whole", type=float, default=0.0, help="share of batches that keep all blank cells"
    )
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = sizes.new_model()
    decoder = model.decoder.to(device)
    separator = model.vision.view_separator.detach().to(device)
    ideal = IdealEyes(256).to(device)
    heads = ReadHeads(256, sizes.NANO.decoder.num_layers).to(device)
    parts = {"decoder": decoder, "ideal": ideal, "heads": heads}
    optimisers = Optimisers(parts, muon_lr=args.muon_lr, adam_lr=args.adam_lr, total=args.steps)
    # After the optimisers, so that their state stays the same whether codes are frozen or not.
    ideal.requires_grad_(not args.freeze_codes)
    step = 0
    kept = args.state / "reader.pt"
    if args.resume and kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        optimisers.load_state_dict(state["optimisers"])
        step = state["step"]
    elif args.resume and (args.state / "joint.pt").exists():
        joint = torch.load(args.state / "joint.pt", map_location=device, weights_only=True)
        codes = torch.load(args.state / "codes.pt", map_location=device, weights_only=True)
        decoder.load_state_dict(joint["decoder"])
        heads.load_state_dict(joint["heads"])
        ideal.load_state_dict(codes["ideal"])
    seeds = [500 + step + 1000 * i for i in range(default_workers(device))]
    feeder = Feeder([partial(page_groups, args, MIXES[args.mix], seed) for seed in seeds])
    held = Random(11)
    check = [
        batches.page_batch(
            held,
            fonts.load_fonts(True),
            kind,
            CHECKED_PAGES,
            max_characters=args.max_characters,
            held_out=True,
        )
        for kind in MIXES[args.mix]
    ]
    grounded = Random(step)
    started, sums, counts, characters = time.time(), {}, {}, 0
    while step < min(args.steps, args.stop_after):
        group = feeder.take()
        num_texts = 2 if grounded.random() < args.grounded else 1
        total = sum(t.num_targets for b in group for t in b.texts[:num_texts])
        for batch in group:
            with autocast(device):
                out = ideal_losses(
                    decoder, ideal, separator, heads, batch, device, num_texts=num_texts
                )
            share = sum(t.num_targets for t in batch.texts[:num_texts]) / total
            loss = out.total()
            (loss * share).backward()
            kind = f"{batch.num_tiles}{'seen' if batch.tokens is not None else ''}"
            counts[kind] = counts.get(kind, 0) + 1
            for name, value in (
                ("text", out.text),
                ("guide", out.guide),
                ("place", out.place),
                ("row", out.row),
                ("balance", out.balance),
                ("right", out.right),
            ):
                sums[f"{name}{kind}"] = sums.get(f"{name}{kind}", 0.0) + float(value.detach())
            looked = [round(v, 3) for v in out.looked.tolist()]
        optimisers.step(step)
        characters += total
        step += 1
        if step % 20 == 0 or step == args.steps:
            line = {
                "step": step,
                "seconds": round(time.time() - started, 1),
                "characters": characters,
                **{
                    name: round(value / counts[name.lstrip("abcdefghijklmnopqrstuvwxyz")], 4)
                    for name, value in sums.items()
                },
                "looked": looked,
            }
            sums, counts = {}, {}
            if step % 100 == 0 or step == args.steps:
                with torch.no_grad(), autocast(device):
                    for batch in check:
                        right = ideal_losses(
                            decoder,
                            ideal,
                            separator,
                            heads,
                            batch,
                            device,
                            noise=0.0,
                            num_texts=2 if args.grounded else 1,
                        ).right
                        line[f"held_out_right{batch.num_tiles}"] = round(float(right), 4)
            with (args.state / "reader.log").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if step % 50 == 0 or step == min(args.steps, args.stop_after):
            unfinished = kept.with_suffix(".partial")
            torch.save(
                {
                    **{name: part.state_dict() for name, part in parts.items()},
                    "optimisers": optimisers.state_dict(),
                    "step": step,
                },
                unfinished,
            )
            unfinished.replace(kept)
    feeder.close()


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
