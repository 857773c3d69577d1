"""Vision encoder: square views to visual tokens, and their order within a page.

Knows nothing about how views are cut, nor about text.

Letters: B views, S side in pixels, Q visual tokens of a view, D decoder width, N tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocr2cli.model.clip import ClipEncoder
from ocr2cli.model.config import ModelConfig
from ocr2cli.model.linear import Linear
from ocr2cli.model.query_encoder import QueryEncoder
from ocr2cli.model.sam import SamAttention, SamEncoder


class VisionEncoder(nn.Module):
    """SAM, then the query encoder (v2) or CLIP (v1), then the projector into decoder space."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.hidden_size
        self.sam = SamEncoder(config.sam)
        features = config.sam.downsample_channels[1]
        if config.clip is not None:
            self.clip = ClipEncoder(config.clip)
            self.image_newline = nn.Parameter(torch.randn(width) * 0.02)
            features = features + config.clip.hidden_size
        if config.query_encoder is not None:
            self.query_encoder = QueryEncoder(config.query_encoder)
        self.projector = Linear(features, width)
        self.view_separator = nn.Parameter(torch.randn(width) * 0.02)

    def encode_views(self, views_B3SS: Tensor) -> Tensor:
        """views: uint8 [B, 3, S, S] RGB. Returns [B, Q, D] in the model dtype.

        S is 768 (tile) or 1024 (global) in v2; v1 takes any multiple of 64 pixels.
        """
        weight = self.sam.patch_embed.weight
        pixels = views_B3SS.to(weight.device, non_blocking=views_B3SS.is_pinned()).float() / 255
        return self((pixels - 0.5) / 0.5)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """pixels: [B, 3, S, S] RGB in -1..1, any float dtype. Returns [B, Q, D]."""
        map_BEGG = self._maps(pixels_B3SS.to(self.sam.patch_embed.weight.dtype))
        image_BnE = map_BEGG.flatten(2).transpose(1, 2)
        if self.config.is_v1:
            # CLIP's channels come first, SAM's second.
            features = torch.cat((self.clip(image_BnE), image_BnE), dim=-1)
        else:
            features = self.query_encoder(image_BnE)
        return self.projector(features)

    def _maps(self, pixels_B3SS: Tensor) -> Tensor:
        if torch.is_grad_enabled() or pixels_B3SS.device.type != "cpu" or len(pixels_B3SS) < 2:
            return self.sam(pixels_B3SS)
        # One view's activations nearly fit a CPU's cache, a batch's do not: 10% faster, and a
        # view's result is its own to the last bit.
        return torch.cat([self.sam(view_13SS) for view_13SS in pixels_B3SS.split(1)])

    def prepare(self) -> None:
        """Pack every matrix for a CPU and compile SAM's attention where that is possible here;
        afterwards it only runs."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
            elif isinstance(module, SamAttention):
                module.prepare()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile every block where it is called next; its operations run as fewer, larger ones.

        Block by block: those of one kind share their code, one for tiles and one for global views
        (a batch of another size is compiled once more, for all sizes). A block that the compiler
        refuses runs as it is. Not for a packed encoder, whose products no compiler knows.
        """
        import torch._dynamo

        torch._dynamo.config.suppress_errors = True
        second = self.clip if self.config.is_v1 else self.query_encoder
        for block in (*self.sam.blocks, *second.layers):
            block.compile(backend=backend)

    def assemble(self, tiles_NQD: Tensor, global_QD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Rows of one page in decoder order. grid: (columns, rows), N = columns * rows or 0.

        v2: tiles one after the other, global view, separator. v1: the raster of all tiles with a
        newline after each raster row, the global view with newlines, separator.
        Returns [num_visual_tokens, D].
        """
        separator = self.view_separator[None]
        if not self.config.is_v1:
            return torch.cat((tiles_NQD.flatten(0, 1), global_QD, separator))
        parts = [self._with_newlines(_to_raster(global_QD[None], (1, 1))), separator]
        if tiles_NQD.shape[0]:
            parts.insert(0, self._with_newlines(_to_raster(tiles_NQD, grid)))
        return torch.cat(parts)

    def _with_newlines(self, raster_YXD: Tensor) -> Tensor:
        height, _, width = raster_YXD.shape
        column = self.image_newline.expand(height, 1, width)
        return torch.cat((raster_YXD, column), dim=1).flatten(0, 1)


def _to_raster(tiles_NQD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay the tiles' token squares side by side: [rows * q, columns * q, D]."""
    columns, rows = grid
    _, tokens, width = tiles_NQD.shape
    side = round(tokens**0.5)
    squares = tiles_NQD.reshape(rows, columns, side, side, width)
    return squares.transpose(1, 2).reshape(rows * side, columns * side, width)
