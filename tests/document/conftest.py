"""Small documents, made when a test asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pymupdf
import pytest

MakePdf = Callable[..., Path]


@pytest.fixture
def make_pdf(tmp_path: Path) -> MakePdf:
    """Write a PDF with one line of text a page: make_pdf("a.pdf", pages=3, size=(200, 100))."""

    def make(
        name: str, *, pages: int = 1, size: tuple[float, float] = (200, 100), **save: object
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with pymupdf.open() as document:
            for number in range(pages):
                page = document.new_page(width=size[0], height=size[1])
                page.insert_text((20, min(50, size[1] / 2)), f"Page {number + 1}", fontsize=12)
            path.write_bytes(document.tobytes(**save))
        return path

    return make
