"""Writes models/nano from training states: config, tokenizer and bfloat16 weights.

    python -m nanotrain.export --state DIR --out models/nano

Tensor names and config are transformers' own, so that it and ocr2cli load the same folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from nanotrain import sizes, vocabulary
from ocr2cli.model.model import OcrModel
from ocr2cli.weights.names import model_params
from ocr2cli.weights.params import Naming
from ocr2cli.weights.write_config import native_config


def model_of(state: Path) -> OcrModel:
    """The newest weights of all stages in the folder: joint over taught eyes and reader, over
    eyes."""
    model = sizes.new_model()
    for name, part in (("eyes.pt", "vision"), ("reader.pt", "decoder"), ("joint.pt", "")):
        path = state / name
        if not path.exists():
            continue
        kept = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("vision", "decoder"):
            if key in kept and (not part or part == key):
                getattr(model, key).load_state_dict(kept[key])
    return model


def write_folder(model: OcrModel, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ours = model.state_dict()
    tensors = {}
    for param in model_params(model.config):
        whole = ours[param.name].detach().to(torch.bfloat16)
        for piece in param.pieces(Naming.TRANSFORMERS):
            box = whole[piece.index] if piece.index else whole
            tensors[piece.name] = box.reshape(piece.shape).contiguous().clone()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = native_config(model.config)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    vocabulary.write_tokenizer(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = model_of(args.state)
    write_folder(model, args.out)
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
