"""Damaged files of every kind: a page, or one clear fault, and never anything else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocr2cli.config import RasterConfig
from ocr2cli.document.raster import page_estimate, render_page, text_layer
from ocr2cli.document.source import find_jobs
from ocr2cli.errors import PageFault

MakePdf = Callable[..., Path]
CFG = RasterConfig(max_pixels=200_000)
CODES = {"unreadable", "unsupported", "empty", "too_large", "encrypted"}


def _damaged(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(data[: draw.randrange(len(data))])
    if kind == 1:
        start = draw.randrange(len(data))
        return bytes(data[:start] + data[start + draw.randrange(1, 60) :])
    for _ in range(draw.choice((1, 3, 30))):
        # Digits for digits make lies: lengths, counts and offsets that point elsewhere.
        place = draw.randrange(len(data))
        is_digit = kind == 3 and chr(data[place]).isdigit()
        data[place] = draw.choice(b"0123456789") if is_digit else draw.randrange(256)
    return bytes(data)


def _outcomes(path: Path) -> list[str]:
    """What became of the file's first pages: "page", or the fault's code."""
    found = []
    for number, job in enumerate(find_jobs([str(path)], is_isolated=False)):
        if number == 3:
            break
        try:
            page_estimate(job, CFG)
            text_layer(job, CFG)
            rgb = render_page(job, CFG).rgb
            assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size
            found.append("page")
        except PageFault as fault:
            assert fault.message.isprintable() and path.name in fault.message
            found.append(fault.code)
    return found


def _check_all(content: bytes, path: Path, num_files: int) -> None:
    draw = random.Random(7)
    seen: set[str] = set()
    for _ in range(num_files):
        path.write_bytes(_damaged(content, draw))
        outcomes = _outcomes(path)
        assert outcomes, "a document without any result"
        seen.update(outcomes)
    assert seen <= CODES | {"page"} and "page" in seen and seen & CODES


def test_damaged_pdfs(make_pdf: MakePdf) -> None:
    path = make_pdf("a.pdf", pages=2, size=(100, 60))
    _check_all(path.read_bytes(), path, 120)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_damaged_images(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    _check_all(stream.getvalue(), tmp_path / f"a.{kind.lower()}", 60)
