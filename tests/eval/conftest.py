"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from eval_toys import TRUTH, draw_page

from ocr2cli.eval.provenance import ModelFacts, versions


@pytest.fixture(scope="session")
def v2_model() -> ModelFacts:
    return ModelFacts("toy", "v2", "ab" * 32, "cpu", "float32", 1_000, False, versions())


@pytest.fixture
def make_suite(tmp_path: Path) -> Callable[..., Path]:
    """Writes a suite of one-line pages with the truth above; returns its folder."""

    def make(ids: Sequence[str] = ("one",), *, gates: str = "", case_extra: str = "") -> Path:
        folder = tmp_path / "suite"
        folder.mkdir()
        lines = ['name = "toy"']
        for name in ids:
            draw_page(folder / f"{name}.png", name)
            (folder / f"{name}.txt").write_text(TRUTH, encoding="utf-8")
            lines += [
                "[[case]]",
                f'id = {json.dumps(name)}\npage = "{name}.png"\ntruth = "{name}.txt"',
                case_extra,
            ]
        (folder / "suite.toml").write_text("\n".join(lines), encoding="utf-8")
        (folder / "gates.toml").write_text(gates or "gate = []", encoding="utf-8")
        return folder

    return make
