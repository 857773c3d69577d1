"""What drafts bring: tokens accepted and time saved by kind of page, source and batch size.

    python tests/proofs/drafts.py [--model nano] [--batches 1 4 16] [--tokens 300]
    python tests/proofs/drafts.py --model random-full --dtype int8 --batches 1 32 --tokens 40

With random weights there is nothing to read: each page of a batch has a random prompt as long as a
page's, and the draft is what the model writes without one, with every twentieth token changed.
Prints the rows of the table in README.md beside it. Every drafted run must give the token ids of
the run without drafts; the script exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pymupdf
import torch
from torch import Tensor

from ocr2cli.bench.workload import RANDOM_MODELS, Subject, make_subject, make_work
from ocr2cli.config import DecodeConfig, EngineConfig, TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.engines.encoding import encode_pages
from ocr2cli.engines.loading import load_tokenizer
from ocr2cli.generate.generator import Generator, Statistics
from ocr2cli.generate.tuning import Tuning
from ocr2cli.pages import PageImage, PageKey
from ocr2cli.text.prompt import prompt_ids, prompt_text
from ocr2cli.text.tokenizer import Tokenizer
from ocr2cli.weights.hub import resolve_model

PROSE = """The harbour lay quiet in the morning. Seven boats had gone out before the sun was up, and
none of them would be back before the bell. An old man mended nets by the wall. He looked at the
sky, counted the gulls, and said that the wind would turn by noon."""
ROWS = [f"{day} {month}  Oil and coal  Paid in full" for month in ("May", "June")
        for day in range(1, 7)]  # fmt: skip
MODES = ("text-layer", "ngram", "auto")
# Of a random model's draft, every so many-th token is not what it writes.
WRONG_EVERY = 20


@dataclass(frozen=True, slots=True)
class Page:
    """prompt: [S, D]. text: of the PDF's own layer."""

    kind: str
    prompt: Tensor
    ids: list[int]
    text: list[int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    subject = make_subject(EngineConfig(model=asked.model, device="cpu", dtype=asked.dtype))
    if asked.model in RANDOM_MODELS:
        return 0 if all([compare_random(subject, n, asked.tokens) for n in asked.batches]) else 1
    pages = make_pages(subject, load_tokenizer(resolve_model(asked.model)))
    print("| page | drafts | batch | accepted | tokens a step | speed-up |")
    print("|---|---|---|---|---|---|")
    same = True
    for page in pages:
        for batch in asked.batches:
            same &= compare(subject, page, batch, asked.tokens)
    return 0 if same else 1


def compare(subject: Subject, page: Page, batch: int, tokens: int) -> bool:
    """Prints a row for each mode. True when all token ids are those of the plain run."""
    plain_ids, plain_s, _ = decode(subject, page, batch, tokens, "off", page.text)
    same = True
    for mode, text in drafts_for(page, plain_ids):
        ids, seconds, statistics = decode(subject, page, batch, tokens, mode, text)
        same &= ids == plain_ids
        name = "what it reads, as text layer" if text is plain_ids else mode
        rate = statistics.new_tokens / max(1, statistics.decode_rows)
        print(
            f"| {page.kind} | {name} | {batch} | {statistics.acceptance:.0%} | {rate:.2f} | "
            f"{plain_s / seconds:.2f} |{'' if ids == plain_ids else ' IDS DIFFER'}",
            flush=True,
        )
    return same


def compare_random(subject: Subject, batch: int, tokens: int) -> bool:
    """Prints the batch's rates without drafts and with; True when all token ids are the same."""
    prompts = list(make_work(subject, batch, tokens, encoded=1).prompts)
    decode_all(subject, prompts[:1], 2, "off", [None])  # kernels are made by their first call
    plain, plain_s, _ = decode_all(subject, prompts, tokens, "off", [None] * batch)
    drafts = [[t ^ (n % WRONG_EVERY == 7) for n, t in enumerate(ids)] for ids in plain]
    rows = [("off", plain, plain_s, None)]
    for mode in ("text-layer", "auto"):
        rows.append((mode, *decode_all(subject, prompts, tokens, mode, drafts)))
    for mode, ids, seconds, statistics in rows:
        accepted = "" if statistics is None else f"{statistics.acceptance:.0%}"
        print(
            f"| random prompts | {mode} | {batch} | {accepted} | "
            f"{batch * (tokens - 1) / seconds:.1f} tokens/s | {plain_s / seconds:.2f} |"
            f"{'' if ids == plain else ' IDS DIFFER'}",
            flush=True,
        )
    return all(ids == plain for _, ids, _, _ in rows)


def drafts_for(page: Page, plain_ids: list[int]) -> Iterator[tuple[str, list[int] | None]]:
    for mode in MODES:
        if page.text or mode == "ngram":
            yield mode, page.text
    # A model that reads the page as its text layer says: what drafts can bring at most.
    yield "text-layer", plain_ids


def decode(
    subject: Subject, page: Page, batch: int, tokens: int, mode: str, text: Sequence[int] | None
) -> tuple[list[int], float, Statistics]:
    """`batch` copies of the page, decoded together: (ids of the first, decode seconds, counts)."""
    ids, seconds, statistics = decode_all(
        subject, [page.prompt] * batch, tokens, mode, [text] * batch, page.ids
    )
    return ids[0], seconds, statistics


@torch.inference_mode()
def decode_all(
    subject: Subject,
    prompts: Sequence[Tensor],
    tokens: int,
    mode: str,
    drafts: Sequence[Sequence[int] | None],
    ids_of_prompt: Sequence[int] = (),
) -> tuple[list[list[int]], float, Statistics]:
    """All pages together: (ids of each, seconds of decoding, counts)."""
    config = DecodeConfig(max_new_tokens=tokens, draft=mode, detect_loops=False)
    longest = max(prompt.shape[0] for prompt in prompts) + tokens + 1
    generator = Generator(
        subject.model.decoder,
        config,
        eos_id=-1,
        num_slots=len(prompts),
        kv_tokens=len(prompts) * longest,
        # All prompts in the first step: what is timed afterwards has all pages in it.
        tuning=Tuning(prefill_tokens=len(prompts) * longest, draft_batch_limit=len(prompts)),
    )
    for number, (prompt, text) in enumerate(zip(prompts, drafts, strict=True)):
        ids = list(ids_of_prompt) or [5] * prompt.shape[0]
        generator.add(number, prompt, ids, draft=list(text) if text else None)
    finished = []
    started = time.perf_counter()
    while generator.has_work:
        finished += generator.step()
    prefill_s = sum(one.seconds["prefill"] for one in finished)
    seconds = time.perf_counter() - started - prefill_s
    written = {one.key: list(one.token_ids) for one in finished}
    return [written[number] for number in range(len(prompts))], seconds, generator.statistics


def make_pages(subject: Subject, tokenizer: Tokenizer) -> list[Page]:
    letter, table = draw("\n".join(PROSE.splitlines()), 17), draw("\n".join(ROWS), 17)
    made = [
        ("letter, born digital", letter, True),
        ("letter, scanned", letter, False),
        ("table, born digital", table, True),
        ("table, scanned", table, False),
    ]
    return [make_page(subject, tokenizer, *one) for one in made]


def draw(text: str, size: int) -> pymupdf.Page:
    document = pymupdf.open()
    page = document.new_page(width=595, height=420)
    page.insert_textbox(pymupdf.Rect(40, 40, 555, 400), text, fontsize=size, fontname="helv")
    return page


@torch.inference_mode()
def make_page(
    subject: Subject, tokenizer: Tokenizer, kind: str, drawn: pymupdf.Page, has_text: bool
) -> Page:
    pixels = drawn.get_pixmap(dpi=144)
    rgb = np.frombuffer(pixels.samples, np.uint8).reshape(pixels.height, pixels.width, 3)
    views = make_views(PageImage(PageKey("proof", 0), rgb.copy(), 144), TileConfig())
    (visual,) = encode_pages(subject.model.vision, [views])
    image_id = subject.config.image_token_id
    ids = prompt_ids(tokenizer, prompt_text("ocr"), visual.shape[0], image_id)
    ids_T = torch.tensor(ids)
    prompt = subject.model.decoder.embed(ids_T)
    prompt[ids_T == image_id] = visual
    text = tokenizer.encode(drawn.get_text()) if has_text else []
    return Page(kind, prompt, ids, list(text))


if __name__ == "__main__":
    sys.exit(main())
