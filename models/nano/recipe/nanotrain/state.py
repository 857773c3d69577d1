"""Carries a training state in the repository: half the bytes, in files under 16 MB.

    python -m nanotrain.state pack --state DIR --kept models/nano/recipe/state
    python -m nanotrain.state unpack --state DIR --kept models/nano/recipe/state
    python -m nanotrain.state lighten --state DIR --kept OTHER

Weights are kept in float32; momenta, which bear rounding, in bfloat16. `lighten` writes a state to
travel with: codes, and the joint stage without momenta in bfloat16, 22 MB in all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

STAGES = ("codes.pt", "joint.pt")
MOMENTA = ("optimisers", "eyes", "reader")  # keys of a stage's file that hold an optimiser's state
PART_BYTES = 15_000_000


def pack(state: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for old in kept.glob("*.pt.*"):
        old.unlink()
    for stage in STAGES:
        data = torch.load(state / stage, map_location="cpu", weights_only=True)
        if stage == "codes.pt":
            data = {"ideal": data["ideal"]}  # of the reader that made them nothing else is needed
        data |= {key: _each(data[key], _to_half) for key in MOMENTA if key in data}
        small = kept / f"{stage}.whole"
        torch.save(data, small)
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
        data |= {key: _each(data[key], _to_single) for key in MOMENTA if key in data}
        torch.save(data, target)
        joined.unlink()


def lighten(state: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        data = torch.load(state / stage, map_location="cpu", weights_only=True)
        if stage == "joint.pt":
            data = _each({key: data[key] for key in data if key not in MOMENTA}, _to_half)
        torch.save(data, kept / stage)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    return value


def _to_half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.ndim > 0 and tensor.is_floating_point() else tensor


def _to_single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pack", "unpack", "lighten"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True)
    args = parser.parse_args()
    {"pack": pack, "unpack": unpack, "lighten": lighten}[args.what](args.state, args.kept)


if __name__ == "__main__":
    main()
