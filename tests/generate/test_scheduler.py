"""The scheduler: slots, budget, order; no torch anywhere."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr2cli.generate.scheduler import GROW_AFTER, GROW_AFTER_AT_MOST, Plan, Scheduler
from ocr2cli.generate.sequence import Sequence, State


def sequence(arrival: int, num_prompt: int = 10, max_new: int = 100) -> Sequence:
    return Sequence(f"page {arrival}", arrival, num_prompt, max_new)


def scheduler(num_slots: int = 4, kv_tokens: int = 1000, **settings: int) -> Scheduler:
    return Scheduler(num_slots, kv_tokens, **{"expected_new": 10, **settings})


def feed(plan: Plan) -> None:
    """Play the generator: prompts are cached, those who decode write a token."""
    for running in plan.decodes:
        running.token_ids.append(7)
        running.num_cached += 1
    for chunk in plan.prefills:
        assert chunk.start == chunk.sequence.num_cached
        chunk.sequence.num_cached = chunk.stop
        if chunk.is_last:
            chunk.sequence.state = State.DECODE
            chunk.sequence.token_ids.append(7)


def keys(sequences: object) -> list[int]:
    return [s.arrival for s in sequences]  # type: ignore[attr-defined]


def test_sequences_start_in_the_order_they_came_and_take_the_lowest_slots() -> None:
    box = scheduler(num_slots=2)
    for arrival in range(3):
        box.add(sequence(arrival))
    plan = box.schedule()
    assert [(c.sequence.arrival, c.sequence.slot) for c in plan.prefills] == [(0, 0), (1, 1)]
    assert plan.decodes == ()
    assert box.num_waiting == 1 and box.num_free_slots == 0


def test_a_prefilled_sequence_decodes_from_the_next_step_on() -> None:
    box = scheduler()
    box.add(sequence(0))
    feed(box.schedule())
    assert keys(box.schedule().decodes) == [0]


def test_a_finished_sequence_gives_its_slot_to_the_longest_waiting() -> None:
    box = scheduler(num_slots=1)
    first, second = sequence(0), sequence(1)
    box.add(second)
    box.add(first)
    assert keys(c.sequence for c in box.schedule().prefills) == [0]
    box.finish(first)
    assert keys(c.sequence for c in box.schedule().prefills) == [1]
    assert second.slot == 0


def test_the_lowest_slot_that_is_free_is_taken_also_when_it_was_given_back_last() -> None:
    box = scheduler(num_slots=3)
    first = sequence(0)
    for one in (first, sequence(1)):
        box.add(one)
    box.schedule()
    box.finish(first)
    late = sequence(2)
    box.add(late)
    box.schedule()
    assert late.slot == 0


@pytest.mark.parametrize(("kv_tokens", "admitted"), [(19, 1), (39, 1), (40, 2), (59, 2), (60, 3)])
def test_prompt_and_expected_tokens_must_fit_the_budget(kv_tokens: int, admitted: int) -> None:
    box = scheduler(kv_tokens=kv_tokens)
    for arrival in range(3):
        box.add(sequence(arrival))
    assert len(box.schedule().prefills) == admitted


def test_expected_tokens_never_exceed_the_sequences_own_limit() -> None:
    box = scheduler(kv_tokens=24)
    for arrival in range(2):
        box.add(sequence(arrival, max_new=2))
    assert len(box.schedule().prefills) == 2


def test_a_long_prompt_at_the_head_is_not_overtaken() -> None:
    box = scheduler(kv_tokens=100)
    box.add(sequence(0, 50))
    box.add(sequence(1, 90))
    box.add(sequence(2, 5))
    assert keys(c.sequence for c in box.schedule().prefills) == [0]
    assert box.num_waiting == 2


def test_the_youngest_is_sent_back_when_the_budget_is_outgrown() -> None:
    box = scheduler(kv_tokens=45)
    old, young = sequence(0), sequence(1)
    box.add(old)
    box.add(young)
    plan = box.schedule()
    steps = 0
    while not plan.preempted:
        feed(plan)
        plan = box.schedule()
        steps += 1
    assert plan.preempted == (young,)
    assert steps == 12  # 2 * (10 + 12) tokens and one more each is the first sum above 45
    assert young.state is State.WAITING and young.token_ids == [] and young.num_cached == 0
    assert keys(plan.decodes) == [0]
    assert box.used_tokens() <= 45


def test_who_fills_the_budget_to_the_last_token_is_not_sent_back() -> None:
    box = scheduler(kv_tokens=44)
    box.add(sequence(0))
    box.add(sequence(1))
    plan = box.schedule()
    while box.used_tokens(1) < 44:
        feed(plan)
        plan = box.schedule()
    assert plan.preempted == () and keys(plan.decodes) == [0, 1]


def test_one_who_was_sent_back_waits_in_front_of_later_ones_and_for_what_it_needed() -> None:
    box = scheduler(num_slots=2, kv_tokens=45)
    old, young = sequence(0), sequence(1)
    for one in (old, young, sequence(2)):
        box.add(one)
    plan = box.schedule()
    while not plan.preempted:
        feed(plan)
        plan = box.schedule()
    assert young.most_new == 12
    feed(plan)
    assert box.schedule().prefills == ()  # 24 held by `old`, 10 + 12 + 10 expected of `young`
    box.finish(old)
    assert keys(c.sequence for c in box.schedule().prefills)[0] == 1


def test_one_sequence_alone_may_exceed_the_budget() -> None:
    box = scheduler(kv_tokens=5)
    box.add(sequence(0))
    for _ in range(20):
        plan = box.schedule()
        assert plan.preempted == ()
        feed(plan)
    assert keys(box.schedule().decodes) == [0]


def test_out_of_memory_halves_what_is_in_use_and_sends_the_youngest_back() -> None:
    box = scheduler(kv_tokens=1000)
    for arrival in range(4):
        box.add(sequence(arrival))
    feed(box.schedule())
    assert box.used_tokens() == 44
    assert keys(box.shrink()) == [3, 2]
    assert box.kv_tokens == 22
    assert keys(box.running) == [0, 1]


def test_out_of_memory_halves_a_budget_that_one_alone_exceeded() -> None:
    box = scheduler(kv_tokens=8)
    box.add(sequence(0, 50))
    feed(box.schedule())
    assert box.shrink() == () and box.kv_tokens == 4


def test_however_often_memory_lacked_the_budget_grows_again_in_time() -> None:
    box = scheduler(kv_tokens=10**9)
    box.add(sequence(0, 50))
    feed(box.schedule())
    for _ in range(20):
        box.shrink()
    narrow = box.kv_tokens
    for _ in range(GROW_AFTER_AT_MOST):
        box.schedule()
    assert box.kv_tokens == 2 * narrow


def play(box: Scheduler, room: Callable[[int], int], max_new: int = 400) -> Iterator[int]:
    """Until all are done; yields the budget after each step. room: of the n-th step, in tokens."""
    for step in itertools.count():
        if not box.running and not box.num_waiting:
            return
        plan = box.schedule()
        if box.used_tokens(1) > room(step):
            assert len(box.running) > 1, "what is left alone fits"
            running = len(box.running)
            assert box.shrink() and len(box.running) < running
        else:
            feed(plan)
            for one in [s for s in box.running if len(s.token_ids) >= max_new]:
                box.finish(one)
        yield box.kv_tokens


def test_memory_that_lacked_for_a_moment_narrows_a_budget_for_a_while_only() -> None:
    """Of 300,000 tokens it left 2,252 for the rest of the run: two pages."""
    box = Scheduler(4, 300_000)
    for arrival in range(30):
        box.add(sequence(arrival, 1126, 7000))
    budgets = list(play(box, lambda step: 4000 if step == 1 else 10**6))
    assert budgets[:2] == [300_000, 2252]
    assert budgets[1:] == sorted(budgets[1:]) and budgets[8 * GROW_AFTER + 1] == 300_000
    assert len(budgets) < 3600, "30 pages of 400 steps, 4 together: 3,000"


@pytest.mark.parametrize("pages", [1, 3])
def test_memory_that_lacks_for_good_is_asked_for_ever_less_often(pages: int) -> None:
    box = Scheduler(8, 300_000)
    for arrival in range(60):
        box.add(sequence(arrival, 1126, 7000))
    budgets = list(play(box, lambda step: pages * 1600))
    num_failures = sum(after < before for before, after in itertools.pairwise(budgets))
    assert num_failures < 20 and len(budgets) < 60 * 402 + 20


def test_prompts_are_fed_within_a_budget_of_tokens_a_step() -> None:
    for prefill_tokens in (20, 25, 29):
        box = scheduler(prefill_tokens=prefill_tokens)
        for arrival in range(4):
            box.add(sequence(arrival))
        assert keys(c.sequence for c in box.schedule().prefills) == [0, 1]


def test_a_prompt_longer_than_the_step_budget_is_still_fed() -> None:
    box = scheduler(prefill_tokens=5)
    box.add(sequence(0, 30))
    assert [(c.start, c.stop) for c in box.schedule().prefills] == [(0, 30)]


def test_chunks_start_at_multiples_of_the_chunk_size_whatever_else_runs() -> None:
    box = scheduler(prefill_tokens=20, prefill_chunk=8)
    box.add(sequence(0, 20))
    box.add(sequence(1, 20))
    seen: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for _ in range(4):
        plan = box.schedule()
        for chunk in plan.prefills:
            seen[chunk.sequence.arrival].append((chunk.start, chunk.stop))
        feed(plan)
    assert seen[0] == seen[1] == [(0, 8), (8, 16), (16, 20)]


def test_decodes_go_on_while_a_long_prompt_is_fed() -> None:
    box = scheduler(prefill_tokens=8, prefill_chunk=8)
    box.add(sequence(0, 8))
    feed(box.schedule())
    box.add(sequence(1, 40))
    for _ in range(5):
        plan = box.schedule()
        assert keys(plan.decodes) == [0] and len(plan.prefills) == 1
        feed(plan)
    assert keys(box.schedule().decodes) == [0, 1]


def test_prompts_wait_for_company_while_others_run() -> None:
    box = scheduler(num_slots=128, kv_tokens=10**6, admit_together=3, admit_patience=5)
    box.add(sequence(0))
    plan = box.schedule()
    assert len(plan.prefills) == 1, "nobody runs, so nobody waits"
    for arrival in (1, 2):
        box.add(sequence(arrival))
        feed(plan)
        plan = box.schedule()
        assert plan.prefills == () and keys(plan.decodes) == [0]
    box.add(sequence(3))
    plan = box.schedule()
    assert [chunk.sequence.arrival for chunk in plan.prefills] == [1, 2, 3]


def test_company_that_does_not_come_is_waited_for_a_few_steps_only() -> None:
    box = scheduler(num_slots=128, kv_tokens=10**6, admit_together=3, admit_patience=5)
    box.add(sequence(0))
    for round_ in range(2):
        feed(box.schedule())
        box.add(sequence(1 + round_))
        admitted = []
        for _ in range(6):
            plan = box.schedule()
            admitted.append(len(plan.prefills))
            feed(plan)
        assert admitted == [0] * 5 + [1]


def test_who_found_company_in_time_leaves_the_next_ones_their_whole_patience() -> None:
    box = scheduler(num_slots=128, kv_tokens=10**6, admit_together=2, admit_patience=5)
    box.add(sequence(0))
    feed(box.schedule())
    box.add(sequence(1))
    assert [len(box.schedule().prefills) for _ in range(3)] == [0, 0, 0]
    box.add(sequence(2))
    feed(box.schedule())
    box.add(sequence(3))
    assert [len(box.schedule().prefills) for _ in range(6)] == [0] * 5 + [1]


@pytest.mark.parametrize(("num_slots", "company"), [(2, 1), (63, 1), (64, 2), (128, 4), (512, 4)])
def test_the_fewer_slots_there_are_the_less_company_is_waited_for(
    num_slots: int, company: int
) -> None:
    box = scheduler(num_slots=num_slots, kv_tokens=10**6, admit_together=4, admit_patience=1000)
    box.add(sequence(0))
    feed(box.schedule())
    for arrival in range(1, 9):
        box.add(sequence(arrival))
        if admitted := box.schedule().prefills:
            break
    assert len(admitted) == company


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, ocr2cli.generate.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12)


@given(sizes, st.integers(1, 4), st.integers(10, 80), st.integers(0, 7), st.integers(1, 4))
def test_every_sequence_finishes_once_within_slots_and_budget(
    pages: list[tuple[int, int]], num_slots: int, kv_tokens: int, chunk: int, lookahead: int
) -> None:
    box = scheduler(num_slots, kv_tokens, prefill_tokens=16, prefill_chunk=chunk)
    for arrival, (num_prompt, max_new) in enumerate(pages):
        box.add(sequence(arrival, num_prompt, max_new))
    done: list[int] = []
    for _ in range(5000):
        plan = box.schedule(lookahead)
        assert len(box.running) <= num_slots
        assert len({s.slot for s in box.running}) == len(box.running)
        if len(box.running) > 1:
            assert box.used_tokens(lookahead) <= kv_tokens
        feed(plan)
        for one in [s for s in box.running if len(s.token_ids) >= s.max_new]:
            box.finish(one)
            done.append(one.arrival)
        if not box.running and not box.num_waiting:
            break
    assert sorted(done) == list(range(len(pages)))
    assert box.num_free_slots == num_slots
