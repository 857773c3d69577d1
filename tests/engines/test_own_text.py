"""A PDF's own text is a witness of what was left out or misread: a share, told in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pymupdf
import pytest
from toy_engine import write_toy_model

from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig, RunConfig, TileConfig
from ocr2cli.document.source import find_jobs
from ocr2cli.engines.finish import PageFacts, to_result
from ocr2cli.engines.raster import RasterWorker
from ocr2cli.engines.recovery import Ladder
from ocr2cli.engines.remote import PngWorker
from ocr2cli.output.page_cache import PageCache
from ocr2cli.pages import LITTLE_FOUND, Ask, FinishReason, Generation, PageKey, PageResult, Status
from ocr2cli.text.prompt import prompt_text
from ocr2cli.text.witness import share_found

LINES = (
    "a ferry left at dawn with seven crates", "nobody saw who had locked the archive",
    "the printer broke twice before Easter", "five old bridges grow yellow lichens",
    "my uncle kept bees behind his workshop", "rain fell upon fresh plaster all week",
    "every ledger ends in a double stroke", "which of these maps shows the quarry",
    "fog made both lighthouses useless", "zinc roofs hum when hail begins",
)  # fmt: skip
PAGE = "\n".join(LINES)


def read(text: str, own_text: str = PAGE) -> PageResult:
    written = Generation(PageKey("a", 0), (), text, FinishReason.STOP, 10, 5)
    return to_result([written], PageFacts(own_text=own_text, warnings=("odd",)))


def test_half_of_a_page_left_out_shows_in_its_share() -> None:
    page = read("\n".join(LINES[:4]))
    assert page.status is Status.OK and page.warnings == ("odd",)
    assert page.own_text_found == pytest.approx(0.4, abs=0.1)


def test_a_line_read_again_and_again_stands_for_no_other() -> None:
    page = read("\n".join([LINES[0]] * 10))
    assert page.extra["own_text_found"] < 0.3


@pytest.mark.parametrize(
    "text",
    [
        PAGE,
        "\n".join(reversed(LINES)),  # columns in another order
        PAGE.replace("r", "n"),  # a letter in twenty misread
        f"<table><tr><td>{PAGE.replace(chr(10), '</td></tr><tr><td>')}</td></tr></table>",
        PAGE.replace("fi", "\ufb01").upper(),  # a ligature; another case
        PAGE + "\nand as much again that the PDF does not say" * 20,
    ],
    ids=["whole", "order", "misread", "table", "forms", "more"],
)
def test_a_page_that_was_read_has_a_good_share(text: str) -> None:
    page = read(text)
    assert page.own_text_found is not None and page.own_text_found >= LITTLE_FOUND


@pytest.mark.parametrize("own_text", ["", "page 7", "- " * 5000])
def test_a_pdf_with_hardly_any_text_of_its_own_says_nothing(own_text: str) -> None:
    page = read("", own_text)
    assert page.own_text_found is None and page.extra == {}


def test_other_scripts_are_compared_without_spaces() -> None:
    chinese = "".join(chr(0x4E00 + 7 * n % 900) for n in range(300))
    broken = "\n".join(chinese[at : at + 20] for at in range(0, 300, 20))
    assert share_found(chinese, broken) == 1.0
    assert share_found(chinese, broken[:150]) == pytest.approx(0.48, abs=0.02)


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    page = document.new_page(width=400, height=300)
    page.insert_textbox((20, 20, 380, 280), PAGE, fontsize=12)
    document.save(tmp_path / "a.pdf")
    return tmp_path / "a.pdf"


CASES = [
    ("markdown", Ask(), True),
    ("ocr", Ask(), True),
    ("describe", Ask(), False),
    ("markdown", Ask(prompt=prompt_text("locate:a seal")), False),
    ("figure", Ask(prompt=prompt_text("ocr")), True),
    ("markdown", Ask(view="top"), False),
]


@pytest.mark.parametrize(("prompt", "ask", "is_compared"), CASES)
def test_only_a_page_of_which_all_is_asked_is_compared(pdf, prompt, ask, is_compared) -> None:
    (job,) = find_jobs([str(pdf)], is_isolated=False)
    remote = PngWorker(RasterConfig(), prompt_text(prompt)).read(replace(job, ask=ask))
    assert ("the quarry" in remote.facts.own_text) is is_compared


@pytest.mark.parametrize(("prompt", "ask", "is_compared"), CASES)
def test_the_witness_goes_with_its_page_through_the_engine(
    pdf: Path, tmp_path: Path, prompt: str, ask: Ask, is_compared: bool
) -> None:
    cfg = RunConfig(
        inputs=(str(pdf),), runner="inline", decode=DecodeConfig(max_new_tokens=8),
        engine=EngineConfig(
            model=str(write_toy_model(tmp_path / "toy")), dtype="f32", prompt=prompt
        ),
    )  # fmt: skip
    (job,) = find_jobs([str(pdf)], is_isolated=False)
    (page,) = iter_pages(cfg, [replace(job, ask=ask)])
    assert ("own_text_found" in page.extra) is is_compared


def test_what_a_page_says_of_smaller_and_larger_is_no_tag() -> None:
    """All between the signs was taken for one, and a perfect reading for a tenth of the page."""
    text = f"slow where p < 5 bar holds. {PAGE} quick for p > 9 bar, a &lt; b &amp; c"
    assert share_found(text.replace("&lt;", "<").replace("&amp;", "&"), text) == 1.0


def test_a_page_out_of_the_cache_is_compared_with_its_own_document(
    pdf: Path, tmp_path: Path
) -> None:
    """A scan of equal pixels got the share of the PDF that had been read before it."""
    (job,) = find_jobs([str(pdf)], is_isolated=False)
    cache = PageCache(tmp_path / "cache", "f", 10**6)
    worker = RasterWorker(RasterConfig(), TileConfig(), prompt=prompt_text("ocr"), cache=cache)
    pixels = worker.read(job).pixels_sha256
    cache.store(replace(read("\n".join(LINES[:4])), pixels_sha256=pixels))
    assert worker.read(job).own_text_found == pytest.approx(0.4, abs=0.1)
    pymupdf.open(pdf)[0].get_pixmap(dpi=144).save(tmp_path / "scan.png")
    (scan,) = find_jobs([str(tmp_path / "scan.png")], is_isolated=False)
    known = worker.read(scan)
    assert known.extra == {"source": "cache"} and known.markdown.startswith("a ferry")


@pytest.mark.parametrize(("num_parts", "expected"), [(1, 0.97), (2, None)])
def test_a_recovered_page_has_not_the_share_of_its_loop(pdf, num_parts, expected) -> None:
    (job,) = find_jobs([str(pdf)], is_isolated=False)
    loop = replace(read("no no no"), key=job.key, status=Status.LOOP)
    good = replace(read(PAGE), key=job.key, extra={"own_text_found": 0.97})
    ladder = Ladder()
    assert loop.own_text_found is not None and ladder.take(job, loop) is None
    if num_parts == 2:
        assert ladder.next_job() is not None and ladder.take(job, loop) is None
    final = None
    while final is None:
        assert ladder.next_job() is not None
        final = ladder.take(job, good)
    assert final.status is Status.RECOVERED and final.own_text_found == expected
