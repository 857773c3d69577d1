"""Stage 5: eyes and reader together on drawn pages, the reader's loss through to the pixels.

    python -m nanotrain.train_joint --state DIR --codes DIR/codes.pt --drawn DIR/drawn --steps N

Starts from DIR/eyes.pt and DIR/reader.pt. The eyes keep their aims of stage 3 on the same crops, so
that what they see stays what the decoder can spell; pages of six tiles are read from ideal tokens
beside, which costs little. Runs on CPU and CUDA. Writes DIR/joint.pt and DIR/joint.log.

Several processes share the work when RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as
torchrun sets them; gradients are averaged once a step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from queue import Queue
from random import Random
from threading import Thread

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from nanotrain import batches, draw, drawn, fonts, sizes
from nanotrain.export import model_of
from nanotrain.optim import Optimisers
from nanotrain.precision import autocast
from nanotrain.reading import ReadHeads, ReadLosses, read
from nanotrain.scenes import CROP
from nanotrain.sight import see_crops
from nanotrain.train_eyes import coloured, distance
from nanotrain.train_reader import IdealEyes, ideal_losses, text_of
from ocr2cli.model.vision import VisionEncoder

REPLAYED = 120  # the latest batches, which are read again: the eyes change slowly
CHECKED_PAGES = 8  # held out, looked at every 50 steps


def view_places(side: int) -> Tensor:
    """int64 [n, 2]: (row, column) of each crop of a view, row by row."""
    n = side // CROP
    return torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"), -1).flatten(
        0, 1
    )


def seen_views(
    vision: VisionEncoder,
    ideal: IdealEyes,
    crops_PNHW: Tensor,
    slots_PVS: Tensor,
    is_seen_PN: Tensor,
    side: int,
    *,
    recolour: bool,
) -> tuple[Tensor, Tensor]:
    """The views of one side of some pages. crops: uint8 [pages, views * n, 256, 256], whole views
    row by row; slots: [pages, views * cells, 16] in the raster of each view; is_seen: bool, the
    crops to look at; recolour: each page gets colours of its own.

    Returns (tokens [pages, views * cells, D] in raster order, zero where no crop was looked at;
    distance to the aims).
    """
    n = side // CROP
    pages, crops = is_seen_PN.shape
    chosen = is_seen_PN.flatten().nonzero()[:, 0]
    places = view_places(side).to(chosen.device)[chosen % (n * n)]
    counts = is_seen_PN.reshape(-1, n * n).sum(1).tolist()
    pixels = crops_PNHW.flatten(0, 1)[chosen].float()
    if recolour:
        pixels = coloured(pixels / 255, chosen // crops) * 2 - 1
    else:
        pixels = (pixels / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    _, found, _ = see_crops(vision, pixels, places, side, [count for count in counts if count])
    labels = slots_PVS.reshape(-1, n, 4, n, 4, slots_PVS.shape[-1]).transpose(2, 3)
    labels = labels.reshape(pages * crops, 16, -1)[chosen]
    far = distance(ideal, found, labels.long(), places, side)
    tokens = found.new_zeros(pages * crops, 16, found.shape[-1]).index_copy(0, chosen, found)
    raster = tokens.reshape(-1, n, n, 4, 4, tokens.shape[-1]).transpose(2, 3)
    return raster.reshape(pages, -1, tokens.shape[-1]), far


def page_tokens(
    vision: VisionEncoder,
    ideal: IdealEyes,
    batch: drawn.DrawnBatch,
    device: str,
    *,
    recolour: bool,
) -> tuple[Tensor, Tensor]:
    """(visual tokens [B, V, D] of a batch's pages, separator last; mean distance to the aims).

    The tokens of a view that is not there are zero; no page keeps them.
    """
    pixels, slots, is_seen = (
        torch.from_numpy(a).to(device) for a in (batch.pixels, batch.slots, batch.is_seen)
    )
    tiles = batch.page.num_tiles
    parts, distances = [], []
    if tiles:
        tokens, far = seen_views(
            vision,
            ideal,
            pixels[:, : 9 * tiles],
            slots[:, : 144 * tiles],
            is_seen[:, : 9 * tiles],
            768,
            recolour=recolour,
        )
        parts.append(tokens)
        distances.append(far)
    if batch.has_global:
        tokens, far = seen_views(
            vision,
            ideal,
            pixels[:, 9 * tiles :],
            slots[:, 144 * tiles : -1],
            is_seen[:, 9 * tiles :],
            1024,
            recolour=recolour,
        )
        parts.append(tokens)
        distances.append(far)
    else:
        parts.append(parts[0].new_zeros(len(pixels), 256, parts[0].shape[-1]))
    separator = vision.view_separator.to(parts[0].dtype).expand(len(pixels), 1, -1)
    return torch.cat([*parts, separator], 1), torch.stack(distances).mean()


def seen_losses(
    vision: VisionEncoder,
    ideal: IdealEyes,
    decoder: nn.Module,
    heads: ReadHeads,
    batch: drawn.DrawnBatch,
    device: str,
    *,
    noise: float,
    num_texts: int,
    own: float = 0.0,
    recolour: bool = True,
) -> tuple[ReadLosses, Tensor]:
    """The reader's losses on what the eyes give, and the eyes' distance to their aims. The batch
    keeps what was seen, without its gradient, so that the reader can read it again."""
    tokens, far = page_tokens(vision, ideal, batch, device, recolour=recolour)
    kept = torch.from_numpy(batch.page.kept).to(device)
    visual = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
    batch.page.tokens = visual.detach().half().cpu().numpy()
    out = read(
        decoder,
        heads,
        visual.float(),
        kept,
        torch.from_numpy(batch.page.token_places).to(device),
        [text_of(t, device) for t in batch.page.texts[:num_texts]],
        num_visual=batch.page.num_visual,
        noise=noise,
        own=own,
    )
    return out, far


def feed(args: argparse.Namespace, seed: int, queue: Queue) -> None:
    """Thread: groups for ever, or the error that ended it: a trainer that waits for a dead feeder
    waits for ever."""
    try:
        put_groups(args, seed, queue)
    except Exception as error:
        queue.put(error)
        raise


def put_groups(args: argparse.Namespace, seed: int, queue: Queue) -> None:
    """(Drawn batches of each kind, one batch of six tiles to read from ideal tokens), for ever."""
    rng = Random(seed)
    book = drawn.DrawnPages(args.drawn)
    chosen = fonts.ordinary(fonts.load_fonts(False))
    served = 0
    while True:
        share = 1.0 if rng.random() < args.whole else 0.1
        group = [
            book.batch(rng, rng.choice(kinds.split("/")), int(count), share)
            for kinds, count in (part.split("=") for part in args.mix.split(","))
        ]
        if None in group:
            time.sleep(2.0)
        else:
            tall = batches.page_batch(
                rng,
                chosen,
                rng.choice(("letter", "poster")),
                args.tall,
                max_characters=300,
                blank_share=share,
            )
            queue.put((group, tall))
        served += 1
        if None in group or served % 20 == 0:
            book.look()


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Mean over all processes; an expert that no token of this process chose counts as zero."""
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    torch.distributed.all_reduce(flat)
    parts = (flat / ranks).split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad = part.view_as(p)


def held_out_batches(kinds: list[str]) -> list[drawn.DrawnBatch]:
    rng, found = Random(11), []
    chosen = fonts.load_fonts(True)
    for kind in kinds:
        arrays = []
        for _ in range(CHECKED_PAGES):
            page = drawn.page_of_kind(rng, kind, chosen, max_characters=300, held_out=True)
            picture = draw.draw_page(page, rng)
            arrays.append(drawn.page_arrays(page, np.asarray(picture), kind == "note"))
        found.append(drawn.drawn_batch(rng, arrays, 1.0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--drawn", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--stop-after", type=int, default=10**9)
    parser.add_argument(
        "--mix",
        default="note=5,slide=3",
        help="pages a step by kind; kinds joined by / take turns by chance",
    )
    parser.add_argument("--tall", type=int, default=2, help="pages of six tiles, ideal tokens")
    parser.add_argument("--eyes-lr", type=float, default=1e-3)
    parser.add_argument("--reader-lr", type=float, default=2e-3)
    parser.add_argument("--far", type=float, default=1.0, help="weight of the distance to the aims")
    parser.add_argument("--noise", type=float, default=0.05, help="wrong characters as input")
    parser.add_argument(
        "--own", type=float, default=0.15, help="inputs as the decoder would have written them"
    )
    parser.add_argument("--grounded", type=float, default=0.15)
    parser.add_argument("--whole", type=float, default=0.25)
    parser.add_argument(
        "--replay", type=int, default=4, help="batches that the reader reads again, a step"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", default="", help="backend of torch.compile, inductor say; empty: eager"
    )
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(rank)
    kept = args.state / "joint.pt"
    model = model_of(args.state).to(device).train()
    vision, decoder = model.vision, model.decoder
    heads = ReadHeads(256, 5).to(device)
    ideal = IdealEyes(256).to(device).requires_grad_(False)
    ideal.load_state_dict(torch.load(args.codes, map_location=device, weights_only=True)["ideal"])
    eyes = Optimisers(
        {"vision": vision}, muon_lr=args.eyes_lr, adam_lr=args.eyes_lr / 2, total=args.steps
    )
    reader = Optimisers(
        {"decoder": decoder, "heads": heads},
        muon_lr=args.reader_lr,
        adam_lr=args.reader_lr / 2,
        total=args.steps,
    )
    parameters = eyes.parameters + reader.parameters
    step = 0
    if args.resume and kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        heads.load_state_dict(state["heads"])
        eyes.load_state_dict(state["eyes"])
        reader.load_state_dict(state["reader"])
        step = state["step"]
    else:
        old = torch.load(args.state / "reader.pt", map_location=device, weights_only=True)
        heads.load_state_dict(old["heads"])
    separator = vision.view_separator.detach()
    losses_of = torch.compile(seen_losses, backend=args.compile) if args.compile else seen_losses
    queue: Queue = Queue(2)
    Thread(target=feed, args=(args, 900 + step + 10_000 * rank, queue), daemon=True).start()
    kinds = [kind for part in args.mix.split(",") for kind in part.split("=")[0].split("/")]
    check = held_out_batches(kinds) if rank == 0 else []
    grounded, rng = Random(step), Random(step + rank)
    seen: list[batches.PageBatch] = []  # what the eyes gave lately
    started, sums, counts, characters = time.time(), {}, {}, 0
    while step < min(args.steps, args.stop_after):
        fed = queue.get()
        if isinstance(fed, Exception):
            raise RuntimeError("the feeder ended") from fed
        group, tall = fed
        again = rng.sample(seen, min(args.replay, len(seen)))
        readings: list[drawn.DrawnBatch | batches.PageBatch] = [*group, tall, *again]
        num_texts = 2 if grounded.random() < args.grounded else 1
        read_pages = [b.page if isinstance(b, drawn.DrawnBatch) else b for b in readings]
        texts = [t for page in read_pages for t in page.texts[:num_texts]]
        total = sum(int((t.targets >= 0).sum()) for t in texts)
        for batch in readings:
            with autocast(device):
                if isinstance(batch, drawn.DrawnBatch):
                    out, far = losses_of(
                        vision,
                        ideal,
                        decoder,
                        heads,
                        batch,
                        device,
                        noise=args.noise,
                        num_texts=num_texts,
                        own=args.own,
                    )
                    page, name = batch.page, f"{batch.page.num_tiles}seen"
                else:
                    out = ideal_losses(
                        decoder,
                        ideal,
                        separator,
                        heads,
                        batch,
                        device,
                        noise=args.noise,
                        num_texts=num_texts,
                        own=args.own,
                    )
                    far, page = torch.zeros(()), batch
                    name = f"{batch.num_tiles}{'' if batch.tokens is None else 'again'}"
            share = sum(int((t.targets >= 0).sum()) for t in page.texts[:num_texts]) / total
            loss = share * (out.text + 0.3 * out.guide + 2.0 * out.place + 0.01 * out.balance)
            if isinstance(batch, drawn.DrawnBatch):
                loss = loss + args.far / len(group) * far
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {float(loss)} at step {step}; resume from {kept}"
                )
            loss.backward()
            counts[name] = counts.get(name, 0) + 1
            for part, value in (("text", out.text), ("right", out.right), ("far", far)):
                key = f"{part}_{name}"
                sums[key] = sums.get(key, 0.0) + float(value.detach())
        seen.extend(batch.page for batch in group)
        del seen[:-REPLAYED]
        if ranks > 1:
            average_gradients(parameters, ranks)
        eyes.step(step)
        reader.step(step)
        sizes.impose_near_sight(vision)
        characters += total * ranks  # the others read about as many
        step += 1
        if rank == 0 and (step % 10 == 0 or step == args.steps):
            line = {
                "step": step,
                "seconds": round(time.time() - started, 1),
                "characters": characters,
                **{key: round(v / counts[key.split("_")[1]], 4) for key, v in sums.items()},
                "looked": [round(v, 3) for v in out.looked],
            }
            sums, counts = {}, {}
            if step % 50 == 0 or step == args.steps:
                with torch.no_grad(), autocast(device):
                    for kind, batch in zip(kinds, check, strict=True):
                        out, far = seen_losses(
                            vision,
                            ideal,
                            decoder,
                            heads,
                            batch,
                            device,
                            noise=0.0,
                            num_texts=1,
                            recolour=False,
                        )
                        line[f"held_out_right_{kind}"] = round(float(out.right), 4)
                        line[f"held_out_far_{kind}"] = round(float(far), 4)
            with (args.state / "joint.log").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if rank == 0 and (step % 20 == 0 or step == min(args.steps, args.stop_after)):
            partial = kept.with_suffix(".partial")
            torch.save(
                {
                    "vision": vision.state_dict(),
                    "decoder": decoder.state_dict(),
                    "heads": heads.state_dict(),
                    "eyes": eyes.state_dict(),
                    "reader": reader.state_dict(),
                    "step": step,
                },
                partial,
            )
            partial.replace(kept)


if __name__ == "__main__":
    main()
