"""What a device's lack of memory is told by, and whose cached memory is given back."""

from __future__ import annotations

import pytest
import torch

from ocr2cli.model.memory import empty_cache, is_out_of_memory


@pytest.mark.parametrize(
    "words",
    [
        "MPS backend out of memory (MPS allocated: 18.03 GB, max allowed: 18.13 GB). Tried to ...",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate ...",
    ],
)
def test_a_lack_of_memory_is_told_by_its_words_where_it_has_no_class(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(ValueError(words))


@pytest.mark.parametrize("there", [(), ("cuda",), ("mps",)])
def test_cached_memory_is_given_back_by_the_device_that_is_there(
    there: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    empty_cache()
    assert emptied == list(there)
