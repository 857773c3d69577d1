from __future__ import annotations

import gc
import mmap
import sys
from pathlib import Path

import pytest
import torch
from toy_model import TOY

from ocr2cli.model import host_memory
from ocr2cli.model.host_memory import HostMemory
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.memory import is_out_of_memory

PAGE = mmap.PAGESIZE
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's memory is used")


def resident_pages(tensor: torch.Tensor) -> int:
    """Pages of memory that the system has handed out for a contiguous tensor."""
    first = tensor.data_ptr() // PAGE
    count = -(-(tensor.data_ptr() + tensor.nbytes) // PAGE) - first
    with Path("/proc/self/pagemap").open("rb") as pages:
        pages.seek(8 * first)
        entries = torch.frombuffer(bytearray(pages.read(8 * count)), dtype=torch.int64)
    return int((entries < 0).sum())  # the highest bit: it is in memory


def flags_of(address: int) -> list[str]:
    """What the system has noted about the mapping that an address is in."""
    is_it = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        first, *words = line.split()
        if "-" in first and not first.endswith(":"):
            start, stop = (int(number, 16) for number in first.split("-"))
            is_it = start <= address < stop
        elif is_it and first == "VmFlags:":
            return words
    raise AssertionError("no such mapping")


@on_linux
def test_memory_is_taken_as_it_is_written_and_given_back_in_whole_pages() -> None:
    memory = HostMemory((4, 10 * PAGE), torch.uint8)
    assert resident_pages(memory.tensor) == 0
    memory.tensor[1:3] = 7
    assert resident_pages(memory.tensor) == 20
    memory.give_back(memory.tensor[1, 5 : 5 + 3 * PAGE])  # touches four pages, has two whole ones
    assert resident_pages(memory.tensor) == 18
    assert memory.tensor[1, :PAGE].eq(7).all() and memory.tensor[1, 3 * PAGE :].eq(7).all()
    assert memory.tensor[1, PAGE : 3 * PAGE].eq(0).all()
    memory.give_back(memory.tensor[2])
    assert memory.tensor[1, 9 * PAGE :].eq(7).all() and memory.tensor[3].eq(0).all()
    assert memory.tensor[2].eq(0).all()


@on_linux
@pytest.mark.parametrize("length", [0, 1, PAGE - 1])
def test_a_part_without_a_whole_page_is_left_as_it_is(length: int) -> None:
    memory = HostMemory((2 * PAGE,), torch.uint8)
    memory.tensor[:] = 7
    memory.give_back(memory.tensor[1 : 1 + length])
    assert memory.tensor.eq(7).all()


@on_linux
def test_no_huge_page_is_taken_for_a_row_that_is_only_begun() -> None:
    """Where the system prefers them, a hundred tokens in each of four slots took 1.97 GB."""
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("this kernel has no huge pages")
    memory = HostMemory((8 << 20,), torch.uint8)
    assert "nh" in flags_of(memory.tensor.data_ptr())


@on_linux
def test_a_tensor_outlives_what_made_it() -> None:
    tensor = HostMemory((3, PAGE), torch.uint8).tensor
    gc.collect()
    tensor[:] = 9
    assert tensor.eq(9).all()


@on_linux
def test_more_than_the_system_has_addresses_for_is_out_of_memory() -> None:
    with pytest.raises(MemoryError, match="bytes") as caught:
        HostMemory((1 << 60,), torch.uint8)
    assert is_out_of_memory(caught.value)


def test_elsewhere_memory_is_as_torch_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "IS_LINUX", False)
    memory = HostMemory((2, PAGE), torch.bfloat16)
    memory.tensor[:] = 7
    memory.give_back(memory.tensor[0])
    assert memory.tensor.shape == (2, PAGE) and memory.tensor.eq(7).all()


@on_linux
def test_a_freed_slot_takes_no_memory_and_leaves_its_neighbours_alone() -> None:
    cache = KVCache(TOY.decoder, 3, 4096)
    for slot in range(3):
        cache.reserve(slot, 4096)
        for stored in (*cache.keys, *cache.values):
            stored[slot] = slot + 1
    cache.free(1)
    for stored in (*cache.keys, *cache.values):
        assert resident_pages(stored[1]) <= 2  # its ends may share a page with the neighbours
        assert stored[0].eq(1).all() and stored[2].eq(3).all()
