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


@pytest.mark.parametrize(
    "setting", [{"dtype": "foo"}, {"rotate": "foo"}, {"text_layer": "foo"}, {"draft": "foo"}]
)
def test_a_word_that_a_setting_does_not_know_is_refused(setting) -> None:
    with pytest.raises(UsageError, match="choose from"):
        list(ocr2cli.read_pages(["a.pdf"], **setting))


def test_a_single_path_is_one_path_and_never_its_letters(tmp_path) -> None:
    page = tmp_path / "white.png"
    Image.new("RGB", (120, 80), "white").save(page)
    for given in (str(page), page, [page]):
        assert [result.key.document for result in ocr2cli.read_pages(given)] == ["white"]
    (document,) = ocr2cli.read_documents(str(page))
    assert (document.id, document.path) == ("white", str(page))


def test_read_reads_one_document_and_says_so_of_two(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (120, 80), "white").save(tmp_path / name)
    with pytest.raises(UsageError, match="holds 2: use read_documents"):
        ocr2cli.read(tmp_path)


def test_a_document_comes_back_whole_with_its_faults(tmp_path) -> None:
    Image.new("RGB", (120, 80), "white").save(tmp_path / "white.png")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    white, broken = ocr2cli.read_documents([tmp_path / "white.png", tmp_path / "broken.pdf"])
    assert white.pages[0].status == "blank" and ocr2cli.to_markdown(white).strip() == ""
    assert broken.pages[0].error is not None
