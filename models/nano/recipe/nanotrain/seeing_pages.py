"""The eyes on drawn pages and the decoder's losses on what they give.

The training forward of whole pages, made of crops (sight.py) and the reader (reading.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanotrain import drawn
from nanotrain.reading import ReadHeads, ReadLosses, read
from nanotrain.scenes import CROP
from nanotrain.sight import see_crops
from nanotrain.train_eyes import coloured, distance
from nanotrain.train_reader import IdealEyes, text_of
from ocr2cli.model.vision import VisionEncoder


def view_places(side: int) -> Tensor:
    """int64 [n, 2]: (row, column) of each crop of a view, row by row."""
    n = side // CROP
    return torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"), -1).flatten(
        0, 1
    )


def seen_views(
    vision: VisionEncoder,
    ideal: IdealEyes,
    crops_NHW: Tensor,
    slots_PVS: Tensor,
    is_seen_PN: Tensor,
    side: int,
    *,
    recolour: bool,
) -> tuple[Tensor, Tensor]:
    """The views of one side of some pages. is_seen: bool [pages, views * n], on the CPU, the crops
    to look at, whole views row by row; crops: uint8 [crops to look at, 256, 256] in that order;
    slots: [pages, views * cells, 16] in the raster of each view; recolour: each page gets colours
    of its own.

    Returns (tokens [pages, views * cells, D] in raster order, zero where no crop was looked at;
    distance to the aims).
    """
    n = side // CROP
    pages, crops = is_seen_PN.shape
    chosen = is_seen_PN.flatten().nonzero()[:, 0]
    counts = is_seen_PN.reshape(-1, n * n).sum(1).tolist()
    chosen, places = (
        index.to(crops_NHW.device, non_blocking=True)
        for index in (chosen, view_places(side)[chosen % (n * n)])
    )
    pixels = crops_NHW.float()
    if recolour:
        pixels = coloured(pixels / 255, chosen // crops, pages) * 2 - 1
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
    pixels, slots = (torch.as_tensor(a, device=device) for a in (batch.pixels, batch.slots))
    is_seen = torch.from_numpy(batch.is_seen)
    is_of_tile = (torch.arange(is_seen.shape[1]) < 9 * batch.page.num_tiles).expand_as(is_seen)
    is_of_tile = is_of_tile[is_seen]
    tiles = batch.page.num_tiles
    parts, distances = [], []
    if tiles:
        tokens, far = seen_views(
            vision,
            ideal,
            pixels[is_of_tile.nonzero()[:, 0].to(device)],
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
            pixels[(~is_of_tile).nonzero()[:, 0].to(device)],
            slots[:, 144 * tiles : -1],
            is_seen[:, 9 * tiles :],
            1024,
            recolour=recolour,
        )
        parts.append(tokens)
        distances.append(far)
    else:
        parts.append(parts[0].new_zeros(len(slots), 256, parts[0].shape[-1]))
    separator = vision.view_separator.to(parts[0].dtype).expand(len(slots), 1, -1)
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
    eyes_learn: bool = True,
) -> tuple[ReadLosses, Tensor]:
    """The reader's losses on what the eyes give, and the eyes' distance to their aims. The batch
    keeps what was seen, without its gradient, so that the reader can read it again. eyes_learn:
    False where the eyes are only looked through."""
    with torch.set_grad_enabled(eyes_learn and torch.is_grad_enabled()):
        tokens, far = page_tokens(vision, ideal, batch, device, recolour=recolour)
    kept = torch.as_tensor(batch.page.kept, device=device)
    visual = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
    batch.page.tokens = visual.detach().half()
    out = read(
        decoder,
        heads,
        visual.float(),
        kept,
        torch.as_tensor(batch.page.token_places, device=device),
        torch.as_tensor(batch.page.slots, device=device),
        [text_of(t, device) for t in batch.page.texts[:num_texts]],
        num_visual=batch.page.num_visual,
        noise=noise,
        own=own,
    )
    return out, far
