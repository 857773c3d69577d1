"""What is planned differently for a CUDA device; the parent plans and imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocr2cli.config import DecodeConfig, EngineConfig, RasterConfig, RunConfig, TileConfig
from ocr2cli.engines import choose, host, memory_plan
from ocr2cli.engines.loading import place_of_size
from ocr2cli.engines.native import DECODER_NICENESS, ENCODE_PAGES, encode_credit
from ocr2cli.errors import UsageError
from ocr2cli.model.config import ModelConfig
from ocr2cli.runners.options import cluster_options
from ocr2cli.weights.hub import ModelFiles
from ocr2cli.weights.names import count_parameters
from ocr2cli.weights.read_config import read_config

FULL_PAGE, TYPICAL_PAGE, BATCH = 8192, 2400, 32
GB = 10**9
_PARAMETERS = 3_389_119_360
NANO = Path(__file__).parents[2] / "models/nano"


def _fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An `nvidia-smi` that answers with the script."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def _fake_cards(folder: Path, monkeypatch: pytest.MonkeyPatch, **free_mib_of: int) -> None:
    """A host with cards of these names, by bus, with so much free memory."""
    lines = [
        f"{index}, GPU-{index}{index}{index}-ab, {name.rstrip('_')}, {free}"
        for index, (name, free) in enumerate(free_mib_of.items())
    ]
    _fake_smi(folder, monkeypatch, "\n".join(f"echo '{line}'" for line in lines))


def _planned_batch(device: str = "cuda", decoders: int = 1, dtype: str = "auto") -> int:
    engine = EngineConfig(device=device, dtype=dtype)
    return memory_plan.plan_batch(engine, ModelConfig(), encoders=1, decoders=decoders)


@pytest.mark.parametrize(
    ("device", "dtype", "has_driver", "expected"),
    [
        ("cuda", "auto", False, True),
        ("cuda:1", "bf16", False, True),
        ("auto", "auto", True, True),
        ("auto", "auto", False, False),
        ("auto", "int8", True, False),
        ("cpu", "auto", True, False),
        ("mps", "auto", True, False),
    ],
)
def test_a_cuda_device_is_expected_where_asked_for_or_where_auto_finds_a_driver(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, has_driver: bool, expected: bool
) -> None:
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__ if has_driver else "/nowhere/nvidiactl",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert host.expects_cuda(device, dtype) == expected
    groups = 2 if expected else 1
    assert encode_credit(EngineConfig(device=device, dtype=dtype)) == groups * ENCODE_PAGES


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", False), ("-1", False), (" -1,0", False), ("none", False), ("1", True), ("0, -1", True),
     ("GPU-8932f937", True), ("MIG-3e8", True)],
)  # fmt: skip
def test_a_card_that_is_hidden_from_the_process_is_not_expected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str, expected: bool
) -> None:
    """An empty list of visible cards is not the same as none: it hides all of them."""
    _fake_cards(tmp_path, monkeypatch, one=24_000, two=24_000)
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert host.expects_cuda("auto", "auto") == expected
    if not expected:
        assert host.cuda_memory_free("auto") is None and _planned_batch("cuda") == BATCH


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda", BATCH * FULL_PAGE), ("cpu", FULL_PAGE), ("auto", FULL_PAGE)],
)
def test_a_small_host_does_not_shrink_a_cache_that_lies_on_the_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, expected: int
) -> None:
    """With auto the card may turn out to be out of torch's reach: the host's memory counts."""
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__,))
    monkeypatch.setattr(memory_plan, "host_memory_available", lambda: 8 << 30)
    cfg = RunConfig(inputs=(), engine=EngineConfig(device=device))
    files = ModelFiles("some", tmp_path)
    spec = choose.native_spec(cfg, files, ModelConfig(), "")
    assert (spec.batch_size, spec.kv_tokens) == (BATCH, expected)


@pytest.mark.parametrize(
    ("free_mib", "decoders", "batch"),
    [(81_000, 1, 128), (81_000, 2, 57), (24_000, 1, 19), (12_000, 1, 1), (143_000, 1, 128)],
)
def test_a_card_reads_as_many_pages_together_as_its_memory_has_slots_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_mib: int, decoders: int, batch: int
) -> None:
    _fake_cards(tmp_path, monkeypatch, some=free_mib)
    assert _planned_batch(decoders=decoders) == batch


@pytest.mark.parametrize("dtype", ["auto", "f16", "f32"])
@pytest.mark.parametrize("free_mib", [24_000, 48_000, 81_000])
def test_what_is_planned_on_a_card_fits_it_in_any_dtype(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_mib: int, dtype: str
) -> None:
    """Weights and cache in float32 take twice the bytes; the cache has a slot more than pages."""
    _fake_cards(tmp_path, monkeypatch, some=free_mib)
    width = 4 if dtype == "f32" else 2
    slots = _planned_batch(dtype=dtype) + 1
    cache = slots * FULL_PAGE * (12 * 2 * 1280) * width
    assert _PARAMETERS * width + cache + 5_000_000_000 < free_mib << 20


@pytest.mark.parametrize("script", ["echo '[N/A]'", "exit 9", "true", "echo no devices; exit 1"])
def test_a_card_that_tells_nothing_gets_the_usual_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    _fake_smi(tmp_path, monkeypatch, script)
    assert _planned_batch() == BATCH


def test_a_host_without_nvidias_program_gets_the_usual_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _planned_batch() == BATCH


def test_the_card_that_is_asked_is_the_one_torch_will_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Torch numbers the visible cards; NVIDIA's program numbers all."""
    _fake_cards(tmp_path, monkeypatch, big=81_000, big_=81_000, big__=81_000, small=24_000)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert (_planned_batch("cuda:3"), _planned_batch("cuda:1")) == (19, 128)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert (_planned_batch("cuda:1"), _planned_batch("cuda:0")) == (19, 128)
    assert _planned_batch("cuda:2") == BATCH  # no such card: loading will say so
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-333,GPU-0")
    assert (_planned_batch("cuda:1"), _planned_batch("cuda:0")) == (128, 19)


def test_among_unlike_cards_whose_order_is_not_known_the_fullest_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA counts the fastest first, NVIDIA's program by the bus."""
    _fake_cards(tmp_path, monkeypatch, display=24_000, big=81_000)
    assert (_planned_batch("cuda:0"), _planned_batch("cuda:1")) == (19, 19)
    _fake_cards(tmp_path, monkeypatch, big=24_000, big_=81_000)
    assert (_planned_batch("cuda:0"), _planned_batch("cuda:1")) == (19, 128)


def test_a_mistyped_card_is_left_to_the_worker_that_names_the_right_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fake_cards(tmp_path, monkeypatch, some=81_000)
    assert _planned_batch("cuda:one") == BATCH


def test_a_cpu_keeps_its_batch_beside_a_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fake_cards(tmp_path, monkeypatch, some=81_000)
    monkeypatch.setattr(host, "_CUDA_FILES", (__file__,))
    assert (_planned_batch("cpu"), _planned_batch("auto")) == (BATCH, 128)


@pytest.mark.parametrize(("device", "expected"), [("cpu", DECODER_NICENESS), ("cuda", 0)])
def test_a_decoder_steps_back_for_the_encoder_where_they_share_the_cores(
    device: str, expected: int
) -> None:
    """With equal shares it keeps up with the encoder three pages at a time, and spends half of the
    cores on steps that cost each page more than twice what they would with thirty. On a card it is
    the host of a device."""
    cfg = RunConfig(inputs=(), engine=EngineConfig(device=device))
    stages = choose.plan_for_cores(cfg, None, 8).stages
    assert [stage.niceness for stage in stages] == [0, 0, expected]


def test_each_stage_is_advised_of_what_its_own_workers_memory_goes_by() -> None:
    engine = EngineConfig(device="cpu", rasterizers=2, encoders=2, decoders=2, batch_size=2)
    stages = choose.plan_for_cores(RunConfig(inputs=(), engine=engine), None, 2).stages
    raster, encode, decode = (stage.remedy for stage in stages)
    assert "--rasterizers" in raster and "--dpi" in raster and "--dtype" not in raster
    assert "--encoders" in encode and "--dtype" in encode
    assert "--decoders" in decode and "--batch-size" in decode and "--dtype" in decode


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", "int8", [False, False]),
        ("cpu", "bf16", [False, True]),
        ("cpu", "f32", [True, True]),
        ("cuda", "auto", [False, False]),
        ("cuda", "f32", [True, True]),
    ],
)
def test_nobody_is_advised_to_lower_what_is_lowest_already(
    device: str, dtype: str, expected: list[bool]
) -> None:
    engine = EngineConfig(
        device=device, dtype=dtype, rasterizers=1, encoders=1, decoders=1, batch_size=1
    )
    stages = choose.plan_for_cores(RunConfig(inputs=(), engine=engine), None, 2).stages
    remedies = [stage.remedy for stage in stages]
    assert not any(word in "".join(remedies) for word in ("fewer", "--batch-size"))
    assert ["a smaller --dtype" in each for each in remedies[1:]] == expected
    assert all(each.endswith("free some memory") for each in remedies)


@pytest.mark.parametrize("decoders", [1, 2])
def test_a_runner_with_a_share_of_a_machine_plans_threads_for_its_share(
    monkeypatch: pytest.MonkeyPatch, decoders: int
) -> None:
    """Eight runners on a node of 64 cores started 64 threads each, twice."""
    monkeypatch.setattr(choose, "num_cores", lambda: 64)
    cfg = RunConfig(inputs=(), engine=EngineConfig(device="cpu", decoders=decoders))
    raster, encode, decode = choose.plan_for_cores(cfg, None, 8).stages
    assert (raster.num_workers, encode.num_workers, decode.num_workers) == (6, 1, decoders)
    assert encode.num_threads == decode.num_threads == 8 // decoders
    assert choose.plan_engine(cfg).stages[2].num_threads == 64 // decoders


def test_one_core_is_enough_for_every_stage() -> None:
    cfg = RunConfig(inputs=(), engine=EngineConfig(device="cpu", decoders=2))
    raster, encode, decode = choose.plan_for_cores(cfg, None, 1).stages
    assert (raster.num_workers, encode.num_threads, decode.num_threads) == (1, 1, 1)


def _planned_tokens(batch: int = 1000, encoders: int = 1, decoders: int = 1, **cfg: Any) -> int:
    engine = EngineConfig(**{"device": "cpu", "dtype": "bf16", **cfg})
    return memory_plan.plan_kv_tokens(
        engine, ModelConfig(), batch, encoders=encoders, decoders=decoders
    )


def test_a_cache_has_six_tenths_of_what_all_workers_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had three tenths of what the file's bytes, once for each worker, left, at four bytes a
    number: a host of 24 GB read 16 pages together."""
    monkeypatch.setattr(memory_plan, "host_memory_available", lambda: 40 * GB)
    encoder, decoder, working = 908_770_560, 5_869_468_160, 1_500_000_000
    left = 40 * GB - encoder - 2 * decoder - 3 * working
    assert _planned_tokens(decoders=2) == int(0.6 * left / 2 / 61_440)
    left = 40 * GB - 2 * encoder - decoder - 3 * working
    assert _planned_tokens(encoders=2) == int(0.6 * left / 61_440)
    assert _planned_tokens(10) == 10 * TYPICAL_PAGE
    monkeypatch.setattr(memory_plan, "host_memory_available", lambda: 4 * GB)
    assert _planned_tokens() == FULL_PAGE


def test_a_model_of_short_pages_has_use_for_no_more_than_its_slots_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_plan, "host_memory_available", lambda: 400 * GB)
    short = replace(ModelConfig(), decoder=replace(ModelConfig().decoder, max_positions=1000))
    for device in ("cpu", "cuda"):
        engine = EngineConfig(device=device)
        plan = memory_plan.plan_kv_tokens(engine, short, 5, encoders=1, decoders=1)
        assert plan == 5000


@pytest.mark.parametrize("dtype", ["auto", "bf16", "f32", "int8"])
@pytest.mark.parametrize("name", ["full", "nano"])
def test_the_bytes_that_are_planned_without_torch_are_those_that_torch_will_take(
    dtype: str, name: str
) -> None:
    config = ModelConfig() if name == "full" else read_config(NANO)
    engine = EngineConfig(device="cpu", dtype=dtype)
    place = place_of_size(engine, count_parameters(config))
    expected = memory_plan.expected_bytes(engine, config)
    assert expected == memory_plan.worker_bytes(
        config, arithmetic=place.dtype.itemsize, matrices=place.matrices.itemsize,
        is_int8=dtype == "int8",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "batch"), [(0, BATCH), (60 * GB, BATCH), (16 * GB, 16), (8 * GB, 1), (1 * GB, 1)]
)
def test_a_workers_limit_holds_the_slots_of_its_cache(
    tmp_path: Path, limit: int, batch: int
) -> None:
    """A limit is one of addresses, and each slot has a longest page's whether they are used or
    not: with 16 GB a decoder of the published size ended before page one."""
    cfg = RunConfig(worker_memory=limit, engine=EngineConfig(device="cpu", dtype="bf16"))
    files = ModelFiles("some", tmp_path)
    assert choose.native_spec(cfg, files, ModelConfig(), "").batch_size == batch
    if 1 < batch < BATCH:
        assert limit > 5_869_468_160 + 17 * FULL_PAGE * 61_440 + GB


@pytest.mark.parametrize(("promises", "batch"), [(16 * GB, 11), (24 * GB, 27), (60 * GB, BATCH)])
def test_what_a_strict_system_can_promise_is_for_all_workers(
    monkeypatch: pytest.MonkeyPatch, promises: int, batch: int
) -> None:
    """Where no more is promised than there is, a cache takes all of its slots at once."""
    monkeypatch.setattr(memory_plan, "promises_left", lambda: promises)
    engine = EngineConfig(device="cpu", dtype="bf16")
    assert memory_plan.plan_batch(engine, ModelConfig(), encoders=1, decoders=1) == batch
    for decoders in (1, 2):
        slots = 1 + memory_plan.plan_batch(engine, ModelConfig(), encoders=1, decoders=decoders)
        cache = decoders * slots * FULL_PAGE * 61_440
        workers = 908_770_560 + decoders * 5_869_468_160 + (1 + decoders) * 1_500_000_000
        assert slots == 2 or workers + cache <= promises


def test_of_two_limits_on_addresses_the_tighter_one_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineConfig(device="cpu", dtype="bf16")

    def planned(limit: int, promises: int) -> int:
        monkeypatch.setattr(memory_plan, "promises_left", lambda: promises)
        return memory_plan.plan_batch(
            engine, ModelConfig(), encoders=1, decoders=1, memory_limit=limit
        )

    assert planned(16 * GB, 60 * GB) == 16 and planned(60 * GB, 16 * GB) == 11


def test_a_decoder_in_int8_is_planned_with_a_byte_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but its embedding, which stays as wide as the arithmetic."""
    monkeypatch.setattr(memory_plan, "has_bf16_products", lambda: True)
    sizes = memory_plan.expected_bytes(EngineConfig(device="cpu", dtype="int8"), ModelConfig())
    embedding = 129_280 * 1280
    decoder = 5_869_468_160 // 2 - embedding + 2 * embedding
    assert (sizes.encoder, sizes.decoder) == (908_770_560, decoder)


def test_where_bf16_is_not_multiplied_the_cache_is_planned_in_float32_and_the_matrices_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto = EngineConfig(device="cpu", dtype="auto")
    monkeypatch.setattr(memory_plan, "has_bf16_products", lambda: True)
    with_products = memory_plan.expected_bytes(auto, ModelConfig())
    monkeypatch.setattr(memory_plan, "has_bf16_products", lambda: False)
    without = memory_plan.expected_bytes(auto, ModelConfig())
    assert (with_products.kv_token, without.kv_token) == (61_440, 122_880)
    assert with_products.encoder == without.encoder == 908_770_560


def test_in_float32_a_card_has_room_for_weights_and_slots_of_twice_the_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for free_mib, batch in ((24_000, 2), (81_000, 57)):
        _fake_cards(tmp_path, monkeypatch, some=free_mib)
        assert _planned_batch(dtype="f32") == batch


def test_rasterizers_that_are_asked_for_are_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 there were 16, without a word."""
    monkeypatch.setattr(choose, "num_cores", lambda: 64)
    wanted = EngineConfig(rasterizers=32)
    assert choose.num_workers(RunConfig(engine=wanted)) == (32, 1, 1)
    assert choose.plan_for_cores(RunConfig(engine=wanted), None, 4).num_workers == (32, 1, 1)
    assert choose.num_workers(RunConfig()) == (16, 1, 1)
    assert choose.plan_for_cores(RunConfig(), None, 40).num_workers == (16, 1, 1)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("auto", "auto", True), ("cuda", "f16", True), ("cuda:0", "auto", True),
     ("auto", "int8", False), ("cpu", "auto", False)],
)  # fmt: skip
def test_a_card_of_a_node_is_claimed_by_runs_that_may_use_it_only(
    device: str, dtype: str, expected: bool
) -> None:
    """With int8 a node of eight cards had eight runners, each on an eighth of its cores."""
    engine = EngineConfig(device=device, dtype=dtype)
    plan = choose.EnginePlan((), "")
    assert cluster_options(RunConfig(engine=engine), plan).uses_gpus == expected
    elsewhere = EngineConfig("openai", device=device, dtype=dtype, server="http://h/v1")
    assert not cluster_options(RunConfig(engine=elsewhere), plan).uses_gpus


def test_drafts_from_the_text_layer_are_no_other_run() -> None:
    """They never change a token: pages that were read with them, or without, need no rerun."""

    def fingerprint(text_layer: str) -> str:
        draft = "text-layer" if text_layer == "draft" else "off"
        cfg = RunConfig(
            inputs=(), raster=RasterConfig(text_layer=text_layer), decode=DecodeConfig(draft=draft)
        )
        return choose.run_fingerprint(cfg, "prompt", model="m", tiles=TileConfig())

    assert fingerprint("draft") == fingerprint("never")
    assert len({fingerprint(use) for use in ("never", "trust", "auto")}) == 3


def test_whatever_may_change_a_pages_text_makes_another_run_and_a_password_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fingerprint(
        prompt: str = "p", model: str = "m", max_tiles: int = 6, **settings: Any
    ) -> str:
        tiles = TileConfig(max_tiles=max_tiles)
        return choose.run_fingerprint(RunConfig(**settings), prompt, model=model, tiles=tiles)

    same = [fingerprint(), fingerprint(raster=RasterConfig(password="secret"))]
    other = [
        fingerprint(prompt="q"), fingerprint(model="n"), fingerprint(max_tiles=9),
        fingerprint(recover_loops=False), fingerprint(engine=EngineConfig(dtype="f32")),
        fingerprint(decode=DecodeConfig(max_new_tokens=7)), fingerprint(raster=RasterConfig(dpi=7)),
    ]  # fmt: skip
    for name in ("OUTPUT_VERSION", "TILE_RULE"):
        with monkeypatch.context() as patch:
            patch.setattr(choose, name, 99)
            other.append(fingerprint())
    assert len(set(same)) == 1 and len({*same, *other}) == 1 + len(other)


@pytest.mark.parametrize(("device", "limit"), [("cuda", 0), ("cpu", 8 << 30)])
def test_a_memory_limit_is_not_laid_on_workers_of_a_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, limit: int
) -> None:
    """It limits addresses, of which CUDA reserves far more than there is memory."""
    monkeypatch.setattr(memory_plan, "cuda_memory_free", lambda device: None)
    cfg = RunConfig(inputs=(), engine=EngineConfig(device=device), worker_memory=8 << 30)
    raster, encode, decode = choose.plan_engine(cfg).stages
    assert raster.memory_limit_bytes == 8 << 30
    assert (encode.memory_limit_bytes, decode.memory_limit_bytes) == (limit, limit)


@pytest.mark.parametrize("engine", ["native", "openai"])
def test_a_prompt_with_two_pages_is_refused_before_a_model_is_looked_for(engine: str) -> None:
    where = EngineConfig(engine=engine, model="/nowhere", prompt_text="<image> or <image>")
    with pytest.raises(UsageError, match="more than one <image>"):
        choose.plan_engine(RunConfig(engine=where))


def test_a_decoder_out_of_memory_is_advised_to_raise_the_limit_that_is_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int | None] = [1_300_000_000, None]
    monkeypatch.setattr(memory_plan, "addresses_left", lambda: limits[0])
    assert memory_plan.memory_remedy("cpu") == (
        "raise the limit of 1.3 GB (--worker-memory, or the shell's ulimit -v)"
    )
    assert "--device cpu" in memory_plan.memory_remedy("cuda"), "its addresses are not what lacks"
    limits.pop(0)
    assert memory_plan.memory_remedy("cpu") == "free some memory"
