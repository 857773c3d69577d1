"""The mean of several training states: steadier than the last of them, and better.

    python -m nanotrain.average --states DIR DIR ... --out DIR

Steps as small as a CPU's leave noise in the weights that a falling rate does not take out; the mean
of states along one path does. Of a state that kept a running mean (train_joint's --mean-over), that
mean is taken. The eyes must be the same in all, or their mean would be of eyes that no decoder has
met. Momenta stay behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

AVERAGED = ("decoder", "heads")


def average(states: list[Path], out: Path) -> None:
    """Raises: ValueError when the eyes differ."""
    loaded = [_weights(state / "joint.pt") for state in states]
    last = loaded[-1]
    for state, other in zip(states, loaded, strict=True):
        if not all(torch.equal(other["vision"][name], last["vision"][name])
                   for name in last["vision"]):  # fmt: skip
            raise ValueError(f"the eyes of {state} are not those of {states[-1]}")
    means = {part: mean_of([state[part] for state in loaded]) for part in AVERAGED}
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"vision": last["vision"], **means, "step": last["step"]}, out / "joint.pt")
    shutil.copy(states[-1] / "codes.pt", out / "codes.pt")


def _weights(path: Path) -> dict:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state | state.get("mean", {})


def mean_of(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([part[name].float() for part in parts]).mean(0).to(value.dtype)
        for name, value in parts[-1].items()
    }


class RunningMean:
    """The mean of eyes, decoder and heads over about the last `over` steps, later ones weighing
    more."""

    def __init__(self, over: int) -> None:
        self.over = over
        self.num_steps = 0
        self.parts: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def add(self, parts: dict[str, nn.Module]) -> None:
        self.num_steps += 1
        for name, part in parts.items():
            now = part.state_dict()
            mean = self.parts.setdefault(name, {key: value.clone() for key, value in now.items()})
            for key, value in mean.items():
                if value.is_floating_point():
                    value.lerp_(now[key], 1 / min(self.num_steps, self.over))

    def state_dict(self) -> dict:
        return {**self.parts, "num_steps": self.num_steps}

    def load_state_dict(self, state: dict) -> None:
        self.num_steps = state["num_steps"]
        self.parts = {part: state[part] for part in ("vision", *AVERAGED)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    average(args.states, args.out)


if __name__ == "__main__":
    main()
