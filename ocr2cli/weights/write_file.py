"""Weight files written tensor by tensor: header first, data into places fixed beforehand.

Knows the two containers' headers and where data goes; knows nothing about models or torch. A file
appears under its name only when it is whole.
Source: the safetensors format description; ggml `docs/gguf.md`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ocr2cli.errors import OutputError
from ocr2cli.weights.quants import BLOCKS
from ocr2cli.weights.read_gguf import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    PLAIN_BYTES,
    TENSOR_TYPES,
    Value,
)
from ocr2cli.weights.read_safetensors import ITEM_BYTES

_TYPE_NUMBERS = {name: number for number, name in TENSOR_TYPES.items()}
# Seconds without a write after which the part of a dead process is nobody's.
STALE_S = 60.0
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT32 = 4, 6, 7, 8, 9, 5


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written. shape: row-major. dtype: BF16, F16, F32 or, in GGUF, Q8_0."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        size, items = BLOCKS.get(self.dtype) or (PLAIN_BYTES[self.dtype], 1)
        return math.prod(self.shape) // items * size


class WeightWriter:
    """A file whose header is written on entering and whose name it gets on leaving.

    begins: entry's name -> offset of its data. Raises: OutputError naming the path.
    """

    def __init__(self, path: Path, header: bytes, begins: Mapping[str, int], size: int) -> None:
        self.path = path
        self.begins = begins
        self._header, self._size = header, size
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._fd = -1

    def __enter__(self) -> WeightWriter:
        _remove_stale(self.path)
        try:
            self._fd = os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except OSError as error:
            raise self._failed(error) from error
        try:
            os.ftruncate(self._fd, self._size)
            self.write_at(0, self._header)
        except OSError as error:
            self._discard()
            raise self._failed(error) from error
        except OutputError:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            os.fsync(self._fd)
            os.replace(self._part, self.path)
        except OSError as fault:
            self._discard()
            raise self._failed(fault) from fault
        os.close(self._fd)

    def _discard(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(OSError):
            self._part.unlink()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done : done + (1 << 30)], offset + done)
            except OSError as error:
                raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written: {error.strerror}. Make room or choose another DST."
        )


def _remove_stale(path: Path) -> None:
    """Parts of this file whose writers were killed: as large as the model."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([0-9]{{1,9}})\.part")
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            found = pattern.fullmatch(name)
            part = path.with_name(name)
            # A writer on another machine, or in another container, touches it all the time.
            if found and not _is_alive(int(found[1])) and _age_s(part) > STALE_S:
                part.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()  # ours has not begun: it is one of an earlier process of this number


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def safetensors_writer(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None
) -> WeightWriter:
    """A writer of one .safetensors file; data lies in the entries' order, without holes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    begins, end = {}, 0
    for entry in entries:
        begins[entry.name] = end
        end += math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
        header[entry.name] = {
            "dtype": entry.dtype, "shape": list(entry.shape),
            "data_offsets": [begins[entry.name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {name: start + begin for name, begin in begins.items()}
    return WeightWriter(path, struct.pack("<Q", len(text)) + text, places, start + end)


def gguf_writer(
    path: Path, metadata: Mapping[str, Value], entries: Sequence[Entry]
) -> WeightWriter:
    """A writer of one GGUF file (version 3); data is aligned to 32 bytes."""
    header = bytearray(MAGIC + struct.pack("<IQQ", 3, len(entries), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + _value(key, value)
    begins, end = {}, 0
    for entry in entries:
        begins[entry.name] = end
        header += _string(entry.name) + struct.pack("<I", len(entry.shape))
        header += struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        header += struct.pack("<IQ", _TYPE_NUMBERS[entry.dtype], end)
        end += _aligned(entry.num_bytes)
    header += bytes(_aligned(len(header)) - len(header))
    start = len(header)
    places = {name: start + begin for name, begin in begins.items()}
    return WeightWriter(path, bytes(header), places, start + end)


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    """Type number and value. Counts are uint32 and numbers float32, as llama.cpp asks for them."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<I", _ARRAY) + _array(key, value)


def _array(key: str, values: Sequence[int | float | bool | str]) -> bytes:
    count = struct.pack("<Q", len(values))
    # A list without items is one of strings: a vocabulary of single bytes has no merges.
    if all(isinstance(value, str) for value in values):
        items = b"".join(_string(str(value)) for value in values)
        return struct.pack("<I", _STRING) + count + items
    if all(isinstance(value, float) for value in values):
        return struct.pack("<I", _FLOAT32) + count + struct.pack(f"<{len(values)}f", *values)
    if all(type(value) is int for value in values):
        return struct.pack("<I", _INT32) + count + struct.pack(f"<{len(values)}i", *values)
    raise ValueError(f"{key} is an array of mixed items")
