"""Training forward of the eyes: crops of views at their true place, with attention maps.

Runs over the modules of ocr2cli.model; knows nothing about data. A crop is 256 x 256 pixels, one
SAM window; the positions, queries and tables are those of its place in the whole view, so what is
learned on crops holds for views.

Letters: B crops, D width, H heads, C channels of a head, n image tokens of a crop (16) or view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.layers import rotate
from ocr2cli.model.sam import relative_table, resize_positions
from ocr2cli.model.vision import VisionEncoder

CROP, CROP_PATCHES, CROP_CELLS = 256, 16, 4
COUNT_STEP = 64  # crops in a batch of a GPU's convolutions are rounded up to a multiple


# Inductor of torch 2.13 cannot trace the backward of the antialiased resize.
_eager_resize = torch.compiler.disable(resize_positions)


class EyeHeads(nn.Module):
    """Training only: names the characters from the neck's patches and from the visual tokens."""

    def __init__(self, neck: int, width: int, classes: int, slots: int) -> None:
        super().__init__()
        self.patch_head = nn.Linear(neck, classes)
        self.slot_head = nn.Linear(width, slots * classes)
        self.classes, self.slots = classes, slots

    def patches(self, neck_BDGG: Tensor) -> Tensor:
        return self.patch_head(neck_BDGG.permute(0, 2, 3, 1))

    def cells(self, tokens_BnD: Tensor) -> Tensor:
        """[B, n, slots, classes]."""
        return self.slot_head(tokens_BnD).unflatten(-1, (self.slots, self.classes))


def see_crops(
    vision: VisionEncoder,
    pixels_B3SS: Tensor,
    places_B2: Tensor,
    view_side: int,
    counts: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """pixels: [B, 3, 256, 256] in -1..1. places: int64 [B, 2] (row, column) of the crop in the
    view, in crops. view_side: 768 or 1024. counts: how many crops each view has, view after view;
    left out, each crop is a view of its own. A view's crops may be some of it: the query encoder
    sees those that are there.

    Returns (neck [B, D, 16, 16], visual tokens [B, 16, D], guidance loss).
    """
    grid = view_side // 16
    sam = vision.sam
    x = _patches(sam.patch_embed, pixels_B3SS)
    positions = _eager_resize(sam.pos_embed, grid)[0]
    per_side = grid // CROP_PATCHES
    windows = positions.view(per_side, CROP_PATCHES, per_side, CROP_PATCHES, -1).transpose(1, 2)
    x = x + windows[places_B2[:, 0], places_B2[:, 1]]
    for block in sam.blocks:
        x = _crop_block(block, x, grid)
    # cuDNN plans each new shape anew, and every batch has its own number of crops.
    count = len(x)
    if x.is_cuda:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -count % COUNT_STEP))
    neck = sam.neck(x.permute(0, 3, 1, 2))
    image = sam.down2(sam.down1(neck))[:count].flatten(2).transpose(1, 2)
    neck = neck[:count]
    cells = grid // 4
    inner = torch.arange(CROP_CELLS, device=places_B2.device)
    rows = places_B2[:, 0, None] * CROP_CELLS + inner
    columns = places_B2[:, 1, None] * CROP_CELLS + inner
    index_Bn = (rows[:, :, None] * cells + columns[:, None, :]).flatten(1)
    # On the CPU: how many views have how many crops need not be asked of a device.
    of_crop = torch.tensor([1] * len(image) if counts is None else counts)
    of_crop = of_crop.repeat_interleave(of_crop)
    tokens, guidance = torch.zeros_like(image), image.new_zeros(())
    for count in of_crop.unique().tolist():
        chosen = (of_crop == count).nonzero()[:, 0].to(image.device)
        views = len(chosen) // count
        index, order = index_Bn[chosen].reshape(views, -1).sort(dim=1)
        raster = image[chosen].reshape(views, index.shape[1], -1)
        order = order[..., None].expand_as(raster)
        found, loss = see_tokens(vision, raster.gather(1, order), index, cells * cells)
        found = torch.empty_like(found).scatter(1, order, found)
        tokens = tokens.to(found.dtype).index_copy(0, chosen, found.reshape(len(chosen), 16, -1))
        guidance = guidance + loss * len(chosen) / len(image)
    return neck, tokens, guidance


def _patches(conv: nn.Conv2d, pixels_B3SS: Tensor) -> Tensor:
    """The patch embedding as one product, [B, 16, 16, D]; much faster backwards on a CPU."""
    side = conv.kernel_size[0]
    batch, colours, _, _ = pixels_B3SS.shape
    cut = pixels_B3SS.reshape(batch, colours, CROP_PATCHES, side, CROP_PATCHES, side)
    return F.linear(cut.permute(0, 2, 4, 1, 3, 5).flatten(3), conv.weight.flatten(1), conv.bias)


def see_tokens(
    vision: VisionEncoder, image_BnD: Tensor, index_Bn: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The query encoder and projector over some image tokens of a view.

    index: which of the view's `count` tokens each row of image is. Returns (tokens [B, n, D],
    cross-entropy of head 0's attention from each query to its own image token, mean of layers).
    """
    encoder = vision.query_encoder
    table = (
        encoder.tile_queries if count == encoder.tile_queries.shape[0] else encoder.global_queries
    )
    x = torch.cat((image_BnD, table[index_Bn].to(image_BnD.dtype)), dim=1)
    cos, sin = encoder.rotary.at(torch.cat((index_Bn, index_Bn + count), dim=1))
    turn = cos[:, None], sin[:, None]
    n = image_BnD.shape[1]
    row = torch.arange(2 * n, device=image_BnD.device)
    visible = (row[None, :] < n) | ((row[:, None] >= n) & (row[None, :] <= row[:, None]))
    losses = []
    for layer in encoder.layers:
        attn = layer.attn
        y = layer.input_norm(x)
        qkv = attn.qkv(y).view(*y.shape[:2], -1, attn.head_dim).transpose(1, 2)
        q, k, v = qkv.split((attn.num_heads, attn.num_kv_heads, attn.num_kv_heads), dim=1)
        q, k = rotate(q, *turn), rotate(k, *turn)
        logits = (q @ k.transpose(-1, -2)).float() * attn.head_dim**-0.5
        logits = logits.masked_fill(~visible, -1e4)
        chance = logits.log_softmax(-1)
        own = chance[:, 0, n:, :n].diagonal(dim1=-2, dim2=-1)
        losses.append(-own.mean())
        mixed = (chance.exp().to(v.dtype) @ v).transpose(1, 2).flatten(2)
        x = x + attn.out(mixed)
        x = x + layer.mlp(layer.post_norm(x))
    tokens = vision.projector(encoder.norm(x[:, n:]))
    return tokens, torch.stack(losses).mean()


def _crop_block(block: nn.Module, x: Tensor, grid: int) -> Tensor:
    """One SAM block on a crop, which is one window. A global block's tables are sized for the view
    first, then cut to the crop.

    The position terms ride along as extra channels (q.R beside q, one-hot rows and columns beside
    k), so that no [N, N] bias is ever stored; the sums are the module's own.
    """
    attn = block.attn
    y = block.norm1(x)
    batch, side, _, width = y.shape
    qkv = attn.qkv(y).view(batch, side * side, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    channels = q.shape[-1]
    by = [
        _table_of(table, side, grid if not block.window else side).to(q.dtype)
        for table in (attn.rel_pos_h, attn.rel_pos_w)
    ]
    q_ij = q.reshape(batch, attn.num_heads, side, side, channels)
    by_row = torch.einsum("bhijc,ikc->bhijk", q_ij, by[0]).flatten(2, 3)
    by_column = torch.einsum("bhijc,jlc->bhijl", q_ij, by[1]).flatten(2, 3)
    eye = torch.eye(side, dtype=q.dtype, device=q.device)
    where = torch.cat((eye.repeat_interleave(side, 0), eye.repeat(side, 1)), dim=1)
    wide_q = torch.cat((q * channels**-0.5, by_row, by_column), dim=-1)
    wide_k = torch.cat((k, where.expand(batch, attn.num_heads, -1, -1)), dim=-1)
    # Written out: at 256 tokens this is a third faster on a CPU than the fused kernel's backward.
    out = (wide_q @ wide_k.transpose(-1, -2)).softmax(-1, dtype=q.dtype) @ v
    x = x + attn.proj(out.transpose(1, 2).reshape(batch, side, side, width))
    return x + block.mlp(block.norm2(x))


def _table_of(table: Tensor, side: int, grid: int) -> Tensor:
    length = 2 * grid - 1
    if table.shape[0] != length:
        table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
    return relative_table(table[grid - side : grid + side - 1], side)
