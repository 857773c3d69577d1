"""llama.cpp as the second witness: the same GGUF pair, the same page, the same rule, both texts.

    python tests/parity_llama/run.py [--bin PATH/TO/llama-mtmd-cli] [--out FILE.md] [--toys-only]

Builds llama.cpp unless --bin names its program, converts the bundled model and two toy checkpoints
with `ocr2 convert`, reads each page with both and prints the first difference, if there is one,
with the smallest set of llama.cpp's known differences that makes our text equal to its. Where none
does, a difference is explained if every place where the texts part is a near tie (under 0.02 of a
logit, see `llama_ties.py`); the leads are printed. Exit code 1 when one stays unexplained.
Quantised files are read by both as well; there llama.cpp rounds activations to 8 bits, so those
rows are figures and no verdict. `--write-golden` keeps the toys' texts for the suite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "weights")]

from build_llama import PACKAGE, PROGRAMS, VERSION, build_programs  # noqa: E402
from llama_reading import VARIANTS, read  # noqa: E402
from llama_ties import Turn, follow  # noqa: E402
from llama_toys import draw_pages, inputs_digest, write_toy  # noqa: E402

from ocr2cli.weights.digest import weights_digest  # noqa: E402
from ocr2cli.weights.read_gguf import read_header  # noqa: E402
from ocr2cli.weights.weight_file import WeightFile  # noqa: E402

GOLDEN = REPO / "tests" / "golden" / "llama" / "toys.json"
BUNDLED = REPO / "eval" / "bundled" / "pages"
# One view, and no half pixel of padding; then a half pixel (row 2), then tiles.
NANO_PAGES = ("note-door", "note-kettle", "note-shelf", "note-ferry", "slide-bridge")
NANO_TOKENS, TOY_TOKENS = 64, 32
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
QUANT_PAGES = ("note-door", "note-kettle", "note-shelf")
RULES = {"plain": False, "dry": True}
DRY_FLAGS = (
    "--dry-multiplier", "0.8", "--dry-base", "1.75", "--dry-allowed-length", "2",
    "--dry-penalty-last-n", "64", "--dry-sequence-breaker", "none",
)  # fmt: skip
FLAGS = ("--chat-template", "deepseek-ocr", "--temp", "0", "--flash-attn", "off", "--no-warmup")
# llama.cpp keeps K and V in F16 unless told otherwise: that is no matter of the model.
F32_CACHE = ("--cache-type-k", "f32", "--cache-type-v", "f32")


# Its re-packed blocks crash on a processor with AMX (0.3.36), files of its own making as well.
PLAIN_BLOCKS = ("--no-repack",)


@dataclass(slots=True)
class Comparison:
    """One page under one rule. explained_by: names of VARIANTS; empty when the texts agree.

    turns: places where llama.cpp's token was another one, with those VARIANTS in place.
    """

    model: str
    page: str
    rule: str
    llama: str
    ours: str
    explained_by: tuple[str, ...] = ()
    is_explained: bool = True
    turns: list[Turn] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return self.llama == self.ours

    def verdict(self) -> str:
        if self.is_equal:
            return "equal"
        at = first_difference(self.llama, self.ours)
        leads = "; ".join(map(str, self.turns))
        if not self.is_explained:
            return f"differs from character {at}: NOT EXPLAINED; {leads}"
        near = [f"near tie ({leads})"] if self.turns else []
        return f"differs from character {at}: {' + '.join([*self.explained_by, *near])}"


def main() -> int:
    options = parse_arguments()
    started = time.monotonic()
    program = (
        Path(options.bin) if options.bin else build_programs(Path(options.cache)) / PROGRAMS[0]
    )
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toys = list(compare_toys(program, folder))
        if options.write_golden:
            write_golden(folder, toys)
        nano = [] if options.toys_only else list(compare_nano(program, folder))
        if not options.toys_only:
            compare_quantised(program, folder)
    print(f"{time.monotonic() - started:.0f} s in all", flush=True)
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


def compare_quantised(program: Path, folder: Path) -> None:
    """Both read the same quantised files: a table of figures.

    llama.cpp multiplies activations rounded to 8 bits by the blocks; we multiply the blocks' values
    in float32. So the first difference is named by its lead and nothing is judged.
    """
    pair = folder / "nano-f32.gguf"
    files = [convert(REPO / "models" / "nano", folder / "nano-ours-Q8_0.gguf", "q8_0")]
    files += [quantise(program, pair, folder / f"nano-{kind}.gguf", kind) for kind in QUANTS]
    for file, name in itertools.product(files, QUANT_PAGES):
        page = BUNDLED / f"{name}.png"
        llama = llama_text(program, file, page, NANO_TOKENS, dry=False, flags=PLAIN_BLOCKS)
        (ours,) = read(file, [page], num_tokens=NANO_TOKENS, dry=False)
        line = f"{file.stem} ({stored_types(file)}) {name}: "
        if llama == ours:
            print(line + f"equal, {len(ours)} characters", flush=True)
            continue
        turns = follow(file, page, llama, num_tokens=NANO_TOKENS, dry=False)
        print(line + f"parts {turns[0] if turns else 'in unprintable tokens'}", flush=True)


def quantise(program: Path, source: Path, target: Path, kind: str) -> Path:
    """The text half by llama-quantize, which stands beside the program; the vision half as is."""
    tool = program.with_name("llama-quantize")
    subprocess.run([str(tool), str(source), str(target), kind], check=True, capture_output=True)
    mmproj = source.with_name(f"mmproj-{source.name}")
    shutil.copyfile(mmproj, target.with_name(f"mmproj-{target.name}"))
    return target


def stored_types(file: Path) -> str:
    """What the text half's tensors are really stored as: "31 Q8_0, 24 F32"."""
    with WeightFile(file) as opened:
        types = Counter(stored.dtype for stored in read_header(opened).table.values())
    return ", ".join(f"{count} {kind}" for kind, count in types.most_common())


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
        (text,) = read(pair, [page], num_tokens=num_tokens, dry=RULES[result.rule], variants=chosen)
        if text == result.llama:
            result.explained_by = chosen
            return
    for chosen in [(), *sets]:
        turns = follow(
            pair, page, result.llama, num_tokens=num_tokens, dry=RULES[result.rule],
            variants=chosen,
        )  # fmt: skip
        if all(turn.is_near_tie for turn in turns):
            result.explained_by, result.turns = chosen, turns
            return
        if not chosen:
            result.turns = turns  # to be shown if nothing explains them
    result.is_explained = False


def llama_text(
    program: Path, pair: Path, page: Path, num_tokens: int, *, dry: bool, flags: Sequence[str] = ()
) -> str:
    command = [
        str(program), "-m", str(pair), "--mmproj", str(pair.with_name(f"mmproj-{pair.name}")),
        "--image", str(page), "-p", "Free OCR.", *FLAGS, *F32_CACHE, "-n", str(num_tokens),
        "-c", "4096", *(DRY_FLAGS if dry else ()), *flags,
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
    """What agrees, with the differences that had to be put in; near ties and the unexplained do
    not."""
    pages = draw_pages(folder / "pages")
    cases = [
        {
            "toy": toy.model.split("-")[0], "page": toy.page, "rule": toy.rule,
            "variants": list(toy.explained_by), "text": toy.llama,
        }
        for toy in toys if toy.is_equal or (toy.is_explained and not toy.turns)
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
