"""The mean of several training states: steadier than the last of them, and better.

    python -m nanotrain.average --states DIR DIR ... --out DIR

Steps as small as a CPU's leave noise in the weights that a falling rate does not take out; the mean
of states along one path does. The eyes are the last state's: they must be the same in all, or their
mean would be of eyes that no decoder has met. Momenta stay behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

AVERAGED = ("decoder", "heads")


def average(states: list[Path], out: Path) -> None:
    """Raises: ValueError when the eyes differ."""
    loaded = [torch.load(state / "joint.pt", map_location="cpu", weights_only=True)
              for state in states]  # fmt: skip
    last = loaded[-1]
    for state, other in zip(states, loaded, strict=True):
        if not all(torch.equal(other["vision"][name], last["vision"][name])
                   for name in last["vision"]):  # fmt: skip
            raise ValueError(f"the eyes of {state} are not those of {states[-1]}")
    means = {part: mean_of([state[part] for state in loaded]) for part in AVERAGED}
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"vision": last["vision"], **means, "step": last["step"]}, out / "joint.pt")
    shutil.copy(states[-1] / "codes.pt", out / "codes.pt")


def mean_of(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([part[name].float() for part in parts]).mean(0).to(value.dtype)
        for name, value in parts[-1].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    average(args.states, args.out)


if __name__ == "__main__":
    main()
