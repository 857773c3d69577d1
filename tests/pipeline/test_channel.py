"""Frames and bodies: what goes in comes out, whole, without needless copies."""

from __future__ import annotations

import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr2cli.pages import PageKey, Views
from ocr2cli.pipeline.channel import (
    Frame,
    FrameReader,
    FrameWriter,
    Kind,
    decode_item,
    encode_item,
    open_pipe,
)


def joined(item: object) -> bytearray:
    return bytearray(b"".join(encode_item(item)))


def test_arrays_travel_outside_the_pickle_and_are_not_copied() -> None:
    array = np.arange(1 << 20, dtype=np.uint8)
    parts = encode_item({"a": array, "b": 7})
    assert sum(len(part) for part in parts if isinstance(part, bytes)) < 2000
    (raw,) = (part for part in parts if isinstance(part, memoryview))
    assert np.shares_memory(np.frombuffer(raw, np.uint8), array)


def test_received_arrays_lie_in_the_body_aligned_and_writable() -> None:
    item = (np.zeros(3, np.uint8), np.arange(5, dtype=np.float64), np.ones((2, 3), np.uint16))
    body = joined(item)
    out = decode_item(body)
    for before, after in zip(item, out, strict=True):
        np.testing.assert_array_equal(before, after)
        assert after.flags.writeable
        assert np.shares_memory(after, np.frombuffer(body, np.uint8))
        offset = after.ctypes.data - np.frombuffer(body, np.uint8).ctypes.data
        assert offset % 64 == 0


def test_views_survive_with_no_tiles_and_odd_strides() -> None:
    rgb = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(8, 8, 3).transpose(2, 0, 1)
    views = Views(PageKey("d", 1), rgb, np.zeros((0, 3, 4, 4), np.uint8), (1, 1), (8, 8))
    out = decode_item(joined(views))
    np.testing.assert_array_equal(out.global_view, rgb)
    assert out.tiles.shape == (0, 3, 4, 4)
    assert out.key == views.key


def test_visual_tokens_keep_dtype_and_bits_and_cost_no_copy_in_the_pickle() -> None:
    torch = pytest.importorskip("torch")
    from ocr2cli.pages import VisualTokens

    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        tokens = torch.randn(257, 64).to(dtype)
        item = VisualTokens(
            PageKey("d", 0), tokens, (2, 3), (10, 20), "ab", "draft", ("w",), {"encode": 1.5}
        )
        parts = encode_item(item)
        assert len(parts[1]) < 64 and len(b"".join(p for p in parts if isinstance(p, bytes))) < 1500
        out = decode_item(joined(item))
        assert out.tokens.dtype == dtype and torch.equal(out.tokens, tokens)
        assert (out.key, out.grid, out.page_size, out.pixels_sha256) == (
            item.key, item.grid, item.page_size, item.pixels_sha256
        )  # fmt: skip
        assert (out.own_text, out.warnings, out.seconds) == ("draft", ("w",), {"encode": 1.5})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(0, 2**64 - 1), st.binary())))
def test_frames_come_out_as_they_went_in(sent: list[tuple[Kind, int, bytes]]) -> None:
    read_fd, write_fd = open_pipe()
    writer, reader = FrameWriter(write_fd), FrameReader(read_fd)
    for kind, serial, body in sent:
        writer.push(kind, serial, [body[:1], body[1:]])
    writer.flush()
    os.close(write_fd)
    got: list[Frame] = []
    while frame := reader.read():
        got.append(frame)
    os.close(read_fd)
    assert [(f.kind, f.serial, bytes(f.body)) for f in got] == sent


def test_a_frame_larger_than_the_pipe_passes_without_blocking_either_side() -> None:
    read_fd, write_fd = open_pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    writer, reader = FrameWriter(write_fd), FrameReader(read_fd)
    body = os.urandom(5_000_000)
    writer.push(Kind.ITEM, 1, [body])
    frames: list[Frame] = []
    rounds = 0
    while not frames:
        writer.flush()
        frames, is_ended = reader.read_available()
        assert not is_ended
        rounds += 1
    assert rounds > 1 and not writer.has_pending
    assert bytes(frames[0].body) == body
    os.close(write_fd)
    assert reader.read_available() == ([], True)
    os.close(read_fd)


def test_a_frame_cut_by_the_death_of_its_writer_is_never_delivered() -> None:
    read_fd, write_fd = open_pipe()
    writer = FrameWriter(write_fd)
    writer.push(Kind.RESULT, 1, [b"x" * 100])
    writer.push(Kind.RESULT, 2, [b"y" * 100])
    writer.flush()
    whole = os.read(read_fd, 1000)
    os.close(write_fd)
    os.close(read_fd)
    for cut in range(len(whole)):
        read_fd, write_fd = os.pipe()
        os.write(write_fd, whole[:cut])
        os.close(write_fd)
        reader = FrameReader(read_fd)
        got = []
        while frame := reader.read():
            got.append(frame)
        os.close(read_fd)
        assert len(got) == (cut >= len(whole) // 2)


def test_two_threads_may_not_mix_their_frames() -> None:
    from ocr2cli.pipeline.child import _Uplink

    read_fd, write_fd = open_pipe()
    uplink = _Uplink(write_fd)

    def send(serial: int) -> None:
        for _ in range(50):
            uplink.send(Kind.ITEM, serial, [bytes([serial]) * 100_000])

    threads = [threading.Thread(target=send, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    reader = FrameReader(read_fd)
    for _ in range(100):
        frame = reader.read()
        assert frame is not None and set(frame.body) == {frame.serial}
    for thread in threads:
        thread.join()
    os.close(read_fd)
    os.close(write_fd)


def test_the_body_is_a_plain_protocol_five_pickle() -> None:
    assert pickle.loads(encode_item(["x"])[2]) == ["x"]
