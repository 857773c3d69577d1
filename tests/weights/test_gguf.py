"""GGUF pairs to models: keys, names, types, fused variants, vocabulary."""

from __future__ import annotations

import copy
import json
import os
import struct
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from toy_checkpoint import V1_CONFIG, V2_CONFIG, original_shapes, random_tensors, write_checkpoint
from toy_gguf import fuse, to_gguf_names, write_pair

from ocr2cli.errors import ModelError
from ocr2cli.text.tokenizer import BOS_TOKEN, EOS_TOKEN
from ocr2cli.text.vocabulary import tokenizer_json
from ocr2cli.weights.checkpoint import open_checkpoint, read_tokenizer
from ocr2cli.weights.convert import convert
from ocr2cli.weights.gguf_config import gguf_config
from ocr2cli.weights.hub import ModelFiles, resolve_model
from ocr2cli.weights.load import load_decoder, load_model
from ocr2cli.weights.read_config import parse_config
from ocr2cli.weights.read_gguf import read_header
from ocr2cli.weights.weight_file import WeightFile
from ocr2cli.weights.write_config import text_metadata, vision_metadata, vocabulary_metadata
from ocr2cli.weights.write_file import gguf_writer


def same_model(one, two) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_a_gguf_pair_is_the_same_model_as_the_safetensors(
    tmp_path, toy, toy_folder, toy_tensors, kind
):
    path = write_pair(tmp_path / "g", toy, to_gguf_names(toy_tensors), default=kind)
    assert same_model(load_model(path), load_model(toy_folder))


def test_fused_tensors_are_the_same_model(tmp_path, toy, toy_folder, toy_tensors):
    path = write_pair(tmp_path / "g", toy, fuse(to_gguf_names(toy_tensors)))
    assert same_model(load_model(path), load_model(toy_folder))


def test_sizes_come_from_keys_and_tensors(tmp_path, toy, toy_tensors):
    path = write_pair(tmp_path / "g", toy, to_gguf_names(toy_tensors))
    checkpoint = open_checkpoint(path)
    checkpoint.close()
    config = checkpoint.config
    assert config == parse_config(toy, "toy")
    assert config.decoder.head_dim == 32  # although rope.dimension_count says 0
    assert config.sam.global_blocks == (1,)


def test_the_type_of_each_tensor_is_read(tmp_path):
    """One file with every readable type in it; wide rows, since K-quants hold 256 items."""
    config = copy.deepcopy(V2_CONFIG)
    config["language_config"] |= {"hidden_size": 256, "intermediate_size": 256}
    tensors = to_gguf_names(random_tensors(original_shapes(config)))
    rng = np.random.default_rng(0)
    types = {
        "output.weight": "Q8_0", "token_embd.weight": "Q4_0", "blk.0.attn_q.weight": "Q5_0",
        "blk.0.attn_k.weight": "Q4_1", "blk.0.attn_v.weight": "Q5_1", "blk.1.attn_q.weight": "F16",
        "blk.0.ffn_gate.weight": "Q4_K", "blk.0.ffn_up.weight": "Q5_K",
        "blk.0.ffn_down.weight": "Q6_K", "blk.1.attn_output.weight": "BF16",
    }
    wanted = {}
    for name, kind in types.items():
        number = getattr(gguf.GGMLQuantizationType, kind)
        if kind.endswith("_K"):  # the package cannot write these: random blocks, small scales
            items, size = gguf.GGML_QUANT_SIZES[number]
            rows, columns = tensors[name].shape
            blocks = rng.integers(0, 256, (rows, columns // items, size), dtype=np.uint8)
            scale = np.frombuffer(struct.pack("<e", 0.01), np.uint8)
            for at in ((208,) if kind == "Q6_K" else (0, 2)):
                blocks[..., at : at + 2] = scale
            data = blocks.reshape(rows, -1)
            tensors[name] = torch.from_numpy(data)
        else:
            data = gguf.quants.quantize(tensors[name].float().numpy(), number)
        wanted[name] = torch.from_numpy(np.array(gguf.quants.dequantize(data, number)))
    path = write_pair(tmp_path / "g", config, tensors, types)
    state = load_decoder(path, dtype=torch.float32).state_dict()
    assert torch.equal(state["lm_head.weight"], wanted["output.weight"])
    assert torch.equal(state["embed.weight"], wanted["token_embd.weight"])
    assert torch.equal(
        state["layers.0.attn.qkv.weight"],
        torch.cat([wanted[f"blk.0.attn_{x}.weight"] for x in "qkv"]),
    )
    assert torch.equal(state["layers.1.attn.qkv.weight"][:256], wanted["blk.1.attn_q.weight"])
    assert torch.equal(
        state["layers.0.mlp.gate_up.weight"],
        torch.cat((wanted["blk.0.ffn_gate.weight"], wanted["blk.0.ffn_up.weight"])),
    )
    assert torch.equal(state["layers.0.mlp.down.weight"], wanted["blk.0.ffn_down.weight"])
    assert torch.equal(state["layers.1.attn.out.weight"], wanted["blk.1.attn_output.weight"])


def test_halves_given_the_wrong_way_round_are_named(tmp_path):
    tensors = to_gguf_names(random_tensors(original_shapes(V2_CONFIG)))
    path = write_pair(tmp_path / "g", V2_CONFIG, tensors)
    vision = path.with_name("mmproj-m.gguf")
    with pytest.raises(ModelError, match="--mmproj"):
        open_checkpoint(ModelFiles("x", vision, path))
    with pytest.raises(ModelError, match="projector_type is None"):
        open_checkpoint(ModelFiles("x", path, path))


def test_every_wrong_tensor_of_a_pair_is_listed(tmp_path):
    tensors = to_gguf_names(random_tensors(original_shapes(V2_CONFIG)))
    del tensors["blk.1.ffn_up_exps.weight"], tensors["v.post_ln.weight"]
    tensors["blk.0.attn_norm.weight"] = torch.zeros(3)
    tensors["blk.7.extra.weight"] = torch.zeros(3)
    path = write_pair(tmp_path / "g", V2_CONFIG, tensors)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    text = str(caught.value)
    assert "missing: blk.1.ffn_up_exps.weight [4, 32, 64]" in text
    assert "missing: v.post_ln.weight [32]" in text
    assert "mis-shaped: blk.0.attn_norm.weight is [3], not [64], in m.gguf" in text
    assert "unexpected: blk.7.extra.weight in m.gguf" in text


# A byte-level vocabulary with the family's special tokens at made-up places.
ALPHABET = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256)),
            *map(chr, range(256, 324))]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("\u0120", "w"), ("o", "r")]


def toy_vocabulary() -> dict[str, object]:
    specials = [BOS_TOKEN, EOS_TOKEN, "<\uff5c\u2581pad\u2581\uff5c>"]
    tokens = specials + ALPHABET + ["".join(pair) for pair in MERGES]
    added = [(number, token, True) for number, token in enumerate(specials)]
    size = len(tokens)
    added += [(size, "<image>", True), (size + 1, "<|grounding|>", True),
              (size + 2, "<|EOT|>", False), (size + 3, "<td>", True), (size + 4, "</td>", True)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    empty = json.loads(tokenizer_json([], [], [], pre="deepseek-v3"))
    return empty | {
        "added_tokens": [
            {"id": number, "content": token, "special": special, **flags}
            for number, token, special in added
        ],
        "model": empty["model"] | {
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [list(pair) for pair in MERGES],
        },
    }


@pytest.fixture
def with_vocabulary(tmp_path):
    """A toy folder whose tokenizer and embedding fit one another."""
    config = copy.deepcopy(V2_CONFIG)
    vocabulary = toy_vocabulary()
    config["language_config"]["vocab_size"] = 288
    config["image_token_id"] = next(
        token["id"] for token in vocabulary["added_tokens"] if token["content"] == "<image>"
    )
    folder = write_checkpoint(
        tmp_path / "vocab", config, random_tensors(original_shapes(config))
    )
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    return folder


def test_a_vocabulary_survives_the_way_through_gguf(tmp_path, with_vocabulary):
    report = convert(with_vocabulary, tmp_path / "v.gguf")
    # The toy's SAM blocks are not llama.cpp's, which it is told; of the vocabulary, not a word.
    assert [warning for warning in report.warnings if "SAM" not in warning] == []
    before = read_tokenizer(resolve_model(str(with_vocabulary)))
    after = read_tokenizer(resolve_model(str(tmp_path / "v.gguf")))
    for text in ("hello world", " who? 12345 \u4e2d\u6587 \u304b\u306a", "<image>\n<|grounding|>he",
                 "<td>1.5</td><|EOT|>  \r\n\n x", "\u00e9\u0301 \U0001f600", ""):
        ids = before.encode(text)
        assert after.encode(text) == ids
        assert after.decode(ids) == before.decode(ids) == text
    assert (after.bos_id, after.eos_id) == (before.bos_id, before.eos_id)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "deepseek-v3"
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == 288
    assert fields["tokenizer.ggml.tokens"][287] == "[PAD287]"
    types = fields["tokenizer.ggml.token_type"]
    assert (types[0], types[5], types[287]) == (3, 1, 5)
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in MERGES]


def test_a_vocabulary_that_splits_text_otherwise_is_warned_of(tmp_path, with_vocabulary):
    path = with_vocabulary / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    # One rule fewer: words are no longer kept apart, so merges reach across.
    del vocabulary["pre_tokenizer"]["pretokenizers"][2]
    vocabulary["model"]["merges"].append(["s", "\u0120"])
    vocabulary["model"]["vocab"]["s\u0120"] = 264
    vocabulary["added_tokens"] = vocabulary["added_tokens"][:3]
    path.write_text(json.dumps(vocabulary))
    report = convert(with_vocabulary, tmp_path / "v.gguf")
    assert "splits some texts in another way" in "".join(report.warnings)


def test_the_image_token_is_found_by_name(tmp_path, with_vocabulary):
    convert(with_vocabulary, tmp_path / "v.gguf")
    with WeightFile(tmp_path / "v.gguf") as file:
        header = read_header(file)
    assert header.metadata["tokenizer.ggml.tokens"].index("<image>") == header.metadata[
        "ocr2.image_token_id"
    ]
    checkpoint = open_checkpoint(tmp_path / "v.gguf")
    checkpoint.close()
    assert checkpoint.config == open_checkpoint(with_vocabulary).config


@pytest.mark.parametrize("config", [V2_CONFIG, V1_CONFIG], ids=["v2", "v1"])
def test_metadata_says_what_llama_cpp_needs(config):
    sizes = parse_config(config, "toy")
    text, vision = text_metadata(sizes, "x", "q8_0"), vision_metadata(sizes, "x", "bf16")
    assert text["general.architecture"] == "deepseek2-ocr"
    assert text["general.file_type"] == 7
    assert text["deepseek2-ocr.attention.head_count_kv"] == 2
    assert text["deepseek2-ocr.leading_dense_block_count"] == 1
    assert text["deepseek2-ocr.rope.freq_base"] == 10000.0
    assert "deepseek2-ocr.expert_weights_norm" not in text
    assert vision["clip.use_gelu"] is True
    assert vision["clip.vision.image_mean"] == vision["clip.vision.image_std"] == [0.5] * 3
    assert vision["general.file_type"] == 32
    is_v2 = config is V2_CONFIG
    assert vision["clip.projector_type"] == ("deepseekocr2" if is_v2 else "deepseekocr")
    assert ("clip.vision.attention.head_count_kv" in vision) == is_v2
    assert vision["clip.vision.preproc_max_tiles"] == (6 if is_v2 else 9)


def test_a_written_header_reads_back_equal(tmp_path):
    metadata = {
        "a.int": 7, "a.float": 0.5, "a.yes": True, "a.no": False, "a.text": "\u00e9 x",
        "a.ints": [1, -2, 3], "a.floats": [0.5, 1.5], "a.texts": ["x", "", "\u4e2d"],
    }
    with gguf_writer(tmp_path / "x.gguf", metadata, []):
        pass
    with WeightFile(tmp_path / "x.gguf") as file:
        assert read_header(file).metadata == metadata


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "x.gguf", []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append((os.fstat(fd).st_size, path.exists()))
    )
    with gguf_writer(path, {"a": 1}, []):
        pass
    assert synced == [(path.stat().st_size, False)]


@pytest.mark.parametrize(("change", "word"), [
    (lambda t: t.pop("model"), "byte-level BPE"),
    (lambda t: t["model"].update(vocab=[1]), "byte-level BPE"),
    (lambda t: t["added_tokens"].append({"id": 999, "content": "x", "special": True}), "999"),
])
def test_a_vocabulary_that_does_not_fit_is_refused(change, word):
    vocabulary = toy_vocabulary()
    change(vocabulary)
    config = copy.deepcopy(V2_CONFIG)
    config["language_config"]["vocab_size"] = 288
    with pytest.raises(ModelError, match=word):
        vocabulary_metadata(json.dumps(vocabulary), parse_config(config, "toy"), "tokenizer.json")


@pytest.mark.parametrize(("key", "value"), [
    ("expert_gating_func", 2), ("expert_weights_scale", 2.5), ("expert_group_count", 8),
    ("expert_weights_norm", True), ("attention.head_count_kv", 1),
])
def test_a_decoder_that_computes_otherwise_is_refused(tmp_path, toy, toy_tensors, key, value):
    """Other DeepSeek models have tensors of the same names, and these keys with other values."""
    path = write_pair(tmp_path, toy, to_gguf_names(toy_tensors))
    headers = []
    for name in ("m.gguf", "mmproj-m.gguf"):
        with WeightFile(path.with_name(name)) as file:
            headers.append(read_header(file))
    text, vision = headers
    where = ("m.gguf", "mmproj-m.gguf")
    gguf_config(text, vision, where)
    changed = replace(text, metadata={**text.metadata, f"deepseek2-ocr.{key}": value})
    with pytest.raises(ModelError, match=f"{key} is {value}; only"):
        gguf_config(changed, vision, where)
