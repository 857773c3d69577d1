"""Mixture of experts: router, routed experts and the shared expert.

Knows nothing about sequences: every token is a row.

Letters: T tokens, D width, E experts, K experts a token, I inner width of an expert, R = T * K.
Source: model-spec 6.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.layers import SwiGLU


class MixtureOfExperts(nn.Module):
    """sum over the K chosen experts of p * expert(x), plus shared(x)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        experts, width, inner = (
            config.num_experts,
            config.hidden_size,
            config.expert_intermediate,
        )
        self.router = Router(config)
        self.experts_gate_up = nn.Parameter(torch.randn(experts, 2 * inner, width) * 0.02)
        self.experts_down = nn.Parameter(torch.randn(experts, width, inner) * 0.02)
        self.shared = SwiGLU(width, config.shared_intermediate)

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        weights_TK, experts_TK = self.router(x_TD)
        routed_TD = self.routed(x_TD, weights_TK, experts_TK)
        return (routed_TD + self.shared(x_TD)).view_as(x)

    def routed(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """The chosen experts' weighted sum, accumulated in float32, in x's dtype.

        Rows are sorted by expert, so each expert with tokens runs once and no expert weight
        is copied.
        """
        tokens, chosen = experts_TK.shape
        order_R = experts_TK.flatten().argsort(stable=True)
        counts = torch.bincount(experts_TK.flatten(), minlength=self.router.num_experts).tolist()
        rows = x_TD[order_R // chosen].split(counts)
        y_RD = torch.cat(
            [self._expert(index, part) for index, part in enumerate(rows) if part.shape[0]]
        )
        y_TKD = y_RD[order_R.argsort()].view(tokens, chosen, -1)
        return (y_TKD.float() * weights_TK[..., None]).sum(dim=1).to(x_TD.dtype)

    def _expert(self, index: int, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.experts_gate_up[index]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.experts_down[index])


class Router(nn.Module):
    """Greedy top-K of a float32 softmax; the K probabilities are not renormalised."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.randn(config.num_experts, config.hidden_size) * 0.02)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (weights float32 [T, K], experts int64 [T, K])."""
        weights_TK, experts_TK = self.probabilities(x_TD).topk(self.experts_per_token, dim=-1)
        return weights_TK, experts_TK

    def probabilities(self, x_TD: Tensor) -> Tensor:
        """float32 [T, E], each row sums to one."""
        return F.linear(x_TD.float(), self.weight.float()).softmax(dim=-1)
