"""What a parameter of ours is: its shape, and the stored tensors that make it up in every naming.

Four namings are known: the original checkpoint's, transformers' own, and the two GGUF files'.
Knows no model's parameters, and nothing about files, dtypes or torch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import StrEnum

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]


class Naming(StrEnum):
    """Who named the tensors."""

    ORIGINAL = "original"
    TRANSFORMERS = "transformers"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored tensor and the box of our parameter it fills.

    index: as in `ours[index]`; () is all of it. A stored shape may differ from the box's by
    axes of length one.
    """

    name: str
    shape: Shape
    index: Index = ()


@dataclass(frozen=True, slots=True)
class Param:
    """One of our parameters and where it comes from.

    gguf_fused: a second way GGUF files may store it (converted with the fuse options).
    is_f32_in_gguf: norms, biases, convolutions, tables and the router stay F32 whatever the file.
    is_used: False for a tensor that belongs to the checkpoint but not to the computation.
    """

    name: str
    shape: Shape
    original: tuple[Piece, ...]
    transformers: tuple[Piece, ...]
    gguf: tuple[Piece, ...]
    gguf_fused: tuple[Piece, ...] = ()
    is_f32_in_gguf: bool = False
    is_used: bool = True

    @property
    def part(self) -> str:
        """ "vision" or "decoder"."""
        return self.name.partition(".")[0]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def pieces(self, naming: Naming, available: Container[str] = ()) -> tuple[Piece, ...]:
        """The stored tensors that make this parameter up, given the names a file holds."""
        if naming is Naming.ORIGINAL:
            return self.original
        if naming is Naming.TRANSFORMERS:
            return self.transformers
        if any(piece.name in available for piece in self.gguf_fused):
            return self.gguf_fused
        return self.gguf


def single(
    name: str, shape: Shape, original: str, native: str, gguf: str, *, f32: bool = False
) -> Param:
    """A parameter that is one stored tensor under every naming."""
    return Param(
        name, shape, (Piece(original, shape),), (Piece(native, shape),), (Piece(gguf, shape),),
        is_f32_in_gguf=f32,
    )


def stacked(
    name: str,
    shape: Shape,
    rows: Sequence[int],
    *,
    original: Sequence[str],
    transformers: Sequence[str],
    gguf: Sequence[str],
    fused: str = "",
    f32: bool = False,
) -> Param:
    """A parameter that stacks several stored ones along the first axis."""
    ends = [sum(rows[: i + 1]) for i in range(len(rows))]
    boxes = [slice(end - count, end) for count, end in zip(rows, ends, strict=True)]

    def pieces(names: Sequence[str]) -> tuple[Piece, ...]:
        return tuple(
            Piece(stored, (count, *shape[1:]), (box,))
            for stored, count, box in zip(names, rows, boxes, strict=True)
        )

    return Param(
        name, shape, pieces(original), pieces(transformers), pieces(gguf),
        gguf_fused=(Piece(fused, shape),) if fused else (), is_f32_in_gguf=f32,
    )
