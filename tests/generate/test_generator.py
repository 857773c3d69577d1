"""The batching loop: the same tokens whatever else runs, and every sequence ends once."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_decoder import ToyDecoder, plain_greedy

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.errors import EngineError, PageFault
from ocr2cli.generate import generator as generator_module
from ocr2cli.generate import prompts as prompts_module
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.loops import LoopLimits
from ocr2cli.generate.track import Finished
from ocr2cli.generate.tuning import Tuning
from ocr2cli.pages import FinishReason

EXEMPT = (2, 3)
SMALL_LOOPS = LoopLimits(
    short_period=3, short_total=18, long_total=30, min_periods=3, max_period=12,
    max_overrides=6, override_span=30, check_every=5,
)  # fmt: skip


def generator(
    toy: ToyDecoder, config: DecodeConfig | None = None, *, tuning: Tuning | None = None, **kw: Any
) -> Generator:
    kw = {"num_slots": 3, "kv_tokens": 2000, "exempt_ids": EXEMPT, "eos_id": toy.eos_id, **kw}
    return Generator(
        toy, config or DecodeConfig(max_new_tokens=40), tuning=tuning,
        make_cache=toy.make_cache, **kw,
    )  # fmt: skip


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 9 tokens, all different."""
    source = torch.Generator().manual_seed(seed)
    return [
        [i % 40, *torch.randint(2, 40, (i * 5 % 9,), generator=source).tolist()]
        for i in range(count)
    ]


def add(box: Generator, toy: ToyDecoder, key: Any, prompt: list[int], draft: Any = None) -> None:
    box.add(key, toy.embed(torch.tensor(prompt)), prompt, draft)


def drain(box: Generator) -> dict[Any, Finished]:
    done: dict[Any, Finished] = {}
    while box.has_work:
        for finished in box.step():
            assert finished.key not in done
            done[finished.key] = finished
    return done


def run(
    toy: ToyDecoder, inputs: list[list[int]], config: DecodeConfig | None = None, **kw: Any
) -> list[Finished]:
    box = generator(toy, config, **kw)
    for key, prompt in enumerate(inputs):
        add(box, toy, key, prompt)
    done = drain(box)
    return [done[key] for key in range(len(inputs))]


def ends(finished: list[Finished]) -> list[tuple[list[int], str]]:
    return [(list(f.token_ids), str(f.finish_reason)) for f in finished]


def expected(
    toy: ToyDecoder, inputs: list[list[int]], config: DecodeConfig, limits: LoopLimits | None = None
) -> list[tuple[list[int], str]]:
    return [
        plain_greedy(
            toy.logits, prompt, config, eos_id=toy.eos_id, exempt_ids=EXEMPT, limits=limits,
            max_new=config.max_new_tokens or toy.max_positions - len(prompt),
        )
        for prompt in inputs
    ]  # fmt: skip


# ---- what is written


configs = st.builds(
    DecodeConfig,
    max_new_tokens=st.integers(1, 60),
    no_repeat_ngram=st.integers(0, 4),
    ngram_window=st.sampled_from([0, 6, 20, 90]),
    ngram_over_prompt=st.booleans(),
    dry=st.sampled_from([None, DryConfig(), DryConfig(last_n=8, allowed_length=1)]),
    draft=st.sampled_from(["off", "ngram", "text-layer", "auto"]),
)
toys = st.builds(
    ToyDecoder,
    vocab_size=st.sampled_from([4, 9, 40]),
    order=st.integers(0, 3),
    seed=st.integers(0, 30),
    eos_bias=st.sampled_from([-9.0, 0.0, 1.0]),
)
tunings = st.builds(
    Tuning,
    expected_new=st.integers(1, 40),
    prefill_tokens=st.integers(1, 20),
    prefill_chunk=st.integers(0, 4),
    prefill_together=st.integers(1, 4),
    max_guess=st.integers(1, 6),
    draft_batch_limit=st.integers(1, 4),
    batch_buckets=st.sampled_from([(), (1, 2, 4, 8)]),
    feed_buckets=st.sampled_from([(), (1, 4, 8)]),
    fixed_steps=st.booleans(),
    overlap=st.booleans(),
    loops=st.just(SMALL_LOOPS),
)


@given(toys, configs, tunings, st.integers(1, 5), st.integers(1, 200), st.data())
@settings(max_examples=120)
def test_every_way_of_running_writes_what_the_definition_writes(
    toy: ToyDecoder,
    config: DecodeConfig,
    tuning: Tuning,
    num_slots: int,
    kv_tokens: int,
    data: st.DataObject,
) -> None:
    """Slots, budgets, chunks, preemption, padding, arrival, drafts right or wrong: equal tokens."""
    inputs = [[t % toy.vocab_size for t in p] for p in prompts(data.draw(st.integers(1, 6)))]
    wanted = expected(toy, inputs, config, SMALL_LOOPS)
    box = generator(toy, config, tuning=tuning, num_slots=num_slots, kv_tokens=kv_tokens)
    done: dict[Any, Finished] = {}
    for key in data.draw(st.permutations(range(len(inputs)))):
        draft = data.draw(st.sampled_from(["none", "right", "wrong", "mixed"]))
        add(box, toy, key, inputs[key], draft_of(draft, wanted[key][0]))
        for _ in range(data.draw(st.integers(0, 3))):
            done |= {f.key: f for f in box.step()}
    done |= drain(box)
    assert ends([done[key] for key in range(len(inputs))]) == wanted
    for f in done.values():
        assert len(f.logprobs) == len(f.token_ids) + (f.finish_reason is FinishReason.STOP)


def draft_of(kind: str, right: list[int]) -> list[int] | None:
    if kind == "none":
        return None
    if kind == "wrong":
        return [(token + 1) % 4 for token in right]
    return [3 if kind == "mixed" and i % 7 == 6 else token for i, token in enumerate(right)]


@pytest.mark.parametrize("num_slots", [1, 2, 8])
@pytest.mark.parametrize("draft", ["off", "ngram", "auto"])
def test_batch_size_and_drafts_do_not_change_long_looping_texts(num_slots: int, draft: str) -> None:
    toy = ToyDecoder(order=2, eos_bias=-9, vocab_size=12)
    inputs = prompts(8)
    config = DecodeConfig(max_new_tokens=300, draft=draft, detect_loops=False, no_repeat_ngram=9)
    tuning = Tuning(draft_batch_limit=8)
    assert ends(run(toy, inputs, config, num_slots=num_slots, tuning=tuning)) == expected(
        toy, inputs, config
    )


def test_logprobs_are_the_models_own_for_each_token_and_the_end() -> None:
    toy = ToyDecoder(eos_bias=1.5)
    prompt = [5, 6, 7]
    finished = run(toy, [prompt], DecodeConfig(max_new_tokens=100))[0]
    assert finished.finish_reason is FinishReason.STOP
    written = [*finished.token_ids, toy.eos_id]
    assert len(finished.logprobs) == len(written)
    for place, token in enumerate(written):
        own = toy.logits([*prompt, *written[:place]]).log_softmax(0)[token]
        assert finished.logprobs[place] == pytest.approx(float(own), abs=1e-6)


@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_logprobs_do_not_depend_on_drafts(draft: str) -> None:
    toy = ToyDecoder(order=1, eos_bias=-9)
    config = DecodeConfig(max_new_tokens=60, draft=draft)
    finished = run(toy, [[4, 5]], config)[0]
    plain = run(toy, [[4, 5]], DecodeConfig(max_new_tokens=60))[0]
    assert finished.logprobs == plain.logprobs


# ---- why it ends


def test_the_end_token_stops_and_is_not_among_the_ids() -> None:
    toy = ToyDecoder(eos_bias=100)
    finished = run(toy, [[5]])[0]
    assert finished.token_ids == () and finished.finish_reason is FinishReason.STOP
    assert len(finished.logprobs) == 1 and finished.error is None


@pytest.mark.parametrize(("limit", "new"), [(1, 1), (7, 7), (0, 27), (400, 27)])
def test_the_token_limit_and_the_context_end_a_sequence(limit: int, new: int) -> None:
    toy = ToyDecoder(eos_bias=-99, max_positions=30)
    finished = run(toy, [[4, 5, 6]], DecodeConfig(max_new_tokens=limit))[0]
    assert len(finished.token_ids) == new and finished.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("draft", ["ngram", "text-layer", "auto"])
def test_drafts_never_reach_past_the_models_context(draft: str) -> None:
    toy = ToyDecoder(order=1, eos_bias=-99, max_positions=60)
    inputs = [[4, 5, 6], [4] * 40]
    config = DecodeConfig(draft=draft, no_repeat_ngram=0)
    box = generator(toy, config, tuning=Tuning(feed_buckets=(1, 4, 16)))
    wanted = expected(toy, inputs, config)
    for key, prompt in enumerate(inputs):
        add(box, toy, key, prompt, wanted[key][0])
    done = drain(box)
    assert ends([done[0], done[1]]) == wanted
    assert box.statistics.accepted > 10


def test_a_loop_is_stopped_early_and_its_text_kept() -> None:
    toy = ToyDecoder(order=1, eos_bias=-99, max_positions=4000)
    finished = run(toy, [[4]], DecodeConfig(no_repeat_ngram=0), kv_tokens=4000)[0]
    assert finished.finish_reason is FinishReason.LOOP
    assert 512 <= len(finished.token_ids) <= 1700
    unstopped = DecodeConfig(no_repeat_ngram=0, detect_loops=False, max_new_tokens=1800)
    longer = run(toy, [[4]], unstopped, kv_tokens=4000)[0]
    assert longer.finish_reason is FinishReason.LENGTH
    assert longer.token_ids[: len(finished.token_ids)] == finished.token_ids


def test_a_loop_under_the_ngram_rule_shows_as_overrides() -> None:
    toy = ToyDecoder(order=1, eos_bias=-99, max_positions=4000, vocab_size=200)
    finished = run(toy, [[4]], DecodeConfig(), kv_tokens=4000)[0]
    assert finished.finish_reason is FinishReason.LOOP
    assert len(finished.token_ids) < 2100


@pytest.mark.parametrize("overlap", [False, True])
def test_nan_logits_fail_one_sequence_and_the_others_go_on(overlap: bool) -> None:
    clean = ToyDecoder(order=2, eos_bias=-9)
    inputs = prompts(6)
    config = DecodeConfig(max_new_tokens=30)
    wanted = expected(clean, inputs, config)
    bad = wanted[2][0][11]
    sick = ToyDecoder(order=2, eos_bias=-9, poison=frozenset({bad}))
    finished = run(sick, inputs, config, tuning=Tuning(fixed_steps=overlap, overlap=overlap))
    for own, (token_ids, _) in zip(finished, wanted, strict=True):
        if bad in token_ids or bad in inputs[own.key][-1:]:
            assert own.error is not None and own.error.code == "nan_logits"
            assert own.finish_reason is None
            cut = token_ids.index(bad) + 1 if bad in token_ids[:-1] else len(token_ids)
            assert list(own.token_ids) == token_ids[:cut] or own.token_ids == ()
        else:
            assert list(own.token_ids) == token_ids and own.error is None
    assert {own.error is None for own in finished} == {True, False}


def test_one_sequence_may_have_rules_and_a_limit_of_its_own() -> None:
    toy = ToyDecoder(order=1, eos_bias=-9, vocab_size=12)
    default, own = DecodeConfig(max_new_tokens=60), DecodeConfig(no_repeat_ngram=2)
    box = generator(toy, default)
    for key, rules, limit in [(0, None, 0), (1, own, 50), (2, None, 9)]:
        box.add(key, toy.embed(torch.tensor([4])), [4], max_new_tokens=limit, config=rules)
    done = drain(box)
    strict = DecodeConfig(no_repeat_ngram=2, max_new_tokens=50)
    loose = expected(toy, [[4]], default)[0]
    assert ends([done[0], done[1]]) == [loose, expected(toy, [[4]], strict)[0]]
    assert ends([done[2]]) == [(loose[0][:9], "length")]


# ---- memory


def out_of_memory_above(rows: int, error: Exception) -> Any:
    def fail(batch: int) -> None:
        if batch > rows:
            raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),  # a graph or a kernel, outside the allocator
        RuntimeError("MPS backend out of memory (MPS allocated: 18.03 GB, ...). Tried to ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
@pytest.mark.parametrize("draft", ["off", "ngram"])
@pytest.mark.parametrize("when", ["fails", "fails_late"])
@pytest.mark.parametrize("overlap", [False, True])
def test_out_of_memory_goes_on_with_fewer_and_the_same_text(
    error: Exception, draft: str, when: str, overlap: bool
) -> None:
    config = DecodeConfig(max_new_tokens=25, draft=draft)
    inputs = prompts(9)
    toy = ToyDecoder(order=2, eos_bias=-9, **{when: out_of_memory_above(2, error)})
    tuning = Tuning(fixed_steps=overlap, overlap=overlap)
    box = generator(toy, config, num_slots=6, tuning=tuning)
    for key, prompt in enumerate(inputs):
        add(box, toy, key, prompt)
    done = drain(box)
    assert ends([done[key] for key in range(9)]) == expected(toy, inputs, config)
    assert box.statistics.out_of_memory > 0


def test_out_of_memory_is_said_once_and_many_go_together_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of 2,000 tokens 15 were left for good, without a word."""
    failures = iter([MemoryError()])

    def fail_once(rows: int) -> None:
        if rows == 6:
            for error in failures:
                raise error

    config = DecodeConfig(max_new_tokens=40)
    inputs = prompts(90)
    toy = ToyDecoder(order=2, eos_bias=-9, fails=fail_once)
    box = generator(toy, config, num_slots=6, tuning=Tuning(expected_new=40))
    for key, prompt in enumerate(inputs):
        add(box, toy, key, prompt)
    done = drain(box)
    assert ends([done[key] for key in range(90)]) == expected(toy, inputs, config)
    (record,) = caplog.records
    text = record.getMessage()
    assert record.levelname == "WARNING" and "6 pages" in text and "instead of 2000" in text
    first = toy.shapes.index((6, 1))
    assert (6, 1) not in toy.shapes[first + 1 : first + 65] and (6, 1) in toy.shapes[first + 65 :]


def test_prompts_that_do_not_fit_together_are_fed_one_by_one_and_nobody_is_sent_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the pages that were being written began anew, which frees nothing on a card."""
    toy = ToyDecoder(order=2, eos_bias=-9)
    config = DecodeConfig(max_new_tokens=20)
    plain, groups = toy.prefill_together, []

    def prefill_together(x_BTD: Any, cache: Any, slots: list[int]) -> Any:
        groups.append(len(slots))
        if len(slots) > 2:
            plain(x_BTD[:1], cache, slots[:1])  # what was written before it failed
            raise torch.OutOfMemoryError
        return plain(x_BTD, cache, slots)

    monkeypatch.setattr(toy, "prefill_together", prefill_together)
    inputs = [[number, 7] for number in range(24)]
    box = generator(toy, config, num_slots=8, tuning=Tuning(prefill_together=8))
    for key, prompt in enumerate(inputs[:2]):
        add(box, toy, key, prompt)
    box.step()
    for key, prompt in enumerate(inputs[2:], 2):
        add(box, toy, key, prompt)
    done = drain(box)
    assert ends([done[key] for key in range(24)]) == expected(toy, inputs, config)
    assert groups[:8] == [2, 6, *[1] * 6]
    assert max(groups[8:]) == 3 and groups.count(3) == 1, "halved, and halved again"
    assert box.statistics.preemptions == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "6 pages" in caplog.records[0].getMessage()


def test_prompts_that_lacked_memory_once_go_together_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompts_module, "_GROW_AFTER", 3)
    toy, groups, failures = ToyDecoder(), [], iter([True])
    plain = toy.prefill_together

    def prefill_together(x_BTD: Any, cache: Any, slots: list[int]) -> Any:
        groups.append(len(slots))
        if next(failures, False):
            raise MemoryError
        return plain(x_BTD, cache, slots)

    monkeypatch.setattr(toy, "prefill_together", prefill_together)
    config = DecodeConfig(max_new_tokens=1)
    box = generator(toy, config, num_slots=8, tuning=Tuning(prefill_together=8))
    for key in range(80):
        add(box, toy, key, [key % 40, 7])
    assert len(drain(box)) == 80
    rounds = [8, 1, 1, 1, 1, 1, 1, 1, 1, *[4, 4] * 2, *[8] * 7]
    assert groups == rounds


@pytest.mark.parametrize("together", [1, 2])
def test_what_failed_for_lack_of_memory_holds_none_when_it_is_given_back(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """The error's traceback held the tensors of the step, so that nobody else could have them."""
    toy = ToyDecoder(eos_bias=-99)
    plain, held, seen = toy.prefill_together, [], []

    def prefill_together(*args: Any) -> Any:
        if not held:
            activation = torch.zeros(8)
            held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError
        return plain(*args)

    monkeypatch.setattr(toy, "prefill_together", prefill_together)
    for module in (generator_module, prompts_module):
        monkeypatch.setattr(module, "empty_cache", lambda: seen.append(held[0]()))
    box = generator(
        toy, DecodeConfig(max_new_tokens=3), tuning=Tuning(prefill_together=together)
    )
    for key in range(2):
        add(box, toy, key, [5 + key])
    assert len(drain(box)) == 2 and seen == [None]


def test_out_of_memory_with_one_sequence_names_the_flag() -> None:
    toy = ToyDecoder(fails=out_of_memory_above(0, MemoryError()))
    box = generator(toy)
    add(box, toy, "page", [4, 5])
    with pytest.raises(EngineError, match=r"Lower --batch-size \(now 3\)"):
        box.step()


def test_a_cache_that_does_not_fit_names_the_flag() -> None:
    def make_cache(num_slots: int, max_tokens: int) -> Any:
        raise MemoryError

    def told(num_slots: int) -> str:
        with pytest.raises(EngineError) as failure:
            Generator(
                ToyDecoder(), DecodeConfig(), eos_id=1, num_slots=num_slots, kv_tokens=99,
                make_cache=make_cache, remedy="buy some",
            )  # fmt: skip
        return str(failure.value)

    lower = "Lower --batch-size (now 9), or buy some."
    assert told(9) == f"out of memory with a KV cache of 9 slots. {lower}"
    assert told(1) == "out of memory with a KV cache of 1 slot. Buy some."


def test_other_errors_are_not_taken_for_out_of_memory() -> None:
    toy = ToyDecoder(fails=out_of_memory_above(0, RuntimeError("shapes differ")))
    box = generator(toy)
    add(box, toy, "page", [4, 5])
    with pytest.raises(RuntimeError, match="shapes differ"):
        box.step()


def test_a_small_budget_preempts_and_the_text_stays_the_same() -> None:
    toy = ToyDecoder(eos_bias=-99)
    inputs = prompts(6)
    config = DecodeConfig(max_new_tokens=40)
    box = generator(toy, config, kv_tokens=100, tuning=Tuning(expected_new=4))
    for key, prompt in enumerate(inputs):
        add(box, toy, key, prompt)
    done = drain(box)
    assert box.statistics.preemptions > 0
    assert all(len(f.logprobs) == len(f.token_ids) for f in done.values())
    assert ends([done[key] for key in range(6)]) == expected(toy, inputs, config)


@pytest.mark.parametrize("trouble", [{"kv_tokens": 100}, {"num_slots": 6}])
def test_a_slot_that_nobody_holds_after_a_step_holds_nothing(trouble: dict[str, int]) -> None:
    """A cache's slots kept, each, as much memory as the longest page that was ever in it."""
    caches = []

    def make_cache(*shape: int) -> Any:
        caches.append(toy.make_cache(*shape))
        return caches[0]

    toy = ToyDecoder(eos_bias=-9, fails=out_of_memory_above(4, MemoryError()))
    config = DecodeConfig(max_new_tokens=40)
    box = Generator(
        toy, config, eos_id=toy.eos_id, make_cache=make_cache, tuning=Tuning(expected_new=4),
        **{"num_slots": 3, "kv_tokens": 2000, **trouble},
    )  # fmt: skip
    for key, prompt in enumerate(prompts(9)):
        add(box, toy, key, prompt)
    seen = set()
    while box.has_work:
        box.step()
        seen.add(box.num_running)
        assert sum(map(bool, caches[0].lengths)) <= box.num_running
    assert {0, 2} < seen and box.statistics.preemptions > 0


def test_a_preempted_sequence_is_watched_for_loops_anew() -> None:
    config = DecodeConfig(max_new_tokens=30, no_repeat_ngram=2, ngram_window=20)
    limits = LoopLimits(max_overrides=6, override_span=24)
    inputs = prompts(4)
    overridden = preempted = 0
    for seed in range(12):
        toy = ToyDecoder(order=1, eos_bias=-9, vocab_size=30, seed=seed)
        wanted = expected(toy, [[t % 30 for t in p] for p in inputs], config, limits)
        box = generator(
            toy, config, kv_tokens=60, tuning=Tuning(expected_new=2, loops=limits), num_slots=4
        )
        for key, prompt in enumerate(inputs):
            add(box, toy, key, [t % 30 for t in prompt])
        done = drain(box)
        assert ends([done[key] for key in range(4)]) == wanted
        preempted += box.statistics.preemptions
        overridden += sum(reason == "loop" for _, reason in wanted)
    assert preempted > 10 and 5 < overridden < 48, "both kinds of ends were under test"


def test_a_text_longer_than_the_budget_is_written_to_its_end() -> None:
    toy = ToyDecoder(eos_bias=-99)
    config = DecodeConfig(max_new_tokens=40)
    for kv_tokens in (1, 10, 30):
        assert ends(run(toy, prompts(6), config, kv_tokens=kv_tokens)) == expected(
            toy, prompts(6), config
        )


def test_a_prompt_longer_than_the_model_is_the_pages_fault_whatever_the_budget() -> None:
    toy = ToyDecoder(max_positions=20)
    for limits in ({}, {"kv_tokens": 20}, {"kv_tokens": 10}, {"max_context": 20}):
        with pytest.raises(PageFault, match="context is 20: shorten") as fault:
            add(generator(toy, **limits), toy, "page", [4] * 20)
        assert fault.value.code == "too_large"


# ---- the loop itself


def test_a_sequence_added_while_others_decode_joins_them() -> None:
    toy = ToyDecoder(eos_bias=-99)
    box = generator(toy)
    add(box, toy, "first", [4, 5])
    box.step()
    add(box, toy, "second", [6])
    box.step()
    box.step()
    assert toy.shapes[-1] == (2, 1)
    assert box.num_running == 2 and box.has_work


def test_a_generator_without_sequences_has_nothing_to_do() -> None:
    toy = ToyDecoder()
    box = generator(toy, num_slots=2)
    assert not box.has_work and box.step() == []
    for key in range(3):
        add(box, toy, key, [4 + key])
    drain(box)
    assert not box.has_work and box.num_running == 0 and box.step() == []


def test_drafts_stop_above_the_batch_limit_in_auto_only() -> None:
    for draft, limit, has_drafts in [("auto", 2, False), ("auto", 3, True), ("ngram", 2, True)]:
        toy = ToyDecoder(order=1, eos_bias=-9)
        config = DecodeConfig(max_new_tokens=60, draft=draft, no_repeat_ngram=0)
        box = generator(toy, config, tuning=Tuning(draft_batch_limit=limit))
        for key in range(3):
            add(box, toy, key, [4 + key])
        drain(box)
        assert (box.statistics.drafted > 0) == has_drafts


def test_a_right_draft_saves_steps_and_is_counted() -> None:
    toy = ToyDecoder(eos_bias=-99)
    config = DecodeConfig(max_new_tokens=80, draft="text-layer")
    plain = run(toy, [[4, 5]], config)[0]
    box = generator(toy, config)
    add(box, toy, "page", [4, 5], draft=list(plain.token_ids))
    finished = drain(box)["page"]
    assert finished.token_ids == plain.token_ids
    assert box.statistics.accepted == box.statistics.drafted > 60
    assert box.statistics.decode_steps < 15


def test_seconds_say_where_the_time_went() -> None:
    seconds = run(ToyDecoder(), [[4, 5]])[0].seconds
    assert set(seconds) == {"wait", "prefill", "decode"}
    assert all(value >= 0 and math.isfinite(value) for value in seconds.values())


def test_an_unknown_draft_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="text-layer"):
        generator(ToyDecoder(), DecodeConfig(draft="magic"))
