"""The bench measures what it says, at toy size; no figure is checked, machines are shared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ocr2cli.bench import measure, workload
from ocr2cli.bench.measure import Ceilings, Timing, measure_ours
from ocr2cli.bench.raster import measure_raster
from ocr2cli.bench.report import (
    as_text,
    dtype_of,
    encode_flops,
    figures,
    least_bytes_a_step,
    rasterizers_needed,
    report,
    times_faster,
)
from ocr2cli.bench.workload import (
    RANDOM_MODELS,
    Subject,
    check_request,
    make_subject,
    make_work,
    model_config,
    prompt_tokens,
    random_like,
    random_model,
)
from ocr2cli.cli.main import main
from ocr2cli.config import EngineConfig, TileConfig
from ocr2cli.engines.encoding import encode_pages
from ocr2cli.errors import UsageError
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.tuning import Tuning
from ocr2cli.model.config import ClipConfig, ModelConfig
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.weights.names import count_parameters


@pytest.fixture(scope="module")
def subject():
    return make_subject(EngineConfig(model="random-tiny", device="cpu", dtype="f32"))


def test_random_full_is_the_real_architecture() -> None:
    assert count_parameters(RANDOM_MODELS["random-full"]) == 3_389_119_360


def test_the_random_models_weights_are_finite_and_not_all_alike() -> None:
    model = random_model(RANDOM_MODELS["random-tiny"], torch.float32, torch.device("cpu"))
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all(), name
        assert value.numel() == 1 or value.float().std() > 0, name


def test_every_page_writes_all_its_tokens(subject) -> None:
    work = make_work(subject, 3, 5, encoded=1)
    assert len(work.pages) == 1 and work.pages[0].grid == (2, 3)
    timing = measure_ours(subject, work)
    # All pages in every step: a slow start would count against the rate.
    assert timing.num_pages == 3 and timing.decode_steps == 4
    assert timing.prompt_tokens == 3 * 1126
    assert timing.encode_s > 0 and timing.prefill_s > 0 and timing.decode_s > 0


def test_steps_that_overlap_are_counted_once_and_timed_from_tokens_to_tokens(
    subject, monkeypatch
) -> None:
    """As on a GPU. The call that only starts the first one takes no time and counts for nothing."""
    calls: list[tuple[int, int]] = []

    class Noted(Generator):
        def step(self):
            finished = super().step()
            calls.append((self.statistics.decode_steps, self.statistics.new_tokens))
            return finished

    def zeroed_cache(slots, tokens):
        cache = KVCache(subject.config.decoder, slots, tokens)
        for slot in range(slots):
            cache.scrub(slot)
        return cache

    tuning = Tuning(fixed_steps=True, overlap=True)
    monkeypatch.setattr(measure, "tuning_for", lambda device: tuning)
    monkeypatch.setattr(measure, "Generator", partial(Noted, make_cache=zeroed_cache))
    timed: list[list[float]] = []
    median = SimpleNamespace(median=lambda values: timed.append(values) or max(values))
    monkeypatch.setattr(measure, "statistics", median)
    timing = measure_ours(subject, make_work(subject, 2, 5, encoded=1))
    assert timing.decode_steps == 4 and timing.decode_s == 4 * max(timed[0]) > 0
    assert len(timed[0]) == 4
    # Warmed with one page; then prompts, a start alone, three steps read while the next runs, one.
    assert [(steps - calls[2][0], tokens - calls[2][1]) for steps, tokens in calls[3:]] == [
        (0, 2), (1, 2), (2, 4), (3, 6), (4, 8), (4, 10),
    ]  # fmt: skip


def test_a_v1_model_is_measured_on_its_own_views() -> None:
    tiny = RANDOM_MODELS["random-tiny"]
    clip = ClipConfig(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
    config = replace(tiny, query_encoder=None, clip=clip)
    model = random_model(config, torch.float32, torch.device("cpu"))
    v1 = Subject("toy", config, torch.device("cpu"), torch.float32, model)
    work = make_work(v1, 2, 3, encoded=1)
    assert work.pages[0].tiles.shape == (6, 3, 640, 640) and work.pages[0].grid == (2, 3)
    (visual,) = encode_pages(model.vision, work.pages)
    # 30 rows of 20 and a newline, 16 rows of 16 and a newline, the separator, the text
    assert prompt_tokens(config) == len(visual) + 5 == 630 + 272 + 1 + 5
    timing = measure_ours(v1, work)
    assert timing.prompt_tokens == 2 * 908 and timing.decode_steps == 2


@pytest.mark.parametrize(
    ("changes", "new_tokens", "against", "message"),
    [
        ({"query_encoder": None, "clip": ClipConfig()}, 64, "hf", "--against hf .* Leave it out"),
        ({}, 2971, None, r"--new-tokens 2971 does not fit.*room for 2970\. Give at most that"),
        ({"query_encoder": None, "clip": ClipConfig()}, 4000, None, "room for 3188"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_it_is_loaded(
    changes, new_tokens, against, message
) -> None:
    config = replace(RANDOM_MODELS["random-tiny"], **changes)
    with pytest.raises(UsageError, match=message):
        check_request(config, new_tokens, against)


def test_the_largest_number_of_new_tokens_is_taken_and_written(subject) -> None:
    config = subject.config
    most = config.decoder.max_positions - prompt_tokens(config)
    check_request(config, most, "hf")
    # as long a prompt as leaves room for three
    width = config.decoder.hidden_size
    prompt = torch.zeros(config.decoder.max_positions - 3, width)
    work = replace(make_work(subject, 1, 3, encoded=1), prompts=[prompt])
    assert measure_ours(subject, work).decode_steps == 2


def test_a_models_sizes_are_known_without_loading_it(nano_folder) -> None:
    nano = model_config(EngineConfig(model=str(nano_folder)))
    assert nano.query_encoder is not None and nano.decoder.max_positions > 1126
    assert model_config(EngineConfig(model="random-full")) == RANDOM_MODELS["random-full"]


def test_the_command_refuses_before_it_loads(monkeypatch, capsys) -> None:
    monkeypatch.setattr(workload, "make_subject", lambda engine: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--model", "random-tiny", "--new-tokens", "5000", "--threads", "1"])
    assert caught.value.code == 2 and "room for 2970" in capsys.readouterr().err


def test_the_least_bytes_of_one_sequence_are_those_of_the_specification() -> None:
    """1.15 GB a token for one sequence without its cache (performance figures of the model)."""
    class Full:
        config = RANDOM_MODELS["random-full"]
        dtype = torch.bfloat16
        has_int8 = False
        matrices = None

    assert least_bytes_a_step(Full, Timing(1, 0)) == pytest.approx(1.15e9, rel=0.01)


def test_ratios_say_how_many_times_ours_is_ahead() -> None:
    ours = Timing(1, 101, encode_s=2.0, prefill_s=1.0, decode_s=5.0)
    peer = Timing(1, 101, encode_s=4.0, prefill_s=0.5, decode_s=20.0)
    assert times_faster(figures(peer), figures(ours)) == {
        "encode_s_page": 2.0,
        "prefill_s_page": 0.5,
        "decode_tokens_s": 4.0,
        # 2 + 1 + 1,000 / 20 against 4 + 0.5 + 1,000 / 5
        "s_page_of_1000": round(204.5 / 53, 2),
        "pages_s": 3.06,
    }


def test_pages_choose_different_experts_as_real_pages_do(subject) -> None:
    work = make_work(subject, 8, 2, encoded=1)
    router = subject.model.decoder.layers[1].mlp.router
    with torch.inference_mode():
        last = torch.stack([subject.model.decoder.hidden(p[None])[0, -1] for p in work.prompts])
        _, experts = router(last)
    assert experts.unique().numel() >= 6


def test_a_model_given_up_is_not_measured_again() -> None:
    subject = make_subject(EngineConfig(model="random-tiny", device="cpu", dtype="f32"))
    subject.give_up_model()
    with pytest.raises(ValueError, match="given up"):
        measure_ours(subject, make_work(subject, 1, 2, encoded=1))


def test_the_report_is_json_and_a_table(subject) -> None:
    ours = Timing(2, 5, 1.0, 1.0, 1.0, 2252, 4)
    facts = report(subject, ours, Ceilings(1e11, 1e10), raster_ms={"render": 20.0, "total": 90.0},
                   peak_bytes=10**9, peers={"transformers": ours})  # fmt: skip
    assert json.loads(json.dumps(facts))["times_faster"]["transformers"]["s_page_of_1000"] == 1.0
    text = as_text(facts)
    assert "ocr2 / transformers" in text and "1.00x" in text
    assert figures(ours)["decode_tokens_s"] == 8.0
    assert "pages/s" in text and "0.667" in text  # two pages in three seconds
    assert "encode reaches" in text and "decode reaches" in text


def test_the_encoders_work_is_counted_from_the_models_sizes() -> None:
    """Against what is worked out by hand for the published size."""
    views = [64] + 6 * [48]  # patches a side
    sam = sum(g**2 * 12 * 2 * 768 * (4 * 768 + 2 * 3072) for g in views)
    sam += sum(4 * 4 * g**4 * 768 for g in views)  # scores and sums of four global blocks
    padded = [-(-g // 14) * 14 for g in views]
    sam += sum(8 * p**2 * 4 * 196 * 768 for p in padded)  # and of eight windowed ones
    sam += sum(8 * (p**2 - g**2) * 2 * 4 * 768**2 for p, g in zip(padded, views, strict=True))
    tokens = sum(2 * (g // 4) ** 2 for g in views)
    queries = tokens * 24 * 2 * 896 * (2 * 896 + 256 + 3 * 4864)
    assert encode_flops(ModelConfig()) == pytest.approx(sam + queries, rel=0.04)


def test_a_v1_models_work_is_counted_too() -> None:
    clip = ClipConfig(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
    one = replace(RANDOM_MODELS["random-tiny"], query_encoder=None, clip=clip)
    two = replace(one, clip=replace(clip, num_layers=2))
    assert 0 < encode_flops(one) < encode_flops(two)


def test_a_repeated_block_fills_any_shape() -> None:
    big = random_like(torch.empty(3, 1 << 21), torch.device("cpu"))
    assert big.shape == (3, 1 << 21) and torch.isfinite(big).all()


def test_the_stages_before_the_encoder_are_timed_one_by_one() -> None:
    found = measure_raster(TileConfig())
    assert list(found) == ["render", "digest", "tile", "send", "total"]
    assert all(value > 0 for value in found.values())
    assert found["total"] == pytest.approx(sum(found.values()) - found["total"])


def test_fast_models_need_more_rasterisers() -> None:
    slow, fast = Timing(1, 101, 5.0, 1.0, 10.0), Timing(100, 101, 0.6, 0.4, 0.1)
    assert rasterizers_needed(slow, {"total": 90.0}) == 1
    assert rasterizers_needed(fast, {"total": 90.0}) == 5  # 20 ms a page


def test_an_int8_decoder_is_measured_too() -> None:
    subject = make_subject(EngineConfig(model="random-tiny", device="cpu", dtype="int8"))
    assert subject.has_int8 and subject.model.decoder.lm_head.weight.device.type == "meta"
    timing = measure_ours(subject, make_work(subject, 1, 3, encoded=1))
    assert timing.decode_steps == 2
    assert least_bytes_a_step(subject, timing) < least_bytes_a_step(
        make_subject(EngineConfig(model="random-tiny", device="cpu", dtype="f32")), timing
    )


def test_the_peak_of_memory_is_taken_before_the_ceilings_fill_theirs(monkeypatch, capsys) -> None:
    taken = []

    def noted(name):
        real = getattr(measure, name)
        return lambda *args: (taken.append(name), real(*args))[1]

    for name in ("measure_ours", "peak_memory", "measure_ceilings"):
        monkeypatch.setattr(measure, name, noted(name))
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stop:
            main(["bench", "--model", "random-tiny", "--device", "cpu", "--dtype", "f32", "--json",
                  "--pages", "2", "--new-tokens", "4", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    assert stop.value.code == 0 and json.loads(capsys.readouterr().out)["peak_bytes"] > 0
    assert taken == ["measure_ours", "peak_memory", "measure_ceilings"]


def test_the_peak_of_memory_is_in_bytes_on_every_system(monkeypatch) -> None:
    usage = SimpleNamespace(ru_maxrss=3)
    monkeypatch.setattr("resource.getrusage", lambda who: usage)
    for platform, peak in (("linux", 3072), ("darwin", 3)):
        monkeypatch.setattr(sys, "platform", platform)
        assert measure.peak_memory(torch.device("cpu")) == peak


def test_on_a_cpu_nothing_is_compiled_and_the_report_does_not_say_so(caplog) -> None:
    subject = make_subject(EngineConfig(model="random-tiny", device="cpu", compile=True))
    assert not subject.is_compiled and "compiled" not in dtype_of(subject)
    assert "on a CPU nothing is compiled" in caplog.text
    assert "encoder compiled" in dtype_of(replace(subject, is_compiled=True))


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
@pytest.mark.parametrize("said", ["", "77"])
def test_threads_of_the_command_wait_as_those_of_a_run(said: str) -> None:
    """Spinning ones made a bench beside other work twenty times as slow. GNU's OpenMP says what it
    has taken."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "verbose", "GOMP_SPINCOUNT": said}
    if not said:
        del env["GOMP_SPINCOUNT"]
    command = ["bench", "--model", "random-tiny", "--pages", "1", "--new-tokens", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "ocr2cli", *command], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    taken = set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr))
    assert taken == {said or "1000"}
