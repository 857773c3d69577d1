"""The dry run's arithmetic, what a machine's runs teach it, and forecast against actual."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pymupdf
import pytest

from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.forecast import expected, forecast
from ocr2cli.output.rates import Rates, load_rates, rates_of, store_rates
from ocr2cli.output.summary import Summary

REPO = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    """Two A4 pages: 200 characters of text layer, and none."""
    pdf = pymupdf.open()
    for words in ("ten letter" * 20, ""):
        page = pdf.new_page(width=595, height=842)
        page.insert_textbox((40, 40, 560, 800), words, fontsize=12)
    pdf.save(tmp_path / "two.pdf")
    return RunConfig(inputs=(str(tmp_path / "two.pdf"),), out=tmp_path / "out")


def run_of(pages: int, *, wall: float, new_tokens: int, encode: float, resumed: int = 0) -> Summary:
    return Summary(
        pages=pages, pages_resumed=resumed, visual_tokens=1121 * (pages - resumed),
        new_tokens=new_tokens, wall_seconds=wall, seconds=Counter(raster=0.0, encode=encode),
    )  # fmt: skip


def test_a_first_forecast_is_the_readmes_arithmetic(cfg: RunConfig) -> None:
    plan = forecast(cfg, price_per_hour=3.6)
    assert plan.pages == 2 and plan.visual_tokens == 2 * 1121
    assert 90 + 700 <= plan.new_tokens <= 110 + 700
    assert plan.seconds == pytest.approx(3 + 2 * 0.8 + plan.new_tokens * 0.0027)
    assert plan.money == pytest.approx(plan.seconds * 0.001)
    assert "after a run on this machine" in plan.basis


def test_a_run_teaches_the_machine_its_speed(cfg: RunConfig) -> None:
    # 10 pages in 42 s: 2 s to start, 20 s of encoding, so 20 s for 2,000 tokens.
    run = rates_of(run_of(10, wall=42.0, new_tokens=2000, encode=20.0), 2.0)
    assert run is not None
    store_rates(cfg, run)
    plan = forecast(cfg)
    assert plan.seconds == pytest.approx(2 + 2 * 2.0 + plan.new_tokens * 0.01)
    assert "10 pages" in plan.basis


def test_later_runs_weigh_more(cfg: RunConfig) -> None:
    for wall in (30.0, 10.0, 10.0, 10.0):
        run = rates_of(run_of(10, wall=wall, new_tokens=1000, encode=wall / 2), 0.0)
        assert run is not None
        store_rates(cfg, run)
    rates = load_rates(cfg)
    assert rates is not None
    seconds = rates.seconds(visual_tokens=11210, new_tokens=1000)
    assert 10 < seconds < 13


def test_a_short_run_an_empty_one_and_another_model_teach_nothing(cfg: RunConfig) -> None:
    assert rates_of(run_of(2, wall=9, new_tokens=50, encode=1), 1.0) is None
    assert rates_of(run_of(9, wall=9, new_tokens=0, encode=1, resumed=9), 1.0) is None
    store_rates(cfg, Rates(5, 5000, 500, 1, 2, 3))
    other = RunConfig(out=cfg.out, engine=EngineConfig(model="deepseek-ocr-2"))
    assert load_rates(other) is None


@pytest.mark.parametrize("junk", ["", "[]", '{"x": 1}', "\x00", '{"KEY": {"pages": "many"}}'])
def test_a_damaged_cache_is_no_cache(cfg: RunConfig, own_cache: Path, junk: str) -> None:
    store_rates(cfg, Rates(5, 5000, 500, 1, 2, 3))
    (file,) = (own_cache / "ocr2").glob("rates.json")
    file.write_text(junk.replace("KEY", next(iter(json.loads(file.read_text())))))
    assert load_rates(cfg) is None and forecast(cfg).pages == 2


def test_a_run_is_held_to_its_dry_run_or_to_earlier_runs(cfg: RunConfig) -> None:
    whole = run_of(2, wall=8, new_tokens=900, encode=2)
    assert expected(cfg, whole) == {}
    store_rates(cfg, Rates(10, 11210, 5000, 1.0, 10.0, 20.0))
    by_runs = expected(cfg, whole)
    assert (by_runs["pages"], by_runs["new_tokens"], by_runs["seconds"]) == (2, 1000, 7.0)
    plan = forecast(cfg)
    by_dry_run = expected(cfg, whole)
    assert by_dry_run["new_tokens"] == plan.new_tokens and "dry run" in by_dry_run["basis"]
    half = expected(cfg, run_of(2, wall=8, new_tokens=9, encode=2, resumed=1))
    assert half["pages"] == 1 and half["new_tokens"] == round(plan.new_tokens / 2)


def test_the_commands_tell_forecast_and_actual(tmp_path: Path, cfg: RunConfig) -> None:
    def ocr2(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ocr2cli", "run", *cfg.inputs, "-o", str(cfg.out), *argv]
        env = {**os.environ, "OCR2_RUNNER": "inline", "OCR2_MAX_NEW_TOKENS": "5"}
        return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)

    plan = json.loads(ocr2("--dry-run", "--json").stdout)
    assert not cfg.out.exists(), "a dry run leaves nothing in OUT"
    done = ocr2("--pages", "2")
    line = next(line for line in done.stderr.splitlines() if line.startswith("forecast "))
    assert f"{plan['predicted_new_tokens']:,} new tokens" in line and "it was 1 page" in line
    row = json.loads(ocr2("--json").stdout)
    assert row["forecast"]["pages"] == 1 and row["pages_resumed"] == 1
