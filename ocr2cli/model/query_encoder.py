"""Query encoder of v2: Qwen2 layers over [image tokens ; learned queries], queries come out.

Knows nothing about pixels or the decoder.

Letters: B views, n image tokens (and as many queries), T = 2n, D width, H heads, K key heads,
C channels of a head.
Source: model-spec 4; the published code of DeepSeek-OCR-2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.config import QueryEncoderConfig
from ocr2cli.model.layers import CosSin, RMSNorm, Rotary, SwiGLU, rotate
from ocr2cli.model.linear import Linear
from ocr2cli.model.processor import has_masked_gqa


class QueryEncoder(nn.Module):
    """Turns n image tokens into n visual tokens, n being one of the two query tables' lengths."""

    def __init__(self, config: QueryEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.tile_queries = nn.Parameter(torch.randn(config.tile_queries, width) * 0.02)
        self.global_queries = nn.Parameter(torch.randn(config.global_queries, width) * 0.02)
        self.layers = nn.ModuleList(QueryEncoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(width, config.norm_eps)
        longest = 2 * max(config.tile_queries, config.global_queries)
        self.rotary = Rotary(config.head_dim, config.rope_theta, longest)

    def forward(self, image_BnD: Tensor) -> Tensor:
        """image: [B, n, D]. Returns [B, n, D], one row for each query."""
        batch, num_image, _ = image_BnD.shape
        queries = self.queries_for(num_image).expand(batch, -1, -1)
        x_BTD = torch.cat((image_BnD, queries), dim=1)
        mask_TT = query_mask(num_image, x_BTD.device)
        cos, sin = self.rotary.tables(x_BTD.device)
        cos_sin = cos[: 2 * num_image], sin[: 2 * num_image]
        spread = not has_masked_gqa(x_BTD.device)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            x_BTD = layer(x_BTD, mask_TT, cos_sin, skip=num_image if is_last else 0, spread=spread)
        return self.norm(x_BTD)

    def queries_for(self, num_image: int) -> Tensor:
        """The query table of that many image tokens.

        Raises: ValueError when neither table fits: the view has a size the model never saw.
        """
        for table in (self.tile_queries, self.global_queries):
            if table.shape[0] == num_image:
                return table
        raise ValueError(
            f"no query table for {num_image} image tokens: the model has "
            f"{self.tile_queries.shape[0]} (tile) and {self.global_queries.shape[0]} (global)"
        )


def query_mask(num_image: int, device: torch.device | None = None) -> Tensor:
    """bool [2n, 2n], True where row a may look at column b.

    Everybody sees the image tokens; a query also sees itself and the queries before it.
    """
    index = torch.arange(2 * num_image, device=device)
    row, column = index[:, None], index[None, :]
    return (column < num_image) | ((row >= num_image) & (column <= row))


class QueryEncoderLayer(nn.Module):
    """Pre-norm: attention with grouped key heads, then SwiGLU."""

    def __init__(self, config: QueryEncoderConfig) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = GroupedAttention(config)
        self.post_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_BTD: Tensor, mask_TT: Tensor, cos_sin: CosSin, *, skip: int, spread: bool = False
    ) -> Tensor:
        """skip: the first rows that nobody reads any more (the image's, in the last layer).
        spread: give each head a copy of its key head."""
        y_BTD = self.attn(self.input_norm(x_BTD), mask_TT, cos_sin, skip=skip, spread=spread)
        x_BTD = x_BTD[:, skip:] + y_BTD
        return x_BTD + self.mlp(self.post_norm(x_BTD))


class GroupedAttention(nn.Module):
    """Attention with biases on q, k, v, none on the output, and fewer key heads than heads."""

    def __init__(self, config: QueryEncoderConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.qkv = Linear(config.hidden_size, rows)
        self.out = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x_BTD: Tensor, mask_TT: Tensor, cos_sin: CosSin, *, skip: int, spread: bool
    ) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        q_BHTC, k_BKTC, v_BKTC = qkv.split(
            (self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1
        )
        k_BKTC = rotate(k_BKTC, *cos_sin)
        if spread:
            shared = self.num_heads // self.num_kv_heads
            k_BKTC, v_BKTC = (part.repeat_interleave(shared, 1) for part in (k_BKTC, v_BKTC))
        y_BHTC = F.scaled_dot_product_attention(
            rotate(q_BHTC, *cos_sin)[:, :, skip:],
            k_BKTC,
            v_BKTC,
            attn_mask=mask_TT[skip:],
            enable_gqa=not spread,
        )
        return self.out(y_BHTC.transpose(1, 2).flatten(2))
