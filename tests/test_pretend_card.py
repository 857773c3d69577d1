"""The card that is not there refuses what a card refuses, so that a test on it can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pretend_card import PretendCard, pretend_card


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCard]:
    with pretend_card(monkeypatch) as card:
        yield card


def test_a_tensor_of_the_card_says_so_and_so_does_what_is_made_of_it(card: PretendCard) -> None:
    given = torch.arange(6, device="cuda").view(2, 3)
    wide = given.float()
    made = [given.T, given[0], wide @ wide.T, given.new_zeros(2), given.topk(2).values]
    assert all(one.device == torch.device("cuda", 0) and one.is_cuda for one in made)
    assert given.cpu().device.type == "cpu" and given.cpu().tolist() == [[0, 1, 2], [3, 4, 5]]
    row = given[1]
    row += 10
    assert given.tolist() == [[0, 1, 2], [13, 14, 15]]


def test_tensors_of_both_sides_do_not_meet(card: PretendCard) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    for meet in (lambda: there + here, lambda: torch.cat((here, there)), lambda: here @ there):
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            meet()
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]  # but a single number


def test_waits_are_counted_and_pinned_copies_are_none(card: PretendCard) -> None:
    there = torch.ones(3, device="cuda")
    assert not card.waits
    there.sum().item()
    there[torch.tensor([True, False, True], device="cuda")]
    torch.ones(3).to("cuda", non_blocking=True)
    assert len(card.waits) == 4  # the mask itself had to be copied
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    torch.empty(3, pin_memory=True).copy_(there, non_blocking=True)
    assert len(card.waits) == 4


def test_a_copy_to_the_host_is_not_there_before_its_event(card: PretendCard) -> None:
    into = torch.zeros(2, pin_memory=True)
    into.copy_(torch.ones(2, device="cuda"), non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    assert into.isnan().all()
    done.synchronize()
    assert into.tolist() == [1, 1]


def test_memory_that_is_being_copied_must_stay(card: PretendCard) -> None:
    source = torch.zeros(2).pin_memory()
    source.to("cuda", non_blocking=True)
    source[0] = 5
    with pytest.raises(AssertionError, match="pinned memory changed"):
        torch.cuda.synchronize(None)


def capture(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def test_a_captured_step_may_not_ask_or_copy(card: PretendCard) -> None:
    there, pinned = torch.ones(3, device="cuda"), torch.ones(3).pin_memory()
    for step in (
        lambda: there.sum().item(),
        lambda: there.nonzero(),
        lambda: torch.tensor([1, 2], device="cuda"),
        lambda: there.copy_(pinned, non_blocking=True),
    ):
        with pytest.raises(RuntimeError, match="captured step"):
            capture(step)


def test_a_replay_reads_and_writes_the_memory_of_the_capture(card: PretendCard) -> None:
    given, total = torch.zeros(2, device="cuda"), torch.zeros(2, device="cuda")
    kept: list[torch.Tensor] = []

    def step() -> None:
        half = given * 2 + 1
        total.add_(half)
        kept.append(half.sum(0, keepdim=True))

    graph = capture(step)
    assert kept[0].isnan().all()  # a capture computes nothing
    total.zero_()
    for value, answer, so_far in ((1.0, 6, [3, 3]), (4.0, 18, [12, 12])):
        given.fill_(value)
        graph.replay()
        assert kept[0].tolist() == [answer] and total.tolist() == so_far
    assert len(graph.held()) == 1 and card.replays == 2


def test_what_nobody_holds_does_not_outlast_a_replay(card: PretendCard) -> None:
    given = torch.ones(2, device="cuda")
    leaked: list[torch.Tensor] = []
    graph = capture(lambda: leaked.append((given + 1).as_subclass(torch.Tensor)))
    graph.replay()
    assert leaked[0].isnan().all()


def test_apples_device_has_no_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_card(monkeypatch, generation=None) as card:
        there = torch.ones(2, device="mps")
        assert there.device == card.device and not there.is_cuda
        with pytest.raises(TypeError, match="float64"):
            there.double()
