"""CLIP-L tower of v1, fed by the SAM map instead of pixels.

Knows nothing about pixels or the decoder.

Letters: B views, n image tokens, T = n + 1, D width.
Source: model-spec 13.1; the published code of DeepSeek-OCR.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.config import ClipConfig
from ocr2cli.model.linear import Linear
from ocr2cli.model.sam import resize_positions


class ClipEncoder(nn.Module):
    """Class token, positions, norm, pre-norm blocks, no norm at the end."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.position_embedding = nn.Embedding(config.num_positions, width)
        self.pre_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.num_layers))

    def forward(self, image_BnD: Tensor) -> Tensor:
        """image: [B, n, D] from SAM, row-major, n a square. Returns [B, n, D], no class row."""
        batch, num_image, width = image_BnD.shape
        first = self.class_embedding.expand(batch, 1, width)
        x_BTD = torch.cat((first, image_BnD), dim=1)
        x_BTD = self.pre_norm(x_BTD + self.positions_for(num_image))
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD[:, 1:]

    def positions_for(self, num_image: int) -> Tensor:
        """[n + 1, D]: the class row as it is, the square part resized to n rows."""
        table = self.position_embedding.weight
        have, want = round((table.shape[0] - 1) ** 0.5), round(num_image**0.5)
        square = resize_positions(table[1:].view(1, have, have, -1), want)
        return torch.cat((table[:1], square.reshape(num_image, -1)))


class ClipLayer(nn.Module):
    """Attention and MLP with LayerNorm before each."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = ClipAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = ClipMLP(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class ClipAttention(nn.Module):
    """Plain attention over all tokens, no mask."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, tokens, 3, self.num_heads, -1)
        y_BHTC = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.out(y_BHTC.transpose(1, 2).reshape(batch, tokens, width))


class ClipMLP(nn.Module):
    """fc2(quick_gelu(fc1(x))), quick_gelu(x) = x * sigmoid(1.702 x)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        return self.fc2(y * torch.sigmoid(1.702 * y))
