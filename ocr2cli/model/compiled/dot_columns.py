"""The innermost loop of `map_attention.py`: a few bf16 rows times a matrix packed by columns.

Where `dot_rows.py` adds up along a vector's lanes, here each lane is a column of its own: right for
many columns and short rows. Knows nothing about attention: it gets addresses.
"""

from __future__ import annotations

from collections.abc import Callable

from ocr2cli.model.compiled.llvm import Build, splat

# Columns of a vector, vectors at a time, and the numbers of rows at a time: 6 rows' 24 sums, four
# vectors of columns and a row's word fit the 32 registers.
LANES, VECTORS = 16, 4
WIDTH = LANES * VECTORS
ROWS = (1, 2, 4, 6)
FEATURES = (frozenset({"avx512f", "avx512bf16"}),)


def make_dot_columns(*, is_score: bool) -> Callable[..., None]:
    """A function for numba's compiled code, all arguments but one addresses or counts (int64):

    dot_columns(rows, inputs, input_pitch, words, matrix, pitch, outputs, output_pitch, scale, tops)

    rows: one of ROWS. inputs: of the first row, `words` of 32 bits, two bf16 each; input_pitch:
    bytes to the next row. matrix: of the first word of the first of WIDTH columns, pitch: bytes to
    the next word of each. outputs: of the first row's first column in the result, float32.
    A score is what stands there plus scale (float32) times the product, and the largest of each
    lane so far, nan aside, is kept at tops: LANES float32 a row. Otherwise the product is added to
    what stands there, and scale and tops are not looked at.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    build = Build(ir)
    int64 = build.int64
    words = build.vector(build.int32, LANES)
    singles = build.vector(build.float32, LANES)
    size = 4 * LANES

    @intrinsic
    def dot_columns(  # type: ignore[no-untyped-def]
        typing, rows, inputs, input_pitch, count, matrix, pitch, outputs, output_pitch, scale, tops
    ):
        signature = types.void(*[types.int64] * 8, types.float32, types.int64)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            build.by_count(builder, ROWS, arguments, run_rows)
            return context.get_dummy_value()

        return signature, generate

    def run_rows(  # type: ignore[no-untyped-def]
        b, rows, inputs, input_pitch, count, matrix, pitch, outputs, output_pitch, scale, tops
    ):
        dot = cgutils.get_or_insert_function(
            b.module,
            ir.FunctionType(singles, [singles, words, words]),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )
        sources = [b.add(inputs, b.mul(input_pitch, int64(row))) for row in range(rows)]
        start, loop = b.block, b.append_basic_block("loop")
        end = b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        at, line = b.phi(int64), b.phi(int64)
        at.add_incoming(int64(0), start)
        line.add_incoming(matrix, start)
        before = [b.phi(singles) for _ in range(rows * VECTORS)]
        for each in before:
            each.add_incoming(splat(singles, 0.0), start)
        stored = [
            build.load(b, words, b.add(line, int64(size * vector))) for vector in range(VECTORS)
        ]
        after = []
        for row in range(rows):
            word = build.load(b, build.int32, b.add(sources[row], b.mul(at, int64(4))))
            spread = build.spread(b, words, word)
            for vector in range(VECTORS):
                total = before[row * VECTORS + vector]
                after.append(b.call(dot, [total, spread, stored[vector]]))
        following, next_line = b.add(at, int64(1)), b.add(line, pitch)
        at.add_incoming(following, loop)
        line.add_incoming(next_line, loop)
        for old, new in zip(before, after, strict=True):
            old.add_incoming(new, loop)
        b.cbranch(b.icmp_signed("<", following, count), loop, end)

        b.position_at_end(end)
        factor = build.spread(b, singles, scale)
        for row in range(rows):
            into = b.add(outputs, b.mul(output_pitch, int64(row)))
            kept = b.add(tops, int64(size * row))
            top = build.load(b, singles, kept) if is_score else None
            for vector in range(VECTORS):
                value = after[row * VECTORS + vector]
                place = b.add(into, int64(size * vector))
                if is_score:
                    value = b.fmul(value, factor)
                value = b.fadd(build.load(b, singles, place), value)
                build.store(b, value, place)
                if is_score:
                    top = b.select(b.fcmp_ordered(">", value, top), value, top)
            if is_score:
                build.store(b, top, kept)

    return dot_columns
