"""What several formats have in common: grey pages, the facts said once, the time they take."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from page_factory import HEIGHT, WIDTH, failed, gradient, job, page, sample, write
from PIL import Image

from ocr2cli.output.assembly import OutputSettings
from ocr2cli.output.writer import Writer
from ocr2cli.pages import PageImage, PageJob
from ocr2cli.text.grounding import parse


def _photocopy(job: PageJob) -> PageImage:
    """The same page without its colours."""
    return replace(gradient(job), rgb=np.repeat(gradient(job).rgb[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("name", ["pdf", "html"])
@pytest.mark.parametrize(("render", "mode"), [(gradient, "RGB"), (_photocopy, "L")])
def test_a_page_without_colour_is_a_grey_jpeg(
    tmp_path: Path, name: str, render: Callable[[PageJob], PageImage], mode: str
) -> None:
    one = Writer(tmp_path, OutputSettings((name,), "f"), render=render)
    one.expect(job("d"))
    one.add(page("d"))
    one.close()
    if name == "html":
        (data,) = re.findall(r"base64,([^\"]+)", (tmp_path / "d.html").read_text())
        jpeg = base64.b64decode(data)
    else:
        with pymupdf.open(tmp_path / "d.ocr.pdf") as pdf:
            jpeg = pdf.extract_image(pdf[0].get_images()[0][0])["image"]
            seen = pdf[0].get_pixmap(dpi=144)
        assert abs(seen.pixel(150, 10)[0] - 150) < 12
        assert mode == "RGB" or len({*seen.pixel(150, 10)}) == 1
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.mode == mode


def test_json_is_one_object_with_the_documents_facts_said_once(tmp_path: Path) -> None:
    write(tmp_path, sample(0), failed("d", 1), formats=("json", "jsonl"), path="/in/d.pdf")
    row = json.loads((tmp_path / "d.json").read_text())
    assert (row["document"], row["source"], row["num_pages"]) == ("d", "d.pdf", 2)
    assert [p["page"] for p in row["pages"]] == [1, 2]
    first = row["pages"][0]
    assert first["figures"] == ["d.images/0001-1.png"] and first["page_size"] == [WIDTH, HEIGHT]
    assert not {"document", "fingerprint", "input_sha256"} & set(first)
    sidecar = json.loads((tmp_path / "d.jsonl").read_text().splitlines()[0])
    assert first["markdown"] == sidecar["markdown"] and first["boxes"] == sidecar["boxes"]


@pytest.mark.parametrize(
    "text",
    [
        "# a" + " " * 100_000 + "b",
        "-\n" * 40_000 + "x",
        "|" * 60_000 + "x",
        "- " * 50_000 + "x",
        "1. a\n\n" * 20_000 + "\n" * 50_000,
        "\n".join(" " * 2 * n + "- x" for n in range(300)),
        "*" * 60_000,
        "a " * 60_000,
        "\u6f22" * 60_000,
        "<table>" * 8_000,
        "<" * 100_000,
        "![](" * 20_000,
        "\\[" * 40_000,
        "\\(\\\\" * 20_000,
        "`" * 100_000,
        "[" * 100_000,
        "<b>" * 15_000 + "</i>" * 15_000,
    ],
    ids=lambda text: text[:4] + "...",
)
def test_no_page_text_takes_long_to_write(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    raw = f"<|ref|>text<|/ref|><|det|>[[1, 1, 500, 999]]<|/det|>\n{text}"
    boxes = parse(raw).boxes
    write(tmp_path, page("d", 0, text, raw=raw, boxes=boxes), formats=("md", "pdf", "html"))
    assert time.process_time() - start < 8
