"""Pages and documents without a model, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.writer import Writer
from ocr2cli.pages import (
    Attempt,
    Box,
    FinishReason,
    PageError,
    PageImage,
    PageJob,
    PageKey,
    PageResult,
    Status,
)

WIDTH, HEIGHT = 200, 300


def job(document: str, page: int = 0, num_pages: int = 1, path: str = "/in/x.pdf") -> PageJob:
    return PageJob(PageKey(document, page), path, "ab" * 32, num_pages)


def page(document: str, index: int = 0, markdown: str = "text", **fields: object) -> PageResult:
    values: dict[str, object] = {
        "key": PageKey(document, index),
        "status": Status.OK,
        "markdown": markdown,
        "raw": markdown,
        "finish_reason": FinishReason.STOP,
        "page_size": (WIDTH, HEIGHT),
        "visual_tokens": 257,
        "new_tokens": 12,
        "confidence": 0.987654,
        "seconds": {"raster": 0.25, "decode": 1.5 + index},
        "attempts": (Attempt("first", FinishReason.STOP, 12),),
        "input_sha256": "ab" * 32,
    }
    return PageResult(**(values | fields))  # type: ignore[arg-type]


def failed(document: str, index: int = 0, code: str = "timeout", message: str = "x") -> PageResult:
    error = PageError(code, message)
    return page(document, index, "", status=Status.FAILED, finish_reason=None, error=error)


def figure_page(document: str, index: int = 0, target: str = "figure:1") -> PageResult:
    boxes = (Box("title", (0, 0, 999, 100)), Box("image", (100, 200, 500, 600)))
    return page(document, index, f"# T\n\n![]({target})\n\nafter", boxes=boxes)


def gradient(job: PageJob) -> PageImage:
    """A page whose every pixel says where it is: red = x, green = y modulo 256."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x, y % 256, np.full_like(x, job.key.page)], axis=-1).astype(np.uint8)
    return PageImage(job.key, rgb, 144.0)


def writer(out: Path, *formats: str, **settings: object) -> Writer:
    values = OutputSettings(formats or ("md", "jsonl"), "f" * 8, **settings)  # type: ignore[arg-type]
    return Writer(out, values, render=gradient)


def write(out: Path, *pages: PageResult, formats: tuple[str, ...] = (), path: str = "/in/x.pdf",
          **settings: object) -> Writer:  # fmt: skip
    """A whole run over `pages`, in the order given."""
    one = writer(out, *formats, **settings)
    counts = {p.key.document: 0 for p in pages}
    for p in pages:
        counts[p.key.document] += 1
    for p in pages:
        one.expect(job(p.key.document, p.key.page, counts[p.key.document], path))
        one.add(p)
    one.close()
    return one
