"""A whole `ocr2 run` at full size, run by hand: pages of one length, timed from start to end.

    python tests/proofs/full_size.py DIR write      first: random weights, 6.8 GB
    python tests/proofs/whole_run.py DIR [--pages 30] [--tokens 500] [OPTION...]

`ocr2 bench` times one stage after the other; in a run encoder and decoder share the processor. The
checkpoint gets nano's vocabulary, filled up to the published size with words of four letters, so
that what random weights write can be written down. Options beyond these go to `ocr2 run`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

NANO = Path(__file__).parents[2] / "models/nano"
# A4 at 200 dpi: six tiles and the global view.
PAGE_SIZE = (1654, 2339)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pages", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=500)
    own, options = parser.parse_known_args()
    model = give_vocabulary(own.folder)
    pages = [make_page(own.folder, number) for number in range(own.pages)]
    out = own.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "ocr2cli", "run", *pages, "--model", model, "-o", out]
    words += ["--max-new-tokens", own.tokens, "--no-recover", *options]
    start = time.monotonic()
    # 5: every page is cut at the limit, as it is meant to be.
    code = subprocess.run(list(map(str, words))).returncode
    seconds = time.monotonic() - start
    if code not in (0, 5):
        sys.exit(code)
    results = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*.jsonl"))]
    print(f"{len(results)} pages, {seconds:.0f} s, {seconds / len(results):.1f} s a page")
    print(f"{sum(result['new_tokens'] for result in results):,} tokens; of a page, median:")
    for stage in ("encode", "prefill", "decode"):
        median = statistics.median(result["seconds"][stage] for result in results)
        print(f"{stage:8} {median:6.1f} s")


def give_vocabulary(folder: Path) -> Path:
    """A model folder that `ocr2 run` takes: the random weights under nano's vocabulary."""
    weights, model = folder / "original/model.safetensors", folder / "runnable"
    if not weights.exists():
        sys.exit(f"{weights} is missing: python tests/proofs/full_size.py {folder} write")
    model.mkdir(exist_ok=True)
    link = model / weights.name
    link.unlink(missing_ok=True)
    link.symlink_to(weights.resolve())
    config = _read(folder / "native/config.json")
    config["image_token_id"] = _read(NANO / "config.json")["image_token_id"]
    tokenizer = _read(NANO / "tokenizer.json")
    _fill(tokenizer, config["text_config"]["vocab_size"])
    for name, table in (("config.json", config), ("tokenizer.json", tokenizer)):
        (model / name).write_text(json.dumps(table), "utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(NANO / name, model / name)
    return model


def _fill(tokenizer: dict[str, Any], size: int) -> None:
    """Give every id below `size` a token."""
    ids = tokenizer["model"]["vocab"]
    taken = {*ids.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    letters = map("".join, itertools.product(string.ascii_lowercase, repeat=4))
    words = (word for word in letters if word not in ids)
    ids.update({next(words): number for number in range(size) if number not in taken})


def make_page(folder: Path, number: int) -> Path:
    """Lines of grey blocks, other ones on each page; drawn once."""
    path = folder / f"page{number:03}.png"
    if not path.exists():
        dice, image = random.Random(number), Image.new("L", PAGE_SIZE, 255)
        draw = ImageDraw.Draw(image)
        for y, x in itertools.product(range(100, 2240, 30), range(100, 1550, 12)):
            if dice.random() < 0.7:
                draw.rectangle((x, y, x + dice.randint(3, 9), y + 16), fill=0)
        image.save(path)
    return path


def _read(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return table


if __name__ == "__main__":
    main()
