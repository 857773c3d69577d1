"""SAM ViT image encoder: pixels to a map of image tokens, for the global view and for tiles.

Knows nothing about tiles, queries or text; any square size that is a multiple of the patch works.

Letters: B views, S side in pixels, G patches a side, D width, H heads, C channels of a head,
N = G * G tokens, w window side.
Source: model-spec 3; the published code of segment-anything and DeepSeek-OCR-2.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.compiled.map_attention import MapAttention, map_attention, pack_positions
from ocr2cli.model.config import SamConfig
from ocr2cli.model.layers import ChannelNorm, Derived
from ocr2cli.model.linear import Linear
from ocr2cli.model.processor import has_amx

# Maps of at most this many tokens (the windows) get their bias from a product, all at once.
SMALL_MAP = 512
# Bias elements alive at a time in a global block: 16 MB in bf16, about what a CPU cache holds.
BIAS_CHUNK = 1 << 23
# Scores alive at a time where attention is written out: 8 MB in float32.
SCORES_CHUNK = 1 << 21


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
        self._derived = Derived()

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """pixels: [B, 3, S, S] RGB in -1..1, model dtype. Returns [B, E, G/4, G/4]."""
        x_BGGD = embed_patches(pixels_B3SS, self.patch_embed)
        side = x_BGGD.shape[1]
        x_BGGD = x_BGGD + self._derived.get(
            self.pos_embed, side, lambda positions: resize_positions(positions, side)
        )
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
        self.lin1 = Linear(config.hidden_size, config.mlp_hidden)
        self.lin2 = Linear(config.mlp_hidden, config.hidden_size)

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
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, config.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, config.head_dim))
        self._derived = Derived()
        self.kernel: MapAttention | None = None

    def prepare(self) -> None:
        """Compile the attention for bf16 on a CPU where that is possible; then it only runs."""
        table = self.rel_pos_h
        if table.device.type == "cpu" and table.dtype == torch.bfloat16:
            kernel = map_attention()
            self.kernel = kernel if kernel and kernel.takes(table.shape[1]) else None

    def forward(self, x_BGGD: Tensor) -> Tensor:
        batch, side, _, width = x_BGGD.shape
        qkv = self.qkv(x_BGGD).view(batch, side * side, 3, self.num_heads, -1)
        if self.kernel is not None:
            y_BNHC = self.kernel(qkv, self._packed("h", side), self._packed("w", side))
            return self.proj(y_BNHC.view(batch, side, side, width))
        q_BHNC, k_BHNC, v_BHNC = qkv.permute(2, 0, 3, 1, 4)
        by_row, by_column = position_terms(q_BHNC, self._table("h", side), self._table("w", side))
        y_BHNC = attend_with_positions(q_BHNC, k_BHNC, v_BHNC, by_row, by_column)
        return self.proj(y_BHNC.transpose(1, 2).reshape(batch, side, side, width))

    def _packed(self, axis: str, side: int) -> Tensor:
        table = self.rel_pos_h if axis == "h" else self.rel_pos_w
        return self._derived.get(
            table, (axis, side, "packed"), lambda rows: pack_positions(relative_rows(rows, side))
        )

    def _table(self, axis: str, side: int) -> Tensor:
        table = self.rel_pos_h if axis == "h" else self.rel_pos_w
        return self._derived.get(table, (axis, side), lambda rows: relative_table(rows, side))


def position_terms(q_BHNC: Tensor, rel_h_GGC: Tensor, rel_w_GGC: Tensor) -> tuple[Tensor, Tensor]:
    """What the relative positions add to the logits of q (unscaled), row and column apart.

    Returns two [B, H, N, G]: the first for the key's row, the second for the key's column.
    """
    batch, heads, _, channels = q_BHNC.shape
    side = rel_h_GGC.shape[0]
    q_BHijC = q_BHNC.reshape(batch, heads, side, side, channels)
    by_row = torch.einsum("bhijc,ikc->bhijk", q_BHijC, rel_h_GGC)
    by_column = torch.einsum("bhijc,jlc->bhijl", q_BHijC, rel_w_GGC)
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def attend_with_positions(
    q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """Softmax attention with the position terms as a bias. Returns [B, H, N, C].

    The bias of a global block is N x N for each head (4,096 squared at 1,024 pixels): without
    gradients on a CPU only as much of it is made at a time as stays in the cache.
    """
    side = by_row.shape[-1]
    is_cpu_inference = q_BHNC.device.type == "cpu" and not torch.is_grad_enabled()
    if is_cpu_inference and not (q_BHNC.dtype == torch.bfloat16 and has_amx()):
        return _attend_plainly(q_BHNC, k_BHNC, v_BHNC, by_row, by_column)
    if side * side <= SMALL_MAP or prefers_product(q_BHNC):
        bias = torch.cat((by_row, by_column), dim=-1) @ key_places(side, by_row)
        return F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC, attn_mask=bias)
    if not is_cpu_inference:
        bias = spread_bias(by_row, by_column)
        return F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC, attn_mask=bias)
    return _attend_in_chunks(q_BHNC, k_BHNC, v_BHNC, by_row, by_column)


def prefers_product(q_BHNC: Tensor) -> bool:
    """True where the bias of a whole map is to be a product: a GPU in 16 bits, whose product is
    bound by the bias it writes, and whose broadcast sum took three times as long as that. Training
    keeps the sum and its gradient."""
    return (
        q_BHNC.device.type != "cpu"
        and not torch.is_grad_enabled()
        and q_BHNC.dtype in (torch.bfloat16, torch.float16)
    )


def _attend_in_chunks(
    q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """By flash attention, one head and some rows at a time."""
    batch, heads, tokens, channels = q_BHNC.shape
    step = max(1, BIAS_CHUNK // tokens)
    places = key_places(by_row.shape[-1], by_row)
    out_BNHC = q_BHNC.new_empty(batch, tokens, heads, channels)
    for view in range(batch):
        for head in range(heads):
            for start in range(0, tokens, step):
                rows = slice(start, start + step)
                # Ranges, not indices: SDPA has its fast path for four dimensions only.
                one = (slice(view, view + 1), slice(head, head + 1))
                part = (*one, rows)
                y_11NC = F.scaled_dot_product_attention(
                    q_BHNC[part],
                    k_BHNC[one],
                    v_BHNC[one],
                    attn_mask=torch.cat((by_row[part], by_column[part]), dim=-1) @ places,
                )
                out_BNHC[view, rows, head] = y_11NC[0, 0]
    return out_BNHC.transpose(1, 2)


def _attend_plainly(
    q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """Written out, with scores in float32 or wider: without matrix tiles faster than flash
    attention, whose small products run at a fraction of what a large one does, and closer to the
    exact result.

    Several small maps at a time, or one head of a large one and some of its rows.
    """
    heads, tokens, channels = q_BHNC.shape[1:]
    side, wide = by_row.shape[-1], torch.promote_types(q_BHNC.dtype, torch.float32)
    q, k, v, by_row, by_column = (
        part.flatten(0, 1) for part in (q_BHNC, k_BHNC, v_BHNC, by_row, by_column)
    )
    maps = max(1, SCORES_CHUNK // tokens**2)
    step = min(tokens, max(1, SCORES_CHUNK // tokens))
    out = torch.empty_like(q)
    workspace = torch.empty(min(maps, len(q)) * step * tokens, dtype=wide, device=q.device)
    for first in range(0, len(q), maps):
        some = slice(first, first + maps)
        keys, values = k[some].to(wide).transpose(1, 2), v[some]
        # The shares of one large map go back to the model's type: that product is the faster.
        shares_type = v.dtype if maps == 1 else wide
        values = values.to(shares_type)
        for start in range(0, tokens, step):
            part = (some, slice(start, start + step))
            queries = q[part].to(wide)
            shape = (*queries.shape[:2], tokens)
            scores = workspace[: prod(shape)].view(shape)
            torch.add(
                by_row[part].to(wide)[..., :, None],
                by_column[part].to(wide)[..., None, :],
                out=scores.view(*shape[:2], side, side),
            )
            scores.baddbmm_(queries, keys, alpha=channels**-0.5)
            torch.softmax(scores, dim=-1, out=scores)
            out[part] = scores.to(shares_type) @ values
    return out.unflatten(0, (-1, heads))


def spread_bias(by_row: Tensor, by_column: Tensor) -> Tensor:
    """[..., G] and [..., G] to [..., N]: every key gets its row's and its column's term."""
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)


def key_places(side: int, like: Tensor) -> Tensor:
    """[2G, N] of zeros and ones: [row terms, column terms] @ this = `spread_bias`.

    The same sums, since every other product is zero; for small maps a product is faster.
    """
    one = torch.eye(side, dtype=like.dtype, device=like.device)
    return torch.cat((one.repeat_interleave(side, dim=1), one.repeat(1, side)))


def relative_table(table_LC: Tensor, side: int) -> Tensor:
    """Rows of a relative-position table for each (query, key) index. Returns [G, G, C]."""
    index = torch.arange(side, device=table_LC.device)
    return relative_rows(table_LC, side)[index[:, None] - index[None, :] + side - 1]


def relative_rows(table_LC: Tensor, side: int) -> Tensor:
    """A relative-position table for a map of that side: [2 * side - 1, C], index grows with query -
    key. One of another length is resized linearly along its length in float32."""
    length = 2 * side - 1
    if table_LC.shape[0] == length:
        return table_LC
    resized = F.interpolate(table_LC.float().T[None], size=length, mode="linear")
    return resized[0].T.to(table_LC.dtype)


def embed_patches(pixels_B3SS: Tensor, convolution: nn.Conv2d) -> Tensor:
    """The patch convolution as one matrix product (its stride is its kernel). [B, G, G, D]."""
    batch, colours, side, _ = pixels_B3SS.shape
    patch = convolution.kernel_size[0]
    grid = side // patch
    cut = pixels_B3SS.view(batch, colours, grid, patch, grid, patch)
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid, grid, -1)
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


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
