"""llama.cpp as the second witness: the same GGUF pair, the same page, the same rule, both texts.

    python tests/parity_llama/run.py [--bin PATH/TO/llama-mtmd-cli] [--out FILE.md] [--toys-only]

Builds llama-mtmd-cli unless --bin names one, converts the bundled model and two toy checkpoints
with `ocr2 convert`, reads each page with both and prints the first difference, if there is one,
with the smallest set of llama.cpp's known differences that makes our text equal to its. Exit code
1 when a difference stays unexplained. `--write-golden` keeps the toys' texts for the suite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "weights")]

from build import PACKAGE, VERSION, llama_mtmd_cli  # noqa: E402
from llama_reading import VARIANTS, read  # noqa: E402
from llama_toys import draw_pages, inputs_digest, write_toy  # noqa: E402

from ocr2cli.weights.digest import weights_digest  # noqa: E402

GOLDEN = REPO / "tests" / "golden" / "llama" / "toys.json"
BUNDLED = REPO / "eval" / "bundled" / "pages"
# One view, and no half pixel of padding; then a half pixel (row 2), then tiles.
NANO_PAGES = ("note-door", "note-kettle", "note-shelf", "note-ferry", "slide-bridge")
NANO_TOKENS, TOY_TOKENS = 64, 32
RULES = {"plain": False, "dry": True}
DRY_FLAGS = (
    "--dry-multiplier", "0.8", "--dry-base", "1.75", "--dry-allowed-length", "2",
    "--dry-penalty-last-n", "64", "--dry-sequence-breaker", "none",
)  # fmt: skip
FLAGS = ("--chat-template", "deepseek-ocr", "--temp", "0", "--flash-attn", "off", "--no-warmup")
# llama.cpp keeps K and V in F16 unless told otherwise: that is no matter of the model.
F32_CACHE = ("--cache-type-k", "f32", "--cache-type-v", "f32")


@dataclass(slots=True)
class Comparison:
    """One page under one rule. explained_by: names of VARIANTS; empty when the texts agree."""

    model: str
    page: str
    rule: str
    llama: str
    ours: str
    explained_by: tuple[str, ...] = ()
    is_explained: bool = field(default=True)

    @property
    def is_equal(self) -> bool:
        return self.llama == self.ours

    def verdict(self) -> str:
        if self.is_equal:
            return "equal"
        at = first_difference(self.llama, self.ours)
        why = " + ".join(self.explained_by) if self.is_explained else "NOT EXPLAINED"
        return f"differs from character {at}: {why}"


def main() -> int:
    options = parse_arguments()
    program = Path(options.bin) if options.bin else llama_mtmd_cli(Path(options.cache))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toys = list(compare_toys(program, folder))
        if options.write_golden:
            write_golden(folder, toys)
        nano = [] if options.toys_only else list(compare_nano(program, folder))
    if options.out:
        Path(options.out).write_text(report(nano), encoding="utf-8")
    return 0 if all(each.is_equal or each.is_explained for each in toys + nano) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare our text with llama.cpp's.")
    parser.add_argument("--bin", default="", help="a llama-mtmd-cli that is built already")
    parser.add_argument("--cache", default=str(REPO / "build" / "llama"), help="build folder")
    parser.add_argument("--out", default="", help="write the bundled model's texts as Markdown")
    parser.add_argument("--toys-only", action="store_true")
    parser.add_argument("--write-golden", action="store_true")
    return parser.parse_args()


def compare_toys(program: Path, folder: Path) -> Iterator[Comparison]:
    pages = draw_pages(folder / "pages")
    for version in ("v2", "v1"):
        pair = convert(write_toy(folder / version, version), folder / f"{version}-f32.gguf", "f32")
        for page, rule in itertools.product(pages.values(), RULES):
            yield compare(program, pair, page, rule, TOY_TOKENS)


def compare_nano(program: Path, folder: Path) -> Iterator[Comparison]:
    """In float32 with the explanation, and the BF16 pair loads and reads too."""
    source = REPO / "models" / "nano"
    pair = convert(source, folder / "nano-f32.gguf", "f32")
    pages = [BUNDLED / f"{name}.png" for name in NANO_PAGES]
    for page, rule in itertools.product(pages, RULES):
        yield compare(program, pair, page, rule, NANO_TOKENS)
    bf16 = convert(source, folder / "nano-bf16.gguf", "bf16")
    text = llama_text(program, bf16, pages[0], NANO_TOKENS, dry=False)
    print(f"nano-bf16 {pages[0].stem}: loads and writes {len(text)} characters", flush=True)


def convert(source: Path, target: Path, quant: str) -> Path:
    """By the command itself."""
    command = [sys.executable, "-m", "ocr2cli", "convert", str(source), str(target)]
    subprocess.run([*command, "--quant", quant, "-q"], check=True, cwd=REPO)
    return target


def compare(program: Path, pair: Path, page: Path, rule: str, num_tokens: int) -> Comparison:
    dry = RULES[rule]
    llama = llama_text(program, pair, page, num_tokens, dry=dry)
    (ours,) = read(pair, [page], num_tokens=num_tokens, dry=dry)
    result = Comparison(pair.stem, page.stem, rule, llama, ours)
    if not result.is_equal:
        explain(result, pair, page, num_tokens)
    print(f"{result.model} {result.page} {result.rule}: {result.verdict()}", flush=True)
    if not result.is_explained:
        print(f"  llama.cpp {result.llama!r}\n  ours      {result.ours!r}", flush=True)
    return result


def explain(result: Comparison, pair: Path, page: Path, num_tokens: int) -> None:
    """Find the smallest set of variants under which we write what llama.cpp writes."""
    names = list(VARIANTS)
    sets = [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]
    for chosen in sets:
        (text,) = read(
            pair, [page], num_tokens=num_tokens, dry=RULES[result.rule], variants=chosen
        )
        if text == result.llama:
            result.explained_by = chosen
            return
    result.is_explained = False


def llama_text(program: Path, pair: Path, page: Path, num_tokens: int, *, dry: bool) -> str:
    command = [
        str(program), "-m", str(pair), "--mmproj", str(pair.with_name(f"mmproj-{pair.name}")),
        "--image", str(page), "-p", "Free OCR.", *FLAGS, *F32_CACHE, "-n", str(num_tokens),
        "-c", "4096", *(DRY_FLAGS if dry else ()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=600, stdin=subprocess.DEVNULL)
    if done.returncode:
        log = done.stderr.decode(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)}\n{log}")
    # The text stands between two line ends of the program's own.
    return done.stdout.decode(errors="replace").strip("\n")


def first_difference(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def write_golden(folder: Path, toys: list[Comparison]) -> None:
    """What agrees, with the differences that had to be put in. The unexplained is not kept."""
    pages = draw_pages(folder / "pages")
    cases = [
        {
            "toy": toy.model.split("-")[0], "page": toy.page, "rule": toy.rule,
            "variants": list(toy.explained_by), "text": toy.llama,
        }
        for toy in toys if toy.is_equal or toy.is_explained
    ]  # fmt: skip
    data = {
        "made_by": f"llama-mtmd-cli of {PACKAGE} {VERSION}",
        "inputs_sha256": {v: inputs_digest(folder / v, pages) for v in ("v2", "v1")},
        "cases": cases,
    }
    GOLDEN.write_text(json.dumps(data, indent=1) + "\n", encoding="ascii")


def report(results: list[Comparison]) -> str:
    lines = [
        f"Weights {weights_digest(REPO / 'models' / 'nano')[:16]}, "
        f"llama.cpp of {PACKAGE} {VERSION}, {NANO_TOKENS} tokens at most.", "",
    ]  # fmt: skip
    for each in results:
        lines += [f"### {each.page}, {each.rule}: {each.verdict()}", "", "llama.cpp:", ""]
        lines += ["```text", each.llama, "```", "", "ocr2:", "", "```text", each.ours, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
