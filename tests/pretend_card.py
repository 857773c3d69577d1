"""A card that is not there: what is given to it lies in the host's memory and says otherwise.

The code for a card runs on a host, with its true results, and what a card forbids is an error here
too: tensors of both sides in one operation, a captured step that asks the host, reads what no
longer exists or what changed places, a copy that is read before it arrived or whose source was
changed on the way. Waits for the card are counted. Shows nothing of speed, of memory or of a card's
own kernels, and sees only what Python asks torch for.
"""

from __future__ import annotations

import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ocr2cli.model import processor

HOST = torch.device("cpu")

# What asks the card for a number, or for a shape that depends on numbers.
_ASKING = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero",
    "equal", "allclose", "unique", "masked_select", "bincount",
}  # fmt: skip
# What looks at a tensor's outside only.
_OUTSIDE = {
    "__get__", "__len__", "__hash__", "size", "dim", "numel", "nelement", "stride", "data_ptr",
    "is_contiguous", "is_floating_point", "is_complex", "is_inference", "storage_offset",
    "untyped_storage", "element_size", "requires_grad_",
}  # fmt: skip


class CardTensor(Tensor):
    """In truth a tensor on the host."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func.__name__}: a tensor of the card where the card is not known")


class PretendCard(TorchFunctionMode):
    """device: NVIDIA's (`cuda:0`) or Apple's (`mps:0`).

    waits: where the host waited until the card had done all it was told, oldest first.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.waits: list[str] = []
        self.replays = 0
        self.graphs: list[PretendGraph] = []
        self.capturing: PretendGraph | None = None
        # Copies on their way: to the host (into what, and what will arrive) and from it (which
        # memory is read, and what it held).
        self.to_host: list[tuple[Tensor, Tensor]] = []
        self._from_host: list[tuple[Tensor, Tensor]] = []
        self._pinned: dict[int, Tensor] = {}  # kept, so that no other memory gets their addresses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__":
                return self._property(func, args[0])
            if name == "pin_memory":
                return self._pin(args[0].clone())
            if name == "is_pinned":
                return self._is_pinned(args[0])
            if name in ("__set__", "__delete__"):
                return func(*args)
            if name == "__iter__":
                return iter(self._compute(Tensor.unbind, "unbind", args, kwargs))
            if name in ("to", "cpu"):
                return self._move(name, *args, **kwargs)
            if name == "copy_" and is_on_card(args[0]) != is_on_card(args[1]):
                return self._copy(*args, **kwargs)
            return self._compute(func, name, args, kwargs)

    def _property(self, func: Any, tensor: Tensor) -> Any:
        if is_on_card(tensor):
            if func == Tensor.device.__get__:
                return self.device
            if func == Tensor.is_cuda.__get__:
                return self.device.type == "cuda"
        found = func(tensor)
        return as_card(found) if is_on_card(tensor) and isinstance(found, Tensor) else found

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[address(tensor)] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return address(tensor) in self._pinned

    def _move(self, name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`to` and `cpu`: to another device, to another dtype, or both."""
        others = [one for one in args if isinstance(one, Tensor)]
        asked = (*args, kwargs.get("device"))
        named = [one for one in asked if isinstance(one, torch.device | str)]
        goal = is_on_card(others[0]) if others else is_on_card(tensor)
        if named or name != "to":
            goal = bool(named) and self._is_its_own(named[0])
        args = tuple(HOST if isinstance(one, torch.device | str) else one for one in args)
        kwargs = {**kwargs, **({"device": HOST} if kwargs.get("device") is not None else {})}
        if goal == is_on_card(tensor):
            if not args and not kwargs:
                return tensor
            return self._compute(Tensor.to, "to", (tensor, *args), kwargs)
        is_late = kwargs.get("non_blocking", False)
        moved = plain(tensor).to(*args, **kwargs) if name == "to" else plain(tensor)
        out = torch.empty_like(moved)
        if goal:
            return self._copy(as_card(out), moved, is_late)
        return self._copy(out, as_card(moved), is_late)

    def _copy(self, into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """From one side to the other."""
        if self.capturing:
            raise RuntimeError(f"{place()}: a copy from or to the host in a captured step")
        host = source if is_on_card(into) else into
        if not (non_blocking and self._is_pinned(host)):
            self.wait()
            plain(into).copy_(plain(source))
        elif is_on_card(into):
            plain(into).copy_(source)
            self._from_host.append((source, source.clone()))
        else:
            self.to_host.append((into, plain(source).clone()))
            spoil(into)
        return into

    def wait(self) -> None:
        if self.capturing:
            raise RuntimeError(f"{place()}: a captured step asks the host")
        self.arrive(len(self.to_host))
        self.waits.append(place())

    def arrive(self, count: int) -> None:
        """The first `count` copies to the host are there, and what was told before them is done."""
        for into, value in self.to_host[:count]:
            into.copy_(value)
        del self.to_host[:count]
        for source, before in self._from_host:
            assert torch.equal(source, before), "pinned memory changed while the card copied it"
        self._from_host.clear()

    def _compute(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        is_for_card = any(map(is_on_card, tensors))
        if kwargs.get("device") is not None:
            is_for_card = self._is_its_own(kwargs["device"])
            kwargs["device"] = HOST if is_for_card else kwargs["device"]
            if is_for_card and name in ("tensor", "as_tensor"):
                self.wait()
        elif is_for_card and name not in _OUTSIDE:
            self._check(name, args, tensors)
        wants_pinned = kwargs.pop("pin_memory", False)
        # A new object each: one that comes back is one that was given.
        given: dict[int, Tensor] = {}
        args, kwargs = tree_map_only(Tensor, lambda one: lend(one, given), (args, kwargs))
        found = func(*args, **kwargs)
        if wants_pinned:
            return self._pin(found)
        wrap: Callable[[Tensor], Tensor] = as_card if is_for_card else plain
        out = tree_map_only(
            Tensor, lambda one: given[id(one)] if id(one) in given else wrap(one), found
        )
        if self.device.type == "mps" and is_for_card:
            self._refuse_doubles(name, out)
        if self.capturing and is_for_card and name not in _OUTSIDE:
            self.capturing.note(func, args, kwargs, out)
        return out

    def _is_its_own(self, device: torch.device | str) -> bool:
        return torch.device(device).type == self.device.type

    @staticmethod
    def _refuse_doubles(name: str, out: Any) -> None:
        if any(one.dtype == torch.float64 for one in tensors_in(out)):
            raise TypeError(f"{place()}: {name} in float64, which Apple's devices have not")

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        """What a card would refuse, or wait for."""
        if name == "numpy":
            raise TypeError("can't convert a device's tensor to numpy")
        strangers = [one for one in tensors if not is_on_card(one) and one.dim()]
        if strangers and name not in ("__getitem__", "__setitem__"):
            raise RuntimeError(f"{place()}: {name} of tensors on {self.device} and cpu")
        masks = [one for one in tree_leaves(args[1:2]) if isinstance(one, Tensor)]
        is_masked = "item__" in name and any(one.dtype == torch.bool for one in masks)
        if strangers or is_masked or name in _ASKING:
            self.wait()


class PretendGraph:
    """`torch.cuda.CUDAGraph`: the operations of a capture, done again in the same memory. What they
    leave there and nobody holds is spoilt, as by another graph of the same pool."""

    def __init__(self, card: PretendCard) -> None:
        self._card = card
        card.graphs.append(self)
        self._steps: list[tuple[Any, Any, Any, Any]] = []
        # Memory that the capture took, and who of the code under test looks at it.
        self._taken: dict[int, Tensor] = {}
        self._holders: dict[int, list[weakref.ref[Tensor]]] = {}

    @staticmethod
    def pool() -> int:
        return 0

    def note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        known = {address(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                if address(one) not in known:
                    self._taken[address(one)] = plain(one)
                self._holders.setdefault(address(one), []).append(weakref.ref(one))
        self._steps.append((func, args, kwargs, tree_map_only(Tensor, plain, out)))

    def held(self) -> list[Tensor]:
        """Memory of the capture that is still looked at."""
        return [one for at, one in self._taken.items() if self._is_held(at)]

    def end(self) -> None:
        """A capture computes nothing."""
        for one in self._taken.values():
            spoil(one)

    def replay(self) -> None:
        self._card.replays += 1
        with torch._C.DisableTorchFunction():
            for func, args, kwargs, out in self._steps:
                again = func(*args, **kwargs)
                for into, value in zip(tensors_in(out), tensors_in(again), strict=True):
                    if address(into) != address(value):
                        into.copy_(value)
        for at, one in self._taken.items():
            if not self._is_held(at):
                spoil(one)

    def _is_held(self, at: int) -> bool:
        return any(holder() is not None for holder in self._holders[at])


class PretendEvent:
    """`torch.cuda.Event`, recorded once."""

    def __init__(self, card: PretendCard) -> None:
        self._card, self._told = card, 0

    def record(self) -> None:
        self._told = len(self._card.to_host)

    def synchronize(self) -> None:
        # Those before may have arrived meanwhile: then the count is of none that is left.
        self._card.arrive(min(self._told, len(self._card.to_host)))


def is_on_card(one: object) -> bool:
    return isinstance(one, CardTensor)


def as_card(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(CardTensor)


def plain(tensor: Tensor) -> Tensor:
    """The same memory as an ordinary tensor of the host."""
    return tensor.as_subclass(Tensor)


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_in(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def spoil(tensor: Tensor) -> None:
    """Values that nobody can take for an answer."""
    plain(tensor).fill_(float("nan") if tensor.is_floating_point() else -99)


def lend(tensor: Tensor, given: dict[int, Tensor]) -> Tensor:
    lent = plain(tensor)
    given[id(lent)] = tensor
    return lent


def place() -> str:
    """Whose line of ours asked."""
    frames = [one for one in traceback.extract_stack() if "ocr2cli" in one.filename]
    last = frames[-1] if frames else traceback.extract_stack()[0]
    return f"{last.filename.rpartition('ocr2cli/')[2]}:{last.lineno} {last.name}"


@contextmanager
def pretend_card(patch: pytest.MonkeyPatch, generation: int | None = 9) -> Iterator[PretendCard]:
    """torch sees one card, of that NVIDIA generation; of none, and it is Apple's."""
    card = PretendCard(torch.device("cuda" if generation else "mps", 0))

    @contextmanager
    def graph(one: PretendGraph, **_: Any) -> Iterator[None]:
        card.capturing = one
        try:
            yield
        finally:
            card.capturing = None
        one.end()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "is_available": lambda: True, "device_count": lambda: 1, "empty_cache": lambda: None,
        "get_device_capability": lambda device: (generation, 0),
        "get_device_name": lambda device: "pretend card",
        "current_stream": lambda: stream, "Stream": lambda: stream,
        "stream": lambda one: nullcontext(), "device": lambda one: nullcontext(),
        "Event": lambda: PretendEvent(card), "CUDAGraph": lambda: PretendGraph(card),
        "graph": graph, "synchronize": lambda device: card.wait(),
        "max_memory_allocated": lambda device: 0, "reset_peak_memory_stats": lambda device: None,
    }  # fmt: skip
    if generation:
        for name, stand_in in stand_ins.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch.version, "cuda", "0.0 (pretend)")
    else:
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.mps, "empty_cache", lambda: None)

    def run(thread: threading.Thread) -> None:
        with card:
            run_as_before(thread)

    run_as_before = threading.Thread.run
    patch.setattr(threading.Thread, "run", run)
    processor.nvidia_generation.cache_clear()
    with card:
        yield card
    processor.nvidia_generation.cache_clear()
