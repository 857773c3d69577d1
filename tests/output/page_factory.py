"""Pages and documents without a model, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.folder import STATE
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
from ocr2cli.text.grounding import parse, to_markdown

WIDTH, HEIGHT = 200, 300
SCRIPTS = "na\u00efve \u6f22\u5b57 \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f600"


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


def grounded(document: str, index: int, *blocks: tuple[str, list[int], str], **fields: object,
             ) -> PageResult:  # fmt: skip
    """A page as the model writes it: a label, a box and a text for each block."""
    raw = "".join(
        f"<|ref|>{label}<|/ref|><|det|>[{box}]<|/det|>\n{text}\n" for label, box, text in blocks
    )
    parsed = parse(raw)
    markdown = to_markdown(parsed.blocks, lambda n: f"figure:{n + 1}")
    return page(document, index, markdown, raw=raw, boxes=parsed.boxes, **fields)


def sample(index: int = 0, **fields: object) -> PageResult:
    """A page with a title, a text in every script, a figure and a table."""
    return grounded(
        "d", index,
        ("title", [100, 50, 900, 100], f"# Head {index}"),
        ("text", [100, 150, 900, 300], f"First words {SCRIPTS} and <b>bold</b> last words"),
        ("image", [100, 400, 500, 700], ""),
        ("table", [100, 750, 900, 900], "<table><tr><td>1</td><td>two</td></tr></table>"),
        **fields,
    )  # fmt: skip


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


def files(out: Path) -> list[str]:
    """Every file of OUT but those of the run's state."""
    return sorted(str(p.relative_to(out)) for p in out.rglob("*")
                  if p.is_file() and p.relative_to(out).parts[0] != STATE)  # fmt: skip


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
