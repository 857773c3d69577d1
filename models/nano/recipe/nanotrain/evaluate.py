"""The model card's table: nano read through the program, on pages it was never trained on.

    python -m nanotrain.evaluate --model models/nano [--out table.md] [--pages 24]

Held-out fonts and texts by kind of page, both prompts, and real born-digital pages with their text
layer as truth. Greedy, no repetition ban; scores are of the whole page, unaligned.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from nanotrain import draw, fonts, layouts, pages, truths
from nanotrain.measure import without_grounding
from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig
from ocr2cli.eval.metrics import score_text
from ocr2cli.pages import FinishReason

SEED = 20_001
# kind -> (most characters, smallest type in view pixels, words of the row's name)
KINDS: dict[str, tuple[pages.Kind, int, float, str]] = {
    "note": ("note", 300, 41.0, "small image, no tiles"),
    "slide": ("slide", 300, 41.0, "slide 16:9"),
    "poster": ("poster", 300, 41.0, "poster, title page (A4, Letter)"),
    "letter": ("letter", 500, 41.0, "large-print letter (A4, Letter)"),
    "text12": ("letter", 1200, 30.0, "11 to 16 pt prose (A4, Letter)"),
}
# look -> (most characters, words of the row's name); see layouts.BODY for the sizes
LOOKS: dict[layouts.Look, tuple[int, str]] = {
    "columns": (900, "two columns, 9 to 14 pt"),
    "lists": (500, "headings and lists, 12 to 20 pt"),
    "tables": (500, "small tables and pictures, 12 to 20 pt"),
    "scan": (500, "worn scan, skew up to 2 degrees, 14 to 22 pt"),
    "sizes": (500, "mixed sizes, 6 to 72 pt"),
}
REAL = (
    "/usr/share/doc/bash/bash.pdf",
    "/usr/share/doc/bash/bashref.pdf",
    "/usr/share/developers-reference/developers-reference.pdf",
    "/usr/share/doc/debian-policy/policy.pdf.gz",
    "/usr/share/doc/debian-policy/fhs/fhs-3.0.pdf.gz",
    "/usr/share/doc/zsh-common/zsh.pdf",
    "/usr/share/doc/gnuplot/gnuplot.pdf",
    "/usr/share/pari/doc/users.pdf",
    "/usr/share/pari/doc/tutorial.pdf",
)
REAL_PAGES_EACH = 4


@dataclass
class Case:
    """One page image and its truth. grounded: the truth of the grounding prompt, "" if there is
    none."""

    name: str
    row: str
    image: Path
    plain: str
    grounded: str


def synthetic_cases(folder: Path, count: int, chosen: list[str], seed: int) -> list[Case]:
    """`count` pages of each chosen kind, half as many of each look; all start from one seed."""
    held_out = fonts.load_fonts(True)
    cases = []
    for name, (kind, most, smallest, row) in KINDS.items():
        rng = Random(seed)
        for index in range(count if name in chosen else 0):
            page = pages.random_page(
                rng, kind, held_out, held_out=True, max_characters=most, smallest=smallest
            )
            cases.append(_case(folder / f"{name}-{index:02d}.png", row, page, rng))
    for look, (most, row) in LOOKS.items():
        rng = Random(seed)
        for index in range((count + 1) // 2 if look in chosen else 0):
            page = layouts.structured_page(rng, look, held_out, held_out=True, max_characters=most)
            cases.append(_case(folder / f"{look}-{index:02d}.png", row, page, rng))
    return cases


def _case(path: Path, row: str, page: pages.Page, rng: Random) -> Case:
    draw.draw_page(page, rng).save(path)
    plain, grounded = truths.plain_truth(page).text, truths.grounded_truth(page).text
    return Case(path.stem, row, path, plain, grounded)


def real_cases(folder: Path) -> list[Case]:
    """Pages of documentation PDFs at 144 dpi; those that hold at least 400 characters."""
    import pymupdf

    cases = []
    for number, source in enumerate(REAL):
        path = Path(source)
        if not path.exists():
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        with pymupdf.open(stream=data, filetype="pdf") as document:
            wanted = (
                np.linspace(3, document.page_count - 2, 3 * REAL_PAGES_EACH).astype(int).tolist()
            )
            found = 0
            for at in dict.fromkeys(wanted):
                text = document[at].get_text("text")
                if len(text) < 400 or found == REAL_PAGES_EACH:
                    continue
                found += 1
                image = folder / f"real-{number}-{at}.png"
                document[at].get_pixmap(matrix=pymupdf.Matrix(2, 2), alpha=False).save(str(image))
                cases.append(Case(image.stem, "real born-digital page, 144 dpi", image, text, ""))
    return cases


def read_cases(cases: list[Case], model: str, prompt: str, most_tokens: int) -> list[dict]:
    """One record a case: scores, text, seconds, whether the decoder ended the page itself."""
    if not cases:
        return []
    started = time.time()
    cfg = RunConfig(
        inputs=tuple(str(case.image) for case in cases),
        engine=EngineConfig(model=model, prompt=prompt, dtype="f32", device="cpu", batch_size=4),
        decode=DecodeConfig(max_new_tokens=most_tokens, no_repeat_ngram=0, detect_loops=False),
        runner="inline",
    )
    results = list(iter_pages(cfg))
    seconds = (time.time() - started) / max(1, len(cases))
    records = []
    for case, result in zip(cases, results, strict=True):
        output = result.raw
        truth = case.plain if prompt == "ocr" else without_grounding(case.grounded)
        text = output if prompt == "ocr" else without_grounding(output)
        scores = score_text(truth, text)
        records.append(
            {
                "name": case.name,
                "row": case.row,
                "prompt": prompt,
                "cer": scores.whole_cer,
                "chrf": scores.whole_chrf,
                "recall": scores.word_recall,
                "characters": len(truth),
                "ended": result.finish_reason == FinishReason.STOP,
                "seconds": seconds,
                "truth": truth,
                "output": output,
            }
        )
    return records


def table(records: Iterable[dict]) -> str:
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["row"], record["prompt"]), []).append(record)
    lines = [
        "| pages | prompt | n | characters | CER, mean | CER, all characters | chrF "
        "| word recall | not ended |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (row, prompt), group in groups.items():
        weight = np.array([r["characters"] for r in group], float)
        cers = np.array([r["cer"] for r in group])
        lines.append(
            f"| {row} | {prompt} | {len(group)} | {weight.mean():.0f} | {cers.mean():.3f} "
            f"| {(cers * weight).sum() / weight.sum():.3f} "
            f"| {np.mean([r['chrf'] for r in group]):.1f} "
            f"| {np.mean([r['recall'] for r in group]):.3f} "
            f"| {sum(not r['ended'] for r in group)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--pages", type=int, default=12, help="synthetic pages of each kind")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--seed",
        type=int,
        default=SEED,
        help="of the synthetic pages; another than the table's to choose between candidates",
    )
    parser.add_argument("--kinds", default=",".join([*KINDS, *LOOKS, "real"]))
    args = parser.parse_args()
    chosen = args.kinds.split(",")
    if unknown := set(chosen) - {*KINDS, *LOOKS, "real"}:
        parser.error(f"no such kind of page: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = synthetic_cases(folder, args.pages, chosen, args.seed)
        groups: dict[str, list[Case]] = {"large": [], "text12": [], "look": []}
        for case in cases:
            kind = case.name.split("-")[0]
            group = "look" if kind in LOOKS else kind if kind in groups else "large"
            groups[group].append(case)
        records = []
        # Half as many again as the longest page has characters.
        for prompt, most_tokens in (("ocr", 800), ("markdown", 1100)):
            records += read_cases(groups["large"], args.model, prompt, most_tokens)
        records += read_cases(groups["text12"], args.model, "ocr", 1600)
        for prompt in ("ocr", "markdown"):
            records += read_cases(groups["look"], args.model, prompt, 1600)
        if "real" in chosen:
            records += read_cases(real_cases(folder), args.model, "ocr", 4000)
    done = table(records)
    print(done)
    if args.out:
        args.out.write_text(done + "\n", "utf-8")
        args.out.with_suffix(".jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in records), "utf-8"
        )


if __name__ == "__main__":
    main()
