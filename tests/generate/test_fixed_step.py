"""The step that stays on the device: the same choices as the step that does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy_decoder import ToyDecoder

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.generate import fixed_step
from ocr2cli.generate.fixed_step import LEAST_RING, FixedStep, HistoryRing, Started
from ocr2cli.generate.generator import Generator
from ocr2cli.generate.greedy import Choice
from ocr2cli.generate.logits import NgramRule, Rules, banned_tokens
from ocr2cli.generate.sequence import Sequence
from ocr2cli.generate.step import Row
from ocr2cli.generate.step_runner import StepRunner
from ocr2cli.generate.tuning import Tuning

DEVICES = ["cpu"]
for number in range(torch.cuda.device_count()):  # with graphs
    DEVICES.append(pytest.param(f"cuda:{number}", marks=pytest.mark.gpu))


@given(
    st.integers(1, 7),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=20), min_size=1, max_size=4),
    st.integers(0, 25),
)
def test_the_ring_holds_the_last_tokens_of_each_slot(
    window: int, histories: list[list[int]], uploaded: int
) -> None:
    """Part comes from the host, the rest token by token; leftovers never show."""
    ring = HistoryRing(len(histories), window, torch.device("cpu"))
    for slot, history in enumerate(histories):
        ring.upload(slot, [77] * 30, window)
        first = min(uploaded, len(history))
        ring.upload(slot, history[:first], window)
        for number in range(first, len(history)):
            at = torch.tensor([slot]), torch.tensor([number]), torch.tensor([history[number]])
            ring.write(*at)
    slots = torch.arange(len(histories))
    counts = torch.tensor([len(history) for history in histories])
    expected = [([-1] * window + history)[-window:] for history in histories]
    assert ring.last(slots, counts, window).tolist() == expected
    shorter = max(1, window // 2)
    assert ring.last(slots, counts, shorter).tolist() == [row[-shorter:] for row in expected]


class TableDecoder:
    """Logits by the last token only, from one table on the device: can be captured as a graph."""

    class config:
        max_positions = 300

    def __init__(self, device: str) -> None:
        table = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
        table[:, 1] -= 9  # the end token
        self.table = table.to(device)

    def prefill_together(self, x_BTD: Tensor, cache: Any, slots: list[int]) -> Tensor:
        return torch.stack(
            [self.prefill(x_TD, cache, slot) for x_TD, slot in zip(x_BTD, slots, strict=True)]
        )

    def prefill(self, x_TD: Tensor, cache: Any, slot: int) -> Tensor:
        cache.reserve(slot, len(x_TD))
        return self.table[int(x_TD[-1, 0])].clone()

    def decode(self, ids_B: Tensor, cache: Any, slots: list[int]) -> Tensor:
        for slot in slots:
            cache.reserve(slot, 1)
        return self.table[ids_B]

    def verify(self, ids_BK: Tensor, cache: Any, slots: list[int]) -> Tensor:
        for slot in slots:
            cache.reserve(slot, ids_BK.shape[1])
        return self.table[ids_BK]

    def decode_fixed(
        self, ids_B: Tensor, cache: Any, slots_B: Tensor, starts_B: Tensor, context: int
    ) -> Tensor:
        return self.table[ids_B]


class LengthsOnly:
    """A cache that only counts."""

    def __init__(self, num_slots: int, device: str) -> None:
        self.lengths = [0] * num_slots
        self.device = torch.device(device)

    def free(self, slot: int) -> None:
        self.lengths[slot] = 0

    def scrub(self, slot: int, start: int = 0) -> None:
        self.lengths[slot] = start

    def truncate(self, slot: int, length: int) -> None:
        self.lengths[slot] = length

    def reserve(self, slot: int, count: int) -> int:
        self.lengths[slot] += count
        return self.lengths[slot] - count


def run(fixed: FixedStep, rows: list[Row]) -> list[Choice]:
    return fixed.start(rows).choices()


def texts(
    device: str, *, fixed: bool, num_slots: int, draft: str = "off", overlap: bool = False
) -> dict[Any, Any]:
    decoder = TableDecoder(device)
    box = Generator(
        decoder,
        DecodeConfig(max_new_tokens=120, no_repeat_ngram=3, ngram_window=30, draft=draft),
        eos_id=1,
        exempt_ids=(2, 3),
        num_slots=num_slots,
        kv_tokens=600,
        tuning=Tuning(
            fixed_steps=fixed, overlap=overlap, batch_buckets=(1, 2, 4), draft_batch_limit=2
        ),
        make_cache=lambda slots, _: LengthsOnly(slots, device),
    )
    for key in range(7):
        own = None
        if key == 5:
            own = DecodeConfig(no_repeat_ngram=0, dry=DryConfig())
        if key in (2, 3):
            own = DecodeConfig(max_new_tokens=120, no_repeat_ngram=2, ngram_window=1000)
        box.add(key, torch.tensor([[float(4 + key)]]), [4 + key], config=own)
    done: dict[Any, Any] = {}
    while box.has_work:
        for f in box.step():
            done[f.key] = (f.token_ids, pytest.approx(f.logprobs, abs=1e-5), f.finish_reason)
    return done


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_slots", [1, 3, 4])
@pytest.mark.parametrize("draft", ["off", "auto"])
@pytest.mark.parametrize("overlap", [False, True])
def test_fixed_steps_write_the_same_as_others_and_mix_with_them(
    device: str, num_slots: int, draft: str, overlap: bool
) -> None:
    fixed = texts(device, fixed=True, num_slots=num_slots, draft=draft, overlap=overlap)
    plain = texts("cpu", fixed=False, num_slots=1)
    assert {key: (ids, reason) for key, (ids, _, reason) in fixed.items()} == {
        key: (ids, reason) for key, (ids, _, reason) in plain.items()
    }
    assert all(fixed[key][1] == tuple(plain[key][1].expected) for key in plain)


def test_single_tokens_under_the_common_rule_take_the_fixed_path_in_few_shapes() -> None:
    toy = ToyDecoder(eos_bias=-99, max_positions=540)
    box = Generator(
        toy,
        DecodeConfig(max_new_tokens=530),
        eos_id=1,
        num_slots=2,
        kv_tokens=2000,
        tuning=Tuning(fixed_steps=True, batch_buckets=(4,)),
        make_cache=toy.make_cache,
    )
    for key in range(2):
        box.add(key, toy.embed(torch.tensor([5 + key])), [5 + key])
    while box.has_work:
        box.step()
    assert toy.shapes[-1] == (4, 1)
    assert toy.contexts == [256] * 255 + [512] * 256 + [556] * 18


def test_a_row_under_another_rule_leaves_the_others_their_fixed_step() -> None:
    """One that looks at all of its history: no ring is long enough."""
    rule, wider = NgramRule(20, 90), NgramRule(12, 0)
    decoder = TableDecoder("cpu")
    mixed, alone = LengthsOnly(4, "cpu"), LengthsOnly(4, "cpu")
    asked: list[int] = []

    class Noted(FixedStep):
        def start(self, rows: Any) -> Any:
            asked.append(len(rows))
            return super().start(rows)

    fixed = Noted(
        decoder, mixed, rule, scratch_slot=3, max_context=64, batch_buckets=(1, 2), use_graphs=False
    )
    rows = [
        Row(slot, [5 + slot], [5 + slot], Rules(wider if slot == 1 else rule, None))
        for slot in range(3)
    ]
    got = StepRunner(decoder, mixed, scratch_slot=3, fixed=fixed).run(rows)
    plain = StepRunner(decoder, alone, scratch_slot=3).run(rows)
    assert [choices[0].token for choices in got] == [choices[0].token for choices in plain]
    assert (asked, mixed.lengths) == ([2], alone.lengths)
    with_guess = [Row(0, [5, 6], [5], Rules(rule, None)), *rows[1:]]
    StepRunner(decoder, mixed, scratch_slot=3, fixed=fixed).run(with_guess)
    assert asked == [2]


def test_a_page_that_is_tried_again_reads_in_the_step_of_all_under_a_rule_of_its_own() -> None:
    """For thousands of steps at times, each of which was two steps for all: the fixed one, waited
    for, and a plain one."""
    rules = [
        NgramRule(1, 3), NgramRule(2, 1000, frozenset({31})), NgramRule(1, 7), NgramRule(1, 1001)
    ]  # fmt: skip
    decoder = TableDecoder("cpu")
    decoder.table.zero_()
    decoder.table[:, [11, 21, 31]] = torch.tensor([3.0, 2.0, 1.0])
    cache = LengthsOnly(5, "cpu")
    fixed = FixedStep(
        decoder, cache, rules[0], scratch_slot=4, max_context=64, batch_buckets=(), use_graphs=False
    )

    def rows(*which: int) -> list[Row]:
        return [
            Row(slot, [histories[slot][-1]], histories[slot], Rules(rules[number], None))
            for slot, number in enumerate(which)
        ]

    histories = [[11, 7, 7], [21, 5, 21], [11, 21, 11], [6, 11, 6]]
    assert fixed.fits(rows(0, 1, 0, 1)) == [True] * 4
    for number in (0, 2):
        dry = Row(0, [11], histories[0], Rules(rules[number], DryConfig()))
        assert fixed.fits([dry, *rows(0, 1)]) == [False, True, True], "nor one under DRY"
    assert fixed.fits(rows(0, 1, 2, 1)) == [True, True, False, True], "one beside the run's own"
    assert fixed.fits(rows(0, 3, 2, 0)) == [True, False, True, True], "one that the ring is for"
    for _ in range(6):  # of each row's own rule, whatever stands beside it
        asked = rows(0, 1, 0, 1)
        wanted = []
        for row in asked:
            logits = decoder.table[row.ids[-1]].clone()
            logits[list(banned_tokens(row.written, row.rules.ngram))] = -1e9
            wanted.append(int(logits.argmax()))
        assert [choice.token for choice in run(fixed, asked)] == wanted
        for history, token in zip(histories, wanted, strict=True):
            history.append(token)


def test_the_longest_context_of_a_batch_size_is_captured_first() -> None:
    """Graphs share one pool: a shorter one finds room in what a longer one took, not the other
    way."""
    captured: list[tuple[int, int]] = []

    class Captures(FixedStep):
        def _capture(self, batch: int, context: int, other: Any) -> Any:
            captured.append((batch, context))
            return self

        def replay(self, inputs_5B: Tensor) -> Tensor:
            return self._compute(inputs_5B, 64, None)

    cache = LengthsOnly(4, "cpu")
    fixed = Captures(
        TableDecoder("cpu"), cache, None, scratch_slot=3, max_context=600, batch_buckets=(1, 2),
        use_graphs=True,
    )  # fmt: skip
    for length, slots in ((3, [0]), (300, [0]), (599, [0]), (4, [0, 1])):
        cache.lengths = [length] * 4
        run(fixed, [Row(slot, [5], [5], Rules(None, None)) for slot in slots])
    assert captured == [(1, 600), (1, 256), (1, 512), (2, 600), (2, 256)]


@pytest.mark.parametrize("is_hidden", [False, True])
def test_without_memory_for_graphs_the_same_steps_run_without_them(
    caplog: pytest.LogCaptureFixture, is_hidden: bool
) -> None:
    """The capture of the second context fails; ending it may fail too, with an error of its own."""
    tried: list[int] = []

    class Captures(FixedStep):
        def _capture(self, batch: int, context: int, other: Any) -> Any:
            tried.append(context)
            if context == 256:
                return self
            try:
                raise torch.OutOfMemoryError
            finally:
                if is_hidden:
                    raise RuntimeError("CUDA error: operation failed due to a previous error")

        def replay(self, inputs_5B: Tensor) -> Tensor:
            raise AssertionError("its memory was given back")

    decoder, cache = TableDecoder("cpu"), LengthsOnly(2, "cpu")
    fixed = Captures(
        decoder, cache, None, scratch_slot=1, max_context=256, batch_buckets=(1,), use_graphs=True
    )
    fixed._contexts = (64, 256)
    rows = [Row(0, [5], [5], Rules(None, None))]
    found = [run(fixed, rows)[0].token for _ in range(3)]
    assert found == [int(decoder.table[5].argmax())] * 3
    assert tried == [256, 64] and cache.lengths[0] == 3
    assert fixed._graphs == {}, "what they hold is given back"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_graphs_are_tried_again_when_memory_may_be_there(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One capture that found none, of a size needed for a moment, cost a whole run its graphs."""
    monkeypatch.setattr(fixed_step, "RETRY_GRAPHS_AFTER", 3)
    tried, replayed, failures = [], [], iter([True, True])

    class Captures(FixedStep):
        def _capture(self, batch: int, context: int, other: Any) -> Any:
            tried.append(len(steps))
            if next(failures, False):
                raise torch.OutOfMemoryError
            return self

        def replay(self, inputs_5B: Tensor) -> Tensor:
            replayed.append(len(steps))
            return self._compute(inputs_5B, 64, None)

    decoder, cache = TableDecoder("cpu"), LengthsOnly(2, "cpu")
    fixed = Captures(
        decoder, cache, None, scratch_slot=1, max_context=64, batch_buckets=(1,), use_graphs=True
    )
    steps: list[int] = []
    for _ in range(12):
        steps.append(run(fixed, [Row(0, [5], [5], Rules(None, None))])[0].token)
    assert steps == [int(decoder.table[5].argmax())] * 12
    assert tried == [0, 4, 8] and replayed == [8, 9, 10, 11]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_second_rule_has_graphs_of_its_own_and_without_memory_costs_the_others_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed_step, "RETRY_GRAPHS_AFTER", 2)
    own, other = NgramRule(1, 5), NgramRule(2, 1000)
    captured, replayed, failures = [], [], iter([True])

    class Captured:
        def __init__(self, fixed: FixedStep, *shape: Any) -> None:
            self.fixed, self.shape = fixed, shape

        def replay(self, inputs_5B: Tensor) -> Tensor:
            replayed.append(self.shape[2])
            return self.fixed._compute(inputs_5B, *self.shape[1:])

    class Captures(FixedStep):
        def _capture(self, batch: int, context: int, other: Any) -> Any:
            captured.append(other)
            if other and next(failures, False):
                raise torch.OutOfMemoryError
            return Captured(self, batch, context, other)

    decoder, cache = TableDecoder("cpu"), LengthsOnly(3, "cpu")
    fixed = Captures(
        decoder, cache, own, scratch_slot=2, max_context=64, batch_buckets=(2,), use_graphs=True
    )
    for rule in (own, other, other, own, other, other):
        rows = [Row(0, [5], [5], Rules(own, None)), Row(1, [6], [6], Rules(rule, None))]
        chosen = run(fixed, [row for row, fits in zip(rows, fixed.fits(rows), strict=True) if fits])
        assert [each.token for each in chosen] == [
            int(decoder.table[token].argmax()) for token in (5, 6)
        ][: len(chosen)]
    assert captured == [None, other, other] and replayed == [None, None, None, other, other]


def test_an_error_of_a_capture_that_is_not_about_memory_is_not_hidden() -> None:
    class Fails(FixedStep):
        def _capture(self, batch: int, context: int, other: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cache = LengthsOnly(2, "cpu")
    fixed = Fails(
        TableDecoder("cpu"), cache, None, scratch_slot=1, max_context=64, batch_buckets=(1,),
        use_graphs=True,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="illegal"):
        run(fixed, [Row(0, [5], [5], Rules(None, None))])


def test_more_sequences_than_the_largest_bucket_are_left_to_steps_of_any_size() -> None:
    rule, cache = NgramRule(20, 90), LengthsOnly(4, "cpu")
    fixed = FixedStep(
        TableDecoder("cpu"), cache, rule, scratch_slot=3, max_context=64, batch_buckets=(1, 2),
        use_graphs=False,
    )  # fmt: skip
    rows = [Row(slot, [5], [5], Rules(rule, None)) for slot in range(3)]
    assert fixed.fits(rows[:2]) == [True, True]
    assert not any(fixed.fits(rows))


def test_a_slot_is_brought_up_to_date_for_its_next_sequence() -> None:
    """The next one comes in with as many tokens as the last one left with."""
    rule = NgramRule(1, 5)
    decoder, cache = TableDecoder("cpu"), LengthsOnly(2, "cpu")
    decoder.table.zero_()
    decoder.table[:, [11, 21, 31]] = torch.tensor([3.0, 2.0, 1.0])
    fixed = FixedStep(
        decoder, cache, rule, scratch_slot=1, max_context=64, batch_buckets=(), use_graphs=False
    )
    last, following = [11, 21], [12, 11, 13]
    assert run(fixed, [Row(0, last[-1:], last, Rules(rule, None))])[0].token == 31
    assert run(fixed, [Row(0, following[-1:], following, Rules(rule, None))])[0].token == 21


def ring_of_one(rule: NgramRule) -> tuple[FixedStep, TableDecoder]:
    """A slot whose best tokens are 11, 21, 31, in this order, whatever it is fed."""
    decoder = TableDecoder("cpu")
    decoder.table.zero_()
    decoder.table[:, [11, 21, 31]] = torch.tensor([3.0, 2.0, 1.0])
    cache = LengthsOnly(2, "cpu")
    fixed = FixedStep(
        decoder, cache, rule, scratch_slot=1, max_context=64, batch_buckets=(), use_graphs=False
    )
    return fixed, decoder


def test_attention_looks_as_far_back_as_the_longest_page_reaches() -> None:
    contexts = []

    class Noted(TableDecoder):
        def decode_fixed(self, *args: Any) -> Tensor:
            contexts.append(args[-1])
            return super().decode_fixed(*args)

    cache = LengthsOnly(3, "cpu")
    fixed = FixedStep(
        Noted("cpu"), cache, None, scratch_slot=2, max_context=300, batch_buckets=(4,),
        use_graphs=False,
    )  # fmt: skip
    for lengths in ([3, 256, 0], [256, 3, 0], [255, 3, 0]):
        cache.lengths = lengths
        rows = [Row(slot, [5], [4, 5], Rules(None, None)) for slot in range(2)]
        assert len(run(fixed, rows)) == 2, "none for the places that are padded"
    assert contexts == [300, 300, 256]


def test_a_page_that_stays_in_its_slot_is_not_sent_to_the_device_again() -> None:
    """Each time the step would wait for the host."""
    rule = NgramRule(1, 5)
    fixed, _ = ring_of_one(rule)
    uploads, plain, ids = [], fixed._ring.upload, [50, 51]
    fixed._ring.upload = lambda *args: uploads.append(args[0]) or plain(*args)  # type: ignore[method-assign]
    for _ in range(3):
        ids.append(run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])[0].token)
    assert (ids, uploads) == ([50, 51, 11, 21, 31], [0])


def test_a_page_that_is_tried_again_has_its_rule_where_the_run_has_none() -> None:
    decoder, ids = ring_of_one(NgramRule(1, 5))[1], [50]
    fixed = FixedStep(
        decoder, LengthsOnly(2, "cpu"), None, scratch_slot=1, max_context=64, batch_buckets=(),
        use_graphs=False,
    )  # fmt: skip
    for _ in range(3):
        ids.append(run(fixed, [Row(0, ids[-1:], ids, Rules(NgramRule(1, 5), None))])[0].token)
    assert ids == [50, 11, 21, 31]


def test_a_rule_that_looks_far_back_has_a_ring_as_long() -> None:
    far = LEAST_RING + 100
    for window, token in ((far, 21), (far - 1, 11)):
        rule = NgramRule(1, window)
        fixed, _ = ring_of_one(rule)
        ids = [11, *(40 + number % 20 for number in range(far - 1))]
        assert run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])[0].token == token


def test_a_sequence_that_was_sent_back_is_not_taken_for_what_it_was() -> None:
    """It came back to its slot, and other steps wrote as many tokens as the ring held of it."""
    rule = NgramRule(1, 5)
    fixed, _ = ring_of_one(rule)
    running = Sequence("page", 0, 1, 99)
    running.token_ids.append(11)
    for token in (50, 51):
        ids = running.token_ids
        run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])
        ids.append(token)
    running.restart()
    assert running.token_ids == [] and running.most_new == 3
    running.token_ids += [21, 60, 61]
    ids = running.token_ids
    assert run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])[0].token == 11


def test_a_step_that_failed_has_told_the_ring_nothing() -> None:
    """The token it was fed was then written by a step of another kind, which passes the ring by."""
    rule = NgramRule(1, 5)
    fixed, decoder = ring_of_one(rule)
    ids = [21]
    run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])
    ids.append(11)
    plain = decoder.decode_fixed
    decoder.decode_fixed = lambda *_: 1 / 0  # type: ignore[assignment,method-assign]
    with pytest.raises(ZeroDivisionError):
        run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])
    decoder.decode_fixed = plain  # type: ignore[method-assign]
    ids.append(60)
    assert run(fixed, [Row(0, ids[-1:], ids, Rules(rule, None))])[0].token == 31


def test_rows_under_other_rules_are_given_to_a_device_that_is_busy_with_the_rest() -> None:
    log = []

    class Logged(ToyDecoder):
        def decode(self, *args: Any) -> Tensor:
            log.append("other rules")
            return super().decode(*args)

    class Steps(FixedStep):
        def start(self, rows: Any) -> Any:
            log.append("start")
            started = super().start(rows)
            started.choices = lambda: log.append("read") or Started.choices(started)
            return started

    toy, rule = Logged(), NgramRule(2, 5)
    cache = toy.make_cache(3, 40)
    fixed = Steps(
        toy, cache, rule, scratch_slot=2, max_context=40, batch_buckets=(), use_graphs=False
    )
    runner = StepRunner(toy, cache, scratch_slot=2, fixed=fixed)
    other = NgramRule(3, 0)
    rows = [Row(0, [5], [5], Rules(rule, None)), Row(1, [6], [6], Rules(other, None))]
    chosen = runner.run(rows)
    assert log == ["start", "other rules", "read"]
    assert [choices[0].token for choices in chosen] == [
        int(toy.logits([token]).argmax()) for token in (5, 6)
    ]


@pytest.mark.parametrize(
    ("rule", "is_supported"),
    [
        (None, True),
        (NgramRule(20, 90), True),
        (NgramRule(20, 0), False),
        (NgramRule(20, 90, over_prompt=True), False),
    ],
)
def test_only_a_window_of_new_tokens_fits_the_ring(
    rule: NgramRule | None, is_supported: bool
) -> None:
    assert FixedStep.supports(rule) == is_supported
