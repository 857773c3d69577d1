"""Mixture of experts: router, routed experts and the shared expert.

Knows nothing about sequences: every token is a row, and a row's result is its own.

Letters: T tokens, D width, E experts, K experts a token, I inner width of an expert, R = T * K
rows, one for each token and chosen expert.
Source: model-spec 6.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.compiled.token_products import TokenProducts
from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.layers import Derived, SwiGLU
from ocr2cli.model.linear import (
    as_shape_only,
    can_pack,
    linear,
    pack_weight,
    packed_linear,
    products_of,
)
from ocr2cli.model.processor import nvidia_generation

# Tokens whose experts' results are added up at a time; 8 MB in float32 at the published width.
SUMMED_TOKENS = 256
# Tokens of a decode step on a GPU, at most; a longer prompt may ask the host.
STEP_TOKENS = 256
# Of NVIDIA's cards: those that torch 2.10 to 2.13 has a kernel of grouped products for.
GROUPING_GENERATIONS = (9, 10)


class MixtureOfExperts(nn.Module):
    """sum over the K chosen experts of p * expert(x), plus shared(x)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        experts, width = config.num_experts, config.hidden_size
        inner = config.expert_intermediate
        self.router = Router(config)
        self.experts_gate_up = nn.Parameter(torch.randn(experts, 2 * inner, width) * 0.02)
        self.experts_down = nn.Parameter(torch.randn(experts, width, inner) * 0.02)
        self.shared = SwiGLU(width, config.shared_intermediate)
        self.packed: list[tuple[Tensor, Tensor]] = []
        self.products: TokenProducts | None = None

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        weights_TK, experts_TK = self.router(x_TD)
        routed_TD = self.routed(x_TD, weights_TK, experts_TK)
        return (routed_TD + self.shared(x_TD)).view_as(x)

    def routed(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """The chosen experts' weighted sum, accumulated in float32, in x's dtype.

        Rows are sorted by expert, so each expert that has rows runs once over all of them and no
        expert weight is copied.
        """
        if self.products is not None:
            return self._run_compiled(self.products, x_TD, weights_TK, experts_TK)
        tokens, chosen = experts_TK.shape
        if tokens == 1 and x_TD.device.type == "cpu":
            return self._routed_alone(x_TD, weights_TK, experts_TK)
        groups = can_group(x_TD)
        if not groups and prefers_all(x_TD):
            return self._run_all(x_TD, weights_TK, experts_TK)
        sorted_R, order_R = sort_keys(experts_TK.flatten()).sort(stable=True)
        rows_RD = x_TD[order_R // chosen]
        run = self._run_grouped if groups else self._run_each
        y_RD = run(rows_RD, sorted_R)
        y_TKD = torch.empty_like(y_RD).index_copy_(0, order_R, y_RD).view(tokens, chosen, -1)
        return sum_by_weight(y_TKD, weights_TK)

    def _routed_alone(self, x_1D: Tensor, weights_1K: Tensor, experts_1K: Tensor) -> Tensor:
        """A single token: nothing to sort. The same products and sums as with company."""
        experts = experts_1K[0].tolist()
        h_KI = _swiglu(torch.cat([self._gate_up(expert, x_1D) for expert in experts]))
        y_KD = torch.cat(
            [self._down(expert, h) for expert, h in zip(experts, h_KI.split(1), strict=True)]
        )
        return sum_by_weight(y_KD[None], weights_1K)

    def _run_compiled(
        self, products: TokenProducts, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor
    ) -> Tensor:
        """All experts in two calls of a product that finds each expert's rows itself."""
        tokens, chosen = experts_TK.shape
        experts_R = experts_TK.flatten().numpy()
        h_RI = _swiglu(products.grouped(x_TD, self.experts_gate_up, experts_R, uses=chosen))
        y_RD = products.grouped(h_RI, self.experts_down, experts_R)
        return sum_by_weight(y_RD.view(tokens, chosen, -1), weights_TK)

    def _run_all(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Every expert on every token, weighted by 0 where it was not chosen: more work than
        grouped products, but of fixed shape and without a word to the host, in any dtype."""
        share_TE = weights_TK.new_zeros(len(x_TD), self.router.num_experts)
        share_TE = share_TE.scatter(1, experts_TK, weights_TK)
        h_ETI = _swiglu(x_TD @ self.experts_gate_up.transpose(1, 2))
        y_ETD = (h_ETI @ self.experts_down.transpose(1, 2)).float()
        # An expert that was not chosen may overflow float16, and 0 * inf is nan.
        y_ETD = y_ETD.masked_fill(share_TE.T[..., None] == 0, 0.0)
        return torch.einsum("etd,te->td", y_ETD, share_TE).to(x_TD.dtype)

    def _run_each(self, rows_RD: Tensor, sorted_R: Tensor) -> Tensor:
        """One product for each expert that has rows. The counts are read on the host."""
        counts = sorted_R.bincount(minlength=self.router.num_experts).tolist()
        used = [(expert, count) for expert, count in enumerate(counts) if count]
        sizes = [count for _, count in used]
        inner = [
            self._gate_up(expert, part)
            for (expert, _), part in zip(used, rows_RD.split(sizes), strict=True)
        ]
        h_RI = _swiglu(torch.cat(inner))
        return torch.cat(
            [
                self._down(expert, part)
                for (expert, _), part in zip(used, h_RI.split(sizes), strict=True)
            ]
        )

    def _run_grouped(self, rows_RD: Tensor, sorted_R: Tensor) -> Tensor:
        """All experts in two grouped products, fixed shapes, no copy to the host."""
        experts = torch.arange(
            self.router.num_experts, dtype=sorted_R.dtype, device=sorted_R.device
        )
        ends = torch.searchsorted(sorted_R, experts, right=True, out_int32=True)
        h_RI = _swiglu(F.grouped_mm(rows_RD, self.experts_gate_up.transpose(1, 2), offs=ends))
        return F.grouped_mm(h_RI, self.experts_down.transpose(1, 2), offs=ends)

    def _gate_up(self, expert: int, x: Tensor) -> Tensor:
        if self.packed:
            return packed_linear(x, self.packed[expert][0])
        return linear(x, self.experts_gate_up[expert])

    def _down(self, expert: int, x: Tensor) -> Tensor:
        if self.packed:
            return packed_linear(x, self.packed[expert][1])
        return linear(x, self.experts_down[expert])

    def prepare(self, rows: torch.dtype) -> None:
        """Make ready for a decoder's rows of that dtype, as `Linear.prepare`."""
        self.router.prepare(rows)
        gate_up, down = (
            products_of(weight, rows) for weight in (self.experts_gate_up, self.experts_down)
        )
        self.products = gate_up if down else None
        if self.products is None and self.experts_down.dtype == rows:
            self.pack()

    def pack(self) -> None:
        """Replace the routed experts' weights by packed ones where `can_pack` says so."""
        if not can_pack(self.experts_down):
            return
        self.packed = [
            (pack_weight(gate_up), pack_weight(down))
            for gate_up, down in zip(self.experts_gate_up, self.experts_down, strict=True)
        ]
        self.experts_gate_up = as_shape_only(self.experts_gate_up)
        self.experts_down = as_shape_only(self.experts_down)


class Router(nn.Module):
    """Greedy top-K of a float32 softmax; the K probabilities are not renormalised."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.randn(config.num_experts, config.hidden_size) * 0.02)
        self.packed: Tensor | None = None
        self.wide: Tensor | None = None
        self.products: TokenProducts | None = None
        self._kept = Derived()

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (weights float32 [T, K], experts int64 [T, K])."""
        weights_TK, experts_TK = self.probabilities(x_TD).topk(self.experts_per_token, dim=-1)
        return weights_TK, experts_TK

    def probabilities(self, x_TD: Tensor) -> Tensor:
        """float32 [T, E], each row sums to one."""
        if self.products is not None and self.wide is not None:
            return self.products.product(x_TD.float(), self.wide).softmax(dim=-1)
        if self.packed is not None:
            return packed_linear(x_TD.float(), self.packed).softmax(dim=-1)
        wide = self._kept.get(self.weight, "wide", Tensor.float)
        return linear(x_TD.float(), wide).softmax(dim=-1)

    def prepare(self, rows: torch.dtype) -> None:
        """Keep the weight in float32, compiled or packed where that is possible: a step of one
        token would spend more time on re-ordering it than on the product."""
        wide = self.weight.detach().float()
        # For other rows it would be a kernel more to compile, and wins nothing worth it.
        self.products = products_of(wide, rows) if rows == torch.float32 else None
        if self.products is not None:
            self.wide = wide
        elif can_pack(wide):
            self.packed = pack_weight(wide)


def sort_keys(experts_R: Tensor) -> Tensor:
    """A GPU sorts by radix, a pass for every 8 bits of a key or fewer: 16 of them hold an expert's
    number as well as 64 do."""
    return experts_R if experts_R.device.type == "cpu" else experts_R.to(torch.int16)


def can_group(rows: Tensor) -> bool:
    """True where grouped products are the fast way: bf16 on a GPU that has them, and so has torch.

    On other cards torch splits such a product by reading the rows' ends on the host, which no
    captured step may do.
    """
    if not (rows.is_cuda and rows.dtype == torch.bfloat16 and hasattr(F, "grouped_mm")):
        return False
    return nvidia_generation(rows.device) in GROUPING_GENERATIONS


def prefers_all(rows: Tensor) -> bool:
    """True where a decode step without grouped products should not ask how many rows each expert
    has: a graph cannot."""
    return rows.device.type != "cpu" and len(rows) <= STEP_TOKENS


def sum_by_weight(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """The experts' results by their probabilities, added up in float32: [T, D] in y's dtype.

    In pieces on a CPU, where the float32 products of a whole prompt would be fresh memory at every
    layer. A GPU widens them as it multiplies; a CPU is slower at that than at one after the other.
    """
    if y_TKD.device.type != "cpu":
        return (y_TKD * weights_TK[..., None]).sum(dim=1).to(y_TKD.dtype)
    pieces = zip(y_TKD.split(SUMMED_TOKENS), weights_TK.split(SUMMED_TOKENS), strict=True)
    return torch.cat(
        [(y.float() * weights[..., None]).sum(dim=1).to(y.dtype) for y, weights in pieces]
    )


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
