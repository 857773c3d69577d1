"""References: the cache's key, transformers at toy size, llama.cpp through a stand-in program."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_toys import draw_page
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_checkpoint_hf import write_checkpoint

from ocr2cli.config import DecodeConfig, DryConfig, EngineConfig, RasterConfig
from ocr2cli.errors import EngineError, ModelError, UsageError
from ocr2cli.eval.cases import Case
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.reference import Reference, ReferenceOutput, cache_key, read_cached
from ocr2cli.eval.references import hf
from ocr2cli.eval.references.hf import banned_by_ngram, dry_penalties, hf_reference
from ocr2cli.eval.references.llama_cpp import llama_cpp_reference
from ocr2cli.eval.stages import ModelStages, load_stages
from ocr2cli.generate import logits as ours
from ocr2cli.model.config import ModelConfig
from ocr2cli.pages import PageImage
from ocr2cli.text import prompt as prompt_module
from ocr2cli.weights.read_config import read_config

DECODE = DecodeConfig(max_new_tokens=24, no_repeat_ngram=3, ngram_window=20, detect_loops=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """640 x 488: transformers pads this size one pixel higher than the official code."""
    path = tmp_path_factory.mktemp("page") / "page.png"
    draw_page(path, "River", (640, 488))
    return Case("page", "toy", path, decode=DECODE)


@pytest.fixture(scope="module")
def tiled_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("page") / "wide.png"
    draw_page(path, "Two tiles", (1280, 720))
    return Case("wide", "toy", path, decode=DECODE)


@pytest.fixture(scope="module")
def stages(checkpoint: Path) -> ModelStages:
    return load_stages(EngineConfig(model=str(checkpoint), device="cpu", dtype="f32"))


def page_of(case: Case) -> PageImage:
    return load_page(case, RasterConfig())


def make_hf(folder: Path, **more: bool) -> Reference:
    config = read_config(folder)
    return hf_reference(folder, config, weights_digest="x", exempt_tokens=("<td>", "</td>"), **more)


@pytest.mark.parametrize("which", ["case", "tiled_case"])
def test_transformers_and_ours_write_the_same_tokens_from_the_same_weights(
    checkpoint: Path, stages: ModelStages, which: str, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(which)
    theirs = make_hf(checkpoint).read(case, page_of(case))
    (mine,) = stages.recognize([case])
    assert len(theirs.token_ids) == 24 and theirs.token_ids == mine.token_ids
    assert theirs.text == mine.raw
    assert theirs.first_logits is not None
    mine_first = stages.first_logits(case, page_of(case))
    assert np.abs(mine_first - theirs.first_logits).max() < 1e-3


def test_the_ngram_rule_is_followed_by_the_reference(checkpoint: Path, case: Case) -> None:
    free = replace(case, decode=replace(DECODE, no_repeat_ngram=0))
    ruled = make_hf(checkpoint).read(case, page_of(case)).token_ids
    unruled = make_hf(checkpoint).read(free, page_of(case)).token_ids
    assert ruled != unruled
    trigrams = [ruled[i : i + 3] for i in range(len(ruled) - 2)]
    for i, trigram in enumerate(trigrams):
        assert trigram not in trigrams[max(0, i - 17) : i]


def test_the_rule_of_the_reference_sees_new_tokens_and_not_the_prompt(
    checkpoint: Path, stages: ModelStages, case: Case
) -> None:
    """Every token once: the prompt's own may still be written."""
    once = replace(DECODE, max_new_tokens=100, no_repeat_ngram=1, ngram_window=0)
    written = make_hf(checkpoint).read(replace(case, decode=once), page_of(case)).token_ids
    assert len(set(written)) == len(written)
    assert set(written) & set(stages.prompt("ocr", "", 257))


def test_dry_is_followed_by_the_reference_as_by_ours(
    checkpoint: Path, stages: ModelStages, case: Case
) -> None:
    dry = replace(case, decode=replace(DECODE, no_repeat_ngram=0, dry=DryConfig()))
    (mine,) = stages.recognize([dry])
    assert make_hf(checkpoint).read(dry, page_of(case)).token_ids == mine.token_ids


def test_transformers_own_processor_pads_one_pixel_off(checkpoint: Path, case: Case) -> None:
    plain = make_hf(checkpoint).read(case, page_of(case))
    processed = make_hf(checkpoint, has_own_processor=True).read(case, page_of(case))
    assert plain.first_logits is not None and processed.first_logits is not None
    assert np.abs(plain.first_logits - processed.first_logits).max() > 1e-3


def test_transformers_own_processor_agrees_where_the_padding_does(
    checkpoint: Path, tiled_case: Case
) -> None:
    """At 1280 x 720 nothing is rounded, and grey levels are equal to a level."""
    page = page_of(tiled_case)
    plain = make_hf(checkpoint).read(tiled_case, page)
    processed = make_hf(checkpoint, has_own_processor=True).read(tiled_case, page)
    assert plain.first_logits is not None and processed.first_logits is not None
    assert np.abs(plain.first_logits - processed.first_logits).max() < 0.05


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, case: Case) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="misses 1 tensors") as caught:
        make_hf(folder).read(case, page_of(case))
    assert "\n" not in str(caught.value)


def test_a_missing_transformers_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"'\.\[hf\]'"):
        make_hf(checkpoint)


def test_v1_is_no_model_for_transformers(checkpoint: Path) -> None:
    from ocr2cli.model.config import ClipConfig

    config = ModelConfig(query_encoder=None, clip=ClipConfig())
    with pytest.raises(UsageError, match=r"for v1 give --ref llama\.cpp"):
        hf_reference(checkpoint, config, weights_digest="x")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.integers(1, 30))
def test_the_second_writing_of_the_ngram_rule_equals_the_first(
    history: list[int], n: int, window: int
) -> None:
    mine = ours.banned_tokens(history, ours.NgramRule(n, window, frozenset()))
    assert banned_by_ngram(history, n, window) == mine


_ALL = DryConfig(last_n=-1)
_DRY = [
    DryConfig(), _ALL, replace(_ALL, allowed_length=1), DryConfig(last_n=7), DryConfig(last_n=0),
    replace(_ALL, base=1.0), replace(_ALL, base=0.5), replace(_ALL, multiplier=0.0),
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80), st.sampled_from(_DRY))
def test_the_second_writing_of_dry_equals_the_first(history: list[int], dry: DryConfig) -> None:
    assert dry_penalties(history, dry) == pytest.approx(ours.dry_penalties(history, dry))


@pytest.mark.parametrize("base", [1.0, 1.75, 4.0, 64.0])
def test_the_second_writing_of_dry_is_held_below_float32s_end_as_the_first_is(base: float) -> None:
    dry = DryConfig(base=base, last_n=-1)
    mine, theirs = (write([7] * 400, dry) for write in (ours.dry_penalties, dry_penalties))
    assert theirs == pytest.approx(mine) and np.isfinite(np.float32(theirs[7]))


def output_of(text: str) -> Reference:
    return Reference("hf", {"weights": "a"}, lambda case, page: ReferenceOutput(text))


@pytest.mark.parametrize(
    ("prompt", "prompt_own"),
    [
        ("markdown", ""), ("ocr", ""), ("figure", ""), ("describe", ""), ("locate: a {what} ", ""),
        ("ocr", "Read this."), ("ocr", " <image>\nRead. "), ("ocr", "See <image>\nthere."),
    ],
)  # fmt: skip
def test_the_references_own_prompts_are_ours(
    stages: ModelStages, case: Case, prompt: str, prompt_own: str
) -> None:
    asked = replace(case, prompt=prompt, prompt_text=prompt_own)
    image_token = stages.config.image_token_id
    theirs = hf._prompt_ids(asked, stages.tokenizer, 5, image_token)
    assert theirs == stages.prompt(prompt, prompt_own, 5)
    assert theirs[0] == 0 and theirs.count(image_token) == 5


def test_an_error_in_our_begin_token_is_not_repeated_by_the_reference(
    stages: ModelStages, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.tokenizer, "bos_id", stages.tokenizer.eos_id)
    monkeypatch.setitem(prompt_module.PROMPTS, "ocr", "<image>\nFree CRO.")
    assert stages.prompt("ocr", "", 1) != hf._prompt_ids(case, stages.tokenizer, 1, 3)


def test_the_cache_key_changes_with_all_that_decides_the_output(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(case)
    reference = output_of("x")
    darker = replace(page, rgb=np.ascontiguousarray(page.rgb // 2))
    keys = {
        cache_key(reference, case, page),
        cache_key(reference, case, darker),
        cache_key(reference, replace(case, prompt="markdown"), page),
        cache_key(reference, replace(case, prompt_text="<image>\nx"), page),
        cache_key(reference, replace(case, decode=DecodeConfig(max_new_tokens=41)), page),
        cache_key(replace(reference, name="hf-processor"), case, page),
        cache_key(replace(reference, identity={"weights": "b"}), case, page),
    }
    monkeypatch.setattr("ocr2cli.eval.reference.TILE_RULE", 0)
    keys.add(cache_key(reference, case, page))
    monkeypatch.setitem(prompt_module.PROMPTS, "ocr", "<image>\nOCR.")
    keys.add(cache_key(reference, case, page))
    assert len(keys) == 9
    monkeypatch.undo()
    assert cache_key(reference, replace(case, id="other", truth="other"), page) in keys


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_another_config_or_tokenizer_beside_the_same_weights_is_another_reference(
    tmp_path: Path, case: Case, name: str
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    page = page_of(case)
    before = cache_key(make_hf(folder), case, page)
    assert cache_key(make_hf(folder), case, page) == before
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert cache_key(make_hf(folder), case, page) != before


def test_a_damaged_cache_entry_is_made_again(case: Case, tmp_path: Path) -> None:
    page = page_of(case)
    read_cached(output_of("first"), case, page, tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text('{"text": "fir', encoding="utf-8")
    assert read_cached(output_of("second"), case, page, tmp_path).text == "second"
    assert not list(tmp_path.glob(".*"))


def stand_in(folder: Path, body: str) -> Path:
    program = folder / "llama-mtmd-cli"
    program.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def gguf_pair(tmp_path: Path) -> tuple[Path, Path]:
    pair = tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf"
    for path in pair:
        path.write_bytes(b"GGUF")
    return pair


def test_llama_cpp_gets_the_arguments_of_its_own_test(
    tmp_path: Path, gguf_pair: tuple[Path, Path], case: Case
) -> None:
    body = "print(' read: ' + json.dumps(sys.argv[1:]))"
    program = stand_in(tmp_path, body)
    reference = llama_cpp_reference(*gguf_pair, program=str(program), weights_digest="x")
    seed = replace(
        case, decode=DecodeConfig(max_new_tokens=2048, no_repeat_ngram=0, dry=DryConfig())
    )
    output = reference.read(seed, page_of(case))
    given_arguments = json.loads(output.text.removeprefix("read: "))
    assert given_arguments.pop(5).endswith("page.png")
    assert given_arguments == [
        "-m", str(gguf_pair[0]), "--mmproj", str(gguf_pair[1]), "--image",
        "-p", "Free OCR.", "--chat-template", "deepseek-ocr", "--temp", "0",
        "--flash-attn", "off", "--no-warmup", "-n", "2048",
        "--dry-multiplier", "0.8", "--dry-base", "1.75", "--dry-allowed-length", "2",
        "--dry-penalty-last-n", "64", "--dry-sequence-breaker", "none",
    ]  # fmt: skip
    assert output.notes == ()


def test_llama_cpp_without_the_ngram_rule_says_so(
    tmp_path: Path, gguf_pair: tuple[Path, Path], case: Case
) -> None:
    program = stand_in(tmp_path, "print('text')")
    reference = llama_cpp_reference(*gguf_pair, program=str(program), weights_digest="x")
    output = reference.read(case, page_of(case))
    assert output.text == "text" and "no windowed n-gram rule" in output.notes[0]


def test_a_failing_llama_cpp_is_one_line_with_its_last_words(
    tmp_path: Path, gguf_pair: tuple[Path, Path], case: Case
) -> None:
    program = stand_in(tmp_path, "print('load\\nbad magic', file=sys.stderr); sys.exit(3)")
    reference = llama_cpp_reference(*gguf_pair, program=str(program), weights_digest="x")
    with pytest.raises(EngineError, match="ended with 3 on page: bad magic") as caught:
        reference.read(case, page_of(case))
    assert "\n" not in str(caught.value)


def test_a_missing_llama_cpp_or_pair_says_what_to_do(
    tmp_path: Path, gguf_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"not on PATH\. Build llama\.cpp .* --ref-bin"):
        llama_cpp_reference(*gguf_pair, weights_digest="x")
    program = stand_in(tmp_path, "")
    with pytest.raises(UsageError, match=r"needs the GGUF pair.*ocr2 convert"):
        llama_cpp_reference(tmp_path, tmp_path, program=str(program), weights_digest="x")


def test_toy_logits_are_finite(stages: ModelStages, case: Case) -> None:
    assert torch.isfinite(torch.from_numpy(stages.first_logits(case, page_of(case)))).all()
