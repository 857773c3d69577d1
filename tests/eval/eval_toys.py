"""Toy readers and pages for the evaluation's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ocr2cli.eval.cases import Case
from ocr2cli.pages import FinishReason, PageError, PageKey, PageResult, Status

# What the seed suite looks up: names and digests of llama.cpp's files.
SEED_FILES = {
    "test-1.jpeg": "2dff664c0c8aaea18aff8cbe7e868845b775e90cdd7a0bac98df709b131deaa3",
    "test-1-positive.png": "02ef128ec125a13f4ebca550fab584d189a794dcc597595b93da3d527593f343",
    "test-1-ground-truth.txt": "6d4195935927e7fd6dfd7e8800c630a3fbde4882dca2a1b236d2e6bcaa957469",
}

TRUTH = (
    "The boat came in late on Monday and the nets were still wet when we hung them up. "
    "Forty two crates of herring went to the market before noon. The rest we salted."
)

Reader = Callable[[Sequence[Case]], list[PageResult]]


def page_result(case: Case, markdown: str, **changes: object) -> PageResult:
    """A page that was read to its end."""
    values: dict[str, object] = {
        "key": PageKey(case.id, case.page),
        "status": Status.OK,
        "markdown": markdown,
        "raw": markdown,
        "finish_reason": FinishReason.STOP,
        "token_ids": tuple(markdown.encode()),
    }
    return PageResult(**{**values, **changes})  # type: ignore[arg-type]


def failed_result(case: Case) -> PageResult:
    error = PageError("timeout", "the page took longer than 600 s")
    return PageResult(key=PageKey(case.id, case.page), status=Status.FAILED, error=error)


def reads(text: str) -> Reader:
    """A reader that writes the same text for every page."""
    return lambda cases: [page_result(case, text) for case in cases]


def reads_truth() -> Reader:
    """A reader without fault."""
    return lambda cases: [page_result(case, case.truth_markdown or case.truth) for case in cases]


def draw_page(path: Path, text: str, size: tuple[int, int] = (320, 200)) -> None:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 40), text, fill="black", font_size=40)
    image.save(path)
