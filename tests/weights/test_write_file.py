"""Weight files appear whole, under their own name, or not at all."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from ocr2cli.errors import OutputError
from ocr2cli.weights.write_file import Entry, gguf_writer, safetensors_writer


def test_the_last_tensor_of_a_gguf_is_padded_as_all_are(tmp_path: Path) -> None:
    """Nothing writes these bytes; a reader that takes whole blocks would look behind the end."""
    path = tmp_path / "x.gguf"
    values = {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0, 3.0, 4.0]}
    entries = [Entry(name, (len(items),), "F32") for name, items in values.items()]
    with gguf_writer(path, {}, entries) as writer:
        for name, items in values.items():
            writer.write_at(writer.begins[name], struct.pack(f"<{len(items)}f", *items))
    assert path.stat().st_size == writer.begins["b"] + 32
    found = {tensor.name: tensor.data.tolist() for tensor in gguf.GGUFReader(path).tensors}
    assert found == values


@pytest.mark.parametrize("values", [[1, "x"], ["x", 1], [0.5, 1], [1, 0.5], [1, True]])
def test_an_array_of_mixed_items_is_refused_by_its_key(
    tmp_path: Path, values: list[int | float | str]
) -> None:
    with pytest.raises(ValueError, match=r"a\.key is an array of mixed items"):
        gguf_writer(tmp_path / "x.gguf", {"a.key": values}, [])


def test_a_tensor_of_blocks_takes_its_blocks_bytes() -> None:
    assert Entry("a", (2, 64), "Q8_0").num_bytes == 2 * 2 * 34
    assert Entry("a", (2, 64), "F16").num_bytes == 256


def failing(number: int) -> Callable[..., Any]:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize(
    ("call", "number"),
    [("ftruncate", errno.EFBIG), ("pwrite", errno.ENOSPC), ("fsync", errno.EIO),
     ("replace", errno.EISDIR)],
)  # fmt: skip
def test_a_disk_that_takes_no_more_is_told_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Some file systems tell of a full disk no sooner than at the end."""
    path = tmp_path / "x.gguf"
    path.write_text("an earlier result")
    num_open = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        words = rf"x\.gguf cannot be written: {os.strerror(number)}\. Make room"
        with pytest.raises(OutputError, match=words), gguf_writer(path, {}, []):
            assert call in ("fsync", "replace"), "the others are known before a tensor is computed"
    assert path.read_text() == "an earlier result" and list(tmp_path.iterdir()) == [path]
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_what_is_broken_off_leaves_nothing_and_what_is_finished_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt), gguf_writer(tmp_path / "x.gguf", {}, []):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with gguf_writer(tmp_path / "x.gguf", {}, []):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_disk_that_takes_data_in_pieces_gets_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: plain(fd, data[:5], at))
    path, values = tmp_path / "x.safetensors", [float(number) for number in range(9)]
    with safetensors_writer(path, [Entry("a", (9,), "F32")]) as writer:
        writer.write_at(writer.begins["a"], struct.pack("<9f", *values))
    assert load_file(path)["a"].tolist() == values


def test_a_link_that_somebody_planted_in_the_parts_place_is_not_written_through(
    tmp_path: Path,
) -> None:
    diary, path = tmp_path / "diary", tmp_path / "x.gguf"
    diary.write_text("mine")
    path.with_name(f".{path.name}.{os.getpid()}.part").symlink_to(diary)
    with pytest.raises(OutputError, match=r"x\.gguf cannot be written: File exists"):
        gguf_writer(path, {}, []).__enter__()
    assert diary.read_text() == "mine" and not path.exists()


def test_a_safetensors_file_keeps_its_notes_and_its_data_begins_where_words_do(
    tmp_path: Path,
) -> None:
    for name in ("a", "ab", "abc", "abcd"):
        with safetensors_writer(tmp_path / "x", [Entry(name, (2,), "F32")], {"made": name}) as one:
            one.write_at(one.begins[name], struct.pack("<2f", 0.5, 1.5))
        assert one.begins[name] % 8 == 0
        with safe_open(tmp_path / "x", "pt") as file:
            assert file.metadata() == {"format": "pt", "made": name}
            assert file.get_tensor(name).tolist() == [0.5, 1.5]
