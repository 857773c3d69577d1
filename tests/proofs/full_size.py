"""Proof at full size, run by hand: the 2,707 published names, loaded, computed and converted.

    python tests/proofs/full_size.py DIR            all stages, each in a process of its own
    python tests/proofs/full_size.py DIR STAGE      one of: write ours theirs compare roundtrip load

write      a random bf16 checkpoint under every original name with the published config.json
ours       load it with ocr2, count parameters, logits after one global view (257 visual tokens)
theirs     the same with transformers
compare    the two stages' logits: next token and largest difference
roundtrip  safetensors -> GGUF pair -> safetensors, every byte compared, peak memory measured
load       how long the encoder's and the decoder's workers take from files to ready, twice

Needs 21 GB of disk in DIR and 15 GB of memory. The decoder's weights stay bf16 in memory, but each
module computes in float32 (a hook widens its own weights for the call), so that the two programs
can be compared far below bf16's rounding. The figures of the last run stand in README.md beside
this file.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ocr2cli.config import EngineConfig
from ocr2cli.engines.loading import load_decoder, load_vision
from ocr2cli.model.config import ModelConfig
from ocr2cli.weights.convert import convert
from ocr2cli.weights.hub import resolve_model
from ocr2cli.weights.load import load_model
from ocr2cli.weights.names import model_params
from ocr2cli.weights.read_config import read_config
from ocr2cli.weights.read_safetensors import read_table
from ocr2cli.weights.weight_file import WeightFile
from ocr2cli.weights.write_config import native_config, original_config
from ocr2cli.weights.write_file import Entry, safetensors_writer

PUBLISHED = Path(__file__).parents[2] / "../shared/reference/deepseek-ocr-2"
PROMPT = [201, 21431, 126041, 16]  # "\nFree OCR."
STAGES = ("write", "ours", "theirs", "compare", "roundtrip", "load")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if len(sys.argv) > 2:
        start = time.monotonic()
        globals()[f"stage_{sys.argv[2]}"](folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"[{sys.argv[2]}: {time.monotonic() - start:.0f} s, {time.process_time():.0f} s of "
              f"CPU, peak memory {peak:.2f} GB]", flush=True)
        return
    for stage in STAGES:
        subprocess.run([sys.executable, __file__, str(folder), stage], check=True)


def stage_write(folder: Path) -> None:
    original, native = folder / "original", folder / "native"
    original.mkdir(exist_ok=True)
    native.mkdir(exist_ok=True)
    config = original_config(ModelConfig())
    names = None
    if PUBLISHED.is_dir():
        config = json.loads((PUBLISHED / "config.json").read_text())
        index = json.loads((PUBLISHED / "model.safetensors.index.json").read_text())
        names = list(index["weight_map"])
    (original / "config.json").write_text(json.dumps(config))
    (native / "config.json").write_text(json.dumps(native_config(ModelConfig())))
    shapes = {p.name: p.shape for param in model_params(ModelConfig()) for p in param.original}
    assert names is None or set(names) == set(shapes)
    entries = [Entry(name, shapes[name], "BF16") for name in names or shapes]
    base = torch.randn(1 << 24).mul_(0.02).bfloat16()
    with safetensors_writer(original / "model.safetensors", entries) as writer:
        for entry in entries:
            values = random_values(base, entry)
            writer.write_at(writer.begins[entry.name], values.view(torch.uint8).numpy().data)
    (native / "model.safetensors").unlink(missing_ok=True)
    (native / "model.safetensors").symlink_to("../original/model.safetensors")
    print(f"{len(entries)} tensors, {sum(entry.num_bytes for entry in entries):,} bytes, names "
          f"{'of the published index' if names else 'generated'}")


def stage_load(folder: Path) -> None:
    files = resolve_model(str(folder / "original"))
    for number in (1, 2):  # the first reads the disk, the second what the system has kept of it
        for load in (load_vision, load_decoder):
            start = time.monotonic()
            module = load(files, EngineConfig(device="cpu", dtype="auto"))
            seconds = time.monotonic() - start
            count = sum(parameter.numel() for parameter in module.parameters())
            print(f"{load.__name__}, time {number}: {seconds:.1f} s, {count:,} parameters",
                  flush=True)
            del module


def random_values(base: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Stretches of normal numbers that begin anywhere: as good as new ones, at memory speed."""
    left, parts = entry.num_bytes // 2, []
    while left:
        start = int(torch.randint(len(base) // 2, ()))
        parts.append(base[start : start + left])
        left -= len(parts[-1])
    values = torch.cat(parts)
    is_norm = "norm" in entry.name and entry.name.endswith("weight")
    return values + 1 if is_norm else values


def stage_ours(folder: Path) -> None:
    assert read_config(folder / "original") == ModelConfig()
    start = time.monotonic()
    model: Any = load_model(folder / "original", dtype=torch.bfloat16)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"loaded in {time.monotonic() - start:.1f} s; {num_parameters:,} parameters")
    assert num_parameters == 3_389_119_360
    model.vision.float()
    compute_in_float32(model.decoder)
    with torch.inference_mode():
        global_QD = model.vision(view())[0]
        visual = model.vision.assemble(torch.empty(0, 144, 1280), global_QD, (1, 1))
        ids = torch.tensor([0, *[128815] * len(visual), *PROMPT])
        x_TD = model.decoder.embed(ids).clone()
        x_TD[1 : 1 + len(visual)] = visual
        logits = model.decoder(x_TD[None])[0]
    torch.save({"visual": visual, "logits": logits}, folder / "ours.pt")


def stage_theirs(folder: Path) -> None:
    from transformers import DeepseekOcr2ForConditionalGeneration

    model, info = DeepseekOcr2ForConditionalGeneration.from_pretrained(
        folder / "native", dtype=torch.bfloat16, output_loading_info=True,
        attn_implementation="sdpa",
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.float()
    model.model.view_separator.data = model.model.view_separator.data.float()
    compute_in_float32(model.model.language_model)
    compute_in_float32(model.lm_head)
    with torch.inference_mode():
        features = model.model.get_image_features(view(), return_dict=True).pooler_output[0]
        ids = torch.tensor([[0, *[128815] * len(features), *PROMPT]])
        embeddings = model.get_input_embeddings()(ids).clone()
        embeddings[0, 1 : 1 + len(features)] = features.float()
        logits = model(inputs_embeds=embeddings).logits[0].float()
    torch.save({"visual": features, "logits": logits}, folder / "theirs.pt")


def stage_compare(folder: Path) -> None:
    ours = torch.load(folder / "ours.pt", weights_only=True)
    theirs = torch.load(folder / "theirs.pt", weights_only=True)
    for name in ("visual", "logits"):
        a, b = ours[name].float(), theirs[name].float()
        print(f"{name}: {list(a.shape)}, largest difference {(a - b).abs().max():.2e}, relative "
              f"{(a - b).norm() / b.norm():.2e}, largest value {b.abs().max():.2f}")
    a, b = ours["logits"], theirs["logits"]
    same = (a.argmax(-1) == b.argmax(-1)).sum()
    top = b[-1].topk(2).values
    print(f"next token: ours {int(a[-1].argmax())}, theirs {int(b[-1].argmax())} (lead over the "
          f"second {top[0] - top[1]:.2e}); equal at {same} of {len(a)} positions")
    assert int(a[-1].argmax()) == int(b[-1].argmax())
    assert float((a - b).norm() / b.norm()) < 2**-8  # bf16's step


def stage_roundtrip(folder: Path) -> None:
    for source, target in (("original", "gguf/full.gguf"), ("gguf/full.gguf", "back")):
        start = time.monotonic()
        report = convert(folder / source, folder / target)
        print(f"{source} -> {target}: {time.monotonic() - start:.0f} s; "
              f"{report.to_text(with_errors=False)}")
        assert report.is_exact
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert peak < 2, peak
    with WeightFile(folder / "original/model.safetensors") as one, WeightFile(
        folder / "back/model.safetensors"
    ) as two:
        before, after = read_table(one), read_table(two)
        assert before.keys() == after.keys()
        for name, stored in before.items():
            other = after[name]
            assert (stored.shape, stored.dtype) == (other.shape, other.dtype), name
            assert one.read(stored.begin, stored.num_bytes) == two.read(
                other.begin, other.num_bytes
            ), name
    print(f"{len(before)} tensors bit-equal; peak memory of both conversions {peak:.2f} GB")


def view() -> torch.Tensor:
    """One normalised global view: [1, 3, 1024, 1024] of smooth noise in -1..1."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(1, 3, 128, 128, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=(1024, 1024), mode="bilinear")


def compute_in_float32(model: nn.Module) -> None:
    """Keep a module's weights in bf16 and compute in float32: each module's own while it runs."""

    def widen(module: nn.Module, args: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            narrow.setdefault(module, {})[name] = parameter.data
            parameter.data = parameter.data.float()

    def narrow_again(module: nn.Module, args: Any, result: Any) -> None:
        for name, data in narrow.pop(module).items():
            getattr(module, name).data = data

    narrow: dict[nn.Module, dict[str, torch.Tensor]] = {}
    hook: Callable[..., Any] = narrow_again
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(widen)
            module.register_forward_hook(hook)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
