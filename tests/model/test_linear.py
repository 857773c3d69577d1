"""Products of a few rows, alone and under a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ocr2cli.model.linear import Linear


def test_a_compiler_sees_plain_products() -> None:
    """The recipe compiles its steps, and no compiler knows oneDNN's product of a plain weight."""
    layer = Linear(64, 32, bias=False)
    x_NC = torch.randn(4, 64)
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(layer, backend=note)(x_NC)
        assert torch.allclose(compiled, layer(x_NC), atol=1e-5)
    assert any("linear" in name for name in seen)
    assert not any("mkldnn" in name for name in seen)
