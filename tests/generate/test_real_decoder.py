"""The batching loop over the real decoder at toy size, random weights, float32.

The definition feeds every history whole and without a cache; slots, batches, chunks and drafts
must give the same ids.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_decoder import plain_greedy

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.loops import LoopLimits
from ocr2cli.generate.tuning import Tuning
from ocr2cli.model.config import DecoderConfig
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.pages import FinishReason

EOS, EXEMPT = 1, (2, 3)
CONFIG = DecoderConfig(
    vocab_size=61, hidden_size=32, num_layers=2, num_heads=2, num_dense_layers=1,
    dense_intermediate=48, num_experts=4, experts_per_token=2, num_shared_experts=1,
    expert_intermediate=16, max_positions=72,
)  # fmt: skip
LOOPS = LoopLimits(
    short_period=3, short_total=18, long_total=30, min_periods=3, max_period=12,
    max_overrides=6, override_span=30, check_every=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(5)
    model = Decoder(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def prompts(count: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(count)
    return [
        torch.randint(4, 61, (1 + 7 * i % 30,), generator=source).tolist() for i in range(count)
    ]


def wanted(decoder: Decoder, inputs: list[list[int]], config: DecodeConfig) -> list[Any]:
    @torch.inference_mode()
    def next_logits(history: list[int]) -> Tensor:
        return decoder(decoder.embed(torch.tensor(history))[None])[0, -1]

    return [
        plain_greedy(
            next_logits, prompt, config, eos_id=EOS, exempt_ids=EXEMPT, limits=LOOPS,
            max_new=min(config.max_new_tokens, CONFIG.max_positions - len(prompt)),
        )
        for prompt in inputs
    ]  # fmt: skip


CONFIGS = [
    DecodeConfig(max_new_tokens=32),
    DecodeConfig(max_new_tokens=60, detect_loops=False),
    DecodeConfig(max_new_tokens=32, no_repeat_ngram=3, ngram_window=12),
    DecodeConfig(max_new_tokens=32, no_repeat_ngram=2, ngram_window=0, ngram_over_prompt=True),
    DecodeConfig(max_new_tokens=32, no_repeat_ngram=0, dry=DryConfig()),
]
_known: dict[int, list[Any]] = {}


def known_ends(decoder: Decoder, which: int) -> list[Any]:
    """Feeding every history whole is slow: once a config."""
    if which not in _known:
        _known[which] = wanted(decoder, prompts(4), CONFIGS[which])
    return _known[which]


def zeroed_cache(num_slots: int, max_tokens: int) -> KVCache:
    """As on a GPU, where steps of fixed shape are meant to run: they mask what is not theirs."""
    cache = KVCache(CONFIG, num_slots, max_tokens)
    for slot in range(num_slots):
        cache.scrub(slot)
    return cache


@given(
    st.sampled_from(range(len(CONFIGS))),
    st.sampled_from(["off", "ngram", "text-layer", "auto"]),
    st.builds(
        Tuning,
        expected_new=st.sampled_from([5, 50]),
        prefill_tokens=st.sampled_from([16, 200]),
        prefill_chunk=st.sampled_from([0, 8]),
        max_guess=st.integers(1, 7),
        draft_batch_limit=st.integers(1, 6),
        batch_buckets=st.sampled_from([(), (2, 4, 8)]),
        feed_buckets=st.sampled_from([(), (1, 8)]),
        fixed_steps=st.booleans(),
        overlap=st.booleans(),
        loops=st.just(LOOPS),
    ),
    st.integers(1, 6),
    st.sampled_from([90, 1000]),
    st.permutations(range(4)),
    st.integers(0, 5),
)
@settings(max_examples=8)
def test_the_ids_are_those_of_the_definition_however_it_runs(
    decoder: Decoder,
    which: int,
    draft: str,
    tuning: Tuning,
    num_slots: int,
    kv_tokens: int,
    order: list[int],
    steps_between: int,
) -> None:
    inputs = prompts(4)
    known = known_ends(decoder, which)
    config = replace(CONFIGS[which], draft=draft)
    box = Generator(
        decoder, config, eos_id=EOS, exempt_ids=EXEMPT, num_slots=num_slots,
        kv_tokens=kv_tokens, tuning=tuning, make_cache=zeroed_cache,
    )  # fmt: skip
    done = {}
    for key in order:
        right = known[key][0]
        text = [7 if i % 9 == 8 else token for i, token in enumerate(right)]
        box.add(key, decoder.embed(torch.tensor(inputs[key])), inputs[key], text)
        for _ in range(steps_between):
            done |= {f.key: f for f in box.step()}
    while box.has_work:
        done |= {f.key: f for f in box.step()}
    got = [(list(done[key].token_ids), str(done[key].finish_reason)) for key in range(4)]
    assert got == known


def test_the_texts_under_test_are_worth_testing(decoder: Decoder) -> None:
    """Different, long enough, and ended in more than one way."""
    ends = [end for which in range(len(CONFIGS)) for end in known_ends(decoder, which)]
    assert len({tuple(ids) for ids, _ in ends}) > 10
    assert sorted(len(ids) for ids, _ in ends)[len(ends) // 2] > 20
    assert len({reason for _, reason in ends}) > 1


def test_right_drafts_are_accepted_by_the_real_decoder(decoder: Decoder) -> None:
    config = DecodeConfig(max_new_tokens=40, draft="text-layer")
    prompt = prompts(3)[2]
    ((ids, _),) = wanted(decoder, [prompt], config)
    box = Generator(decoder, config, eos_id=EOS, num_slots=1, kv_tokens=72, exempt_ids=EXEMPT)
    box.add("page", decoder.embed(torch.tensor(prompt)), prompt, ids)
    while box.has_work:
        box.step()
    assert box.statistics.acceptance == 1.0 and box.statistics.decode_steps < len(ids) / 3


@pytest.mark.parametrize(("fixed_steps", "overlap"), [(False, False), (True, False), (True, True)])
def test_damaged_visual_tokens_fail_their_page_and_not_the_next_in_the_slot(
    decoder: Decoder, fixed_steps: bool, overlap: bool
) -> None:
    config = CONFIGS[0]
    prompt = prompts(4)[2]
    box = Generator(
        decoder,
        config,
        eos_id=EOS,
        exempt_ids=EXEMPT,
        num_slots=1,
        kv_tokens=72,
        tuning=Tuning(fixed_steps=fixed_steps, overlap=overlap, loops=LOOPS),
        make_cache=zeroed_cache,
    )
    x_TD = decoder.embed(torch.tensor(prompt))
    damaged_TD = x_TD.repeat(4, 1)
    damaged_TD[-1] = torch.nan
    box.add("damaged", damaged_TD, prompt * 4)
    box.add("sound", x_TD, prompt)
    done = {}
    while box.has_work:
        done |= {f.key: f for f in box.step()}
    assert done["damaged"].error is not None and done["damaged"].error.code == "nan_logits"
    assert list(done["sound"].token_ids) == known_ends(decoder, 0)[2][0]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_token_behind_a_page_s_end_never_reaches_the_next_page_in_the_slot(
    decoder: Decoder, overlap: bool
) -> None:
    """A step that was started before the end was known feeds the end token: here to nan, behind
    all that the next page's prompt writes."""
    sound = prompts(4)[2]
    damaged = copy.deepcopy(decoder)
    damaged.embed.weight[EOS] = torch.nan
    damaged.lm_head.weight[EOS] *= 9  # a page ends soon
    config = DecodeConfig(max_new_tokens=8)
    box = Generator(
        damaged, config, eos_id=EOS, exempt_ids=EXEMPT, num_slots=1, kv_tokens=72,
        tuning=Tuning(fixed_steps=True, overlap=overlap, loops=LOOPS), make_cache=zeroed_cache,
    )  # fmt: skip
    for key, prompt in enumerate([sound * 4, sound[:2]]):
        box.add(key, decoder.embed(torch.tensor(prompt)), prompt)
    done = {}
    while box.has_work:
        done |= {f.key: f for f in box.step()}
    assert done[0].finish_reason is FinishReason.STOP
    assert done[1].error is None


def test_a_guess_that_was_wrong_and_not_finite_is_not_left_in_the_slot(decoder: Decoder) -> None:
    """Steps of fixed shape look at the whole slot, and mask what is not the page's own."""
    prompt, config = prompts(4)[2], DecodeConfig(max_new_tokens=12, draft="text-layer")
    embeddings_TD = decoder.embed(torch.tensor(prompt))

    def ids(model: Decoder, draft: list[int] | None) -> tuple[Any, int]:
        box = Generator(
            model, config, eos_id=EOS, exempt_ids=EXEMPT, num_slots=1, kv_tokens=72,
            tuning=Tuning(fixed_steps=True, loops=LOOPS), make_cache=zeroed_cache,
        )  # fmt: skip
        box.add(0, embeddings_TD, prompt, draft)
        finished: list[Any] = []
        while box.has_work:
            finished += box.step()
        return finished[0].token_ids, box.statistics.drafted

    right, _ = ids(decoder, None)
    wrong = next(token for token in range(4, 61) if token not in right)
    damaged = copy.deepcopy(decoder)
    damaged.embed.weight[wrong] = torch.nan
    found, drafted = ids(damaged, [*right[:3], *[wrong] * 7])
    assert found == right and drafted > 3
