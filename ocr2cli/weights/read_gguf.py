"""The header of a GGUF file: metadata and tensor table, bounded before it is believed.

Every count is held against the bytes that are left, so no lie costs more than reading the file's
header once. Knows the container; knows nothing about models, nor about torch.
Source: ggml `docs/gguf.md`, `ggml.h` (type numbers).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from ocr2cli.errors import ModelError
from ocr2cli.weights.quants import BLOCKS
from ocr2cli.weights.weight_file import StoredTensor, WeightFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# A real text file: 40 keys, 155 tensors, 129,280 tokens, 127,741 merges, a header of 6 MB.
MAX_HEADER_BYTES = 128 << 20
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_ITEMS = 1 << 19  # of all arrays together
MAX_NAME_BYTES = 1024
MAX_TENSOR_NAME_BYTES = 256
MAX_DIMENSIONS = 4

_STEP_BYTES = 16 << 20

# Tensor types by number; the ones that are not blocks hold one item of so many bytes.
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
}
PLAIN_BYTES = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "I16": 2, "I32": 4, "I64": 8,
}
# Types we do not dequantise, by name, so that an error can say which it is.
_UNREADABLE = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}

# Metadata scalars by number: struct letter.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}
_STRING, _ARRAY = 8, 9

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """metadata: key to value, strings decoded. table: tensor name to its place."""

    metadata: Mapping[str, Value]
    table: Mapping[str, StoredTensor]


def read_header(file: WeightFile) -> GgufHeader:
    """Metadata and tensor table of one file.

    Raises: ModelError naming the file, and the key or tensor where there is one.
    """
    cursor = _Cursor(file)
    if cursor.take(4, "magic") != MAGIC:
        raise cursor.damaged("it does not begin with GGUF")
    version = cursor.number("I", "version")
    if version not in VERSIONS:
        raise cursor.damaged(f"its version is {version}; 2 and 3 can be read")
    num_tensors = cursor.count("Q", "tensor count", limit=MAX_TENSORS, least_bytes=24)
    num_keys = cursor.count("Q", "key count", limit=MAX_KEYS, least_bytes=13)
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = cursor.string("a key", limit=MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.damaged(f"the key {key[:80]!r} stands in it twice")
        metadata[key] = cursor.value(key)
    entries = [_entry(cursor) for _ in range(num_tensors)]
    start = _data_start(cursor, metadata)
    return GgufHeader(metadata, _placed(cursor, entries, start))


class _Cursor:
    """A reading position in the header that cannot leave it."""

    def __init__(self, file: WeightFile) -> None:
        self.file = file
        self.end = min(file.size, MAX_HEADER_BYTES)
        self.data = b""
        self.position = 0
        self.items_left = MAX_ITEMS

    @property
    def left(self) -> int:
        return self.end - self.position

    def need(self, count: int, what: str) -> None:
        """Have `count` more bytes in `data`. Headers are a thousandth of their files: the file
        is read in steps, not up to the limit."""
        if count > self.left:
            raise self.damaged(f"it ends within {what}")
        if self.position + count > len(self.data):
            more = max(self.position + count - len(self.data), _STEP_BYTES)
            more = min(more, self.end - len(self.data))
            self.data += self.file.read(len(self.data), more, what)

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, letter: str, what: str) -> int:
        (value,) = struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))
        return int(value)

    def count(self, letter: str, what: str, *, limit: int, least_bytes: int) -> int:
        """A count of things that each take at least so many of the bytes left."""
        value = self.number(letter, what)
        if value > limit or value * least_bytes > self.left:
            raise self.damaged(f"{what} claims {value:,} entries")
        return value

    def string(self, what: str, *, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.number("Q", what)
        if length > limit or length > self.left:
            raise self.damaged(f"{what} claims {length:,} bytes")
        # Token strings may hold any bytes; what is not UTF-8 must survive the reading.
        return self.take(length, what).decode("utf-8", "surrogateescape")

    def value(self, key: str) -> Value:
        what = f"the key {key[:80]!r}"
        kind = self.number("I", what)
        if kind in _SCALARS:
            letter = _SCALARS[kind]
            (scalar,) = struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))
            assert isinstance(scalar, int | float)
            return scalar
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        raise self.damaged(f"{what} has the unknown type {kind}")

    def _array(self, what: str) -> Value:
        kind = self.number("I", what)
        if kind in _SCALARS:
            item = struct.calcsize("<" + _SCALARS[kind])
            length = self._length(what, item)
            return list(struct.unpack(f"<{length}{_SCALARS[kind]}", self.take(length * item, what)))
        if kind == _STRING:
            return [self.string(what) for _ in range(self._length(what, 8))]
        # Arrays of arrays are in the format and in no file of this model.
        raise self.damaged(f"{what} is an array of the type {kind}")

    def _length(self, what: str, item_bytes: int) -> int:
        length = self.count("Q", what, limit=self.items_left, least_bytes=item_bytes)
        self.items_left -= length
        return length

    def damaged(self, why: str) -> ModelError:
        return ModelError(f"{self.file.path} is damaged: {why}. Download it again.")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the tensor table before its data is placed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int = field(default=0)


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.string("a tensor name", limit=MAX_TENSOR_NAME_BYTES)
    what = f"tensor {name[:80]}"
    num_dimensions = cursor.number("I", what)
    if num_dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"{what} claims {num_dimensions:,} dimensions")
    sizes = [cursor.number("Q", what) for _ in range(num_dimensions)]
    if any(not 0 < size < 1 << 48 for size in sizes):
        raise cursor.damaged(f"{what} has the sizes {sizes}")
    number = cursor.number("I", what)
    if number not in TENSOR_TYPES:
        raise cursor.damaged(
            f"{what} is of the type {_UNREADABLE.get(number, number)}, which cannot be read; "
            f"readable are {', '.join(['F32', 'F16', 'BF16', *BLOCKS])}"
        )
    dtype = TENSOR_TYPES[number]
    offset = cursor.number("Q", what)
    # GGUF names the fastest axis first.
    shape = tuple(reversed(sizes))
    return _Entry(name, shape, dtype, offset, _num_bytes(cursor, what, shape, dtype))


def _num_bytes(cursor: _Cursor, what: str, shape: tuple[int, ...], dtype: str) -> int:
    if dtype in PLAIN_BYTES:
        return math.prod(shape) * PLAIN_BYTES[dtype]
    size, items = BLOCKS[dtype]
    row = shape[-1] if shape else 1
    if row % items:
        raise cursor.damaged(f"{what} has rows of {row:,}, not a multiple of {dtype}'s {items}")
    return math.prod(shape) // items * size


def _data_start(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    is_power = isinstance(alignment, int) and alignment > 0 and not alignment & (alignment - 1)
    if not isinstance(alignment, int) or not is_power or alignment > 1 << 20:
        raise cursor.damaged(f"its alignment is {str(alignment)[:40]}")
    return -(-cursor.position // alignment) * alignment


def _placed(cursor: _Cursor, entries: list[_Entry], start: int) -> dict[str, StoredTensor]:
    """The table with offsets from the file's beginning; nothing overlaps, nothing sticks out."""
    size = cursor.file.size
    table: dict[str, StoredTensor] = {}
    end, before = start, ""
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.num_bytes)):
        name, begin = entry.name, start + entry.offset
        if name in table:
            raise cursor.damaged(f"tensor {name[:80]} stands in it twice")
        if begin < end:
            raise cursor.damaged(f"tensor {name[:80]} overlaps {before[:80] or 'the header'}")
        end, before = begin + entry.num_bytes, name
        if end > size:
            raise cursor.damaged(f"tensor {name[:80]} ends at byte {end:,} of {size:,}")
        table[name] = StoredTensor(name, entry.shape, entry.dtype, begin, entry.num_bytes)
    return table
