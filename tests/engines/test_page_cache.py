"""A page read once is not read again, by any run; a damaged entry is dropped, not believed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pymupdf
import pytest
from PIL import Image, ImageDraw
from toy_engine import write_toy_model

from ocr2cli.batch import run_batch
from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig, RunConfig, TileConfig
from ocr2cli.document.source import find_jobs
from ocr2cli.engines.raster import RasterWorker
from ocr2cli.engines.recovery import TURNED
from ocr2cli.output.page_cache import PageCache
from ocr2cli.output.parts import to_json
from ocr2cli.pages import Attempt, PageKey, PageResult, Status, Unchanged
from ocr2cli.text.prompt import PROMPTS

MARKDOWN = PROMPTS["markdown"]
GOOD = PageResult(PageKey("a", 2), Status.OK, markdown="text", pixels_sha256="p" * 64,
                  input_sha256="i" * 64, seconds={"decode": 1.0})  # fmt: skip


def toy_run(folder: Path, name: str) -> RunConfig:
    """The toy model ends pages of its own accord here: its end token is the likeliest one."""
    stuck = write_toy_model(folder / "toy", scale=0.0)
    return RunConfig(
        inputs=(str(folder / name),), out=folder / "one", runner="inline",
        engine=EngineConfig(model=str(stuck), dtype="f32", batch_size=1, kv_tokens=2048),
        decode=DecodeConfig(no_repeat_ngram=3), cache=str(folder / "cache"),
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> PageCache:
    return PageCache(tmp_path / "cache", "fingerprint", 10_000_000)


def test_a_page_is_found_under_its_pixels_with_its_new_key(cache: PageCache) -> None:
    cache.store(GOOD)
    found = cache.find(PageKey("b", 7), "p" * 64)
    assert found is not None and found.key == PageKey("b", 7) and found.markdown == "text"
    assert found.extra["source"] == "cache" and found.input_sha256 == ""


def test_an_entry_says_nothing_of_the_run_that_stored_it(cache: PageCache) -> None:
    """That the file had changed there, what was wrong with it: a run that found it stopped."""
    marked = replace(GOOD, warnings=("rotated",), extra={"same_pixels": True})
    cache.store(marked)
    (entry,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert b"same_pixels" not in entry.read_bytes() and b"rotated" not in entry.read_bytes()
    body = to_json(marked)  # as it was stored once
    entry.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    found = cache.find(PageKey("b", 0), "p" * 64)
    assert found is not None and found.extra == {"source": "cache"} and found.warnings == ()


def test_other_pixels_or_another_fingerprint_find_nothing(cache: PageCache) -> None:
    cache.store(GOOD)
    assert cache.find(PageKey("b", 0), "q" * 64) is None
    assert PageCache(cache.folder, "other", 10**7).find(PageKey("b", 0), "p" * 64) is None


@pytest.mark.parametrize("status", [Status.LOOP, Status.TRUNCATED, Status.FAILED])
def test_a_page_that_needs_a_look_is_not_kept(cache: PageCache, status: Status) -> None:
    cache.store(replace(GOOD, status=status))
    assert cache.find(PageKey("b", 0), "p" * 64) is None


def test_a_damaged_entry_is_dropped(cache: PageCache) -> None:
    cache.store(GOOD)
    (entry,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    for damage in (entry.read_bytes()[:-3], b"", entry.read_bytes().replace(b"text", b"lies")):
        entry.write_bytes(damage)
        assert cache.find(PageKey("b", 0), "p" * 64) is None and not entry.exists()


@pytest.mark.parametrize("fault", [PermissionError(1, "no"), FileNotFoundError(2, "gone")])
def test_an_entry_that_cannot_be_marked_or_removed_costs_no_page(
    cache: PageCache, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    """Another user's folder, or another run that trimmed it a moment ago."""

    def refuse(*_: object, **__: object) -> None:
        raise fault

    cache.store(GOOD)
    monkeypatch.setattr("os.utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    found = cache.find(PageKey("b", 0), "p" * 64)
    assert found is not None and found.markdown == "text"
    (entry,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    entry.write_bytes(b"damaged")
    assert cache.find(PageKey("b", 0), "p" * 64) is None


def test_the_folder_stays_under_its_limit(tmp_path: Path) -> None:
    small = PageCache(tmp_path, "f", 20_000)
    for number in range(200):
        small.store(replace(GOOD, markdown="x" * 500, pixels_sha256=f"{number:064d}"))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 20_000 + 64 * 1_500


def test_an_entry_that_cannot_be_removed_costs_another_one_not_the_run(tmp_path: Path) -> None:
    """Another user's entry, or a folder of that name: it stays, younger ones make the room."""
    small = PageCache(tmp_path, "f", 4_000)
    small.store(replace(GOOD, markdown="x" * 1_500))
    (old,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    stuck = tmp_path / "00" / ("0" * 64)
    stuck.mkdir(parents=True)
    (stuck / "x").write_text("x")
    for entry in (stuck, old):
        os.utime(entry, (0, 0))
    for number in range(64):
        small.store(replace(GOOD, markdown="x" * 1_500, pixels_sha256=f"{number:064d}"))
    assert stuck.is_dir() and not old.exists()


@pytest.mark.parametrize(
    ("use", "text"), [("trust", "new"), ("auto", None), ("never", None), ("draft", None)]
)
def test_equal_pixels_keep_no_text_that_a_text_layer_gave(
    tmp_path: Path, cache: PageCache, use: str, text: str | None
) -> None:
    """The text layer of a PDF was mended, its pixels stayed: the old text stayed too."""
    pdf = pymupdf.open()
    page = pdf.new_page(width=200, height=100)
    page.draw_rect((20, 20, 120, 60), fill=(0, 0, 0))
    page.insert_text((20, 90), "new", render_mode=3)  # invisible
    pdf.save(tmp_path / "a.pdf")
    (job,) = find_jobs([str(tmp_path / "a.pdf")], is_isolated=False)
    worker = RasterWorker(RasterConfig(text_layer=use), TileConfig(), prompt=MARKDOWN)
    pixels = worker.read(job).pixels_sha256
    again = worker.read(replace(job, known_pixels=pixels))
    if text:
        assert again.markdown.strip() == text and again.extra == {"source": "text-layer"}
    assert isinstance(again, Unchanged) == (use in ("never", "draft"))
    cache.store(replace(GOOD, pixels_sha256=pixels))
    found = RasterWorker(
        RasterConfig(text_layer=use), TileConfig(), prompt=MARKDOWN, cache=cache
    ).read(job)
    assert found.markdown.strip() == (text or "text")


def test_a_page_found_keeps_its_own_warnings_and_no_others(
    tmp_path: Path, cache: PageCache
) -> None:
    page = Image.new("RGBA", (300, 200), (255, 255, 255, 0))
    page.paste("black", (20, 20, 120, 60))
    page.save(tmp_path / "page.png")
    (job,) = find_jobs([str(tmp_path / "page.png")], is_isolated=False)
    views = RasterWorker(RasterConfig(), TileConfig()).read(job)
    assert len(views.warnings) == 1
    others = replace(GOOD, pixels_sha256=views.pixels_sha256, warnings=("another page's",))
    cache.store(others)
    worker = RasterWorker(RasterConfig(), TileConfig(), cache=cache)
    assert worker.read(job).warnings == views.warnings
    cache.store(replace(others, attempts=(Attempt("first", None), Attempt("upright", None))))
    assert worker.read(job).warnings == (*views.warnings, TURNED)
    unchanged = worker.read(replace(job, known_pixels=views.pixels_sha256))
    assert unchanged.warnings == views.warnings


def test_a_changed_files_old_pages_may_be_cached_and_found(tmp_path: Path) -> None:
    """Pages that the file kept went into the cache with a mark, at which every later run ended."""
    pdf = pymupdf.open()
    cfg = toy_run(tmp_path, "a.pdf")
    for number in range(2):
        page = pdf.new_page(width=200, height=100)
        page.draw_rect((20, 20, 60 + 60 * number, 60), fill=(0, 0, 0))
        pdf.save(tmp_path / "a.pdf")
        summary = run_batch(replace(cfg, cache=cfg.cache if number else ""))
    assert summary.pages_reused == 1
    for out in ("two", "one"):
        found = run_batch(replace(cfg, out=tmp_path / out, resume=False))
        assert (found.by_status["ok"], found.pages_reused) == (2, 2)


def test_a_second_run_into_another_folder_reads_nothing_again(tmp_path: Path) -> None:
    page = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(page).text((20, 20), "cached", fill="black", font_size=40)
    page.save(tmp_path / "page.png")
    cfg = toy_run(tmp_path, "page.png")
    first = run_batch(cfg)
    assert first.new_tokens > 0 and first.by_status["ok"] == 1
    second = run_batch(replace(cfg, out=tmp_path / "two"))
    assert second.seconds.get("decode", 0) == 0 and second.by_status["ok"] == 1
    one, two = ((tmp_path / name / "page.md").read_bytes() for name in ("one", "two"))
    assert one == two
    page.save(tmp_path / "page.png", compress_level=1)  # another file, the same pixels
    third = run_batch(replace(cfg, cache=""))
    assert (third.pages_resumed, (tmp_path / "one" / "page.md").read_bytes()) == (0, one)
    for reused in (second, third):
        assert (reused.pages_reused, reused.pages_read, reused.new_tokens) == (1, 0, 0)
