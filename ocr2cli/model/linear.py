"""Matrix products whose result for a row does not depend on its company, and packed weights.

Steady: a sequence must decode to the same bits alone, in a batch and under drafts. MKL's float32
products add up in another order for few rows, and by the number of threads; oneDNN's do not, but
for a single row. oneDNN's bf16 products need no help.
Widened: on a CPU without bf16 products (AVX2 only) a bf16 weight meets float32 rows and is made
float32 piece by piece: the bits of a float32 model in half its memory.
Packed: with few rows (decoding) oneDNN spends its time re-ordering the weight. Packing does that
once, in place of the plain weight: 1.6 times the speed at 1 to 8 rows in bf16, equal bits.
Compiled: a decoder's weights stay as they are and go through `token_products.py` where this
processor can: for a few rows up to twice as fast as packed ones, four times as widened ones.
Knows nothing about what the products are for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.compiled.token_products import TokenProducts, token_products
from ocr2cli.model.processor import has_bf16_products

# A decode step has at most slots * drafted tokens rows; larger inputs (prefill, views) go to MKL.
STEADY_ROWS = 1024
# oneDNN picks its layout for a number of rows; the layout for 1 to 8 rows serves prefill as well.
PACKED_FOR_ROWS = 8
# Of a weight, widened at a time (6 MB): in the cache still when it is multiplied.
WIDENED_ITEMS = 3 << 19


class Linear(nn.Linear):
    """nn.Linear whose weight can be packed. A packed layer keeps its names and shapes, but its
    `weight` is on the meta device unless its product is compiled: it can be run, not saved or
    trained."""

    packed: Tensor | None = None
    products: TokenProducts | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.products is not None:
            return self.products.product(x, self.weight)
        if self.packed is None:
            return linear(x, self.weight, self.bias)
        return packed_linear(x, self.packed, self.bias)

    def pack(self) -> None:
        """Replace the plain weight where `can_pack` says so; else do nothing."""
        if not can_pack(self.weight):
            return
        self.packed = pack_weight(self.weight)
        self.weight = as_shape_only(self.weight)

    def prepare(self, rows: torch.dtype) -> None:
        """Make ready for a decoder's rows, most often a few, of that dtype: compiled, packed, or
        left as it is, whichever is the fastest here."""
        self.products = None if self.bias is not None else products_of(self.weight, rows)
        if self.products is None and self.weight.dtype == rows:
            self.pack()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, steady where gradients are off. A bf16 weight under float32 rows is widened."""
    if weight.dtype == torch.bfloat16 and x.dtype == torch.float32:
        return widened_linear(x, weight, bias)
    num_rows = x.numel() // x.shape[-1]
    is_plain = x.dtype != torch.float32 or num_rows > STEADY_ROWS or torch.is_grad_enabled()
    # A compiler makes products of its own, and does not know this one of a weight as it is.
    if is_plain or torch.compiler.is_compiling() or not _has_onednn(x):
        return F.linear(x, weight, bias)
    return packed_linear(x, weight, bias)


def widened_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: float32 [..., in]; weight: bf16 [out, in]; no gradients. Returns float32 [..., out], for
    up to STEADY_ROWS rows the bits of `linear(x, weight.float(), bias)`."""
    num_pieces = -(-weight.numel() // WIDENED_ITEMS)
    width = -(-weight.shape[0] // num_pieces)
    wide = torch.empty(width, weight.shape[1])
    biases = [None] * num_pieces if bias is None else bias.float().split(width)
    # Block by block: no row may go to MKL, where it would depend on the other pages' rows.
    blocks = x.reshape(-1, x.shape[-1]).split(STEADY_ROWS)
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    places = [columns.split(STEADY_ROWS) for columns in out.view(-1, len(weight)).split(width, 1)]
    for piece, part, into in zip(weight.split(width), biases, places, strict=False):
        wide_piece = wide[: len(piece)].copy_(piece)
        for rows, place in zip(blocks, into, strict=True):
            place.copy_(linear(rows, wide_piece, part))
    return out


def can_pack(weight: Tensor) -> bool:
    """True for a weight on a CPU whose torch has oneDNN products of its dtype."""
    if not _has_onednn(weight):
        return False
    if weight.dtype == torch.bfloat16:
        return has_bf16_products()
    return weight.dtype == torch.float32


def products_of(weight: Tensor, rows: torch.dtype) -> TokenProducts | None:
    """The compiled product of rows with a weight [..., out, in], or None: not on a CPU, not
    contiguous, of a width that it does not take, or no such product here."""
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    products = token_products(rows, weight.dtype)
    return products if products and products.takes(*weight.shape[-2:]) else None


def pack_weight(weight: Tensor) -> Tensor:
    """weight: [out, in]. Returns an opaque tensor for `packed_linear`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_FOR_ROWS)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [..., in] in the weight's dtype. Returns [..., out]."""
    if x.dtype == torch.float32 and x.numel() == x.shape[-1]:
        # The one case where oneDNN adds up in another order.
        row = x.reshape(1, -1)
        return _product(torch.cat((row, row)), packed, bias)[0].view(*x.shape[:-1], -1)
    return _product(x, packed, bias)


def as_shape_only(weight: Tensor) -> nn.Parameter:
    """A parameter of the same shape that holds no memory."""
    return nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _has_onednn(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and _ONEDNN


_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
