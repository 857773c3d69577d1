from __future__ import annotations

import pytest
import torch
from toy_model import TOY

from ocr2cli.model import attention
from ocr2cli.model.config import DecoderConfig, ModelConfig
from ocr2cli.model.kv_cache import KVCache


def test_a_token_of_the_full_model_takes_61440_bytes() -> None:
    cache = KVCache(DecoderConfig(), 1, 1, dtype=torch.bfloat16, device="meta")
    assert sum(stored.nbytes for stored in (*cache.keys, *cache.values)) == 61_440
    assert ModelConfig().kv_bytes_per_token == 61_440


def test_slots_count_their_own_tokens() -> None:
    cache = KVCache(TOY.decoder, 3, 10)
    assert cache.reserve(1, 4) == 0
    assert cache.reserve(1, 2) == 4
    assert cache.lengths == [0, 6, 0]
    cache.truncate(1, 5)
    assert cache.reserve(1, 1) == 5
    cache.free(1)
    assert cache.lengths == [0, 0, 0]


def test_a_full_slot_refuses_and_stays_as_it_was() -> None:
    cache = KVCache(TOY.decoder, 1, 10)
    cache.reserve(0, 8)
    with pytest.raises(ValueError, match="slot 0 is full: 8 tokens and 3 more do not fit in 10"):
        cache.reserve(0, 3)
    assert cache.lengths == [8]


@pytest.mark.parametrize("length", [-1, 6])
def test_truncate_only_shortens(length: int) -> None:
    cache = KVCache(TOY.decoder, 1, 10)
    cache.reserve(0, 5)
    with pytest.raises(ValueError, match="slot 0 holds 5 tokens"):
        cache.truncate(0, length)


def test_reading_back_is_a_view_of_what_was_written() -> None:
    cache = KVCache(TOY.decoder, 2, 10)
    k_HTC, v_HTC = torch.randn(2, 4, 3, 8)
    cache.write(2, 1, 5, k_HTC, v_HTC)
    keys, values = cache.read(2, 1, 8)
    assert torch.equal(keys[:, 5:], k_HTC)
    assert torch.equal(values[:, 5:], v_HTC)
    assert keys.data_ptr() == cache.keys[2][1].data_ptr()


def test_the_memory_for_widened_keys_is_taken_again_and_changes_no_bit() -> None:
    cache = KVCache(TOY.decoder, 1, 30, dtype=torch.bfloat16)
    shape = cache.keys[0][0].shape
    generator = torch.Generator().manual_seed(12)
    places = set()
    for length in (20, 3, 30, 20):  # a long sequence, a short one and the long one again share it
        k, v = torch.randn(2, shape[0], length, shape[2], generator=generator).bfloat16()
        q = torch.randn(shape[0], 1, shape[2], generator=generator).bfloat16()
        places.add(cache.widen(k).data_ptr())
        got = attention.attend_token_plainly(q, k, v, cache.widen)
        assert torch.equal(got, attention.attend_token_plainly(q, k, v))
    assert len(places) == 1
