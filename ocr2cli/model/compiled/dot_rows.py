"""The innermost loop of `token_products.py`: dot products of a few rows with four channels.

numba's vectoriser does not find the processor's instructions for dot products, and it cannot ask
for memory ahead. So this piece is written as LLVM's code, once for all kinds of numbers; numba puts
it where it is called and compiles both.
Knows nothing about matrices: it gets addresses.

Letters: K input channels; L lanes of a vector; a "step" is what one vector of weights holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ocr2cli.model.compiled.llvm import Build, splat

# Output channels at a time: their weights are as many streams from memory.
CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is multiplied, and how.

    step: input channels at a time. weight, input: bytes of one of each. lanes: sums a vector holds.
    rows: at a time, at most; their sums, four weights and a row's piece stay in the registers.
    parts: of a row, one after the other, that are summed up apart.
    dot: LLVM's name for the instruction of a step. features: what a processor needs, as LLVM names
    it: all of any of these sets.
    """

    name: str
    step: int
    weight: int
    input: int
    lanes: int
    rows: int
    dot: str
    features: tuple[frozenset[str], ...]
    parts: int = 1

    @property
    def variant(self) -> str:
        """Part of a kernel's cache key: two kinds with one key would load each other's code."""
        return f"{self.name} {self.step} {self.dot}"

    @property
    def is_whole(self) -> bool:
        """Sums are integers."""
        return self.name == "int8"

    @property
    def is_signed(self) -> bool:
        """The instruction takes signed numbers of 16 bits, not unsigned bytes by signed ones."""
        return self.dot.endswith("pmadd.wd")

    @property
    def is_narrow(self) -> bool:
        """Results are bf16; else float32."""
        return self.name == "bf16"


# 32 registers of 16 words.
_LONG = (frozenset({"avx512f"}),)
_DOTS_BF16 = (frozenset({"avx512f", "avx512bf16"}),)
_DOTS_INT8 = (frozenset({"avx512f", "avx512vnni"}),)
BF16 = Numbers("bf16", 32, 2, 2, 16, 6, "llvm.x86.avx512bf16.dpbf16ps.512", _DOTS_BF16)
INT8 = Numbers("int8", 64, 1, 2, 16, 3, "llvm.x86.avx512.vpdpbusd.512", _DOTS_INT8, parts=2)
FLOAT = Numbers("float", 16, 4, 4, 16, 6, "llvm.fma.v16f32", _LONG)
WIDENED = Numbers("widened", 16, 2, 4, 16, 6, "llvm.fma.v16f32", _LONG)
# 16 registers of 8 words, or ARM's 32 of four.
_SHORT = frozenset({"avx2", "fma"}), frozenset({"neon"})
SHORT_FLOAT = Numbers("float", 8, 4, 4, 8, 3, "llvm.fma.v8f32", _SHORT)
SHORT_WIDENED = Numbers("widened", 8, 2, 4, 8, 2, "llvm.fma.v8f32", _SHORT)
# 16 registers of 8 words: with dot products of bytes, as desktops have since 2021, and without.
_SHORT_DOTS = frozenset({"avx2", "avxvnni"}), frozenset({"avx512vl", "avx512vnni"})
SHORT_INT8 = Numbers(
    "int8", 32, 1, 2, 8, 1, "llvm.x86.avx512.vpdpbusd.256", _SHORT_DOTS, parts=2
)  # fmt: skip
SHORT_SIGNED = Numbers(
    "int8", 16, 1, 2, 8, 1, "llvm.x86.avx2.pmadd.wd", (frozenset({"avx2"}),), parts=2
)  # fmt: skip


def make_dot_rows(numbers: Numbers) -> Callable[..., None]:
    """A function for numba's compiled code, all arguments addresses or counts (int64):

    dot_rows(rows, weights, ahead, low, high, width, inputs, outputs, column,
             scales, shifts, row_scales)

    rows: 1 to numbers.rows. weights: four channels of `width` items, one after the other, width a
    multiple of the step. ahead: four channels that are needed soon; of these, `low` to `high` are
    fetched into the second cache meanwhile. inputs, outputs: addresses, of the rows' first inputs
    and of their rows of the result. column: bytes from there to the first of the four results.

    bf16, float, widened (float32 inputs, bf16 weights): products and sums in float32, added up in
    an order that is the same for every row and channel. int8: a row is its `width` high bytes and
    then its low ones, all signed, sums exact; result float32 = (256 * high sum + low sum) *
    scales[channel] * row_scales[row]; shifts: int32, 128 times each channel's sum, taken off where
    bytes are multiplied as unsigned ones.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    build = Build(ir)
    load, store = build.load, build.store
    int32, int64, float32 = build.int32, build.int64, build.float32
    is_float = numbers.name in ("float", "widened")
    lanes = numbers.lanes
    # Instructions for dot products take their operands as words, whatever these hold.
    words, singles = ir.VectorType(int32, lanes), ir.VectorType(float32, lanes)
    sums = words if numbers.is_whole else singles
    operand = singles if is_float else words
    if numbers.is_signed:
        operand = ir.VectorType(build.short, 2 * lanes)
    floats, ints, shorts = (
        ir.VectorType(kind, CHANNELS) for kind in (float32, int32, build.short)
    )

    def add_halves(builder: Any, one: Any, other: Any, length: int) -> Any:
        """Each stretch of `length` lanes becomes one of half the length: its halves' sum. The
        stretches of `one`, then those of `other` (none where they are the same value)."""
        count = one.type.count if one is other else 2 * one.type.count
        starts = range(0, count, length)
        low = [start + lane for start in starts for lane in range(length // 2)]
        high = [lane + length // 2 for lane in low]
        first, second = (build.shuffle(builder, one, other, part) for part in (low, high))
        return (builder.add if numbers.is_whole else builder.fadd)(first, second)

    def add_lanes(builder: Any, four: Sequence[Any]) -> Any:
        """Four vectors of L lanes -> one of four sums."""
        length = lanes
        one = add_halves(builder, four[0], four[1], length)
        other = add_halves(builder, four[2], four[3], length)
        both = add_halves(builder, one, other, length // 2)
        length //= 4
        while length > 1:
            both = add_halves(builder, both, both, length)
            length //= 2
        return both

    def load_numbers(builder: Any, address: Any) -> Any:
        if not numbers.is_signed:
            return load(builder, operand, address)
        return builder.sext(load(builder, ir.VectorType(build.byte, 2 * lanes), address), operand)

    def load_weights(builder: Any, address: Any) -> Any:
        if numbers.name != "widened":
            return load_numbers(builder, address)
        halves = load(builder, ir.VectorType(build.short, lanes), address)
        wide = builder.shl(builder.zext(halves, words), splat(words, 16))
        return builder.bitcast(wide, singles)

    def as_bf16(builder: Any, value: Any) -> Any:
        """float32 -> bf16, to the nearest, ties to even; a nan stays one."""
        bits = builder.bitcast(value, ints)
        high = builder.lshr(bits, splat(ints, 16))
        odd = builder.and_(high, splat(ints, 1))
        rounded = builder.add(bits, builder.add(splat(ints, 0x7FFF), odd))
        is_nan = builder.fcmp_unordered("uno", value, value)
        quiet = builder.or_(high, splat(ints, 0x40))
        return builder.trunc(
            builder.select(is_nan, quiet, builder.lshr(rounded, splat(ints, 16))), shorts
        )

    @intrinsic
    def dot_rows(  # type: ignore[no-untyped-def]
        typing, rows, weights, ahead, low, high, width, inputs, outputs, column,
        scales, shifts, row_scales,
    ):  # fmt: skip
        signature = types.void(*[types.int64] * 12)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            build.by_count(builder, range(1, numbers.rows + 1), arguments, run_rows)
            return context.get_dummy_value()

        return signature, generate

    def run_rows(  # type: ignore[no-untyped-def]
        b, count, weights, ahead, low, high, width, inputs, outputs, column,
        scales, shifts, row_scales,
    ):  # fmt: skip
        operands = [operand, operand] if numbers.is_signed else [sums, operand, operand]
        dot = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(sums, operands), numbers.dot
        )

        def add_product(total: Any, pair: Sequence[Any]) -> Any:
            if numbers.is_signed:
                return b.add(total, b.call(dot, pair))
            return b.call(dot, [*pair, total] if is_float else [total, *pair])

        place = build.byte.as_pointer()
        prefetch = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(ir.VoidType(), [place, int32, int32, int32]),
            "llvm.prefetch.p0",
        )  # fmt: skip
        length = b.mul(width, int64(numbers.weight))
        offsets = [b.mul(length, int64(channel)) for channel in range(CHANNELS)]
        streams = [b.add(weights, offset) for offset in offsets]
        coming = []
        for channel, offset in enumerate(offsets):
            is_asked = b.and_(
                b.icmp_signed("<=", low, int64(channel)), b.icmp_signed(">", high, int64(channel))
            )
            coming.append(b.add(b.select(is_asked, ahead, weights), offset))
        sources = []
        for row in range(count):
            source = load(b, int64, b.add(inputs, int64(8 * row)))
            sources += [b.add(source, b.mul(width, int64(part))) for part in range(numbers.parts)]

        start, loop = b.block, b.append_basic_block("loop")
        end = b.append_basic_block("end")
        b.branch(loop)
        b.position_at_end(loop)
        at = b.phi(int64)
        at.add_incoming(int64(0), start)
        before = [b.phi(sums) for _ in range(len(sources) * CHANNELS)]
        for each in before:
            each.add_incoming(splat(sums, 0), start)
        stored = [load_weights(b, b.add(stream, at)) for stream in streams]
        along = b.mul(at, int64(numbers.input // numbers.parts // numbers.weight))
        # Into the second cache (2): the first is full of what is multiplied now. The processor
        # alone follows four short streams at two thirds of the memory's rate. A stream that is not
        # asked for names what is in the cache already.
        for stream in coming:
            b.call(prefetch, [b.inttoptr(b.add(stream, at), place), int32(0), int32(2), int32(1)])
        after = []
        for row, source in enumerate(sources):
            piece = load_numbers(b, b.add(source, along))
            if numbers.is_whole and not numbers.is_signed:
                # The instruction takes unsigned inputs: shifted by 128, as `shifts` makes good.
                piece = b.xor(piece, splat(words, 0x80808080))
            for channel in range(CHANNELS):
                total = before[row * CHANNELS + channel]
                after.append(add_product(total, [piece, stored[channel]]))
        following = b.add(at, int64(numbers.step * numbers.weight))
        at.add_incoming(following, loop)
        for old, new in zip(before, after, strict=True):
            old.add_incoming(new, loop)
        b.cbranch(b.icmp_unsigned("<", following, length), loop, end)

        b.position_at_end(end)
        fours = [after[first : first + CHANNELS] for first in range(0, len(after), CHANNELS)]
        for row in range(count):
            of_row = [add_lanes(b, fours[row * numbers.parts + n]) for n in range(numbers.parts)]
            into = b.add(load(b, int64, b.add(outputs, int64(8 * row))), column)
            if numbers.is_whole:
                shift = splat(ints, 0) if numbers.is_signed else load(b, ints, shifts)
                high, low = (b.sitofp(b.sub(value, shift), floats) for value in of_row)
                both = b.fadd(b.fmul(high, splat(floats, 256.0)), low)
                scale = load(b, float32, b.add(row_scales, int64(4 * row)))
                spread = build.spread(b, floats, scale)
                store(b, b.fmul(b.fmul(both, load(b, floats, scales)), spread), into)
            else:
                (value,) = of_row
                store(b, as_bf16(b, value) if numbers.is_narrow else value, into)

    return dot_rows
