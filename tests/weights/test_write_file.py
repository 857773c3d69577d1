"""Weight files appear whole, under their own name, or not at all."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import gguf
import pytest

from ocr2cli.errors import OutputError
from ocr2cli.weights.write_file import Entry, gguf_writer


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


def test_a_file_that_the_disk_does_not_take_is_refused_on_entering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first tensor is computed."""

    def too_large(fd: int, size: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", too_large)
    with pytest.raises(OutputError, match=r"x\.gguf cannot be written: File too large"):
        gguf_writer(tmp_path / "x.gguf", {}, []).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_somebody_planted_in_the_parts_place_is_not_written_through(
    tmp_path: Path,
) -> None:
    diary, path = tmp_path / "diary", tmp_path / "x.gguf"
    diary.write_text("mine")
    path.with_name(f".{path.name}.{os.getpid()}.part").symlink_to(diary)
    with pytest.raises(OutputError, match=r"x\.gguf cannot be written: File exists"):
        gguf_writer(path, {}, []).__enter__()
    assert diary.read_text() == "mine" and not path.exists()
