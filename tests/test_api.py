"""The public API: ten names, documented, light to import, honest about unknown settings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

import ocr2cli
from ocr2cli.errors import UsageError


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(ocr2cli.__all__) == [
        "Box", "Document", "Ocr2Error", "PageError", "PageResult", "Status", "__version__",
        "read", "read_documents", "read_pages", "to_markdown",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["read", "read_documents", "read_pages", "to_markdown"])
def test_every_function_is_documented(name: str) -> None:
    assert len((getattr(ocr2cli, name).__doc__ or "").splitlines()) >= 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ocr2cli\n"
        "print({'torch', 'numpy', 'PIL', 'pymupdf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(UsageError, match="dpj"):
        list(ocr2cli.read_pages(["a.pdf"], dpj=200))


def test_a_document_comes_back_whole_with_its_faults(tmp_path) -> None:
    Image.new("RGB", (120, 80), "white").save(tmp_path / "white.png")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    white, broken = ocr2cli.read_documents([tmp_path / "white.png", tmp_path / "broken.pdf"])
    assert white.pages[0].status == "blank" and ocr2cli.to_markdown(white).strip() == ""
    assert broken.pages[0].error is not None
