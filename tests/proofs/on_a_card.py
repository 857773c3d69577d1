"""Proof on a CUDA device, run by hand: what no CPU can show, in some ten minutes.

    python tests/proofs/on_a_card.py DIR              all stages, each in a process of its own
    python tests/proofs/on_a_card.py DIR STAGE ...    some of: tests reads step bench more hf
                                                      ways pages
    python tests/proofs/on_a_card.py DIR --rehearse   what of it runs on a CPU, at toy size

tests   the tests marked `gpu`
reads   nano reads the demo's documents on the card: the token ids of a CPU's float32, in float32,
        with and without drafts, and how many pages have them in bf16
step    a decode step of 128 pages: kernels, milliseconds of the card and of the clock
bench   `ocr2 bench` with 128 pages of 1,000 tokens, the README's command
more    the same with 256 pages
hf      `ocr2 bench --against hf`, 64 pages of 64 tokens
ways    `card_ways.py`: other ways of attention, pages encoded together, an encoder's kernels
pages   `ocr2 run` over PNG pages with random weights of full size: the workers of both stages on
        one card, from files to markdown

A stage that fails, or takes longer than its time, ends the others not; each prints as it goes. DIR
takes 7 GB for the weights of `pages`. The exit code is the number of stages that failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from full_size import random_values

from ocr2cli.bench.workload import RANDOM_MODELS, make_subject
from ocr2cli.config import DecodeConfig, EngineConfig
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.tuning import tuning_for
from ocr2cli.weights.hub import resolve_model
from ocr2cli.weights.names import model_params
from ocr2cli.weights.write_config import native_config
from ocr2cli.weights.write_file import Entry, safetensors_writer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OCR2 = [sys.executable, "-m", "ocr2cli"]
# Seconds that each stage may take.
STAGES = {
    "tests": 150, "reads": 120, "step": 60, "bench": 120, "more": 120, "hf": 150,
    "ways": 90, "pages": 240,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.inside:
        globals()[f"stage_{args.stages[0]}"](args.folder, args.rehearse)
        return
    sys.exit(sum(not is_done(stage, args) for stage in args.stages or STAGES))


def is_done(stage: str, args: argparse.Namespace) -> bool:
    print(f"== {stage}", flush=True)
    started = time.monotonic()
    command = [sys.executable, __file__, str(args.folder), stage, "--inside"]
    try:
        subprocess.run(
            [*command, "--rehearse"] if args.rehearse else command, check=True, cwd=ROOT,
            timeout=STAGES[stage] * (5 if args.rehearse else 1),
        )  # fmt: skip
        end = "done"
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        end = f"FAILED: {error}"
    print(f"== {stage}: {end}, {time.monotonic() - started:.0f} s", flush=True)
    return end == "done"


def stage_tests(folder: Path, rehearse: bool) -> None:
    marks = "not gpu" if rehearse else "gpu"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", marks, "tests/generate", "tests/model"],
        check=True,
    )


def stage_reads(folder: Path, rehearse: bool) -> None:
    card = "cpu" if rehearse else "cuda"
    expected = token_ids(folder, "cpu", "f32", "off")
    for dtype, draft in (("f32", "off"), ("f32", "auto"), ("bf16", "off")):
        found = token_ids(folder, card, dtype, draft)
        equal = sum(found[page] == expected[page] for page in expected)
        print(f"{card} {dtype} --draft {draft}: {equal} of {len(expected)} pages", flush=True)
        assert equal == len(expected) or dtype == "bf16"


def token_ids(folder: Path, device: str, dtype: str, draft: str) -> dict[str, Any]:
    out = folder / f"reads-{device}-{dtype}-{draft}"
    options = ["--device", device, "--dtype", dtype, "--draft", draft, "--prompt", "ocr"]
    run = [*OCR2, "run", "examples/documents", "-o", str(out), "--no-resume", "--save-tokens"]
    done = subprocess.run([*run, *options, "--max-new-tokens", "300"], check=False)
    assert done.returncode in (0, 5), done.returncode
    files = sorted(out.glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text().split("\n")]
    rows = [json.loads(line) for line in lines if line]
    return {f"{row['document']} {row['page']}": row["token_ids"] for row in rows}


def stage_step(folder: Path, rehearse: bool) -> None:
    subject = make_subject(engine(rehearse))
    batch, length, device = (4, 60, subject.device) if rehearse else (128, 1_126, subject.device)
    generator = Generator(
        subject.model.decoder, DecodeConfig(max_new_tokens=400, detect_loops=False), eos_id=-1,
        num_slots=batch, kv_tokens=batch * (length + 401), max_context=length + 400,
        tuning=tuning_for(device),
    )  # fmt: skip
    width = subject.config.decoder.hidden_size
    with torch.inference_mode():
        for key in range(batch):
            prompt_TD = torch.randn(length, width, device=device).to(subject.dtype)
            generator.add(key, prompt_TD, [5] * length)
        while generator.statistics.decode_steps < 40:
            generator.step()
        ms = [timed(generator.step) for _ in range(100)]
        print(f"{batch} pages: {sorted(ms)[50]:.2f} ms a step by the clock", flush=True)
        with torch.profiler.profile() as profile:
            for _ in range(20):
                generator.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
    kernels = [e for e in profile.events() if "CUDA" in str(e.device_type)] or profile.events()
    by_name: dict[str, list[float]] = {}
    for event in kernels:
        by_name.setdefault(event.name, []).append(event.time_range.elapsed_us() / 20_000)
    total = sum(map(sum, by_name.values()))
    print(f"{len(kernels) / 20:.0f} kernels a step, {total:.2f} ms of them", flush=True)
    for name, each in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:25]:
        print(f"{sum(each):7.3f} ms {len(each) / 20:6.1f} times  {name[:100]}", flush=True)


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def stage_bench(folder: Path, rehearse: bool) -> None:
    bench(rehearse, 128, 1_000)


def stage_more(folder: Path, rehearse: bool) -> None:
    bench(rehearse, 256, 1_000)


def stage_hf(folder: Path, rehearse: bool) -> None:
    bench(rehearse, 64, 64, "--against", "hf")


def stage_ways(folder: Path, rehearse: bool) -> None:
    options = ["--rehearse"] if rehearse else []
    subprocess.run([sys.executable, str(HERE / "card_ways.py"), *options], check=True)


def bench(rehearse: bool, pages: int, new_tokens: int, *options: str) -> None:
    size = ["--pages", str(pages), "--new-tokens", str(new_tokens)]
    where = ["--model", "random-full", "--device", "cuda", "--dtype", "bf16"]
    if rehearse:
        size, where = ["--pages", "2", "--new-tokens", "4"], ["--model", "random-tiny"]
    subprocess.run([*OCR2, "bench", *where, *size, *options], check=True)


def engine(rehearse: bool) -> EngineConfig:
    if rehearse:
        return EngineConfig(model="random-tiny", device="cpu", dtype="f32")
    return EngineConfig(model="random-full", device="cuda", dtype="bf16")


def stage_pages(folder: Path, rehearse: bool) -> None:
    """New tokens are random, so few pages end by themselves; those that loop end early: the rate
    is given by tokens as well."""
    model, inputs, out = folder / "model", folder / "pages", folder / "out"
    count, limit = (3, 20) if rehearse else (384, 1_000)
    write_model(model, "random-tiny" if rehearse else "random-full")
    draw_pages(inputs, count)
    options = ["--model", str(model), "--prompt", "ocr", "--max-new-tokens", str(limit)]
    where = ["--device", "cpu"] if rehearse else ["--device", "cuda", "--dtype", "bf16"]
    run = [*OCR2, "run", str(inputs), "-o", str(out), "--no-resume", "--no-recover", "--json"]
    started = time.monotonic()
    done = subprocess.run([*run, *options, *where], check=False, stdout=subprocess.PIPE)
    seconds = time.monotonic() - started
    assert done.returncode in (0, 5), done.returncode
    print(done.stdout.decode())
    print(f"{count} pages in {seconds:.1f} s, loading included: {count / seconds:.2f} pages/s")


def write_model(folder: Path, name: str) -> None:
    """Random weights with nano's vocabulary, and a made-up token for every other number."""
    config = RANDOM_MODELS[name]
    folder.mkdir(exist_ok=True)
    entries = [
        Entry(one.name, one.shape, "BF16") for all_ in model_params(config) for one in all_.original
    ]
    base = torch.randn(1 << 24).mul_(0.02).bfloat16()
    with safetensors_writer(folder / "model.safetensors", entries) as writer:
        for entry in entries:
            values = random_values(base, entry).view(torch.uint8).numpy()
            writer.write_at(writer.begins[entry.name], values.data)
    vocabulary = json.loads((resolve_model("nano").path / "tokenizer.json").read_text())
    vocab, special = vocabulary["model"]["vocab"], vocabulary["added_tokens"]
    image = next(token for token in special if token["content"] == "<image>")
    taken = {*vocab.values(), *(token["id"] for token in special)}
    spare = [i for i in range(config.decoder.vocab_size) if i not in taken]
    vocab |= {f"w{i}": i for i in spare}
    if config.image_token_id != image["id"]:
        del vocab[f"w{config.image_token_id}"]
        vocab["wimage"], image["id"] = image["id"], config.image_token_id
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "config.json").write_text(json.dumps(native_config(config)))


def draw_pages(folder: Path, count: int) -> None:
    """A4 at 144 dpi. 32 are drawn, the others are copies: nothing keeps equal pages apart here."""
    from PIL import Image, ImageDraw

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:04}.png"
        if number >= 32:
            shutil.copy(folder / f"{number % 32:04}.png", path)
            continue
        page = Image.new("RGB", (1190, 1684), "white")
        draw = ImageDraw.Draw(page)
        for line in range(60):
            draw.text((90, 80 + 25 * line), f"line {line} of page {number} " * 4, "black")
        page.save(path)


if __name__ == "__main__":
    main()
