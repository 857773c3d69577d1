"""The native engine on a toy model: real pixels, real stages, random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from toy_engine import draw_pages, write_toy_model

from ocr2cli.batch import iter_pages
from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig, TileConfig
from ocr2cli.document.tiles import make_views
from ocr2cli.engines.choose import plan_engine
from ocr2cli.engines.native import DecodeWorker, EncodeWorker
from ocr2cli.engines.recovery import NOTHING
from ocr2cli.errors import UsageError
from ocr2cli.generate.track import NAN_LOGITS, Finished
from ocr2cli.pages import Ask, FinishReason, PageError, PageImage, PageKey, PageResult, Status


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small pages (one view each), one page with tiles, a blank one and a broken one."""
    folder = tmp_path_factory.mktemp("pages")
    sizes = {"a": (320, 240), "b": (240, 320), "tiled": (900, 300)}
    draw_pages(folder, sizes)
    Image.new("RGB", (200, 200), "white").save(folder / "white.png")
    (folder / "x-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return sorted(folder.iterdir())


def config(model: Path, pages: list[Path], **decode: object) -> RunConfig:
    return RunConfig(
        inputs=tuple(map(str, pages)),
        runner="inline",
        engine=EngineConfig(model=str(model), dtype="f32", batch_size=3, kv_tokens=6000),
        decode=DecodeConfig(max_new_tokens=12, **decode),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def results(model: Path, pages: list[Path]) -> dict[str, PageResult]:
    return {r.key.document: r for r in iter_pages(config(model, pages))}


def test_every_input_has_exactly_one_result(results, pages) -> None:
    assert list(results) == [page.stem for page in pages]


def test_a_blank_page_is_blank_and_never_asks_the_model(results) -> None:
    assert results["white"].status is Status.BLANK
    assert results["white"].new_tokens == 0 and results["white"].markdown == ""


def test_a_broken_page_is_failed_with_its_reason(results) -> None:
    page = results["x-broken"]
    assert page.status is Status.FAILED and page.error and page.error.code == "unreadable"


def test_a_page_cut_by_the_token_limit_is_truncated_never_ok(results) -> None:
    assert results["a"].finish_reason is FinishReason.LENGTH
    assert results["a"].status is Status.TRUNCATED and results["a"].new_tokens == 12


def test_a_page_with_tiles_has_more_visual_tokens(results) -> None:
    assert results["a"].visual_tokens == 257 and results["a"].grid == (1, 1)
    assert results["tiled"].visual_tokens == 257 + 144 * 3 and results["tiled"].grid == (3, 1)


def test_confidence_and_stage_times_are_recorded(results) -> None:
    page = results["tiled"]
    assert page.confidence is not None and 0 < page.confidence <= 1
    assert page.confidence_p5 is not None and page.confidence_p5 <= page.confidence
    assert {"raster", "tile", "encode", "prefill", "decode"} <= set(page.seconds)


def test_a_page_reads_the_same_whatever_shares_its_batch(model, pages, results) -> None:
    alone = replace(config(model, pages[:1]), engine=EngineConfig(
        model=str(model), dtype="f32", batch_size=1, kv_tokens=2048))  # fmt: skip
    (only,) = iter_pages(alone)
    assert only.token_ids == results["a"].token_ids


def test_a_kv_budget_shortens_no_page(model, pages, results) -> None:
    """The page was cut where the budget ended, and a rerun without --kv-tokens kept the rest away:
    the fingerprint knows of no budget."""
    cfg = config(model, pages[:1])
    small = replace(cfg.engine, kv_tokens=results["a"].prompt_tokens + 5)
    (page,) = iter_pages(replace(cfg, engine=small))
    assert page.token_ids == results["a"].token_ids and page.new_tokens == 12


def test_a_page_larger_than_the_kv_budget_ends_no_run(model, pages, results) -> None:
    """It ended the run with exit 6; now it is read alone."""
    cfg = config(model, pages)
    small = replace(cfg.engine, kv_tokens=results["a"].prompt_tokens + 5)
    assert small.kv_tokens < results["tiled"].prompt_tokens
    again = {r.key.document: r for r in iter_pages(replace(cfg, engine=small))}
    assert {k: r.token_ids for k, r in again.items()} == {
        k: r.token_ids for k, r in results.items()
    }


def test_worker_processes_give_the_same_tokens(model, pages, results) -> None:
    cfg = replace(config(model, pages), runner="local")
    again = {r.key.document: r for r in iter_pages(cfg)}
    assert {k: r.token_ids for k, r in again.items()} == {
        k: r.token_ids for k, r in results.items()
    }


def test_a_looping_page_is_recovered_by_a_named_step(tmp_path, pages) -> None:
    """Weights of zero write token 0 for ever, until a rule forbids it: then the end token wins."""
    stuck = write_toy_model(tmp_path / "stuck", scale=0.0)
    cfg = config(stuck, [pages[2]], no_repeat_ngram=0)
    cfg = replace(cfg, decode=replace(cfg.decode, max_new_tokens=600))
    (page,) = iter_pages(cfg)
    assert page.status is Status.RECOVERED
    assert [(a.step, a.finish_reason) for a in page.attempts] == [
        ("first", FinishReason.LOOP),
        ("wider-ngram", FinishReason.STOP),
    ]
    (once,) = iter_pages(replace(cfg, recover_loops=False))
    assert once.status is Status.LOOP and [a.step for a in once.attempts] == ["first"]


class Scripted:
    """A generator whose sequences end as told; the n-th writes the text "n", or none."""

    def __init__(self, worker: DecodeWorker, *ends: FinishReason | PageError | str) -> None:
        self.worker, self.ends = worker, ends
        self.num_added = 0
        self.waiting: list[Finished] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, key: PageKey, x_TD: torch.Tensor, ids: list[int], **rest: Any) -> None:
        end = self.ends[self.num_added]
        self.num_added += 1
        text = tuple(self.worker.tokenizer.encode("" if end is EMPTY else str(self.num_added)))
        end = STOP if end is EMPTY else end
        seconds = {"decode": 1.0}
        reason, error = (None, end) if isinstance(end, PageError) else (end, None)
        self.waiting.append(Finished(key, text, (-0.1,), reason, len(ids), seconds, error))

    def step(self) -> list[Finished]:
        done, self.waiting = self.waiting, []
        return done


def read_with_ends(
    model: Path, *ends: FinishReason | PageError | str, **decoding: Any
) -> PageResult:
    """A page of three tiles whose tries end so."""
    encode, decode = plan_engine(config(model, [], **decoding)).stages[1:]
    page = PageImage(PageKey("p", 0), np.full((300, 900, 3), 90, np.uint8), 144.0)
    encoded = Listed([make_views(page, TileConfig())])
    encode.make_worker().run(encoded, encoded.emit)
    worker: Any = decode.make_worker()
    worker.generator = Scripted(worker, *ends)
    read = Listed(encoded.emitted)
    worker.run(read, read.emit)
    (result,) = read.emitted
    assert worker.generator.num_added == len(ends)
    return result


STOP, LENGTH, LOOP = FinishReason.STOP, FinishReason.LENGTH, FinishReason.LOOP
EMPTY = "at once"


@pytest.mark.parametrize("ends", [(LOOP, LOOP, LOOP), (LOOP, LENGTH, LENGTH), (LOOP, LOOP, LENGTH)])
def test_a_page_whose_tries_all_fail_keeps_its_first_reading(model: Path, ends) -> None:
    """It kept the last, which is the global view's alone, with that view's count of tokens."""
    page = read_with_ends(model, *ends)
    assert (page.status, page.finish_reason, page.raw) == (Status.LOOP, LOOP, "1")
    assert page.grid == (3, 1) and page.visual_tokens == 257 + 144 * 3 < page.prompt_tokens
    assert [a.step for a in page.attempts] == ["first", "wider-ngram", "global-view"]
    assert tuple(a.finish_reason for a in page.attempts) == ends
    assert page.seconds["decode"] == 3.0


def test_a_second_try_that_reaches_the_token_limit_is_followed_by_the_next(model: Path) -> None:
    page = read_with_ends(model, LOOP, LENGTH, STOP)
    assert (page.status, page.raw, page.visual_tokens) == (Status.RECOVERED, "3", 257)


@pytest.mark.parametrize("ends", [(LOOP, NAN_LOGITS, LOOP), (LOOP, LOOP, NAN_LOGITS)])
def test_a_later_try_that_breaks_off_is_noted_and_the_first_reading_kept(model: Path, ends) -> None:
    """The page failed, without a text and without its tries."""
    page = read_with_ends(model, *ends)
    assert (page.status, page.raw, page.error) == (Status.LOOP, "1", None)
    reasons = [None if end is NAN_LOGITS else end for end in ends]
    assert [a.finish_reason for a in page.attempts] == reasons
    assert [a.step for a in page.attempts] == ["first", "wider-ngram", "global-view"]
    notes = [NAN_LOGITS.message if end is NAN_LOGITS else "" for end in ends]
    assert [a.note for a in page.attempts] == notes
    assert page.seconds["decode"] == 3.0


def test_a_try_after_one_that_broke_off_may_read_the_page(model: Path) -> None:
    page = read_with_ends(model, LOOP, NAN_LOGITS, STOP)
    assert (page.status, page.raw, page.visual_tokens) == (Status.RECOVERED, "3", 257)
    assert len(page.attempts) == 3


def test_a_try_that_writes_nothing_has_not_read_a_page_that_looped(model: Path) -> None:
    """The page counted as recovered, and the first try's text was gone without a word."""
    page = read_with_ends(model, LOOP, EMPTY, STOP)
    assert (page.status, page.raw) == (Status.RECOVERED, "3")
    page = read_with_ends(model, LOOP, EMPTY, EMPTY)
    assert (page.status, page.raw) == (Status.LOOP, "1")
    assert [a.note for a in page.attempts] == ["", NOTHING, NOTHING]


def test_a_first_try_that_breaks_off_fails_the_page(model: Path) -> None:
    page = read_with_ends(model, NAN_LOGITS)
    assert (page.status, page.error, page.markdown) == (Status.FAILED, NAN_LOGITS, "")


def test_a_step_whose_rules_are_the_runs_own_is_left_out(model: Path) -> None:
    """It read the page once more with the same rules: the same loop, for the same time."""
    page = read_with_ends(model, LOOP, STOP, no_repeat_ngram=8, ngram_window=2_000)
    assert [a.step for a in page.attempts] == ["first", "global-view"]
    assert (page.status, page.raw) == (Status.RECOVERED, "2")


def test_a_page_that_reaches_the_token_limit_at_once_is_read_once(model: Path) -> None:
    page = read_with_ends(model, LENGTH)
    assert (page.status, page.raw, len(page.attempts)) == (Status.TRUNCATED, "1", 1)


def test_noise_stays_under_the_token_cap(model, tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (page,) = iter_pages(config(model, [tmp_path / "noise.png"]))
    assert page.new_tokens <= 12


def test_int8_reads_a_page_the_same_whatever_shares_its_batch(model, pages) -> None:
    cfg = config(model, pages)
    engine = replace(cfg.engine, dtype="int8")
    together = {r.key.document: r for r in iter_pages(replace(cfg, engine=engine))}
    assert all(together[name].new_tokens == 12 for name in ("a", "b", "tiled"))
    alone = replace(config(model, pages[:1]), engine=replace(engine, batch_size=1))
    (only,) = iter_pages(alone)
    assert only.token_ids == together["a"].token_ids


def test_int8_is_refused_in_one_line_on_another_device(model, pages) -> None:
    cfg = config(model, pages)
    for device in ("cuda", "cuda:1", "mps"):
        asked = replace(cfg, engine=replace(cfg.engine, dtype="int8", device=device))
        with pytest.raises(UsageError, match=f"CPU only, not on {device}.*--device cpu") as caught:
            list(iter_pages(asked))
        assert "\n" not in str(caught.value)


def test_int8_is_another_run_than_float32(model, pages) -> None:
    cfg = config(model, pages)
    int8 = replace(cfg, engine=replace(cfg.engine, dtype="int8"))
    assert plan_engine(cfg).fingerprint != plan_engine(int8).fingerprint


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), ValueError("other")]
)
def test_pages_that_do_not_fit_together_are_encoded_one_by_one(
    model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Without this the encoder died, its pages were blamed, and the next group killed it again."""
    (stage,) = [stage for stage in plan_engine(config(model, [])).stages if stage.name == "encode"]
    worker = stage.make_worker()
    assert isinstance(worker, EncodeWorker)
    shades = [np.full((300, 400, 3), shade, np.uint8) for shade in (0, 90, 200)]
    group = [
        make_views(PageImage(PageKey("p", n), pixels, 144.0), TileConfig())
        for n, pixels in enumerate(shades)
    ]
    whole = worker.vision.encode_views
    with torch.inference_mode():
        expected = [worker.encode([page])[0].tokens for page in group]

        def small_memory(views: torch.Tensor) -> torch.Tensor:
            if len(views) > 1:
                raise error
            return whole(views)

        monkeypatch.setattr(worker.vision, "encode_views", small_memory)
        if isinstance(error, ValueError):
            with pytest.raises(ValueError):
                worker.encode(group)
            return
        worker.together = len(group)
        got = worker.encode(group)
    assert worker.together == 1
    assert all(torch.equal(one.tokens, other) for one, other in zip(got, expected, strict=True))


class Listed:
    """An inbox of items at hand, and what a worker did with them: how many it took, and emitted."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.deeds: list[str] = []
        self.emitted: list[Any] = []

    def take(self, max_items: int, *, wait: bool) -> list[Any]:
        taken, self.items = self.items[:max_items], self.items[max_items:]
        self.deeds += [f"take {len(taken)}"] * bool(taken)
        return taken

    def emit(self, item: Any) -> None:
        self.deeds.append("emit")
        self.emitted.append(item)

    def note_progress(self) -> None:
        self.deeds.append("tell")

    @property
    def is_closed(self) -> bool:
        return not self.items


def test_on_a_cpu_each_page_is_encoded_in_a_time_of_its_own(model: Path) -> None:
    """Four pages shared one --page-timeout: it was spent before the first of them came out."""
    encode = plan_engine(config(model, [])).stages[1]
    shades = [np.full((300, 400, 3), shade, np.uint8) for shade in (0, 90, 200)]
    inbox = Listed([
        make_views(PageImage(PageKey("p", n), pixels, 144.0), TileConfig())
        for n, pixels in enumerate(shades)
    ])  # fmt: skip
    encode.make_worker().run(inbox, inbox.emit)
    assert inbox.deeds == ["take 1", "emit"] * 3


def test_a_decoder_takes_no_page_that_it_has_no_slot_for(model: Path) -> None:
    """All that it had taken were suspected of its death and read again alone: half as many again
    as it was decoding."""
    cfg = config(model, [])
    cfg = replace(cfg, engine=replace(cfg.engine, batch_size=2))
    encode, decode = plan_engine(cfg).stages[1:]
    views = [
        make_views(PageImage(PageKey("p", n), np.full((300, 300, 3), 40 * n, np.uint8), 144.0),
                   TileConfig())
        for n in range(5)
    ]  # fmt: skip
    encoded = Listed(views)
    encode.make_worker().run(encoded, encoded.emit)
    read = Listed(encoded.emitted)
    decode.make_worker().run(read, read.emit)
    held, most = 0, 0
    for deed in read.deeds:
        held += int(deed.split()[1]) if deed.startswith("take") else -(deed == "emit")
        most = max(most, held)
    assert (held, most, len(read.emitted)) == (0, 2, 5)


def test_a_prompt_that_came_with_a_request_is_that_pages_failure_alone(model: Path) -> None:
    """It ended the engine, and with it every other request of the server."""
    cfg = config(model, [])
    encode, decode = plan_engine(
        replace(cfg, engine=replace(cfg.engine, kv_tokens=300))
    ).stages[1:]  # fmt: skip
    pixels = np.full((300, 400, 3), 90, np.uint8)
    views = make_views(PageImage(PageKey("p", 0), pixels, 144.0), TileConfig())
    prompts = ["<image>\nFree OCR.", "<image>\n" + 200 * "word", "<image>\n" + 2000 * "word", ""]
    pages = [
        replace(views, key=PageKey("p", n), ask=Ask(prompt=prompt, max_new_tokens=2))
        for n, prompt in enumerate(prompts)
    ]
    encoded = Listed(pages)
    encode.make_worker().run(encoded, encoded.emit)
    read = Listed(encoded.emitted)
    decode.make_worker().run(read, read.emit)
    codes = {page.key.page: page.error and page.error.code for page in read.emitted}
    assert codes == {0: None, 1: None, 2: "too_large", 3: None}


@pytest.mark.parametrize(("device", "asked"), [("cuda", 0), ("cuda", 500), ("cpu", 0)])
def test_a_cache_on_a_card_may_be_filled_whatever_was_planned_for_the_host(
    model: Path, monkeypatch: pytest.MonkeyPatch, device: str, asked: int
) -> None:
    """With `auto` the plan is the host's, and its budget sent long pages back to wait although
    every slot's memory was taken."""
    cfg = config(model, [])
    cfg = replace(cfg, engine=replace(cfg.engine, batch_size=3, kv_tokens=asked))
    worker: Any = plan_engine(cfg).stages[2].make_worker()
    worker.spec = replace(worker.spec, kv_tokens=asked or 700)
    taken: dict[str, Any] = {}
    monkeypatch.setattr("ocr2cli.generate.generator.Generator", lambda *_, **kw: taken.update(kw))
    monkeypatch.setattr(DecodeWorker, "device", torch.device(device))
    worker._make_generator()
    whole = 3 * worker.config.decoder.max_positions
    assert whole > 700
    assert taken["kv_tokens"] == (asked or (whole if device == "cuda" else 700))


def test_bare_tiles_change_no_visual_token(model: Path) -> None:
    """A page whose lower four tiles are paper: the encoder's short way gives the model's tokens."""
    plan = plan_engine(config(model, []))
    (stage,) = [stage for stage in plan.stages if stage.name == "encode"]
    worker = stage.make_worker()
    assert isinstance(worker, EncodeWorker)
    image = Image.new("RGB", (1190, 1684), "white")
    ImageDraw.Draw(image).text((80, 80), "Yours faithfully,", fill="black", font_size=60)
    page = PageImage(PageKey("letter", 0), np.asarray(image), 144.0)
    views = make_views(page, TileConfig())
    assert views.tiles.shape[0] == 6
    with torch.inference_mode():
        (got,) = worker.encode([views])
        whole = worker.vision.encode_views(torch.from_numpy(views.global_view)[None])
        tiles = worker.vision.encode_views(torch.from_numpy(views.tiles))
    assert torch.equal(got.tokens, worker.vision.assemble(tiles, whole[0], views.grid))
