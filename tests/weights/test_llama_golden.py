"""Our text against what llama.cpp wrote for the same toy weights and pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_reading import read
from llama_toys import draw_pages, inputs_digest, write_toy

from ocr2cli.weights.convert import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "llama" / "toys.json"
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="ascii"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module", params=["v2", "v1"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, version: str) -> Path:
    return write_toy(tmp_path_factory.mktemp("toys") / version, version)


def test_the_weights_and_pages_are_those_llama_cpp_read(golden, version, toy, pages) -> None:
    assert inputs_digest(toy, pages) == golden["inputs_sha256"][version]


def groups(
    golden: dict[str, Any], version: str, rule: str
) -> dict[tuple[str, ...], dict[str, str]]:
    """Texts by page, for each set of llama.cpp's differences that has to be put in."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for case in golden["cases"]:
        if (case["toy"], case["rule"]) == (version, rule):
            found.setdefault(tuple(case["variants"]), {})[case["page"]] = case["text"]
    return found


def test_we_write_what_llama_cpp_writes(golden, version, toy, pages) -> None:
    for variants, texts in groups(golden, version, "plain").items():
        inputs = [pages[page] for page in texts]
        ours = read(toy, inputs, num_tokens=NUM_TOKENS, dry=False, variants=variants)
        assert dict(zip(texts, ours, strict=True)) == texts, variants


def test_we_write_what_llama_cpp_writes_from_a_gguf_pair_under_dry(
    golden, version, toy, pages, tmp_path
) -> None:
    convert(toy, tmp_path / "toy.gguf")
    for variants, texts in groups(golden, version, "dry").items():
        inputs = [pages[page] for page in texts]
        pair = tmp_path / "toy.gguf"
        ours = read(pair, inputs, num_tokens=NUM_TOKENS, dry=True, variants=variants)
        assert dict(zip(texts, ours, strict=True)) == texts, variants
