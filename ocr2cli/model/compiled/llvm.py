"""Small words for writing LLVM's code from Python, for `dot_rows.py` and `dot_columns.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Build:
    """llvmlite's types and the few operations that both loops are made of."""

    def __init__(self, ir: Any) -> None:
        self._ir = ir
        self.byte, self.short, self.int32, self.int64 = (
            ir.IntType(bits) for bits in (8, 16, 32, 64)
        )
        self.float32 = ir.FloatType()

    def vector(self, kind: Any, count: int) -> Any:
        return self._ir.VectorType(kind, count)

    def load(self, builder: Any, kind: Any, address: Any) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, builder: Any, value: Any, address: Any) -> None:
        builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)

    def shuffle(self, builder: Any, one: Any, other: Any, lanes: Sequence[int]) -> Any:
        """The named lanes of two vectors, the second's counted on from the first's."""
        mask = self._ir.Constant(self.vector(self.int32, len(lanes)), [*map(self.int32, lanes)])
        return builder.shuffle_vector(one, other, mask)

    def spread(self, builder: Any, kind: Any, value: Any) -> Any:
        """A vector of one value in every lane."""
        first = builder.insert_element(
            self._ir.Constant(kind, self._ir.Undefined), value, self.int32(0)
        )
        return self.shuffle(builder, first, first, [0] * kind.count)

    def by_count(
        self,
        builder: Any,
        counts: Sequence[int],
        arguments: Sequence[Any],
        run: Callable[..., None],
    ) -> None:
        """run(builder, count, *rest) for the count that the first argument has, one of `counts`:
        each gets code of its own, so that its sums have registers of their own."""
        count, *rest = arguments
        done = builder.append_basic_block("done")
        cases = [builder.append_basic_block(f"rows{n}") for n in counts]
        switch = builder.switch(count, done)
        for number, case in zip(counts, cases, strict=True):
            switch.add_case(self.int64(number), case)
            builder.position_at_end(case)
            run(builder, number, *rest)
            builder.branch(done)
        builder.position_at_end(done)


def splat(kind: Any, value: float) -> Any:
    """A constant vector of one value."""
    return kind([kind.element(value)] * kind.count)
