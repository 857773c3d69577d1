"""Stage 5: eyes and reader together on drawn pages, the reader's loss through to the pixels.

    python -m nanotrain.train_joint --state DIR --codes DIR/codes.pt --drawn DIR/drawn --steps N

Starts from DIR/eyes.pt and DIR/reader.pt; with --resume from DIR/joint.pt, whose momenta may be
missing. Without --drawn the feeders draw pages themselves. The eyes keep their aims of stage 3 on
the same crops, so that what they see stays what the decoder can spell; other pages are read from
ideal tokens beside. With an empty --mix the decoder alone learns, from ideal tokens only. Runs on
CPU and CUDA. Writes DIR/joint.pt and DIR/joint.log. With --mean-over N the state keeps a running
mean of the weights too, which average.py makes a state of its own.

Several processes share the work when RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as
torchrun sets them; gradients are averaged once a step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from random import Random

import torch
import torch.distributed
from torch import Tensor, nn

from nanotrain import sizes
from nanotrain.average import RunningMean
from nanotrain.batches import PageBatch
from nanotrain.drawn import DrawnBatch
from nanotrain.export import model_of
from nanotrain.feeding import Feeder, default_workers
from nanotrain.groups import held_out_batches, joint_groups, kinds_of
from nanotrain.moving import Ahead, moved
from nanotrain.optim import Optimisers
from nanotrain.precision import autocast
from nanotrain.reading import ReadHeads, ReadLosses
from nanotrain.seeing_pages import seen_losses
from nanotrain.train_reader import IdealEyes, ideal_losses
from nanotrain.writing import Written

REPLAYED = 120  # the latest batches, which are read again: the eyes change slowly


class JointTrainer:
    """Model, heads and both optimisers; one step at a time. Loads and saves DIR/joint.pt."""

    def __init__(self, args: argparse.Namespace, device: str, ranks: int) -> None:
        self.args, self.device, self.ranks = args, device, ranks
        self.eyes_learn = args.eyes_lr > 0
        self.kept = args.state / "joint.pt"
        model = model_of(args.state).to(device).train()
        self.vision, self.decoder = model.vision, model.decoder
        self.heads = ReadHeads(256, sizes.NANO.decoder.num_layers).to(device)
        self.ideal = IdealEyes(256).to(device).requires_grad_(False)
        self.ideal.load_state_dict(self._load(args.codes)["ideal"])
        self.parts = (self.vision, self.ideal, self.decoder, self.heads)
        self.eyes = Optimisers(
            {"vision": self.vision},
            muon_lr=args.eyes_lr,
            adam_lr=args.eyes_lr / 2,
            total=args.steps,
        )
        self.reader = Optimisers(
            {"decoder": self.decoder, "heads": self.heads},
            muon_lr=args.reader_lr,
            adam_lr=args.reader_lr / 2,
            total=args.steps,
        )
        self.mean = RunningMean(args.mean_over)
        self.num_steps = 0
        self.warm_steps = 0  # updates that the momenta have behind them
        if args.resume and self.kept.exists():
            state = self._load(self.kept)
            # A state of an older recipe lacks the heads that came later; its momenta fit no more.
            known = self.heads.state_dict()
            self.heads.load_state_dict({**known, **state["heads"]})
            self.num_steps = state["step"]
            if "eyes" in state and known.keys() == state["heads"].keys():
                self.eyes.load_state_dict(state["eyes"])
                self.reader.load_state_dict(state["reader"])
                self.warm_steps = self.num_steps
            if "mean" in state and args.mean_over:
                self.mean.load_state_dict(state["mean"])
        else:
            self.heads.load_state_dict(self._load(args.state / "reader.pt")["heads"])
        self.separator = self.vision.view_separator.detach()
        self.seen_losses = (
            torch.compile(seen_losses, backend=args.compile) if args.compile else seen_losses
        )

    def _load(self, path: Path) -> dict:
        return torch.load(path, map_location=self.device, weights_only=True)

    def save(self) -> None:
        unfinished = self.kept.with_suffix(".partial")
        parts = ("vision", "decoder", "heads", "eyes", "reader")
        states = {name: getattr(self, name).state_dict() for name in parts}
        mean = {"mean": self.mean.state_dict()} if self.mean.num_steps else {}
        torch.save({**states, **mean, "step": self.num_steps}, unfinished)
        unfinished.replace(self.kept)

    def step(
        self,
        group: list[DrawnBatch],
        others: list[PageBatch],
        *,
        num_texts: int,
        rng: Random,
        done: float | None = None,
    ) -> tuple[Means, int]:
        """Learn once from drawn pages and from pages whose tokens are ideal or were seen before.
        done: the share of the schedule that is over, where it goes by the clock. Returns (means of
        the losses by kind of batch, characters).

        Raises: FloatingPointError when a loss is no number; nothing was changed by it."""
        readings: list[DrawnBatch | PageBatch] = [*group, *others]
        characters = [count_targets(batch, num_texts) for batch in readings]
        means, total = Means(), torch.zeros((), device=self.device)
        for batch, count in zip(readings, characters, strict=True):
            # On every second batch only: it costs one more forward.
            own = self.args.own if rng.random() < 0.5 else 0.0
            with autocast(self.device):
                out, far, name = self._losses(batch, num_texts, own)
            loss = out.total() * (count / sum(characters))
            if far is not None and self.eyes_learn:
                loss = loss + self.args.far / len(group) * far
            loss.backward()
            total += loss.detach()
            means.add(name, text=out.text, right=out.right, turned=out.turned, far=far)
            means.add(name, row=out.row, line=out.line, unpack=out.unpack, beside=out.beside)
            means.looked = out.looked
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"loss is {float(total)} at step {self.num_steps}; resume from {self.kept}"
            )
        eyes_learn = bool(group) and self.eyes_learn
        if self.ranks > 1:
            learning = (self.eyes.parameters if eyes_learn else []) + self.reader.parameters
            average_gradients(learning, self.ranks)
        done = self.num_steps / self.args.steps if done is None else done
        if eyes_learn:
            self.eyes.step(self.warm_steps, done)
        self.reader.step(self.warm_steps, done)
        sizes.impose_near_sight(self.vision)
        if self.args.mean_over:
            self.mean.add({"vision": self.vision, "decoder": self.decoder, "heads": self.heads})
        self.num_steps += 1
        self.warm_steps += 1
        return means, sum(characters)

    def _losses(
        self, batch: DrawnBatch | PageBatch, num_texts: int, own: float
    ) -> tuple[ReadLosses, Tensor | None, str]:
        """(Losses, distance of the eyes to their aims, what kind of batch it is in the log)."""
        how = {"noise": self.args.noise, "num_texts": num_texts, "own": own}
        is_written = isinstance(batch, PageBatch) and batch.is_written
        if is_written:  # what it wrote is wrong enough
            how = {"noise": 0.0, "num_texts": 1}
        if isinstance(batch, DrawnBatch):
            out, far = self.seen_losses(
                *self.parts, batch, self.device, **how, eyes_learn=self.eyes_learn
            )
            return out, far, f"{batch.page.num_tiles}seen"
        out = ideal_losses(
            self.decoder, self.ideal, self.separator, self.heads, batch, self.device, **how
        )
        kind = "written" if is_written else "" if batch.tokens is None else "again"
        return out, None, f"{batch.num_tiles}{kind}"

    @torch.no_grad()
    def check(self, held_out: dict[str, DrawnBatch]) -> dict[str, float]:
        """Share of right characters and distance to the aims, by kind of page."""
        found = {}
        for kind, batch in held_out.items():
            with autocast(self.device):
                out, far = seen_losses(
                    *self.parts, batch, self.device, noise=0.0, num_texts=1, recolour=False
                )
            found[f"held_out_right_{kind}"] = round(float(out.right), 4)
            found[f"held_out_turned_{kind}"] = round(float(out.turned), 4)
            found[f"held_out_far_{kind}"] = round(float(far), 4)
        return found


class Means:
    """Means by name of a loss and kind of batch, as the log writes them. Sums stay on the device
    until a line is written."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.looked: Tensor | None = None

    def add(self, kind: str, **values: Tensor | None) -> None:
        for name, value in values.items():
            if value is not None:
                self.sums[f"{name}_{kind}"] += value.detach()
                self.counts[f"{name}_{kind}"] += 1

    def merge(self, other: Means) -> None:
        for key, value in other.sums.items():
            self.sums[key] += value
            self.counts[key] += other.counts[key]
        self.looked = other.looked

    def as_line(self) -> dict[str, float | list[float]]:
        means = {key: round(float(sum_) / self.counts[key], 4) for key, sum_ in self.sums.items()}
        looked = [] if self.looked is None else self.looked.tolist()
        return {**means, "looked": [round(value, 3) for value in looked]}


def count_targets(batch: DrawnBatch | PageBatch, num_texts: int) -> int:
    page = batch.page if isinstance(batch, DrawnBatch) else batch
    return sum(text.num_targets for text in page.texts[:num_texts])


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Mean over all processes; an expert that no token of this process chose counts as zero."""
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    torch.distributed.all_reduce(flat)
    parts = (flat / ranks).split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad = part.view_as(p)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--drawn", type=Path, help="folder of drawn.py's pages")
    parser.add_argument(
        "--globals",
        type=float,
        default=0.3,
        dest="globals_",
        help="without --drawn: how many pages with tiles have the global view too",
    )
    parser.add_argument(
        "--uses",
        type=float,
        default=3.0,
        help="without --drawn: how often a page is learned from, about",
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="the schedule goes by the clock, not by --steps, and ends after so many",
    )
    parser.add_argument("--stop-after", type=int, default=10**9)
    parser.add_argument(
        "--mix",
        default="note=5,slide=3",
        help="drawn pages a step by kind; kinds joined by / take turns by chance; may be empty",
    )
    parser.add_argument(
        "--ideal",
        default="letter/poster=2",
        help="pages a step by kind, read from ideal tokens; pages.py's kinds only",
    )
    parser.add_argument(
        "--max-characters", type=int, default=300, help="length of the pages of --ideal"
    )
    parser.add_argument("--eyes-lr", type=float, default=1e-3, help="0: the eyes stay as they are")
    parser.add_argument("--reader-lr", type=float, default=2e-3)
    parser.add_argument("--far", type=float, default=1.0, help="weight of the distance to the aims")
    parser.add_argument("--noise", type=float, default=0.05, help="wrong characters as input")
    parser.add_argument(
        "--own",
        type=float,
        default=0.3,
        help="inputs as the decoder would have written them, on every second batch",
    )
    parser.add_argument("--grounded", type=float, default=0.15)
    parser.add_argument("--whole", type=float, default=0.25)
    parser.add_argument(
        "--replay", type=int, default=4, help="batches that the reader reads again, a step"
    )
    parser.add_argument(
        "--written",
        type=int,
        default=0,
        help="of those also so many, a step, with the decoder's own writing as input",
    )
    parser.add_argument(
        "--mean-over",
        type=int,
        default=0,
        help="keep a running mean of the weights over about so many steps; 0: none",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--feeders", type=int, default=0, help="children that make batches; 0: as fits"
    )
    parser.add_argument("--check-every", type=int, default=50)
    parser.add_argument(
        "--compile", default="", help="backend of torch.compile, inductor say; empty: eager"
    )
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def done_by_clock(started: float, minutes: float, ranks: int) -> float | None:
    """The share of a schedule of so many minutes that is over, by the first process's clock: all
    must take the same step and end with the same one. None where steps are counted."""
    if not minutes:
        return None
    done = torch.tensor((time.time() - started) / 60 / minutes)
    if ranks > 1:
        torch.distributed.broadcast(done, 0)
    return float(done)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # cuDNN's attention plans each new shape anew, and every batch has its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(rank)
    trainer = JointTrainer(args, device, ranks)
    step = trainer.num_steps
    last = args.stop_after if args.minutes else min(args.steps, args.stop_after)
    num_feeders = args.feeders or default_workers(device)
    # No two feeders of a round draw the same pages; the same feeder of each rank draws alike.
    common = [900 + step + 100_000 * (1 + i) for i in range(num_feeders)]
    sources = [partial(joint_groups, args, 64 * seed + rank, seed) for seed in common]
    feeder = Feeder(sources, room=2 * len(sources))
    ahead = Ahead(feeder.take, device)
    held_out = held_out_batches(kinds_of(args.mix, args.ideal)) if rank == 0 else {}
    held_out = {kind: moved(batch, device) for kind, batch in held_out.items()}
    # All processes agree on how many texts a step has; what they read again is their own.
    grounded, rng = Random(step), Random(step + rank)
    seen: list[PageBatch] = []  # what the eyes gave lately
    written = Written(trainer.decoder, device)
    started, means, characters = time.time(), Means(), 0
    saved, is_over = started, step >= last
    while not is_over:
        done = done_by_clock(started, args.minutes, ranks)
        group, from_ideal = ahead.take()
        again = rng.sample(seen, min(args.replay, len(seen)))
        again += written.take(rng, seen, args.written, args.grounded)
        num_texts = 2 if grounded.random() < args.grounded else 1
        found, count = trainer.step(
            group, [*from_ideal, *again], num_texts=num_texts, rng=rng, done=done
        )
        seen = [*seen, *(batch.page for batch in group)][-REPLAYED:]
        step = trainer.num_steps
        means.merge(found)
        characters += count * ranks  # the others read about as many
        is_over = step >= last or (done or 0.0) >= 1.0
        if rank == 0 and (step % 10 == 0 or is_over):
            is_checked = step % args.check_every == 0 or is_over
            line = {
                "step": step,
                "seconds": round(time.time() - started, 1),
                "characters": characters,
                **means.as_line(),
                **(trainer.check(held_out) if is_checked else {}),
            }
            means = Means()
            with (args.state / "joint.log").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        is_due = time.time() - saved > 60 if args.minutes else step % 20 == 0
        if rank == 0 and (is_over or is_due):
            trainer.save()
            saved = time.time()
    ahead.close()
    feeder.close()


if __name__ == "__main__":
    main()
