"""Conversions: bit-exact round trips, error tables, and no harm to what is there."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_checkpoint import V1_CONFIG, V2_CONFIG, original_shapes, random_tensors, write_checkpoint
from toy_gguf import to_gguf_names

from ocr2cli.cli.main import main
from ocr2cli.errors import ExitCode, ModelError, OutputError, UsageError
from ocr2cli.weights.checkpoint import open_checkpoint
from ocr2cli.weights.convert import convert
from ocr2cli.weights.load import load_model
from ocr2cli.weights.read_config import read_config


def equal_files(one, two) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return a.keys() == b.keys() and all(
        torch.equal(a[name].view(torch.int16), b[name].view(torch.int16)) for name in a
    )


def test_original_to_gguf_and_back_is_bit_exact(tmp_path, toy_folder):
    report = convert(toy_folder, tmp_path / "m.gguf")
    assert report.is_exact
    assert report.paths == (tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf")
    assert convert(tmp_path / "m.gguf", tmp_path / "back").is_exact
    assert equal_files(toy_folder, tmp_path / "back")
    assert read_config(tmp_path / "back") == read_config(toy_folder)


def test_original_to_transformers_to_gguf_and_back_is_bit_exact(tmp_path, v2_folder):
    convert(v2_folder, tmp_path / "native", naming="transformers")
    names = load_file(tmp_path / "native" / "model.safetensors").keys()
    assert "model.language_model.layers.1.mlp.experts.gate_up_proj" in names
    assert read_config(tmp_path / "native") == read_config(v2_folder)
    convert(tmp_path / "native", tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert equal_files(v2_folder, tmp_path / "back")


def test_values_that_bf16_holds_oddly_survive_the_round_trip(tmp_path):
    tensors = random_tensors(original_shapes(V2_CONFIG))
    odd = torch.tensor([0x0001, 0x8000, 0x7F7F, 0xFF7F - 0x10000, 0x0080], dtype=torch.int32)
    for tensor in tensors.values():
        tensor.view(-1)[:5] = odd.to(torch.int16).view(torch.bfloat16)
    folder = write_checkpoint(tmp_path / "odd", V2_CONFIG, tensors)
    convert(folder, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert equal_files(folder, tmp_path / "back")


def test_transformers_loads_what_we_write_for_it(tmp_path, v2_folder):
    from transformers import DeepseekOcr2ForConditionalGeneration

    convert(v2_folder, tmp_path / "native", naming="transformers")
    theirs, info = DeepseekOcr2ForConditionalGeneration.from_pretrained(
        tmp_path / "native", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    wanted = load_file(v2_folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(theirs.lm_head.weight, wanted)


def test_the_gguf_package_reads_what_we_write(tmp_path, toy_folder, toy_tensors):
    convert(toy_folder, tmp_path / "m.gguf")
    wanted = to_gguf_names(toy_tensors)
    seen = set()
    for half in ("m.gguf", "mmproj-m.gguf"):
        for tensor in gguf.GGUFReader(tmp_path / half).tensors:
            seen.add(tensor.name)
            data = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            values = torch.from_numpy(data)
            assert torch.equal(values.reshape(wanted[tensor.name].shape),
                               wanted[tensor.name].float()), tensor.name
            is_matrix = tensor.tensor_type == gguf.GGMLQuantizationType.BF16
            assert is_matrix == is_bf16_by_the_table(tensor.name), tensor.name
    assert seen == set(wanted)


def is_bf16_by_the_table(name: str) -> bool:
    """model-spec 7.1 and 7.2: matrices of linear layers, queries and vocabulary; no others."""
    keeps = ("norm", "_inp", ".bias", "embd.", "ln", "pos_", "neck", "net_", "newline", "class")
    if name in ("token_embd.weight", "output.weight"):
        return True
    return not any(word in name for word in keeps) and name != "v.view_seperator"


@pytest.mark.parametrize(("quant", "bound"), [("q8_0", 0.01), ("f16", 1e-3), ("f32", 0.0)])
def test_rounding_stays_in_its_bound_and_is_in_the_table(tmp_path, toy_folder, quant, bound):
    report = convert(toy_folder, tmp_path / "m.gguf", quant=quant)
    exact, rounded = load_model(toy_folder, dtype=torch.float32), load_model(
        tmp_path / "m.gguf", dtype=torch.float32)
    worst = 0.0
    for (name, a), b in zip(exact.state_dict().items(), rounded.state_dict().values(), strict=True):
        if name.endswith(("norm.weight", "bias", "pos_embed", "router.weight")):
            assert torch.equal(a, b), name
        worst = max(worst, float((a - b).norm() / a.norm()))
    assert worst <= bound
    rows = {(row.kind, row.dtype): row for row in report.rows}
    experts = rows["decoder experts", {"q8_0": "Q8_0", "f16": "F16", "f32": "F32"}[quant]]
    a = torch.cat([v.flatten() for k, v in exact.state_dict().items() if "experts_" in k])
    b = torch.cat([v.flatten() for k, v in rounded.state_dict().items() if "experts_" in k])
    assert experts.max_abs == pytest.approx(float((a - b).abs().max()))
    assert experts.relative_rms == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-4)
    assert experts.num_tensors == 6
    assert experts.numel == a.numel()
    assert report.is_exact == (quant == "f32")
    assert "decoder experts" in report.to_text()
    assert "decoder experts" not in report.to_text(with_errors=False)


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path):
    config = json.loads(json.dumps(V2_CONFIG))
    config["language_config"]["moe_intermediate_size"] = 40
    folder = write_checkpoint(
        tmp_path / "odd", config, random_tensors(original_shapes(config))
    )
    convert(folder, tmp_path / "m.gguf", quant="q8_0")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.1.ffn_down_exps.weight"] == "F16"
    assert types["blk.1.ffn_gate_exps.weight"] == "Q8_0"
    load_model(tmp_path / "m.gguf")


def test_progress_goes_from_nothing_to_all(tmp_path, v2_folder):
    calls = []
    report = convert(v2_folder, tmp_path / "m.gguf", progress=lambda *c: calls.append(c))
    done, totals = [c[0] for c in calls], {c[1] for c in calls}
    assert done == sorted(done)
    assert len(totals) == 1
    assert done[-1] == totals.pop() <= report.num_bytes


def test_leftovers_and_unused_tensors_are_dropped_or_carried_by_rule(tmp_path):
    tensors = random_tensors(original_shapes(V1_CONFIG))
    del tensors["model.vision_model.embeddings.patch_embedding.weight"]
    tensors["model.vision_model.embeddings.position_ids"] = torch.arange(257)[None]
    folder = write_checkpoint(tmp_path / "v1", V1_CONFIG, tensors)
    convert(folder, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    names = load_file(tmp_path / "back" / "model.safetensors").keys()
    assert names == tensors.keys() - {"model.vision_model.embeddings.position_ids"}


def test_v1_has_no_transformers_form(tmp_path):
    folder = write_checkpoint(
        tmp_path / "v1", V1_CONFIG, random_tensors(original_shapes(V1_CONFIG))
    )
    with pytest.raises(ModelError, match="no DeepSeek-OCR v1"):
        convert(folder, tmp_path / "out", naming="transformers")
    assert not (tmp_path / "out").exists()


def test_small_files_go_along_and_code_does_not(tmp_path, v2_folder):
    (v2_folder / "generation_config.json").write_text("{}")
    (v2_folder / "modeling_evil.py").write_text("raise SystemExit")
    convert(v2_folder, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors"]


def test_the_source_is_never_written_over(tmp_path, v2_folder):
    with pytest.raises(UsageError, match="the source itself"):
        convert(v2_folder, v2_folder)
    convert(v2_folder, tmp_path / "m.gguf")
    for dst in (tmp_path / "m.gguf",):
        with pytest.raises(UsageError, match="the source itself"):
            convert(tmp_path / "m.gguf", dst)
    load_model(v2_folder)
    load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(("dst", "quant", "word"), [
    ("folder", "q8_0", "ends in .gguf"), ("x.gguf", "q4_k", "bf16, f16, f32, q8_0"),
])
def test_wishes_that_cannot_be_met_are_usage_errors(tmp_path, v2_folder, dst, quant, word):
    with pytest.raises(UsageError, match=word):
        convert(v2_folder, tmp_path / dst, quant=quant)


def test_the_current_folder_can_be_converted_into(tmp_path, v2_folder, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report = convert(v2_folder, Path())
    assert report.paths == (tmp_path / "here" / "model.safetensors",)
    assert equal_files(v2_folder, tmp_path / "here")


@pytest.mark.parametrize("name", ["file/out", "file/deep/out", "file/m.gguf"])
def test_a_place_below_a_file_is_a_usage_error(tmp_path, v2_folder, name):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file is a file, so .* Choose another DST"):
        convert(v2_folder, tmp_path / name)


@pytest.mark.parametrize("name", [
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "consolidated.safetensors",
])
def test_a_folder_with_other_weights_is_no_place_for_a_model(tmp_path, v2_folder, name):
    """Beside them nobody could tell which ones are the model's."""
    out = tmp_path / "out"
    convert(v2_folder, out)
    convert(v2_folder, out)  # an earlier result may be written over
    (out / name).write_text("{}")
    with pytest.raises(UsageError, match=rf"out holds another model's {name}.* an empty folder"):
        convert(v2_folder, out)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_folder_with_a_file_of_somebody_elses_is_no_place_for_a_model(tmp_path, v2_folder, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(UsageError, match=rf"out holds another {name}.* an empty folder"):
        convert(v2_folder, out)
    assert (out / name).read_text() == '{"mine": 1}' and len(list(out.iterdir())) == 1


@pytest.mark.parametrize("dst", ["m.gguf", "out"])
def test_weights_that_were_not_made_of_this_source_are_not_written_over(tmp_path, v2_folder, dst):
    tensors = random_tensors(original_shapes(V2_CONFIG))
    tuned = {name: 2 * tensor for name, tensor in tensors.items()}
    write_checkpoint(tmp_path / "tuned", V2_CONFIG, tuned)
    convert(tmp_path / "tuned", tmp_path / dst)
    written = [path for path in tmp_path.glob("*.gguf")] or [tmp_path / "out/model.safetensors"]
    before = [path.read_bytes() for path in written]
    with pytest.raises(UsageError, match=r"is there, and not by ocr2 convert of these.* Delete it"):
        convert(v2_folder, tmp_path / dst)
    assert [path.read_bytes() for path in written] == before
    convert(tmp_path / "tuned", tmp_path / dst, quant="f16")
    for path in written:
        path.unlink()
    convert(v2_folder, tmp_path / dst)


@pytest.mark.parametrize("name", ["m.gguf", "mmproj-m.gguf", "model.safetensors"])
def test_a_file_that_is_no_model_is_not_written_over(tmp_path, v2_folder, name):
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / name
    mine.write_text("my diary")
    dst = mine.with_name("m.gguf") if name.endswith("gguf") else mine.parent
    with pytest.raises(UsageError, match=rf"{name} is there, and not by ocr2 convert"):
        convert(v2_folder, dst)
    assert mine.read_text() == "my diary" and list(mine.parent.iterdir()) == [mine]


def test_the_ending_of_a_gguf_may_be_in_capitals(tmp_path, v2_folder):
    report = convert(v2_folder, tmp_path / "M.GGUF")
    assert [path.name for path in report.paths] == ["M.GGUF", "mmproj-M.GGUF"]
    convert(tmp_path / "M.GGUF", tmp_path / "back")
    assert equal_files(v2_folder, tmp_path / "back")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("quant", ["bf16", "f16", "f32", "q8_0"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value, quant):
    tensors = random_tensors(original_shapes(V2_CONFIG))
    tensors["model.layers.1.self_attn.q_proj.weight"].view(-1)[7] = value
    folder = write_checkpoint(tmp_path / "broken", V2_CONFIG, tensors)
    with pytest.raises(ModelError, match=r"q_proj\.weight holds NaN or infinity"):
        convert(folder, tmp_path / "m.gguf", quant=quant)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def test_a_terminated_conversion_leaves_nothing_and_says_so_by_its_exit_code(
    tmp_path, v2_folder, monkeypatch
):
    def at_once(done, total):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ocr2cli.cli.convert._progress", lambda quiet: (None, at_once))
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(v2_folder), str(out / "m.gguf")])
    assert stop.value.code == ExitCode.SIGTERM and list(out.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_parts_of_killed_conversions_are_removed_and_no_others(tmp_path, v2_folder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, alive = f".m.gguf.{os.getpid()}.part", f".m.gguf.{os.getppid()}.part"
    names = (f".m.gguf.{dead.pid}.part", ours, alive, f".n.gguf.{dead.pid}.part", ".m.gguf.x.part")
    for name in (*names, f".mmproj-m.gguf.{dead.pid}.part"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    fresh = tmp_path / f".m.gguf.{dead.pid + 1}.part"  # of another machine, it may be
    fresh.touch()
    convert(v2_folder, tmp_path / "m.gguf")
    left = {path.name for path in tmp_path.glob(".*.part")}
    assert left == {*names[2:], fresh.name}


def test_an_earlier_result_may_be_written_over_in_the_other_naming(tmp_path, v2_folder):
    for naming in ("original", "transformers", "original"):
        convert(v2_folder, tmp_path / "out", naming=naming)
    assert equal_files(v2_folder, tmp_path / "out")


@pytest.mark.parametrize("names", [("nano", ""), ("", "out")])
def test_a_name_that_is_empty_is_not_the_current_folder(tmp_path, monkeypatch, capsys, names):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["convert", *names])
    assert stop.value.code == ExitCode.USAGE
    assert "is empty" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_small_file_that_cannot_be_written_is_one_line(tmp_path, v2_folder, name):
    (v2_folder / "generation_config.json").write_text("{}")
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=rf"{name} cannot be written: .* another DST"):
        convert(v2_folder, tmp_path / "out")


def test_a_name_that_no_disk_takes_is_one_line(tmp_path, v2_folder):
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        convert(v2_folder, tmp_path / ("x" * 300))


@pytest.mark.parametrize(("dst", "quant", "value"), [
    ("out", "f16", 65_536.0), ("m.gguf", "f16", -1e30), ("m.gguf", "q8_0", 1e30),
])
@pytest.mark.filterwarnings("error")
def test_values_too_large_for_a_format_are_refused_and_nothing_is_written(
    tmp_path, dst, quant, value
):
    tensors = random_tensors(original_shapes(V2_CONFIG))
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name].view(-1)[7] = value
    folder = write_checkpoint(tmp_path / "large", V2_CONFIG, tensors)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"q(_proj)?\.weight holds .*too large.*--quant bf16"):
        convert(folder, out if dst == "out" else out / dst, quant=quant)
    assert list(out.iterdir()) == []
    # the largest number of 16 bits is none of these
    tensors[name].view(-1)[7] = 65_280.0
    write_checkpoint(tmp_path / "large", V2_CONFIG, tensors)
    convert(folder, tmp_path / "fits.gguf", quant=quant)


def test_a_full_disk_leaves_no_half_file(tmp_path, v2_folder):
    """The limit on file size stands for a full disk."""
    if sys.platform == "win32":
        return
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "out"
    out.mkdir()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OutputError, match=r"mmproj-m\.gguf cannot be written"):
            convert(v2_folder, out / "m.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert list(out.iterdir()) == []


def test_a_source_that_changes_meanwhile_leaves_no_result(tmp_path, v2_folder):
    out = tmp_path / "out"
    out.mkdir()

    def touch(done: int, total: int) -> None:
        with (v2_folder / "model.safetensors").open("ab") as file:
            file.write(b"x")

    with pytest.raises(ModelError, match="changed while it was being read"):
        convert(v2_folder, out / "m.gguf", progress=touch)
    assert list(out.iterdir()) == []


def test_a_converted_folder_is_whole(tmp_path, v2_folder):
    convert(v2_folder, tmp_path / "out", quant="f32")
    checkpoint = open_checkpoint(tmp_path / "out")
    checkpoint.close()
    assert {stored.dtype for _, stored in checkpoint.table.values()} == {"F32"}


def test_blocks_that_llama_cpp_would_run_otherwise_are_named(tmp_path, v2_folder):
    """Its global blocks are compiled in; the toy's is block 1, of three."""
    warnings = convert(v2_folder, tmp_path / "m.gguf").warnings
    assert any("blocks [2]" in warning and "not [1]" in warning for warning in warnings)
