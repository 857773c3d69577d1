"""Steps that start before the one before them is read: the same tokens, and no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_decoder import ToyDecoder, plain_greedy

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.generate import generator as generator_module
from ocr2cli.generate.fixed_step import FixedStep
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.loops import LoopLimits
from ocr2cli.generate.tuning import Tuning

LOOPS = LoopLimits(
    short_period=3, short_total=18, long_total=30, min_periods=3, max_period=12,
    max_overrides=6, override_span=30, check_every=5,
)  # fmt: skip


class LateDevice:
    """A device that does nothing before it is waited for, and everything in the order given."""

    def __init__(self) -> None:
        self.given: list[Callable[[], None]] = []
        self.most_given = 0
        self.log: list[str] = []

    def give(self, work: Callable[[], None]) -> None:
        self.given.append(work)
        self.most_given = max(self.most_given, len(self.given))

    def wait(self, until: Callable[[], bool] = lambda: False) -> None:
        while self.given and not until():
            self.given.pop(0)()


class LateAnswer:
    """Where `pack`ed choices will be."""

    is_cuda = False

    def __init__(self, device: LateDevice) -> None:
        self.device = device
        self.packed_3B: Tensor | None = None

    def tolist(self) -> list[Any]:
        self.device.log.append("read")
        self.device.wait(lambda: self.packed_3B is not None)
        assert self.packed_3B is not None
        return self.packed_3B.tolist()


def late_steps(device: LateDevice) -> type[FixedStep]:
    class LateStep(FixedStep):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            upload = self._ring.upload

            def late(slot: int, token_ids: Sequence[int], window: int) -> None:
                device.wait()
                upload(slot, token_ids, window)

            self._ring.upload = late  # type: ignore[method-assign]

        def _launch(self, inputs_5B: Tensor, context: int, other: Any) -> Any:
            answer = LateAnswer(device)

            def work() -> None:
                answer.packed_3B = self._compute(inputs_5B, context, other)

            device.log.append("start")
            device.give(work)
            return answer

    return LateStep


class LateDecoder(ToyDecoder):
    """What is not a fixed step is given after all that was given before, and waited for."""

    device: LateDevice

    def prefill_together(self, x_BTD: Tensor, cache: Any, slots: list[int]) -> Tensor:
        self.device.wait()
        return super().prefill_together(x_BTD, cache, slots)

    def decode(self, ids_B: Tensor, cache: Any, slots: Any) -> Tensor:
        self.device.wait()
        return super().decode(ids_B, cache, slots)


class Places:
    """A cache whose tokens are the device's and whose lengths are the host's, as the real one."""

    def __init__(self, num_slots: int, device: LateDevice) -> None:
        self.tokens = [[-1] * 400 for _ in range(num_slots)]
        self.lengths = [0] * num_slots
        self.device = torch.device("cpu")
        self._late = device

    def free(self, slot: int) -> None:
        self.lengths[slot] = 0

    def scrub(self, slot: int, start: int = 0) -> None:
        assert 0 <= start <= self.lengths[slot]
        self.lengths[slot] = start
        self._late.give(lambda: self._overwrite(slot, start))

    def _overwrite(self, slot: int, start: int) -> None:
        self.tokens[slot][start:] = [-1] * (400 - start)

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def reserve(self, slot: int, count: int) -> int:
        self.lengths[slot] += count
        return self.lengths[slot] - count

    def write(self, slot: int, ids: Any) -> None:
        start = self.reserve(slot, len(ids))
        self.tokens[slot][start : start + len(ids)] = ids


class OverPlaces(LateDecoder):
    """The toy over `Places`."""

    def prefill(self, x_TD: Tensor, cache: Any, slot: int) -> Tensor:
        self._forward(1, x_TD.shape[0])
        cache.write(slot, x_TD[:, 0].long().tolist())
        return self.logits(cache.tokens[slot][: cache.lengths[slot]])

    def verify(self, ids_BK: Tensor, cache: Any, slots: Any) -> Tensor:
        self._forward(*ids_BK.shape)
        rows = []
        for slot, ids in zip(slots, ids_BK.tolist(), strict=True):
            for token in ids:
                cache.write(slot, [token])
                rows.append(self.logits(cache.tokens[slot][: cache.lengths[slot]]))
        return torch.stack(rows).unflatten(0, tuple(ids_BK.shape))


def counting_toy() -> OverPlaces:
    """Each token is followed by the next one, 11 by the end."""
    toy = OverPlaces(order=1, vocab_size=12)
    toy.table.zero_()
    for token in range(12):
        toy.table[hash((token,)) % len(toy.table), token + 1 if token < 11 else toy.eos_id] = 9.0
    return toy


def on_a_late_device(
    monkeypatch: pytest.MonkeyPatch,
    toy: OverPlaces,
    config: DecodeConfig,
    tuning: Tuning,
    **limits: int,
) -> Generator:
    toy.device = device = LateDevice()
    monkeypatch.setattr(generator_module, "FixedStep", late_steps(device))
    return Generator(
        toy,
        config,
        eos_id=toy.eos_id,
        exempt_ids=(2, 3),
        tuning=tuning,
        make_cache=lambda num_slots, _: Places(num_slots, device),
        **{"num_slots": 3, "kv_tokens": 3000, **limits},
    )


def wanted(
    toy: ToyDecoder, prompt: list[int], config: DecodeConfig, limit: int
) -> tuple[list[int], str]:
    return plain_greedy(
        toy.logits, prompt, config, eos_id=toy.eos_id, exempt_ids=(2, 3), max_new=limit,
        limits=LOOPS,
    )  # fmt: skip


@given(
    st.integers(0, 30),
    st.integers(0, 3),
    st.sampled_from([-9.0, 0.0, 1.0]),
    st.integers(1, 4),
    st.sampled_from([40, 3000]),
    st.sampled_from(["off", "auto"]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=150)
def test_a_late_device_writes_what_the_definition_writes(
    seed: int,
    order: int,
    eos_bias: float,
    num_slots: int,
    kv_tokens: int,
    draft: str,
    is_near_the_end: bool,
    data: st.DataObject,
) -> None:
    """Ends of every kind, arrivals, preemption, drafts above and below the limit, a page under
    other rules: and nothing is on the host before it was asked for."""
    toy = OverPlaces(
        order=order, seed=seed, eos_bias=eos_bias, vocab_size=12,
        max_positions=30 if is_near_the_end else 300,
    )  # fmt: skip
    config = DecodeConfig(no_repeat_ngram=3, ngram_window=20, draft=draft)
    other = DecodeConfig(no_repeat_ngram=0, dry=DryConfig(last_n=8, allowed_length=1))
    again = DecodeConfig(no_repeat_ngram=2, ngram_window=1000)
    tuning = Tuning(
        expected_new=2, fixed_steps=True, overlap=True, batch_buckets=(1, 2, 4),
        draft_batch_limit=1, loops=LOOPS,
    )  # fmt: skip
    pages = []
    for key in range(data.draw(st.integers(1, 6))):
        prompt = data.draw(st.lists(st.integers(2, 11), min_size=1, max_size=5))
        rules = data.draw(st.sampled_from([config, config, config, again, again, other]))
        limit = data.draw(st.sampled_from([1, 2, 3, 25, 60]))
        pages.append((key, prompt, rules, min(limit, toy.max_positions - len(prompt))))
    with pytest.MonkeyPatch.context() as patch:
        box = on_a_late_device(
            patch, toy, config, tuning, num_slots=num_slots, kv_tokens=kv_tokens
        )
    done: dict[Any, Any] = {}
    for key, prompt, rules, limit in pages:
        box.add(key, toy.embed(torch.tensor(prompt)), prompt, max_new_tokens=limit, config=rules)
        for _ in range(data.draw(st.integers(0, 3))):
            done |= {f.key: f for f in box.step()}
    while box.has_work:
        for finished in box.step():
            assert finished.key not in done
            done[finished.key] = finished
    got = {key: (list(f.token_ids), str(f.finish_reason)) for key, f in done.items()}
    assert got == {key: wanted(toy, prompt, rules, limit) for key, prompt, rules, limit in pages}


def test_the_device_has_its_next_step_before_the_last_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = OverPlaces(eos_bias=-99)
    config = DecodeConfig(max_new_tokens=5)
    box = on_a_late_device(monkeypatch, toy, config, Tuning(fixed_steps=True, overlap=True))
    for key in range(2):
        box.add(key, toy.embed(torch.tensor([5 + key])), [5 + key])
    while box.has_work:
        box.step()
    # The first token comes with the prompt; four steps write the others.
    assert toy.device.log == ["start", "start", "read", "start", "read", "start", "read", "read"]
    assert toy.device.most_given == 2
    assert box.statistics.decode_rows == 2 * 4, "no step for those who will have ended by length"


def test_a_page_that_is_tried_again_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = OverPlaces(eos_bias=-99)
    config = DecodeConfig(max_new_tokens=9)
    box = on_a_late_device(monkeypatch, toy, config, Tuning(fixed_steps=True, overlap=True))
    again = DecodeConfig(no_repeat_ngram=12, ngram_window=1000)
    for key, rules in enumerate((config, again)):
        prompt = toy.embed(torch.tensor([5 + key]))
        box.add(key, prompt, [5 + key], max_new_tokens=9, config=rules)
    while box.has_work:
        box.step()
    assert toy.device.most_given == 2 and toy.device.log.count("start") == 8


@pytest.mark.parametrize(
    ("overlap", "draft", "starts"), [(True, "auto", 2), (False, "off", 1), (True, "ngram", 1)]
)
def test_a_step_that_must_know_the_last_token_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, overlap: bool, draft: str, starts: int
) -> None:
    toy = OverPlaces(eos_bias=-99)
    config = DecodeConfig(max_new_tokens=9, draft=draft)
    tuning = Tuning(fixed_steps=True, overlap=overlap, draft_batch_limit=1)
    box = on_a_late_device(monkeypatch, toy, config, tuning)
    for key in range(2):
        box.add(key, toy.embed(torch.tensor([5 + key])), [5 + key])
    while box.has_work:
        box.step()
    assert toy.device.most_given == starts


def test_an_end_that_only_the_device_knew_costs_one_row_and_no_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step under way holds a token too many of the first page; the next one gets its slot."""
    toy = counting_toy()
    config = DecodeConfig(max_new_tokens=50)
    tuning = Tuning(fixed_steps=True, overlap=True)
    box = on_a_late_device(monkeypatch, toy, config, tuning, num_slots=2)
    for key, first in enumerate((8, 2, 5)):
        box.add(key, toy.embed(torch.tensor([first])), [first])
    done: dict[Any, Any] = {}
    while box.has_work:
        done |= {f.key: f for f in box.step()}
    assert {key: f.token_ids for key, f in done.items()} == {
        0: (9, 10, 11), 1: tuple(range(3, 12)), 2: tuple(range(6, 12)),
    }  # fmt: skip
    fed = sum(len(f.token_ids) for f in done.values())
    assert box.statistics.decode_rows == fed + 3


def test_memory_that_runs_out_under_a_step_in_flight_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt fails while a step is under way: what that one chose is written first."""
    toy = OverPlaces(eos_bias=-99)
    config = DecodeConfig(max_new_tokens=12)
    tuning = Tuning(fixed_steps=True, overlap=True, prefill_tokens=1)
    box = on_a_late_device(monkeypatch, toy, config, tuning)
    failures = iter([False, False, True])
    plain = toy.prefill_together

    def prefill_together(*args: Any) -> Tensor:
        if next(failures, False):
            raise MemoryError
        return plain(*args)

    monkeypatch.setattr(toy, "prefill_together", prefill_together)
    for key in range(3):
        box.add(key, toy.embed(torch.tensor([5 + key])), [5 + key])
    done: dict[Any, Any] = {}
    while box.has_work:
        done |= {f.key: f for f in box.step()}
    assert box.statistics.out_of_memory == 1
    for key in range(3):
        right = wanted(toy, [5 + key], config, 12)
        assert (list(done[key].token_ids), str(done[key].finish_reason)) == right


@pytest.mark.parametrize("overlap", [False, True])
def test_the_budget_holds_with_the_token_that_is_not_read_yet(
    monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    toy = OverPlaces(eos_bias=-99)
    toy.device = device = LateDevice()
    monkeypatch.setattr(generator_module, "FixedStep", late_steps(device))
    places = Places(3, device)
    box = Generator(
        toy, DecodeConfig(max_new_tokens=30), eos_id=1, num_slots=2, kv_tokens=20,
        tuning=Tuning(expected_new=1, fixed_steps=True, overlap=overlap),
        make_cache=lambda *_: places,
    )  # fmt: skip
    for key in range(2):
        box.add(key, toy.embed(torch.tensor([5 + key])), [5 + key])
    most = 0
    while not box.statistics.preemptions:
        most = max(most, sum(places.lengths))
        box.step()
    assert 18 <= most <= 20


def test_memory_that_an_ended_page_gives_back_is_not_taken_from_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = counting_toy()
    config = DecodeConfig(max_new_tokens=50)
    box = on_a_late_device(monkeypatch, toy, config, Tuning(fixed_steps=True, overlap=True))
    box.add("ends", toy.embed(torch.tensor([9])), [9])
    for _ in range(3):
        box.step()  # its end is under way
    plain, failures = toy.prefill_together, iter([True])

    def prefill_together(*args: Any) -> Tensor:
        if next(failures, False):
            raise MemoryError
        return plain(*args)

    monkeypatch.setattr(toy, "prefill_together", prefill_together)
    box.add("fails once", toy.embed(torch.tensor([2])), [2])
    assert [f.key for f in box.step()] == ["ends"]
    for key in range(2):
        box.add(key, toy.embed(torch.tensor([2])), [2])
    while box.has_work:
        box.step()
    assert box.statistics.out_of_memory == 1 and box.statistics.preemptions == 0
    assert (3, 1) in toy.shapes, "the three others were decoded together"
