"""Damaged and hostile weight files: refused in one error that names the file, in little time."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_checkpoint import V2_CONFIG, original_shapes, random_tensors, write_checkpoint
from toy_gguf import to_gguf_names, write_pair

from ocr2cli.errors import ModelError
from ocr2cli.weights.checkpoint import open_checkpoint
from ocr2cli.weights.load import load_model
from ocr2cli.weights.read_gguf import read_header
from ocr2cli.weights.read_safetensors import read_table, shard_paths
from ocr2cli.weights.weight_file import WeightFile

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A good safetensors folder, shared; tests copy what they damage."""
    path = tmp_path_factory.mktemp("good") / "toy"
    return write_checkpoint(path, V2_CONFIG, random_tensors(original_shapes(V2_CONFIG)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A good GGUF pair, shared."""
    tensors = to_gguf_names(random_tensors(original_shapes(V2_CONFIG)))
    return write_pair(tmp_path_factory.mktemp("good") / "g", V2_CONFIG, tensors)


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def table_of(path: Path, content: bytes):
    path.write_bytes(content)
    with WeightFile(path) as file:
        return read_table(file)


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "empty": (b"", "shorter than a header"),
    "cut in the length": (b"\x08\0\0", "shorter than a header"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "claims 1,000 bytes"),
    "header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "claims"),
    "no JSON": (safetensors_bytes(b"\xff" * 20), "not JSON"),
    "a list": (safetensors_bytes([]), "not a JSON object"),
    "deep nesting": (safetensors_bytes(b"[" * 200_000), "not JSON"),
    "a name twice": (safetensors_bytes(b'{"a":1,"a":2}'), "'a' stands in it twice"),
    "no offsets": (safetensors_bytes({"a": {"dtype": "F32", "shape": [1]}}), "a has no dtype"),
    "unknown dtype": (safetensors_bytes({"a": tensor([1], 0, 4, "F31")}, bytes(4)), "F31"),
    "negative size": (safetensors_bytes({"a": tensor([-1], 0, 4)}, bytes(4)), "a has the shape"),
    "fractional size": (safetensors_bytes({"a": tensor([1.5], 0, 4)}, bytes(4)), "has the shape"),
    "huge size": (safetensors_bytes({"a": tensor([1 << 60], 0, 4)}, bytes(4)), "has the shape"),
    "product overflows": (
        safetensors_bytes({"a": tensor([1 << 40, 1 << 40], 0, 4)}, bytes(4)), "a needs"),
    "backward offsets": (safetensors_bytes({"a": tensor([1], 4, 0)}, bytes(4)), "a needs 4 bytes"),
    "past the end": (safetensors_bytes({"a": tensor([2], 0, 8)}, bytes(4)), "a ends at byte"),
    "overlap": (
        safetensors_bytes({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        "b overlaps"),
    "hole": (safetensors_bytes({"a": tensor([1], 4, 8)}, bytes(8)), "a follows a hole"),
    "tail": (safetensors_bytes({"a": tensor([1], 0, 4)}, bytes(8)), "4 bytes follow"),
    "pickle": (b"\x80\x04\x95" + bytes(40), "claims"),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_a_lying_safetensors_header_is_refused_by_name(tmp_path, kind):
    content, word = SAFETENSORS[kind]
    path = tmp_path / "lies.safetensors"
    with pytest.raises(ModelError, match=word) as caught:
        table_of(path, content)
    assert str(path) in str(caught.value)


def gguf_bytes(*, tensors: int = 0, keys: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def row(name: str, sizes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


GGUF = {
    "empty": (b"", "ends within magic"),
    "no magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "version 1": (gguf_bytes(version=1), "version is 1"),
    "big endian": (gguf_bytes(version=3 << 24), "version is 50331648"),
    "2^63 tensors": (gguf_bytes(tensors=1 << 63), "tensor count claims"),
    "2^40 keys": (gguf_bytes(keys=1 << 40), "key count claims"),
    "more keys than bytes": (gguf_bytes(keys=100, body=bytes(50)), "key count claims"),
    "key of 2^63 bytes": (
        gguf_bytes(keys=1, body=struct.pack("<Q", 1 << 63) + bytes(20)), "a key claims"),
    "array of 2^63 items": (
        gguf_bytes(keys=1, body=string("k") + struct.pack("<IIQ", 9, 0, 1 << 63)),
        "'k' claims 9,223,372,036,854,775,808"),
    "array of 2^63 strings": (
        gguf_bytes(keys=1, body=string("k") + struct.pack("<IIQ", 9, 8, 1 << 63)), "'k' claims"),
    "array of arrays": (
        gguf_bytes(keys=1, body=string("k") + struct.pack("<IIQ", 9, 9, 1)), "array of the type 9"),
    "unknown value type": (
        gguf_bytes(keys=1, body=string("k") + struct.pack("<I", 99)), "'k' has the unknown type"),
    "a key twice": (
        gguf_bytes(keys=2, body=(string("k") + struct.pack("<IB", 0, 1)) * 2), "twice"),
    "value cut off": (gguf_bytes(keys=1, body=string("k") + struct.pack("<I", 12)), "'k'"),
    "nine dimensions": (
        gguf_bytes(tensors=1, body=string("t") + struct.pack("<I", 9) + bytes(90)),
        "tensor t claims 9 dimensions"),
    "size zero": (gguf_bytes(tensors=1, body=row("t", [0])), "tensor t has the sizes"),
    "size 2^60": (gguf_bytes(tensors=1, body=row("t", [1 << 60])), "tensor t has the sizes"),
    "type Q2_K": (gguf_bytes(tensors=1, body=row("t", [256], 10)), "type Q2_K.*readable are"),
    "type 77": (gguf_bytes(tensors=1, body=row("t", [256], 77)), "type 77"),
    "half a block": (gguf_bytes(tensors=1, body=row("t", [33], 8)), "rows of 33"),
    "past the end": (gguf_bytes(tensors=1, body=row("t", [8])), "tensor t ends at byte"),
    "offset 2^63": (gguf_bytes(tensors=1, body=row("t", [8], 0, 1 << 63)), "tensor t ends"),
    "overlap": (
        gguf_bytes(tensors=2, body=row("t", [8]) + row("u", [8], 0, 16) + bytes(200)),
        "tensor u overlaps t"),
    "a tensor twice": (
        gguf_bytes(tensors=2, body=row("t", [8]) + row("t", [8], 0, 32) + bytes(200)), "twice"),
    "alignment zero": (
        gguf_bytes(keys=1, body=string("general.alignment") + struct.pack("<II", 4, 0)),
        "alignment is 0"),
    "alignment text": (
        gguf_bytes(keys=1, body=string("general.alignment") + struct.pack("<I", 8) + string("x")),
        "alignment is x"),
}


def header_of(path: Path, content: bytes):
    path.write_bytes(content)
    with WeightFile(path) as file:
        return read_header(file)


def test_a_name_twice_among_very_many_is_found_at_once(tmp_path):
    names = [f'"{number}":1' for number in range(40_000)]
    content = safetensors_bytes(("{" + ",".join([*names, names[-1]]) + "}").encode())
    start = time.process_time()
    with pytest.raises(ModelError, match="'39999' stands in it twice"):
        table_of(tmp_path / "many.safetensors", content)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", GGUF)
def test_a_lying_gguf_header_is_refused_by_name(tmp_path, kind):
    content, word = GGUF[kind]
    path = tmp_path / "lies.gguf"
    start = time.monotonic()
    with pytest.raises(ModelError, match=word) as caught:
        header_of(path, content)
    assert str(path) in str(caught.value)
    assert time.monotonic() - start < 1


@FUZZ
@given(data=st.binary(max_size=300))
def test_no_bytes_escape_the_safetensors_reader(tmp_path, data):
    for content in (data, safetensors_bytes(data), safetensors_bytes(b"{" + data + b"}")):
        try:
            assert isinstance(table_of(tmp_path / "f.safetensors", content), dict)
        except ModelError as error:
            assert "f.safetensors" in str(error)


@FUZZ
@given(
    tensors=st.integers(0, 3), keys=st.integers(0, 3),
    parts=st.lists(st.one_of(
        st.binary(max_size=20),
        st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n)),
        st.integers(0, 12).map(lambda n: struct.pack("<I", n)),
        st.text(max_size=4).map(lambda t: struct.pack("<Q", len(t.encode())) + t.encode()),
    ), max_size=20),
)
def test_no_bytes_escape_the_gguf_reader(tmp_path, tensors, keys, parts):
    content = gguf_bytes(tensors=tensors, keys=keys, body=b"".join(parts))
    try:
        header_of(tmp_path / "f.gguf", content)
    except ModelError as error:
        assert "f.gguf" in str(error)


@FUZZ
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_flipped_header_byte_is_an_error_or_the_same_shape_of_model(
    tmp_path, folder, position, value
):
    """Whatever byte of a real header is wrong: a model with all its tensors, or one ModelError."""
    good = (folder / "model.safetensors").read_bytes()
    length = 8 + struct.unpack("<Q", good[:8])[0]
    bad = bytearray(good)
    bad[int(position * length)] = value
    target = tmp_path / "flipped"
    target.mkdir(exist_ok=True)
    shutil.copyfile(folder / "config.json", target / "config.json")
    (target / "model.safetensors").write_bytes(bad)
    try:
        open_checkpoint(target).close()
    except ModelError as error:
        assert "flipped" in str(error)


@FUZZ
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255),
       is_text=st.booleans())
def test_a_flipped_gguf_byte_is_an_error_or_the_same_shape_of_model(
    tmp_path, pair, position, value, is_text
):
    target = tmp_path / "flipped"
    target.mkdir(exist_ok=True)
    for name in ("m.gguf", "mmproj-m.gguf"):
        bad = bytearray((pair.parent / name).read_bytes())
        if is_text == (name == "m.gguf"):
            bad[int(position * 5000)] = value
        (target / name).write_bytes(bad)
    try:
        open_checkpoint(target / "m.gguf").close()
    except ModelError as error:
        assert "flipped" in str(error)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_cut_anywhere_is_refused_before_data_is_read(tmp_path, folder, pair, share):
    cut = copied(folder, tmp_path / "cut")
    path = cut / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(cut)
    gguf = copied(pair.parent, tmp_path / "gguf")
    os.truncate(gguf / "m.gguf", int((gguf / "m.gguf").stat().st_size * share))
    with pytest.raises(ModelError, match=r"m\.gguf"):
        load_model(gguf / "m.gguf")


def test_a_file_cut_while_it_is_read_names_the_tensor(tmp_path, folder):
    """What would be a SIGBUS with a memory map."""
    cut = copied(folder, tmp_path / "cut")
    checkpoint = open_checkpoint(cut)
    os.truncate(cut / "model.safetensors", 40_000)
    file, stored = max(checkpoint.table.values(), key=lambda entry: entry[1].begin)
    from ocr2cli.weights.tensors import read_tensor

    with pytest.raises(ModelError, match=stored.name.replace(".", r"\.")):
        read_tensor(file, stored)
    with pytest.raises(ModelError, match="changed while it was being read"):
        checkpoint.check_unchanged()


def test_a_file_replaced_during_the_run_does_not_mix_with_the_new_one(tmp_path, folder):
    here = copied(folder, tmp_path / "here")
    checkpoint = open_checkpoint(here)
    other = {n: torch.zeros(s) for n, s in original_shapes(V2_CONFIG).items()}
    write_checkpoint(tmp_path / "new", V2_CONFIG, other)
    os.replace(tmp_path / "new" / "model.safetensors", here / "model.safetensors")
    from ocr2cli.weights.tensors import read_tensor

    file, stored = checkpoint.table["lm_head.weight"]
    assert read_tensor(file, stored).abs().max() > 0  # still the file that was opened
    checkpoint.check_unchanged()
    checkpoint.close()


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero"), tmp_path):
        start = time.monotonic()
        with pytest.raises(ModelError, match="not a regular file"):
            WeightFile(path)
        assert time.monotonic() - start < 1
    with pytest.raises(ModelError, match="cannot be opened"):
        WeightFile(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(("weight_map", "word"), [
    ({"x": "../secret.safetensors"}, "not a .safetensors file here"),
    ({"x": "/etc/passwd"}, "not a .safetensors file here"),
    ({"x": "model.bin"}, "not a .safetensors file here"),
    ({"x": "model-2.safetensors"}, "is missing"),
    ({}, "no weight_map"),
    ([], "no weight_map"),
])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, weight_map, word):
    index = {"weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=word):
        shard_paths(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, folder):
    twice = copied(folder, tmp_path / "twice")
    shutil.copyfile(twice / "model.safetensors", twice / "model-2.safetensors")
    with pytest.raises(ModelError, match="stands both in"):
        load_model(twice)


def test_a_huge_sparse_file_costs_no_time(tmp_path):
    path = tmp_path / "sparse.gguf"
    # The second array is over the budget that all arrays share.
    array = struct.pack("<IIQ", 9, 8, 300_000) + bytes(8 * 300_000)
    path.write_bytes(gguf_bytes(keys=2, body=string("a") + array + string("b") + array))
    os.truncate(path, 6 << 30)
    start = time.process_time()
    with WeightFile(path) as file, pytest.raises(ModelError, match="'b' claims 300,000"):
        read_header(file)
    assert time.process_time() - start < 5
