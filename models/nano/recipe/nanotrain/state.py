"""Carries a training state, in the repository or to another machine: 29 MB in files under 16 MB.

    python -m nanotrain.state pack --state DIR --kept models/nano/recipe/state
    python -m nanotrain.state unpack --state DIR --kept models/nano/recipe/state

Weights, heads and codes in bfloat16, as the published weights are. Momenta stay behind: they are
more than half of the bytes, and a round that starts without them warms up in 60 steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

# stage -> what of it is needed to go on
STAGES = {"codes.pt": ("ideal",), "joint.pt": ("vision", "decoder", "heads", "step")}
PART_BYTES = 15_000_000


def pack(state: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for old in kept.glob("*.pt.*"):
        old.unlink()
    for stage, needed in STAGES.items():
        data = torch.load(state / stage, map_location="cpu", weights_only=True)
        small = kept / f"{stage}.whole"
        torch.save({key: _each(data[key], _to_half) for key in needed}, small)
        whole = small.read_bytes()
        small.unlink()
        for index in range(0, len(whole), PART_BYTES):
            (kept / f"{stage}.{index // PART_BYTES:02d}").write_bytes(
                whole[index : index + PART_BYTES]
            )


def unpack(state: Path, kept: Path) -> None:
    """Raises: FileExistsError rather than overwrite a newer state."""
    state.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        target = state / stage
        if target.exists():
            raise FileExistsError(f"{target} exists. Move it away, or give another --state")
        joined = state / f"{stage}.partial"
        joined.write_bytes(b"".join(part.read_bytes() for part in sorted(kept.glob(f"{stage}.*"))))
        data = torch.load(joined, map_location="cpu", weights_only=True)
        torch.save(_each(data, _to_single), target)
        joined.unlink()


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    return value


def _to_half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _to_single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True)
    args = parser.parse_args()
    {"pack": pack, "unpack": unpack}[args.what](args.state, args.kept)


if __name__ == "__main__":
    main()
