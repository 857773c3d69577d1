"""The bundled pages and the golden page are what their script draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from ocr2cli.config import RasterConfig, TileConfig
from ocr2cli.document.tiles import make_views, pixels_sha256
from ocr2cli.eval import doctor
from ocr2cli.eval.facts import check_fact
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.provenance import versions
from ocr2cli.eval.read_suite import find_suite_folder, load_suite
from ocr2cli.eval.score import score_markdown


@pytest.fixture(scope="module")
def script(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pages", repo / "eval" / "make_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_pages"] = module
    spec.loader.exec_module(module)
    return module


def test_every_truth_is_the_text_that_was_drawn(script: ModuleType) -> None:
    cases = {case.id: case for case in load_suite(find_suite_folder("bundled")).cases}
    assert set(cases) == {page.id for page in script.PAGES}
    for page in script.PAGES:
        assert cases[page.id].truth == script.plain_truth(page)
        assert cases[page.id].truth_markdown == script.markdown_truth(page)


@pytest.mark.parametrize("name", ["note-door", "slide-bridge", "table-mill"])
def test_the_stored_pages_are_drawn_again(script: ModuleType, name: str) -> None:
    folder = find_suite_folder("bundled") / "pages"
    stored = Image.open(folder / f"{name}.png").convert("RGB")
    (page,) = [page for page in script.PAGES if page.id == name]
    drawn = script.draw_page(page)
    assert stored.size == drawn.size == page.size
    # stored with 32 colours; another FreeType may shade edges differently
    difference = np.abs(np.asarray(stored, np.int16) - np.asarray(drawn, np.int16))
    assert difference.mean() < 1.0


def test_a_perfect_reading_of_every_bundled_page_scores_perfectly() -> None:
    for case in load_suite(find_suite_folder("bundled")).cases:
        scores = score_markdown(case, case.truth_markdown).scores
        assert scores.whole_cer == 0.0, case.id
        assert scores.teds in (None, 1.0) and scores.facts in (None, 1.0)
        for named in case.facts:
            assert check_fact(named.fact, ""), f"{case.id}: {named.id} holds on an empty page"


def test_the_recorded_golden_page_is_drawn_and_cut_the_same_by_the_same_versions() -> None:
    recorded = doctor.read_goldens(doctor.goldens_file())["page"]
    page = load_page(doctor.golden_page(), RasterConfig())
    views = make_views(page, TileConfig())
    now = versions()
    changed = [p for p in ("pymupdf", "pillow") if now[p] != recorded["versions"][p]]
    assert views.grid == (2, 1)
    assert pixels_sha256(page.rgb) == recorded["raster"] or changed
    assert doctor.views_digest(views) == recorded["views"] or changed
