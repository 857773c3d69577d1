"""The dry run's arithmetic, what a machine's runs teach it, and forecast against actual."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pymupdf
import pytest
from PIL import Image

from ocr2cli.cli.main import main
from ocr2cli.cli.progress import Progress
from ocr2cli.config import EngineConfig, RasterConfig, RunConfig
from ocr2cli.document import listing
from ocr2cli.document.source import find_jobs
from ocr2cli.engines.choose import plan_engine
from ocr2cli.errors import ModelError
from ocr2cli.forecast import Forecast, forecast
from ocr2cli.output.rates import (
    Rates,
    expected,
    load_forecast,
    load_rates,
    rates_of,
    store_forecast,
    store_rates,
)
from ocr2cli.output.summary import Summary
from ocr2cli.pages import PageKey, PageResult, Status
from ocr2cli.pipeline.journal import Journal

REPO = Path(__file__).parents[1]
sys.path.append(str(REPO / "tests" / "engines"))  # the toy model's own room

from toy_engine import write_toy_model  # noqa: E402


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
    assert plan.seconds == pytest.approx(3 + 2 * 0.76 + plan.new_tokens * 0.0039)
    assert plan.money == pytest.approx(plan.seconds * 0.001)
    assert "after a run on this machine" in plan.basis


@pytest.mark.parametrize(
    ("counts", "seconds", "price", "lines"),
    [
        (1, 4.2, 2.0, ["1 page of 1 document (1 of 1x1)", "1 tile, 1 visual token, about 1 new",
                       "about 4 seconds (so)", "less than 0.01 at 2 an hour"]),
        (1200, 5400.0, 2.0, ["1,200 pages of 1,200 documents", "1,200 tiles, 1,200 visual tokens",
                             "about 1.5 hours (so)", "about 3.00 at 2 an hour"]),
        (2, 240.0, 1.5, ["2 pages of 2 documents", "2 tiles", "about 4 minutes (so)",
                         "about 0.10 at 1.5 an hour"]),
    ],
)  # fmt: skip
def test_a_forecast_speaks_as_people_do(
    counts: int, seconds: float, price: float, lines: list[str]
) -> None:
    """It said "1 pages of 1 documents", "about 0.1 minutes" and "about 0.00 at 2 an hour"."""
    plan = Forecast(counts, counts, 0, [], counts, counts, counts, seconds, "so", price)
    plan.grids["1x1"] = counts
    told = plan.to_text().splitlines()
    assert all(text.startswith(line) for text, line in zip(told, lines, strict=True)), told


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("raise PageFault('unreadable', 'it is torn.')", "it is torn."),
        ("raise MemoryError", "not enough memory"),
        ("ctypes.PyDLL(None).sleep(600)", "took too long"),  # holds the interpreter's lock
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended the process that opened it"),
    ],
)
def test_a_page_that_cannot_be_looked_at_is_named_and_the_others_are_counted(
    deed: str, words: str, cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that MuPDF hangs or crashes on did so to the dry run."""
    (tmp_path / "hostile_page.py").write_text(
        textwrap.dedent(f"""
        import ctypes, os, signal
        from ocr2cli.document import listing, raster
        from ocr2cli.errors import PageFault

        listing.BASE_DEADLINE_S = 3

        def page_estimate(job, cfg):
            if job.key.page == 0:
                {deed}
            return 1190, 1684, 200

        raster.page_estimate = page_estimate
        """)
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(listing, "_BOOT", f"import hostile_page; {listing._BOOT}")
    plan = forecast(cfg)
    assert (plan.documents, plan.pages, plan.new_tokens) == (1, 1, 100)
    (told,) = plan.unreadable
    assert told.startswith("two page 1: ") and words in told
    assert children() == [], "the process that looked is gone"


def children() -> list[int]:
    task = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    return [int(pid) for pid in Path(task).read_text().split()]


def test_a_damaged_frame_of_a_tiff_costs_a_forecast_its_page_alone(tmp_path: Path) -> None:
    frames = [Image.new("L", (100, 60), shade) for shade in (0, 50)]
    path = tmp_path / "a.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = bytearray(path.read_bytes())
    directory = int.from_bytes(content[4:8], "little")
    pointer = directory + 2 + 12 * int.from_bytes(content[directory : directory + 2], "little")
    content[pointer : pointer + 4] = (len(content) + 99).to_bytes(4, "little")
    path.write_bytes(content)
    plan = forecast(RunConfig(inputs=(str(path),), out=tmp_path / "out"))
    assert plan.pages == 1 and "a page 2: " in plan.unreadable[0]


def test_a_page_with_a_word_has_a_label_and_a_box_beside_it(tmp_path: Path) -> None:
    """Of twelve such pages 39 tokens were expected, and 471 came."""
    pdf = pymupdf.open()
    for number in range(12):
        pdf.new_page().insert_text((72, 72), f"Page {number}")
    pdf.save(tmp_path / "sparse.pdf")
    cfg = RunConfig(inputs=(str(tmp_path / "sparse.pdf"),), out=tmp_path / "out")
    assert forecast(cfg).new_tokens == 12 * 40
    plain = replace(cfg, engine=replace(cfg.engine, prompt="ocr"))
    assert 12 <= forecast(plain).new_tokens < 12 * 5


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
    assert rates_of(run_of(3, wall=9, new_tokens=50, encode=1), 1.0) is not None
    assert rates_of(run_of(9, wall=9, new_tokens=0, encode=1, resumed=9), 1.0) is None
    assert rates_of(run_of(9, wall=9, new_tokens=0, encode=1), 1.0) is None
    store_rates(cfg, Rates(5, 5000, 500, 1, 2, 3))
    other = RunConfig(out=cfg.out, engine=EngineConfig(model="deepseek-ocr-2"))
    assert load_rates(other) is None


def test_text_has_a_share_of_the_time_however_long_encoding_and_starting_took() -> None:
    run = rates_of(run_of(10, wall=12.0, new_tokens=2000, encode=50.0), 2.0)
    assert run is not None and (run.vision_s, run.text_s) == pytest.approx((8.0, 2.0))
    run = rates_of(run_of(10, wall=1.0, new_tokens=2000, encode=0.0), 2.0)
    assert run is not None and 0 < run.text_s < 0.1


def test_the_last_run_tells_how_long_starting_takes_and_the_forecasts_kept_are_the_last(
    cfg: RunConfig,
) -> None:
    first, second = Rates(5, 5000, 500, 1.0, 2.0, 3.0), Rates(5, 5000, 500, 9.0, 2.0, 3.0)
    assert first.after(second) == Rates(7.5, 7500, 750, 9.0, 3.0, 4.5)
    row = {"pages": 2, "predicted_new_tokens": 9, "predicted_seconds": 1.0, "basis": "x"}
    folders = [replace(cfg, out=cfg.out / str(number)) for number in range(101)]
    for number, one in enumerate(folders):
        store_forecast(one, row)
        if number == 99:
            store_forecast(folders[0], row)  # made again: it is the newest now
    kept = [number for number, one in enumerate(folders) if load_forecast(one)]
    assert len(kept) == 100 and 1 not in kept


def test_pages_that_were_only_looked_up_teach_nothing(cfg: RunConfig) -> None:
    """A run out of the page cache seemed to read a page in no time, and so would the next."""
    read = PageResult(PageKey("a", 0), Status.OK, visual_tokens=1121, new_tokens=500,
                      seconds={"encode": 2.0})  # fmt: skip
    found = [replace(read, key=PageKey("a", n), extra=extra) for n, extra in
             enumerate(({"source": "cache"}, {"same_pixels": True}), start=1)]  # fmt: skip
    mixed = Summary(wall_seconds=20.0)
    for result in (read, *found, *(replace(read, key=PageKey("b", n)) for n in range(3))):
        mixed.count(result, is_resumed=False)
    assert (mixed.pages, mixed.new_tokens, mixed.seconds["encode"]) == (6, 2000, 8.0)
    rates = rates_of(mixed, 1.0)
    assert rates is not None and (rates.pages, rates.new_tokens) == (4, 2000)
    store_rates(cfg, rates)
    assert expected(cfg, mixed)["pages"] == 4
    for number in range(3):
        mixed.count(replace(found[0], key=PageKey("c", number)), is_resumed=False)
    assert rates_of(mixed, 1.0) is None, "the time went into looking up"


def test_pages_taken_from_a_text_layer_teach_nothing_of_the_model(cfg: RunConfig) -> None:
    """288 pages in seconds made every other forecast of the machine wrong."""
    read = PageResult(PageKey("a", 0), Status.OK, visual_tokens=1121, new_tokens=500,
                      seconds={"raster": 1.0, "encode": 2.0})  # fmt: skip
    taken = PageResult(PageKey("t", 0), Status.OK, seconds={"raster": 3.0},
                       extra={"source": "text-layer"})  # fmt: skip
    mixed = Summary(wall_seconds=20.0)
    for number in range(4):
        mixed.count(replace(read, key=PageKey("a", number)), is_resumed=False)
    for number in range(3):
        mixed.count(replace(taken, key=PageKey("t", number)), is_resumed=False)
    mixed.count(replace(taken, key=PageKey("t", 3)), is_resumed=True)
    assert (mixed.pages_read, mixed.pages_taken, mixed.pages_from_text_layer) == (7, 3, 4)
    rates = rates_of(mixed, 1.0)
    assert rates is not None and (rates.pages, rates.vision_s) == (4, 12.0)
    store_rates(cfg, rates)
    assert expected(cfg, mixed)["new_tokens"] == 2000
    for number in range(4, 6):
        mixed.count(replace(taken, key=PageKey("t", number)), is_resumed=False)
    assert rates_of(mixed, 1.0) is None, "the time went into text layers"
    only = Summary(wall_seconds=2.0)
    only.count(taken, is_resumed=False)
    assert expected(cfg, only) == {} and only.has_speed


@pytest.mark.parametrize("use", ["auto", "trust"])
def test_a_dry_run_asks_which_pages_take_the_pdfs_own_text(use: str, tmp_path: Path) -> None:
    """It spoke of hours for what takes seconds."""
    words = (
        "The committee met on 14 March 1987 and agreed, by 23 votes to 6, that the bridge over the "
        "quarry should be kept. Just two members objected: Mr Fox and Ms Vale, whose yard lies "
        "below it. Repairs will cost 9,250 pounds and take until October. Zinc is being ordered. "
    )
    with pymupdf.open() as pdf:
        for number in range(40):
            page = pdf.new_page(width=300, height=300)
            if number != 1:
                page.insert_textbox((20, 20, 280, 280), words, fontsize=10)
        pdf.save(tmp_path / "a.pdf")
    cfg = RunConfig(inputs=(str(tmp_path / "a.pdf"),), out=tmp_path / "out")
    cfg = replace(cfg, raster=RasterConfig(text_layer=use))
    plan = forecast(cfg)
    assert (plan.pages, plan.pages_from_text_layer) == (40, 39)
    assert sum(plan.grids.values()) == 1 and plan.new_tokens == 700
    assert plan.to_json()["pages_from_text_layer"] == 39
    assert "\nabout 39 of them taken from the PDFs' own text\n" in plan.to_text()
    assert plan.seconds is not None and plan.seconds < 20
    for other in (RasterConfig(), RasterConfig(text_layer="draft")):
        assert forecast(replace(cfg, raster=other)).pages_from_text_layer == 0
    described = replace(cfg, engine=EngineConfig(prompt="describe"))
    assert forecast(described).pages_from_text_layer == 0


def test_a_dry_run_with_no_page_for_the_model_needs_none_of_its_speed(tmp_path: Path) -> None:
    with pymupdf.open() as pdf:
        pdf.new_page().insert_text((40, 40), "a page of few words")
        pdf.save(tmp_path / "a.pdf")
    cfg = RunConfig(inputs=(str(tmp_path / "a.pdf"),), out=tmp_path / "out")
    cfg = replace(cfg, engine=EngineConfig(model="deepseek-ocr-2"))
    assert forecast(cfg).seconds is None
    plan = forecast(replace(cfg, raster=RasterConfig(text_layer="trust")))
    assert plan.seconds is not None and plan.seconds < 1 and "no page" in plan.basis


def test_a_page_read_by_an_earlier_run_does_not_say_how_long_this_one_took_to_start() -> None:
    progress = Progress()
    progress.started -= 5.0
    progress.page(PageResult(PageKey("a", 0), Status.OK, seconds={"encode": 60.0},
                             extra={"same_pixels": True}))  # fmt: skip
    assert progress.startup_s == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize(
    ("is_v1", "mode", "tokens"), [(False, "gundam", 1121), (True, "tiny", 73), (True, "base", 273)]
)
def test_a_forecast_cuts_pages_as_the_model_does(
    cfg: RunConfig, tmp_path: Path, is_v1: bool, mode: str, tokens: int
) -> None:
    model = write_toy_model(tmp_path / "toy", is_v1=is_v1)
    plan = forecast(replace(cfg, engine=EngineConfig(model=str(model), mode=mode)))
    assert plan.visual_tokens == 2 * tokens


def test_a_model_of_the_hub_is_forecast_before_it_is_downloaded(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, mode, tokens in (("deepseek-ocr-2", "gundam", 1121), ("deepseek-ocr", "tiny", 73)):
        plan = forecast(replace(cfg, engine=EngineConfig(model=name, mode=mode)))
        assert plan.visual_tokens == 2 * tokens


@pytest.mark.parametrize("name", ["no-such-model", "gone.gguf", "a:b/c"])
def test_a_forecast_for_a_model_that_is_nowhere_fails_as_the_run_would(
    cfg: RunConfig, name: str
) -> None:
    with pytest.raises(ModelError):
        forecast(replace(cfg, engine=EngineConfig(model=name)))
    there = EngineConfig(model=name, engine="openai", server="http://127.0.0.1:1")
    assert forecast(replace(cfg, engine=there)).pages == 2


def test_rates_that_cannot_be_kept_leave_nothing_behind(
    cfg: RunConfig, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", failing)
    store_rates(cfg, Rates(5, 5000, 500, 1, 2, 3))
    assert list((own_cache / "ocr2").iterdir()) == []


COUNTS = '"pages": 2, "predicted_new_tokens": %s, "predicted_seconds": 1, "basis": "x"'
JUNK = ["", "[]", '{"x": 1}', "\x00", '{"KEY": {"pages": "many"}}']
JUNK += ['{"KEY": {%s}}' % (COUNTS % value) for value in ("NaN", "Infinity", "1" + "0" * 400)]


@pytest.mark.parametrize("junk", JUNK)
def test_a_damaged_cache_is_no_cache(cfg: RunConfig, own_cache: Path, junk: str) -> None:
    store_rates(cfg, Rates(5, 5000, 500, 1, 2, 3))
    (file,) = (own_cache / "ocr2").glob("rates.json")
    file.write_text(junk.replace("KEY", next(iter(json.loads(file.read_text())))))
    assert load_rates(cfg) is None and forecast(cfg).pages == 2
    file = own_cache / "ocr2" / "forecasts.json"
    file.write_text(junk.replace("KEY", next(iter(json.loads(file.read_text())))))
    assert expected(cfg, run_of(2, wall=8, new_tokens=900, encode=2)) == {}


def test_the_speed_of_another_model_than_nano_is_not_forecast_before_its_first_run(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was nano's: 0.2 minutes for what takes two."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    other = replace(cfg, engine=EngineConfig(model="deepseek-ocr-2"))
    plan = forecast(other, price_per_hour=2)
    assert plan.to_json()["predicted_seconds"] is None is plan.to_json()["predicted_cost"]
    assert "no forecast of time" in plan.to_text() and "an hour" not in plan.to_text()
    run = run_of(2, wall=8, new_tokens=900, encode=2)
    run.forecast = expected(other, run)
    assert "new tokens, no time by the dry run" in run.to_text()
    store_rates(other, Rates(5, 5000, 500, 1, 2, 3))
    assert "seconds (as the last runs" in forecast(other).to_text()


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


def test_pages_that_are_done_are_counted_and_not_forecast(cfg: RunConfig) -> None:
    whole = forecast(cfg)
    with closing(Journal.open(cfg.out, plan_engine(cfg).fingerprint)) as journal:
        job = next(find_jobs(cfg.inputs, "", cfg.raster))
        journal.record(PageResult(job.key, Status.LOOP, input_sha256=job.sha256), "0" * 64)
    before = (cfg.out / ".ocr2" / "journal.jsonl").read_bytes()
    plan = forecast(cfg)
    assert (plan.pages, plan.pages_done, plan.new_tokens) == (1, 1, 700)
    assert plan.to_json()["pages_resumed"] == 1
    assert "1 page is done already" in plan.to_text()
    for other in (
        replace(cfg, resume=False), replace(cfg, retry_failed=True),
        replace(cfg, raster=RasterConfig(dpi=100)), replace(cfg, out=cfg.out / "else"),
    ):  # fmt: skip
        assert (forecast(other).pages, forecast(other).pages_done) == (2, 0)
    assert forecast(replace(cfg, resume=False)).new_tokens == whole.new_tokens
    assert (cfg.out / ".ocr2" / "journal.jsonl").read_bytes() == before
    assert not (cfg.out / "else").exists(), "a dry run leaves nothing in OUT"


def test_a_dry_run_with_all_pages_done_is_no_missing_input(cfg: RunConfig) -> None:
    with closing(Journal.open(cfg.out, plan_engine(cfg).fingerprint)) as journal:
        for job in find_jobs(cfg.inputs, "", cfg.raster):
            journal.record(PageResult(job.key, Status.OK, input_sha256=job.sha256), "0" * 64)
    plan = forecast(cfg)
    assert (plan.pages, plan.pages_done, plan.exit_code) == (0, 2, 0)
    assert plan.to_text() == "nothing is left to do, 0 seconds: 2 pages are done already"
    row = plan.to_json()
    assert (row["predicted_seconds"], row["basis"]) == (0.0, "nothing is left to do")


def test_a_dry_run_of_inputs_that_cannot_be_read_forecasts_no_time(cfg: RunConfig) -> None:
    plan = forecast(replace(cfg, inputs=(str(cfg.out / "gone.pdf"),)))
    first, second = plan.to_text().splitlines()
    assert first == "no page can be read" and second.startswith("unreadable: gone")
    assert plan.seconds == 0


def test_a_run_is_not_held_to_a_dry_run_of_other_work(cfg: RunConfig) -> None:
    """21,305 new tokens in 1,111 s had been forecast for another prompt without a limit."""
    plan = forecast(cfg)
    run = run_of(2, wall=8, new_tokens=900, encode=2)
    for other in (
        replace(cfg, inputs=(*cfg.inputs, "x.pdf")), replace(cfg, pages="1"),
        replace(cfg, out=cfg.out / "else"), replace(cfg, retry_failed=True),
        replace(cfg, decode=replace(cfg.decode, max_new_tokens=200)),
        replace(cfg, raster=RasterConfig(dpi=100)), replace(cfg, engine=EngineConfig(dtype="int8")),
        replace(cfg, engine=EngineConfig(prompt="ocr")), replace(cfg, resume=False),
    ):  # fmt: skip
        assert expected(other, run) == {}
        forecast(other)
    other_files = replace(cfg, formats=("html",), metrics_file="m.prom", min_confidence=0.9)
    assert expected(other_files, run)["new_tokens"] == plan.new_tokens


@pytest.mark.parametrize(
    "flags",
    ["--prompt foo", "--device xpu", "--metrics-file gone/m.prom", "--engine openai",
     "--prompt-text <image><image>"],
)  # fmt: skip
def test_a_dry_run_refuses_what_the_run_would(flags: str, cfg: RunConfig) -> None:
    argv = ("run", *cfg.inputs, "-o", str(cfg.out), "--dry-run", *flags.split())
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


def test_the_commands_tell_forecast_and_actual(tmp_path: Path, cfg: RunConfig) -> None:
    def ocr2(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ocr2cli", "run", *cfg.inputs, "-o", str(cfg.out), *argv]
        env = {**os.environ, "OCR2_RUNNER": "inline", "OCR2_MAX_NEW_TOKENS": "5"}
        return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)

    plan = json.loads(ocr2("--dry-run", "--json").stdout)
    assert not cfg.out.exists(), "a dry run leaves nothing in OUT"
    assert "forecast " not in ocr2("--pages", "2").stderr, "other work than the dry run's"
    done = ocr2()
    line = next(line for line in done.stderr.splitlines() if line.startswith("forecast "))
    assert "by the dry run" in line and "it was 1 page" in line
    assert f"{plan['predicted_new_tokens'] // 2:,} new tokens" in line
    row = json.loads((cfg.out / ".ocr2" / "summary.json").read_text())
    assert row["forecast"]["pages"] == 1 and row["pages_resumed"] == 1
    row = json.loads(ocr2("--json").stdout)
    assert json.loads((cfg.out / ".ocr2" / "summary.json").read_text()) == row
