"""A PDF's own text is a witness of what was left out or misread: a share and a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pymupdf
import pytest
from toy_engine import write_toy_model

from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig, RunConfig
from ocr2cli.document.source import find_jobs
from ocr2cli.engines.finish import PageFacts, share_found, to_result
from ocr2cli.engines.remote import PngWorker
from ocr2cli.pages import Ask, FinishReason, Generation, PageKey, PageResult, Status
from ocr2cli.text.prompt import prompt_text

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


def test_half_of_a_page_left_out_is_a_warning_with_its_share() -> None:
    page = read("\n".join(LINES[:4]))
    assert page.status is Status.OK and page.extra["own_text_found"] == pytest.approx(0.4, abs=0.1)
    assert page.warnings[0] == "odd" and page.warnings[1].startswith("only ")


def test_a_line_read_again_and_again_stands_for_no_other() -> None:
    page = read("\n".join([LINES[0]] * 10))
    assert page.extra["own_text_found"] < 0.3 and len(page.warnings) == 2


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
def test_a_page_that_was_read_has_its_share_and_no_warning(text: str) -> None:
    page = read(text)
    assert page.extra["own_text_found"] > 0.7 and page.warnings == ("odd",)


@pytest.mark.parametrize("own_text", ["", "page 7", "- " * 5000])
def test_a_pdf_with_hardly_any_text_of_its_own_says_nothing(own_text: str) -> None:
    page = read("", own_text)
    assert page.warnings == ("odd",) and page.extra == {}


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
    assert len(page.warnings) == int(is_compared)
