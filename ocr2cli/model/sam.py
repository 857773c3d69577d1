"""SAM ViT image encoder: pixels to a map of image tokens, for the global view and for tiles.

Knows nothing about tiles, queries or text; any square size that is a multiple of the patch works.

Letters: B views, S side in pixels, G patches a side, D width, H heads, C channels of a head,
N = G * G tokens, w window side.
Source: model-spec 3; the published code of segment-anything and DeepSeek-OCR-2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.config import SamConfig
from ocr2cli.model.layers import ChannelNorm


class SamEncoder(nn.Module):
    """Patches, blocks, neck and two stride-2 convolutions: one token for 4 x 4 patches."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.image_size // config.patch_size
        width, middle = config.hidden_size, config.downsample_channels[0]
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width))
        self.blocks = nn.ModuleList(
            SamBlock(config, is_global=index in config.global_blocks)
            for index in range(config.num_layers)
        )
        self.neck = SamNeck(config)
        self.down1 = nn.Conv2d(config.neck_channels, middle, 3, 2, padding=1, bias=False)
        self.down2 = nn.Conv2d(middle, config.downsample_channels[1], 3, 2, padding=1, bias=False)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """pixels: [B, 3, S, S] RGB in -1..1, model dtype. Returns [B, E, G/4, G/4]."""
        x_BGGD = self.patch_embed(pixels_B3SS).permute(0, 2, 3, 1)
        x_BGGD = x_BGGD + resize_positions(self.pos_embed, x_BGGD.shape[1])
        for block in self.blocks:
            x_BGGD = block(x_BGGD)
        return self.down2(self.down1(self.neck(x_BGGD.permute(0, 3, 1, 2))))


class SamNeck(nn.Module):
    """Conv 1x1, norm, conv 3x3, norm: to `neck_channels`."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        channels = config.neck_channels
        self.conv1 = nn.Conv2d(config.hidden_size, channels, 1, bias=False)
        self.norm1 = ChannelNorm(channels, config.norm_eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = ChannelNorm(channels, config.norm_eps)

    def forward(self, x_BDGG: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x_BDGG))))


class SamBlock(nn.Module):
    """Pre-norm transformer block; attention over windows, or over the whole map if global."""

    def __init__(self, config: SamConfig, *, is_global: bool) -> None:
        super().__init__()
        self.window = 0 if is_global else config.window_size
        side = config.image_size // config.patch_size if is_global else config.window_size
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = SamAttention(config, side)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SamMLP(config)

    def forward(self, x_BGGD: Tensor) -> Tensor:
        y_BGGD = self.norm1(x_BGGD)
        if self.window:
            windows = split_windows(y_BGGD, self.window)
            y_BGGD = join_windows(self.attn(windows), self.window, x_BGGD.shape[1])
        else:
            y_BGGD = self.attn(y_BGGD)
        x_BGGD = x_BGGD + y_BGGD
        return x_BGGD + self.mlp(self.norm2(x_BGGD))


class SamMLP(nn.Module):
    """lin2(gelu(lin1(x))), the exact GELU (erf), not the tanh approximation."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.hidden_size, config.mlp_hidden)
        self.lin2 = nn.Linear(config.mlp_hidden, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class SamAttention(nn.Module):
    """Attention with decomposed relative positions, over a square map.

    logits = (q.k) / sqrt(C) + q.Rh[i - k + G - 1] + q.Rw[j - l + G - 1]: the position terms use q
    before it is scaled.
    """

    def __init__(self, config: SamConfig, side: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, config.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, config.head_dim))

    def forward(self, x_BGGD: Tensor) -> Tensor:
        batch, side, _, width = x_BGGD.shape
        qkv = self.qkv(x_BGGD).view(batch, side * side, 3, self.num_heads, -1)
        q_BHNC, k_BHNC, v_BHNC = qkv.permute(2, 0, 3, 1, 4)
        bias_BHNN = position_bias(
            q_BHNC, relative_table(self.rel_pos_h, side), relative_table(self.rel_pos_w, side)
        )
        y_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC, attn_mask=bias_BHNN)
        return self.proj(y_BHNC.transpose(1, 2).reshape(batch, side, side, width))


def position_bias(q_BHNC: Tensor, rel_h_GGC: Tensor, rel_w_GGC: Tensor) -> Tensor:
    """What the relative positions add to the logits of q (unscaled). Returns [B, H, N, N]."""
    batch, heads, tokens, channels = q_BHNC.shape
    side = rel_h_GGC.shape[0]
    q_BHijC = q_BHNC.reshape(batch, heads, side, side, channels)
    by_row = torch.einsum("bhijc,ikc->bhijk", q_BHijC, rel_h_GGC)
    by_column = torch.einsum("bhijc,jlc->bhijl", q_BHijC, rel_w_GGC)
    bias = by_row[..., :, None] + by_column[..., None, :]
    return bias.reshape(batch, heads, tokens, tokens)


def relative_table(table_LC: Tensor, side: int) -> Tensor:
    """Rows of a relative-position table for each (query, key) index. Returns [G, G, C].

    table: [L, C], index grows with query - key. If L is not 2 * side - 1 the table is resized
    linearly along its length in float32.
    """
    length = 2 * side - 1
    if table_LC.shape[0] != length:
        resized = F.interpolate(table_LC.float().T[None], size=length, mode="linear")
        table_LC = resized[0].T.to(table_LC.dtype)
    index = torch.arange(side, device=table_LC.device)
    return table_LC[index[:, None] - index[None, :] + side - 1]


def resize_positions(pos_1GGD: Tensor, side: int) -> Tensor:
    """Absolute positions for a map of another side: bicubic with antialias, in float32."""
    if pos_1GGD.shape[1] == side:
        return pos_1GGD
    resized = F.interpolate(
        pos_1GGD.permute(0, 3, 1, 2).float(), size=(side, side), mode="bicubic", antialias=True
    )
    return resized.to(pos_1GGD.dtype).permute(0, 2, 3, 1)


def split_windows(x_BGGD: Tensor, window: int) -> Tensor:
    """Cut a map into windows, row by row: [B * n * n, w, w, D].

    The right and bottom are filled with zeros. They are not masked: their keys are the qkv bias
    and take part in attention, as in the reference.
    """
    batch, side, _, width = x_BGGD.shape
    missing = -side % window
    x = F.pad(x_BGGD, (0, 0, 0, missing, 0, missing))
    count = (side + missing) // window
    x = x.view(batch, count, window, count, window, width)
    return x.transpose(2, 3).reshape(-1, window, window, width)


def join_windows(windows: Tensor, window: int, side: int) -> Tensor:
    """Undo `split_windows`, dropping the filled right and bottom. Returns [B, G, G, D]."""
    count = -(-side // window)
    width = windows.shape[-1]
    x = windows.view(-1, count, count, window, window, width).transpose(2, 3)
    return x.reshape(-1, count * window, count * window, width)[:, :side, :side]
