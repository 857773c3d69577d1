"""Small pieces that several towers share: RMSNorm, SwiGLU, rotary positions, channel LayerNorm.

Knows nothing about which tower uses them.

Letters: T tokens, D width, H heads, C channels of a head; `...` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocr2cli.model.linear import Linear


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the mean square is taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of x_BCHW, at every pixel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Both permutes are views when the convolution before wrote channels-last.
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps)
        return y_BHWC.permute(0, 3, 1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases; gate and up are one matrix, gate's rows first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Derived:
    """Tensors made from a parameter, kept while gradients are off and the parameter is unchanged.

    With gradients on nothing is kept, nor under a compiler: the result belongs to one graph.
    """

    def __init__(self) -> None:
        self._kept: dict[object, tuple[object, Tensor]] = {}

    def get(self, parameter: Tensor, key: object, make: Callable[[Tensor], Tensor]) -> Tensor:
        """make(parameter), or what it gave the last time. key: tells results apart."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make(parameter)
        version = 0 if parameter.is_inference() else parameter._version
        stamp = (parameter.data_ptr(), version, parameter.dtype, parameter.device)
        found = self._kept.get(key)
        if found is None or found[0] != stamp:
            found = self._kept[key] = (stamp, make(parameter))
        return found[1]


# What `Rotary` gives and `rotate` takes.
CosSin = tuple[Tensor, Tensor]


class Rotary:
    """cos and sin of the rotary angles as `rotate` reads them, made once per device, in float32.

    Not a module and no buffer: a model built on the meta device and filled by assignment
    has nothing to restore here.
    """

    def __init__(self, head_dim: int, theta: float, max_positions: int) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self.max_positions = max_positions
        self._tables: dict[torch.device, CosSin] = {}

    def tables(self, device: torch.device) -> CosSin:
        """(cos, sin): each float32 [max_positions, C]; element i's angle, and that of i + C/2, is
        position * theta^(-2i/C). The first half of sin is negative."""
        if device not in self._tables:
            # Normal tensors even under inference_mode: a later training step may save them.
            with torch.inference_mode(False), torch.no_grad():
                half = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
                positions = torch.arange(self.max_positions, dtype=torch.float32)
                angles = torch.outer(positions, 1.0 / self.theta**half)
                cos, sin = angles.cos(), angles.sin()
                cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
                self._tables[device] = (cos.to(device), sin.to(device))
        return self._tables[device]

    def at(self, positions: Tensor) -> CosSin:
        """positions: int64 [...]. Returns (cos, sin) float32 [..., C]."""
        cos, sin = self.tables(positions.device)
        return cos[positions], sin[positions]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [..., T, C] by its positions: the halves layout, element i pairs with i + C/2.

    cos, sin: as `Rotary` gives them, float32 [..., T, C], broadcast over leading dimensions. The
    products are float32, the result has x's dtype.
    """
    # Whole rows, not halves: a GPU's step calls this for every layer, and each operation is a
    # kernel to launch.
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)
