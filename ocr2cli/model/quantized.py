"""int8 on a CPU: matrices of one signed byte a weight, products exact in whole numbers.

Weights have a scale for each output channel, made when they are loaded. A row of activations gets
its own scale when it arrives, and two bytes a number: what is lost is lost in the weights. A row's
result depends on nothing but that row: the sums are exact integers, so neither company nor the
order of adding can change them, and every machine gets the same bits: from the compiled product
(`token_products.py`), or without one from oneDNN's, or, where that is not exact (processors without
VNNI let sums of two saturate), from float32 products of pieces short enough to be exact: slower.
Knows nothing about files or what the products are for.

Letters: M rows, N output channels, K input channels; T, D, E, I, R as in `moe.py`. Rows are int8
[M, 2, K]: high bytes, then low ones, both signed; a number is 256 * high + low.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.compiled.row_bytes import row_bytes
from ocr2cli.model.compiled.token_products import TokenProducts, token_products
from ocr2cli.model.linear import Linear, as_shape_only
from ocr2cli.model.moe import MixtureOfExperts, sum_by_weight
from ocr2cli.model.processor import has_amx

LEVELS = 127
# The most that two signed bytes hold with the high one no further than LEVELS.
ROW_LEVELS = 256 * LEVELS + LEVELS
# oneDNN picks its layout for a number of rows; this one serves prefill as well.
_PACKED_FOR_ROWS = 8
# The longest sum of products of two bytes that float32 holds exactly: 1032 * 128 * 127 < 2^24.
_EXACT_IN_FLOAT32 = 1032
# Items quantised at a time, and rows that experts take at a time: what is made on the way (some
# 512 KB) stays in the cache and is never fresh memory.
_QUANTISED_ITEMS = 1 << 17
_EXPERT_ROWS = 256
# What the compiled products of experts may write at a time. glibc keeps no piece above 32 MB for
# the next layer: it would come from the system anew, page by page.
_EXPERT_BYTES = 24 << 20


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A matrix [N, K] that is values * scales[:, None].

    products: the compiled product, where there is one for this shape. values: int8; without
    `products` in oneDNN's own layout where `has_exact_onednn()`, else [N, K]. scales: float32 [N].
    shifts: int32 [N], 128 times the channel's sum: what the compiled product takes off again.
    """

    values: Tensor
    scales: Tensor
    shifts: Tensor
    products: TokenProducts | None = None

    @classmethod
    def of(cls, weight_NK: Tensor) -> Int8Weight:
        """weight: [N, K], any float dtype. The largest magnitude of a channel becomes 127."""
        values_NK, scales_N, sums_N = quantise_channels(weight_NK)
        products = byte_products_of(weight_NK)
        if products is not None:
            return cls(values_NK, scales_N, sums_N * 128, products)
        if has_exact_onednn():
            rows_and_width = [_PACKED_FOR_ROWS, values_NK.shape[1]]
            values_NK = torch.ops.onednn.qlinear_prepack(values_NK, rows_and_width)
        return cls(values_NK, scales_N, sums_N * 128)


@dataclass(frozen=True, slots=True)
class Int8Experts:
    """Matrices [E, N, K] of one shape for the compiled product: int8 values, float32 scales
    [E, N], int32 shifts [E, N]."""

    values: Tensor
    scales: Tensor
    shifts: Tensor
    products: TokenProducts

    @classmethod
    def of(cls, weight_ENK: Tensor, products: TokenProducts) -> Int8Experts:
        """weight: any float dtype; each expert's channels have scales of their own."""
        values_CK, scales_C, sums_C = quantise_channels(weight_ENK.flatten(0, 1))
        shape = weight_ENK.shape[:2]
        shifts_EN = (sums_C * 128).view(shape)
        return cls(values_CK.view(weight_ENK.shape), scales_C.view(shape), shifts_EN, products)

    def multiply(
        self, x_M2K: Tensor, scales_M1: Tensor, experts_R: np.ndarray[Any, Any], uses: int = 1
    ) -> Tensor:
        """Row r // uses of x times the matrix of expert experts_R[r]: float32 [R, N]."""
        return self.products.scaled(
            x_M2K, scales_M1, self.values, self.scales, self.shifts, experts_R, uses
        )


def byte_products_of(weight: Tensor) -> TokenProducts | None:
    """The compiled product for a weight [..., out, in] made int8, or None."""
    products = token_products(torch.int8, torch.int8)
    return products if products and products.takes(*weight.shape[-2:]) else None


def quantise_channels(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 [N, K], scales float32 [N], sums of the int8 int32 [N]) of a weight of any float dtype;
    no float32 copy of the whole of it is made."""
    channels, width = weight_NK.shape
    values_NK = torch.empty(channels, width, dtype=torch.int8)
    scales_N, sums_N = torch.empty(channels), torch.empty(channels, dtype=torch.int32)
    some = max(1, _QUANTISED_ITEMS // width)
    for first in range(0, channels, some):
        part = slice(first, first + some)
        steps, scales = _steps(weight_NK[part], LEVELS)
        values_NK[part], scales_N[part] = steps, scales[:, 0]
        # float32 holds the sum of whole numbers up to 127 exactly, for 132,104 of them at least.
        sums_N[part] = steps.sum(1)
    return values_NK, scales_N, sums_N


def quantise_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [M, 2, K], scales float32 [M, 1]), each row by its own largest magnitude.

    A row with NaN or infinity gets a scale that is not finite, so its results are not either.
    """
    compiled = row_bytes(ROW_LEVELS)
    if compiled is not None:
        return compiled(x_MK.float())
    values_M2K = torch.empty(len(x_MK), 2, x_MK.shape[1], dtype=torch.int8)
    scales_M1 = torch.empty(len(x_MK), 1)
    rows = max(1, _QUANTISED_ITEMS // x_MK.shape[1])
    for first in range(0, len(x_MK), rows):
        part = slice(first, first + rows)
        steps, scales_M1[part] = _steps(x_MK[part], ROW_LEVELS)
        both = steps.to(torch.int16)
        values_M2K[part, 1] = both  # its low byte, as a signed one
        values_M2K[part, 0] = both.add_(128).bitwise_right_shift_(8)
    return values_M2K, scales_M1


def _steps(x_MK: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Whole numbers from -levels to levels as float32 [M, K], and the rows' scales [M, 1]."""
    x_MK = x_MK.float()
    largest_M1 = torch.maximum(x_MK.amax(1, keepdim=True), -x_MK.amin(1, keepdim=True))
    # A row of zeros stays zeros.
    scales_M1 = (largest_M1 / levels).clamp_min(torch.finfo(torch.float32).tiny)
    return (x_MK / scales_M1).round_(), scales_M1


def int8_product(x_M2K: Tensor, scales_M1: Tensor, weight: Int8Weight) -> Tensor:
    """x: int8 [M, 2, K] with its rows' scales. Returns float32 [M, N]."""
    if weight.products is not None:
        alone_R = np.zeros(len(x_M2K), np.int64)
        return weight.products.scaled(
            x_M2K, scales_M1, weight.values[None], weight.scales, weight.shifts, alone_R
        )
    product = _onednn_product if has_exact_onednn() else exact_product
    high_MN, low_MN = product(x_M2K.flatten(0, 1), weight.values).view(len(x_M2K), 2, -1).unbind(1)
    return (high_MN * 256).add_(low_MN).mul_(weight.scales).mul_(scales_M1)


def _fewest_rows() -> int:
    """oneDNN has no fast kernel for fewer rows of a small matrix: nano's take 30 to 300 times as
    long. The rows that are added cost a large matrix 5 % at most."""
    return 8 if has_amx() else 2


def _onednn_product(x_MK: Tensor, packed: Tensor) -> Tensor:
    """The product of an int8 matrix and a packed one: float32 [M, N].

    A processor without matrix tiles multiplies unsigned bytes by signed ones only; for two signed
    ones oneDNN has nothing but plain loops there, a thousand times slower. So the rows go
    in shifted by 128, and oneDNN takes the shift out of the sums again, exactly.
    """
    rows = len(x_MK)
    x_MK = F.pad(x_MK, (0, 0, 0, max(0, _fewest_rows() - rows)))
    shift = 0 if has_amx() else 128
    if shift:
        x_MK = x_MK.view(torch.uint8) ^ shift
    channels = packed.shape[-1]
    return torch.ops.onednn.qlinear_pointwise(
        x_MK, 1.0, shift, packed, torch.ones(channels), torch.zeros(channels, dtype=torch.int32),
        None, 1.0, 0, torch.float32, "none", [], "",
    )[:rows]  # fmt: skip


def exact_product(x_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """The product of two int8 matrices by means that every machine has: float32 [M, N]."""
    sums_MN = torch.zeros(x_MK.shape[0], weight_NK.shape[0], dtype=torch.int32)
    pieces = zip(
        x_MK.split(_EXACT_IN_FLOAT32, dim=1), weight_NK.split(_EXACT_IN_FLOAT32, dim=1), strict=True
    )
    for x_MP, weight_NP in pieces:
        sums_MN += (x_MP.float() @ weight_NP.float().T).to(torch.int32)
    return sums_MN.float()


@cache
def has_exact_onednn() -> bool:
    """True where torch multiplies bytes through oneDNN and the largest ones come out right."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_prepack"):
        return False
    try:
        return all(_is_exact(sign) for sign in (1, -1))
    except RuntimeError:  # a torch built without the operation's kernel still has its name
        return False


def _is_exact(sign: int) -> bool:
    width = 64
    weight = torch.full((width, width), sign * LEVELS, dtype=torch.int8)
    x = torch.full((2, width), LEVELS, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [_PACKED_FOR_ROWS, width])
    y = _onednn_product(x, packed)
    return bool((y == sign * LEVELS * LEVELS * width).all())


# Experts with the number of rows that each has.
Group = list[tuple[int, int]]


class Int8Linear(Linear):
    """A Linear of an int8 weight. `weight` has its shape only; it can be run, not trained."""

    int8: Int8Weight

    @torch.no_grad()
    def take(self, name: str, weight_NK: Tensor) -> nn.Parameter:
        """Keep `weight` quantised. Returns what stands for it in the state dict."""
        del name  # it has one matrix
        self.int8 = Int8Weight.of(weight_NK)
        return as_shape_only(weight_NK)

    def forward(self, x: Tensor) -> Tensor:
        values_M2K, scales_M1 = quantise_rows(x.reshape(-1, x.shape[-1]))
        y_MN = int8_product(values_M2K, scales_M1, self.int8)
        if self.bias is not None:
            y_MN += self.bias
        return y_MN.to(x.dtype).view(*x.shape[:-1], -1)

    def prepare(self, rows: torch.dtype) -> None:
        """Its weight is ready; rows want code that is compiled before the first one comes."""
        row_bytes(ROW_LEVELS)


class Int8MixtureOfExperts(MixtureOfExperts):
    """Routed experts of int8 weights; the router stays float32."""

    gate_up: list[Int8Weight] | Int8Experts
    down: list[Int8Weight] | Int8Experts

    @torch.no_grad()
    def take(self, name: str, weight_ENK: Tensor) -> nn.Parameter:
        """Keep `experts_gate_up` or `experts_down` quantised, each expert's channels for
        themselves. Returns what stands for it in the state dict."""
        products = byte_products_of(self.experts_gate_up) and byte_products_of(self.experts_down)
        matrices = (
            [Int8Weight.of(each) for each in weight_ENK]
            if products is None
            else Int8Experts.of(weight_ENK, products)
        )
        setattr(self, name.removeprefix("experts_"), matrices)
        return as_shape_only(weight_ENK)

    def routed(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """As in a plain mixture; tokens are quantised once, not once for each chosen expert."""
        if isinstance(self.gate_up, Int8Experts) and isinstance(self.down, Int8Experts):
            a_token = experts_TK.shape[1] * self.gate_up.values.shape[1] * 4  # float32
            most = max(1, _EXPERT_BYTES // a_token)
            parts = zip(*(each.split(most) for each in (x_TD, weights_TK, experts_TK)), strict=True)
            return torch.cat([
                self._run_bytes(self.gate_up, self.down, *part) for part in parts
            ])  # fmt: skip
        tokens, chosen = experts_TK.shape
        order_R = experts_TK.flatten().argsort(stable=True)
        rows_R = order_R // chosen
        values_T2D, scales_T1 = quantise_rows(x_TD)
        counts = experts_TK.flatten().bincount(minlength=self.router.num_experts).tolist()
        groups = _groups(counts)
        sizes = [sum(count for _, count in group) for group in groups]
        y_RD = torch.cat([
            self._run_group(group, values_T2D[rows], scales_T1[rows])
            for group, rows in zip(groups, rows_R.split(sizes), strict=True)
        ])  # fmt: skip
        y_TKD = y_RD[order_R.argsort()].view(tokens, chosen, -1)
        return sum_by_weight(y_TKD, weights_TK).to(x_TD.dtype)

    def _run_bytes(
        self,
        gate_up: Int8Experts,
        down: Int8Experts,
        x_TD: Tensor,
        weights_TK: Tensor,
        experts_TK: Tensor,
    ) -> Tensor:
        """All experts of some tokens, in two calls."""
        experts_R = experts_TK.flatten().numpy()
        inner_RI = gate_up.multiply(*quantise_rows(x_TD), experts_R, uses=experts_TK.shape[1])
        y_RD = down.multiply(*quantise_rows(_swiglu(inner_RI)), experts_R)
        y_TKD = y_RD.view(*experts_TK.shape, -1)
        return sum_by_weight(y_TKD, weights_TK).to(x_TD.dtype)

    def _run_group(self, group: Group, values_R2D: Tensor, scales_R1: Tensor) -> Tensor:
        """A few experts over their rows, which are sorted by expert. Returns float32 [R, D]."""
        assert isinstance(self.gate_up, list) and isinstance(self.down, list)
        inner_RI = _by_expert(values_R2D, scales_R1, [(self.gate_up[e], n) for e, n in group])
        values_R2I, scales_R1 = quantise_rows(_swiglu(inner_RI))
        return _by_expert(values_R2I, scales_R1, [(self.down[e], n) for e, n in group])

    def prepare(self, rows: torch.dtype) -> None:
        """Only the router: the experts' weights are ready."""
        self.router.prepare(rows)


Int8Module = Int8Linear | Int8MixtureOfExperts


def _groups(counts: list[int]) -> list[Group]:
    """Experts that have rows, in order, joined while their rows are few."""
    groups: list[Group] = []
    room = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        if not groups or count > room:
            groups.append([])
            room = _EXPERT_ROWS
        groups[-1].append((expert, count))
        room -= count
    return groups


def _swiglu(inner_RI: Tensor) -> Tensor:
    gate_RI, up_RI = inner_RI.chunk(2, dim=-1)
    return F.silu(gate_RI).mul_(up_RI)


def _by_expert(values: Tensor, scales: Tensor, used: list[tuple[Int8Weight, int]]) -> Tensor:
    """Rows sorted by expert through their experts' weights. Returns float32 [R, N]."""
    sizes = [count for _, count in used]
    parts = zip(used, values.split(sizes), scales.split(sizes), strict=True)
    return torch.cat([int8_product(x, s, weight) for (weight, _), x, s in parts])


def expect_int8(module: nn.Module) -> dict[str, Int8Module]:
    """Make a model's matrices ready for int8 weights, in place; embeddings and routers stay.

    module: on the meta device, still without weights. Returns the matrices by parameter name:
    `take` fills each.
    """
    found: dict[str, Int8Module] = {}
    for path, part in module.named_modules():
        if isinstance(part, Linear):
            # The subclasses add methods and no state that __init__ would have to make.
            part.__class__ = Int8Linear
            found[f"{path}.weight"] = part  # type: ignore[assignment]
        elif isinstance(part, MixtureOfExperts):
            part.__class__ = Int8MixtureOfExperts
            for name in ("experts_gate_up", "experts_down"):
                found[f"{path}.{name}"] = part  # type: ignore[assignment]
    return found
