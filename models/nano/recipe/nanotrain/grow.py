"""Gives the decoder of a joint state the layers that sizes.py says, without changing what it reads.

    python -m nanotrain.grow --state DIR --after 3

The new layers are copies of layer --after, put behind it, whose output products are zero: they look
where it looks and add nothing until they have learned something. Momenta are left out: the next
round warms up anew.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanotrain import sizes

OUTPUTS = ("attn.out.weight", "experts_down", "down.weight")  # what a layer adds passes through
_PART = re.compile(r"(layers|[a-z]+_head)\.(\d+)\.(.*)")


def grown(state: dict[str, Any], num_layers: int, after: int) -> dict[str, Any]:
    """The weights and heads of a joint state with so many decoder layers, at its step.

    Raises: ValueError when it has more already."""
    found = 1 + max(int(m[2]) for name in state["decoder"] if (m := _PART.match(name)))
    if found > num_layers:
        raise ValueError(f"the decoder has {found} layers, sizes.py says {num_layers}")
    count = num_layers - found
    decoder = _with_copies(state["decoder"], after, count)
    for name, tensor in decoder.items():
        match = _PART.match(name)
        if match and after < int(match[2]) <= after + count and name.endswith(OUTPUTS):
            decoder[name] = torch.zeros_like(tensor)
    heads = _with_copies(state["heads"], after, count)
    return {"vision": state["vision"], "decoder": decoder, "heads": heads, "step": state["step"]}


def _with_copies(tensors: dict[str, Tensor], after: int, count: int) -> dict[str, Tensor]:
    """The tensors with `count` copies of part `after` behind it; later parts move up."""
    found = {}
    for name, tensor in tensors.items():
        match = _PART.match(name)
        if match is None:
            found[name] = tensor
            continue
        kind, index, rest = match[1], int(match[2]), match[3]
        places = range(after, after + count + 1) if index == after else [index]
        for place in places if index <= after else [index + count]:
            found[f"{kind}.{place}.{rest}"] = tensor.clone()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--after", type=int, required=True)
    args = parser.parse_args()
    path = args.state / "joint.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)
    unfinished = path.with_suffix(".partial")
    torch.save(grown(state, sizes.NANO.decoder.num_layers, args.after), unfinished)
    unfinished.replace(path)


if __name__ == "__main__":
    main()
