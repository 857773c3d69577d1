"""Between stages 1 and 3: the projector by least squares, from the eyes' features to the ideal
tokens.

    python -m nanotrain.fit_projector --state DIR --codes DIR/codes.pt

Gradient descent needs hundreds of steps for what one linear solve gives: at round 1 the distance on
cells with text fell from 0.97 to 0.55 in it. The slot head is set to the ideal codes, as a
nearest-code classifier.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from nanotrain import fonts, scenes, sizes
from nanotrain.sight import see_crops
from nanotrain.train_eyes import aims_of, pixels_of
from nanotrain.train_reader import IdealEyes

RIDGE, BLANK_WEIGHT, SHARPNESS = 1e-3, 0.5, 1 / 3


def features_and_aims(
    vision: torch.nn.Module, ideal: IdealEyes, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the projector, its ideal outputs, and whether the cell has text; one row a cell."""
    rng, chosen = Random(99), fonts.load_fonts(False)
    vision.projector = torch.nn.Identity()
    features, aims, texts = [], [], []
    with torch.no_grad():
        for _ in range(rounds):
            for side, count in ((768, 32), (1024, 16)):
                crops = scenes.crop_batch(rng, chosen, side, count)
                places, slots = torch.from_numpy(crops.places), torch.from_numpy(crops.slots)
                _, found, _ = see_crops(vision, pixels_of(crops, "cpu"), places, side)
                features.append(found.flatten(0, 1))
                aims.append(aims_of(ideal, slots, places, side)[0].flatten(0, 1))
                texts.append((slots > 0).any(-1).flatten())
    return torch.cat(features), torch.cat(aims), torch.cat(texts)


def solve(features: Tensor, aims: Tensor, has_text: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression: (weight, bias)."""
    rows = torch.cat((features, torch.ones(len(features), 1)), 1).double()
    weighted = rows * torch.where(has_text, 1.0, BLANK_WEIGHT)[:, None].double()
    square = weighted.T @ rows
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.double)
    found = torch.linalg.solve(square, weighted.T @ aims.double()).float()
    return found[:-1].T.contiguous(), found[-1].contiguous()


def nearest_code_head(ideal: IdealEyes) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a slot head whose logits fall with the distance to each code."""
    width, char_width = ideal.join.weight.shape[0], ideal.codes.weight.shape[1]
    with torch.no_grad():
        codes = torch.einsum(
            "dke,ce->kcd", ideal.join.weight.view(width, -1, char_width), ideal.codes.weight
        )
        codes[:, 0] = 0
        weight = (SHARPNESS * codes).flatten(0, 1)
        bias = -(SHARPNESS / 2 * codes.square().sum(-1)).flatten() - weight @ ideal.join.bias
    return weight.contiguous(), bias.contiguous()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=16)
    args = parser.parse_args()
    state = torch.load(args.state / "eyes.pt", map_location="cpu", weights_only=True)
    vision = sizes.new_model().vision
    vision.load_state_dict(state["vision"])
    ideal = IdealEyes(256)
    ideal.load_state_dict(torch.load(args.codes, map_location="cpu", weights_only=True)["ideal"])
    weight, bias = solve(*features_and_aims(vision, ideal, args.rounds))
    state["vision"] |= {"projector.weight": weight, "projector.bias": bias}
    head_weight, head_bias = nearest_code_head(ideal)
    state["heads"] |= {"slot_head.weight": head_weight, "slot_head.bias": head_bias}
    torch.save(state, args.state / "eyes.pt")


if __name__ == "__main__":
    main()
