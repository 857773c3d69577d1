"""One checkpoint in three forms reads a page with equal token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from toy_engine import write_toy_model

from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig
from ocr2cli.weights.convert import convert


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = Image.new("RGB", (900, 300), "white")
    ImageDraw.Draw(image).text((20, 20), "three forms", fill="black", font_size=60)
    path = tmp_path_factory.mktemp("page") / "page.png"
    image.save(path)
    return path


def token_ids(model: Path, page: Path, mode: str = "gundam") -> tuple[int, ...]:
    cfg = RunConfig(
        inputs=(str(page),), runner="inline", decode=DecodeConfig(max_new_tokens=24),
        engine=EngineConfig(model=str(model), prompt="ocr", dtype="f32", batch_size=1,
                            kv_tokens=2048, mode=mode),
    )  # fmt: skip
    (result,) = iter_pages(cfg)
    assert result.error is None, result.error
    return result.token_ids


def test_original_transformers_and_gguf_give_equal_token_ids(tmp_path: Path, page: Path) -> None:
    original = write_toy_model(tmp_path / "original")
    convert(original, tmp_path / "native", naming="transformers")
    convert(original, tmp_path / "toy.gguf")
    expected = token_ids(original, page)
    assert len(set(expected)) > 3, "a page of one token would prove nothing"
    assert token_ids(tmp_path / "native", page) == expected
    assert token_ids(tmp_path / "toy.gguf", page) == expected


@pytest.mark.parametrize("mode", ["gundam", "base", "tiny"])
def test_v1_reads_the_same_from_safetensors_and_gguf(
    tmp_path: Path, page: Path, mode: str
) -> None:
    """transformers has no v1, so there are two forms of it."""
    original = write_toy_model(tmp_path / "original", is_v1=True)
    convert(original, tmp_path / "toy.gguf")
    expected = token_ids(original, page, mode)
    assert len(set(expected)) > 3
    assert token_ids(tmp_path / "toy.gguf", page, mode) == expected
