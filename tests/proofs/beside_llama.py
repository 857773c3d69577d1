"""llama.cpp beside `ocr2 bench`, run by hand: the published size, random weights, one run.

    python tests/proofs/beside_llama.py DIR [--pages 32] [--new-tokens 20] [--against hf]

Writes a random bf16 checkpoint of the published size into DIR (with full_size.py) and converts it
to a GGUF pair, unless they are there; then measures in turn, each program alone on the machine:

1. `ocr2 bench --dtype bf16`, with --against hf transformers after it;
2. llama-batched-bench: prompts as long as a page's, then tokens, for 1, 8 and --pages sequences;
   and llama-mtmd-cli: the views of one A4 page through the encoder.

llama.cpp is built as `tests/parity_llama/build_llama.py` does, with its defaults: weights in bf16,
cache in F16, flash attention where it takes it. Needs 21 GB of disk and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
REPO = HERE.parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "parity_llama")]

from build_llama import build_programs  # noqa: E402

from ocr2cli.bench.measure import Timing  # noqa: E402
from ocr2cli.bench.report import KEYS, figures, times_faster  # noqa: E402
from ocr2cli.bench.workload import (  # noqa: E402
    PAGE_SIZE,
    RANDOM_MODELS,
    prompt_tokens,
)
from ocr2cli.weights.convert import convert  # noqa: E402

PROGRAMS = ("llama-batched-bench", "llama-mtmd-cli")
ENCODED = re.compile(r"(?:slice encoded|batch encoding done) in (\d+) ms")
HEAD = "| program | encode, s a page | prefill, s a page | decode, tokens/s | page of 1,000, s |"


def main() -> None:
    asked = parse_arguments()
    programs = build_programs(Path(asked.cache), PROGRAMS)
    pair = make_pair(Path(asked.folder))
    print(HEAD + "\n|---|---|---|---|---|", flush=True)
    first = ours(asked)
    best = llama(asked, programs, pair)
    for name, theirs in {"llama.cpp": best, **first["peers"]}.items():
        print_row(f"ratio to {name}", times_faster(theirs, first["ours"]), digits=2)
    ceilings = first["ceilings"]
    print(f"{first['machine']}, torch {first['torch']}: {ceilings['matmul'] / 1e9:.0f} GFLOP/s in "
          f"a bf16 product, {ceilings['memory'] / 1e9:.1f} GB/s read")  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--pages", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--against", default="", choices=("", "hf"))
    parser.add_argument("--cache", default=str(REPO / "build" / "llama"), help="build folder")
    return parser.parse_args()


def make_pair(folder: Path) -> Path:
    """The GGUF pair of a random checkpoint. Its tokenizer is nano's: no speed depends on it."""
    pair = folder / "gguf" / "full.gguf"
    if not pair.is_file():
        source = folder / "original"
        subprocess.run(
            [sys.executable, str(HERE / "full_size.py"), str(folder), "write"],
            check=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        shutil.copy(REPO / "models" / "nano" / "tokenizer.json", source)
        convert(source, pair)
    return pair


def ours(asked: argparse.Namespace) -> dict:
    """`ocr2 bench`'s own JSON object; prints its rows."""
    command = [
        sys.executable, "-m", "ocr2cli", "bench", "--dtype", "bf16", "--device", "cpu", "--json",
        "--pages", str(asked.pages), "--new-tokens", str(asked.new_tokens),
        "--threads", str(asked.threads), *(("--against", asked.against) if asked.against else ()),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO)
    facts = json.loads(done.stdout)
    for name, rows in {"ocr2": facts["ours"], **facts["peers"]}.items():
        print_row(name, rows)
    return facts


def llama(asked: argparse.Namespace, programs: Path, pair: Path) -> dict[str, float]:
    """Its rows of every batch; returns the one with the fastest page. Encoding is of one page."""
    encode_s = llama_encode_s(asked, programs, pair)
    batches = sorted({1, min(8, asked.pages), asked.pages})
    prompt = prompt_tokens(RANDOM_MODELS["random-full"])
    command = [
        str(programs / PROGRAMS[0]), "-m", str(pair), "-npp", str(prompt),
        "-ntg", str(asked.new_tokens), "-npl", ",".join(map(str, batches)),
        "-c", str(max(batches) * (prompt + asked.new_tokens)), "-t", str(asked.threads),
        "-tb", str(asked.threads), "--output-format", "jsonl",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]
    measured = [json.loads(line) for line in lines]
    if [row["pl"] for row in measured] != batches:
        raise SystemExit(f"{command[0]} measured {measured}\n{done.stderr[-2000:]}")
    rows = []
    for row in measured:
        timing = Timing(row["pl"], row["tg"] + 1, prefill_s=row["t_pp"], decode_s=row["t_tg"])
        timing.encode_s = encode_s * row["pl"]
        rows.append(figures(timing))
        print_row(f"llama.cpp, {row['pl']} sequences", rows[-1])
    return min(rows, key=lambda row: row["s_page_of_1000"])


def llama_encode_s(asked: argparse.Namespace, programs: Path, pair: Path) -> float:
    """Seconds in the encoder of all views of an A4 page of noise."""
    width, height = PAGE_SIZE
    picture = pair.with_name("page.png")
    pixels = np.random.default_rng(0).integers(180, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    eyes = pair.with_name(f"mmproj-{pair.name}")
    command = [
        str(programs / PROGRAMS[1]), "-m", str(pair), "--mmproj", str(eyes),
        "--image", str(picture), "-p", "Free OCR.", "-n", "1", "-c", "4096",
        "--chat-template", "deepseek-ocr", "--temp", "0", "--no-warmup", "-t", str(asked.threads),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    log = (done.stdout + done.stderr).decode(errors="replace")
    slices = [int(milliseconds) for milliseconds in ENCODED.findall(log)]
    print(f"llama.cpp, views, ms: {slices}", file=sys.stderr, flush=True)
    if not slices:
        raise SystemExit(f"{command[0]} tells no time of its encoder\n{log[-2000:]}")
    return sum(slices) / 1e3


def print_row(name: str, rows: Mapping[str, float], digits: int = 1) -> None:
    print(f"| {name} | " + " | ".join(f"{rows[key]:.{digits}f}" for key in KEYS) + " |", flush=True)


if __name__ == "__main__":
    main()
