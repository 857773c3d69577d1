"""Quantised blocks: one written by hand for each type, and random ones against gguf's."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from ocr2cli.weights.quants import BLOCKS, dequantise, quantise_q8_0


def half(value: float) -> bytes:
    return struct.pack("<e", value)


# Bytes of one block, and the values they stand for, worked out with pencil from the layouts in
# ggml-common.h. Items not named are the type's zero level.
HAND_WRITTEN = {
    # scale 0.5; items 0, 1, 31 are 127, -128, 2
    "Q8_0": (half(0.5) + bytes([127, 128]) + bytes(29) + bytes([2]),
             {0: 63.5, 1: -64.0, 31: 1.0}, 0.0),
    # scale 2; byte 0 holds items 0 (low) and 16 (high), level 8 is zero
    "Q4_0": (half(2) + bytes([0xF0]) + bytes([0x88]) * 15, {0: -16.0, 16: 14.0}, 0.0),
    # scale 2, minimum -1
    "Q4_1": (half(2) + half(-1) + bytes([0x3F]) + bytes(15), {0: 29.0, 16: 5.0}, -1.0),
    # scale 1; fifth bits of items 0 and 17 set (bits 0 and 17), level 16 is zero
    "Q5_0": (half(1) + struct.pack("<I", 1 | 1 << 17) + bytes([0x01, 0xF0]) + bytes(14),
             {0: 1.0, 17: 15.0}, -16.0),
    # scale 1, minimum 4
    "Q5_1": (half(1) + half(4) + struct.pack("<I", 1 << 31) + bytes(15) + bytes([0x90]),
             {31: 29.0}, 4.0),
}


@pytest.mark.parametrize("kind", HAND_WRITTEN)
def test_a_block_written_by_hand_gives_its_values(kind):
    data, special, rest = HAND_WRITTEN[kind]
    wanted = np.full(32, rest, np.float32)
    for item, value in special.items():
        wanted[item] = value
    assert np.array_equal(dequantise(kind, data), wanted)


def six_bit_scales(scales: list[int], mins: list[int]) -> bytes:
    """Eight scales and minima of six bits packed into twelve bytes, as K-quants do."""
    low = [scales[j] | scales[j + 4] >> 4 << 6 for j in range(4)]
    high = [mins[j] | mins[j + 4] >> 4 << 6 for j in range(4)]
    rest = [scales[j + 4] & 15 | (mins[j + 4] & 15) << 4 for j in range(4)]
    return bytes(low + high + rest)


SCALES, MINS = [1, 2, 3, 63, 17, 33, 48, 5], [0, 7, 63, 1, 16, 32, 21, 3]


def test_q4_k_groups_have_their_own_scale_and_minimum():
    quants = bytearray(128)
    quants[0] = 0x5F  # group 0 item 0 is 15, group 1 item 0 is 5
    quants[32 * 3 + 31] = 0x9A  # group 6 item 31 is 10, group 7 item 31 is 9
    got = dequantise("Q4_K", half(0.5) + half(0.25) + six_bit_scales(SCALES, MINS) + quants)
    wanted = np.repeat([-0.25 * m for m in MINS], 32).astype(np.float32).reshape(8, 32)
    for group, item, value in ((0, 0, 15), (1, 0, 5), (6, 31, 10), (7, 31, 9)):
        wanted[group, item] += 0.5 * SCALES[group] * value
    assert np.array_equal(got.reshape(8, 32), wanted)


def test_q5_k_takes_its_fifth_bit_from_the_groups_bit():
    high = bytearray(32)
    high[4] = 0b1000_0010  # item 4 of groups 1 and 7
    head = half(0.5) + half(0.25) + six_bit_scales(SCALES, MINS)
    got = dequantise("Q5_K", head + bytes(high) + bytes(128)).reshape(8, 32)
    wanted = np.repeat([-0.25 * m for m in MINS], 32).astype(np.float32).reshape(8, 32)
    wanted[1, 4] += 0.5 * 2 * 16
    wanted[7, 4] += 0.5 * 5 * 16
    assert np.array_equal(got, wanted)


def test_q6_k_puts_four_bits_low_and_two_bits_high():
    low, high = bytearray(128), bytearray(64)
    low[0], high[0] = 0x21, 0b01_00_11_10  # half 0: items 0, 32, 64, 96 from byte 0's bit pairs
    low[64 + 63] = 0xC0  # half 1, second 32 bytes: item 96 + 31 has 12 low
    scales = bytes([1, 2, 3, 4, 5, 6, 7, 8, 256 - 9, 10, 11, 12, 13, 14, 15, 16])
    got = dequantise("Q6_K", bytes(low) + bytes(high) + scales + half(0.5))
    levels = np.full(256, -32.0)
    levels[0] = 0x1 + (0b10 << 4) - 32
    levels[32] = 0 + (0b11 << 4) - 32
    levels[64] = 0x2 + (0b00 << 4) - 32
    levels[96] = 0 + (0b01 << 4) - 32
    levels[128 + 127] = 12 - 32
    signed = np.frombuffer(scales, np.int8)
    assert np.array_equal(got, (levels * 0.5 * np.repeat(signed, 16)).astype(np.float32))


@pytest.mark.parametrize("kind", BLOCKS)
def test_random_blocks_are_read_as_the_gguf_package_reads_them(kind):
    size, items = BLOCKS[kind]
    number = getattr(gguf.GGMLQuantizationType, kind)
    assert gguf.GGML_QUANT_SIZES[number] == (items, size)
    data = np.random.default_rng(3).integers(0, 256, (200, size), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales may be NaN
        theirs = gguf.quants.dequantize(data, number).reshape(-1)
        ours = dequantise(kind, data.tobytes())
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_q8_0_is_written_as_the_gguf_package_writes_it():
    values = np.random.default_rng(4).normal(size=(64, 320)).astype(np.float32)
    values[0, :32] = 0
    values[1, :2] = [127.0, 0.5]  # scale 1: one half is rounded away from zero
    values[1, 2:32] = -2.5
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    ours = quantise_q8_0(values)
    assert np.array_equal(ours.reshape(theirs.shape), theirs)
    assert ours[10, 3] == 1
    assert ours[10, 4] == 256 - 3


def test_q8_0_loses_at_most_half_a_step():
    values = np.random.default_rng(5).normal(size=3200).astype(np.float32)
    back = dequantise("Q8_0", quantise_q8_0(values).tobytes())
    step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
    error = np.abs(back - values).reshape(-1, 32)
    assert np.all(error <= step * 0.5 + np.abs(values).reshape(-1, 32) * 2**-10)
