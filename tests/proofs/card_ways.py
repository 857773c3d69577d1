"""Which way suits a CUDA card, run by hand in under a minute: how SAM's relative positions come
into its attention, how a decode step looks at its cache, how many pages are encoded together.

    python tests/proofs/card_ways.py               on a card, bf16, the published size
    python tests/proofs/card_ways.py --rehearse    on a CPU at toy size: those that it has

bias      what `model/sam.py` does: the terms become one number for each query and key
channels  the terms are further channels of the query, and each key says where it lies: no bias is
          written or read, and any fused attention will do, over 3 times the channels (64 patches a
          side) or 2.5 times (48)
span      what `model/attention.py` does: every row looks at as many positions as the longest has
lengths   every row looks at its own, by torch's attention over a table of blocks, a slot each
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ocr2cli.bench.measure import now
from ocr2cli.bench.workload import make_pages, make_subject, tile_config
from ocr2cli.config import EngineConfig
from ocr2cli.engines.encoding import encode_pages
from ocr2cli.model.attention import HIDDEN
from ocr2cli.model.sam import attend_with_positions, key_places

HEADS, CHANNELS = 12, 64
# Views of four pages: patches a side, views.
MAPS = ((64, 4), (48, 24))
FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true")
    rehearse = parser.parse_args().rehearse
    with torch.inference_mode():
        measure_maps(rehearse)
        measure_steps(rehearse)
        measure_groups(rehearse)


def measure_maps(rehearse: bool) -> None:
    device, dtype = ("cpu", torch.float32) if rehearse else ("cuda", torch.bfloat16)
    for side, views in ((8, 2), (6, 3)) if rehearse else MAPS:
        given = random_inputs(side, views, torch.device(device), dtype)
        exact = attend_with_positions(*(one[:1, :1].double() for one in given))
        for name, way in ways(rehearse).items():
            try:
                ms, found = milliseconds(partial(way, *given), given[0].device)
            except RuntimeError as error:
                print(f"{side} patches a side, {name}: not here ({str(error).split('. ')[0]})")
                continue
            off = (found[:1, :1].double() - exact).norm() / exact.norm()
            print(f"{side} patches a side, {views} views, {name}: {ms:.2f} ms, off by {off:.1e}")
            assert off < (1e-5 if rehearse else 2e-2), name


def ways(rehearse: bool) -> dict[str, Way]:
    found: dict[str, Way] = {"bias": attend_with_positions}
    for backend in (SDPBackend.MATH,) if rehearse else FUSED:
        for widens in (True, False):
            name = f"channels, {backend.name.partition('_')[0].lower()}"
            found[name if widens else f"{name}, narrow values"] = fused(backend, widens)
    return found


def fused(backend: SDPBackend, widens: bool) -> Way:
    """widens: values are as wide as keys, as flash attention wants them."""

    def way(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attend_with_channels(q, k, v, by_row, by_column, widens=widens)

    return way


def attend_with_channels(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, *, widens: bool
) -> Tensor:
    """As `attend_with_positions`. The scale is a power of two here, and exact in any dtype."""
    channels = q.shape[-1]
    places = key_places(by_row.shape[-1], k).T.expand(*k.shape[:2], -1, -1)
    q = torch.cat((q * channels**-0.5, by_row, by_column), dim=-1)
    k = torch.cat((k, places), dim=-1)
    v = F.pad(v, (0, places.shape[-1])) if widens else v
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :channels]


def random_inputs(
    side: int, views: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """q, k, v and the position terms, as SAM's layers have them after training: some units each."""
    generator = torch.Generator().manual_seed(0)
    widths = (CHANNELS, CHANNELS, CHANNELS, side, side)
    shapes = [(views, HEADS, side * side, width) for width in widths]
    return [torch.randn(each, generator=generator).to(device, dtype) for each in shapes]


def milliseconds(work: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Of one call, the median of ten after two; and what it gave."""
    found = [work() for _ in range(2)][-1]
    each = []
    for _ in range(10):
        started = now(device)
        work()
        each.append((now(device) - started) * 1e3)
    return sorted(each)[5], found


def measure_steps(rehearse: bool) -> None:
    """One layer of a step of 128 pages: all of one length, spread over a page's thousand tokens as
    in a long run, or one of them long."""
    device, dtype = ("cpu", torch.float32) if rehearse else ("cuda", torch.bfloat16)
    rows, longest = (3, 64) if rehearse else (128, 8_448)
    spread = torch.linspace(20, 60, rows) if rehearse else torch.linspace(1_126, 2_126, rows)
    one_long = torch.full((rows,), int(spread.mean())).index_fill(0, torch.tensor(1), longest // 2)
    cases = {"one length": torch.full((rows,), int(spread.mean())), "spread": spread.long()}
    shape = (rows + 1, 10, longest, 128)
    generator = torch.Generator(device).manual_seed(0)
    q_B1C, keys, values = (
        torch.randn(each, generator=generator, device=device, dtype=dtype)
        for each in ((rows, 10, 1, 128), shape, shape)
    )
    for name, lengths in {**cases, "one long": one_long}.items():
        lengths_B = lengths.to(device)
        for way in (look_at_span, look_at_lengths):
            try:
                work = partial(way, q_B1C, keys, values, lengths_B, int(lengths.max()))
                ms, found = milliseconds(work, keys.device)
            except (ImportError, RuntimeError, TypeError, NotImplementedError) as error:
                why = f"{type(error).__name__}: {str(error).split('. ')[0][:80]}"
                print(f"{name}, {way.__name__}: not here ({why})")
                continue
            rate = 2 * keys.element_size() * 1_280 * int(lengths.sum()) / ms / 1e9
            print(f"{name}, {way.__name__}: {ms:.3f} ms a layer, {rate:.2f} TB/s of what is theirs")
            for row in (0, 1, rows - 1):
                exact = exactly(q_B1C, keys, values, row, int(lengths[row]))
                off = (found[row].double() - exact).norm() / exact.norm()
                assert off < (1e-5 if rehearse else 2e-2), (way, row)


def exactly(q: Tensor, keys: Tensor, values: Tensor, row: int, length: int) -> Tensor:
    """[H, C]. One row over its own keys."""
    one = slice(row, row + 1)
    k, v = (stored[one, :, :length].double() for stored in (keys, values))
    return F.scaled_dot_product_attention(q[one].double(), k, v)[0, :, 0]


def look_at_span(q: Tensor, keys: Tensor, values: Tensor, lengths_B: Tensor, span: int) -> Tensor:
    """[B, H, C]. The longest is rounded up as a step's is."""
    span = min(-(-span // 256) * 256, keys.shape[2])
    rows = len(q)
    is_hidden_BL = torch.arange(span, device=q.device) >= lengths_B[:, None]
    mask = q.new_zeros(rows, 1, 1, span).masked_fill(is_hidden_BL[:, None, None], HIDDEN)
    keys, values = keys[:rows, :, :span], values[:rows, :, :span]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)[:, :, 0]


def look_at_lengths(
    q: Tensor, keys: Tensor, values: Tensor, lengths_B: Tensor, span: int
) -> Tensor:
    """[B, H, C]."""
    from torch.nn.attention.varlen import varlen_attn

    rows = len(q)
    each = torch.arange(rows + 1, device=q.device, dtype=torch.int32)
    return varlen_attn(
        q[:, :, 0], keys.transpose(1, 2), values.transpose(1, 2), each, None, 1, span,
        seqused_k=lengths_B.int(), block_table=each[:rows, None],
    )  # fmt: skip


def measure_groups(rehearse: bool) -> None:
    name, where = ("random-tiny", "cpu") if rehearse else ("random-full", "cuda")
    dtype = "f32" if rehearse else "bf16"
    subject = make_subject(EngineConfig(model=name, device=where, dtype=dtype))
    vision, count = subject.model.vision, 2 if rehearse else 16
    pages = make_pages(count, tile_config(subject.config))
    for together in (1, 2) if rehearse else (1, 2, 4, 8, 16):
        groups = [pages[at : at + together] for at in range(0, count, together)]
        encode_pages(vision, groups[0])
        started = now(subject.device)
        for group in groups:
            encode_pages(vision, group)
        ms = (now(subject.device) - started) * 1e3 / count
        print(f"{together} pages together: {ms:.1f} ms a page", flush=True)
    if not rehearse:
        print_kernels(lambda: encode_pages(vision, pages[:4]))


def print_kernels(work: Callable[[], object]) -> None:
    with torch.profiler.profile() as profile:
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - started) * 1e3
    by_name: dict[str, list[float]] = {}
    for event in profile.events():
        if "CUDA" in str(event.device_type):
            by_name.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    total = sum(map(sum, by_name.values()))
    print(f"4 pages: {wall:.1f} ms by the clock, {total:.1f} ms of kernels")
    for name, each in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:20]:
        print(f"{sum(each):7.2f} ms {len(each):5} times  {name[:100]}")


if __name__ == "__main__":
    main()
