"""An emulated card on the null device: tensors are on `cuda` for every check that Python and torch make, and values are right.

Allocation, views and all decisions of the host stay the null device's; an operation itself is computed by the CPU on the
same memory. An operation on tensors of both devices raises, as a card does.

A CUDA graph is captured by torch's own calls: an operation is noted with the addresses of what it reads and writes, and not
computed. A replay computes what was noted, at those addresses. What a card does not allow in a capture raises.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.cuda import CUDAGraph
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from paribus.model import attention, kernels

ALLOCATE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "set_"}
PINNED = {"is_pinned", "_pin_memory", "pin_memory", "record_stream"}
_tolist = Tensor.tolist
# What waits for the card, which a capture does not allow.
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim"}
BETWEEN = {"copy_", "_to_copy", "_copy_from", "index", "index_put_", "_index_put_impl_"}


@contextmanager
def emulated_card() -> Iterator[None]:
    """Within, what runs on `cuda` gives the CPU's values.

    The fused kernels of SDPA and of the RMS norm have no form on a CPU: plain products and the CPU's own norm stand for them.
    """
    torch.autograd.set_multithreading_enabled(False)  # a thread of its own would not know the mode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "FUSED", [SDPBackend.MATH])
        patch.setattr(kernels, "rms_norm", kernels.RootMeanSquare.apply)
        patch.setattr(Tensor, "tolist", lambda self: host_list(self))
        card = EmulatedCard()
        patch.setattr(CUDAGraph, "capture_begin", card.beginning(CUDAGraph.capture_begin))
        patch.setattr(CUDAGraph, "replay", card.replaying(CUDAGraph.replay))
        with sdpa_kernel([SDPBackend.MATH]), card:
            yield
    torch.autograd.set_multithreading_enabled(True)


@dataclass(frozen=True)
class Noted:
    """An operation of a graph, on tensors of the CPU over the card's memory."""

    func: Any
    args: Any
    kwargs: dict[str, Any]
    made: list[Tensor | None]  # where its results go; None: where it wrote them itself

    def compute(self) -> None:
        """Read and write what lies at these addresses by now."""
        results = tree_flatten(self.func(*self.args, **self.kwargs))[0]
        for result, place in zip(results, self.made, strict=True):
            if place is not None:
                place.copy_(result)


class EmulatedCard(TorchDispatchMode):
    """Computes on the CPU what is called on the card."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graphs: WeakKeyDictionary[CUDAGraph, list[Noted]] = WeakKeyDictionary()
        self.notes: list[Noted] = []  # of the graph that is being captured

    def beginning(self, begin: Callable[..., None]) -> Callable[..., None]:
        """`CUDAGraph.capture_begin`, which begins a list of notes as well. begin: torch's own."""

        def capture_begin(graph: CUDAGraph, *args: Any, **kwargs: Any) -> None:
            begin(graph, *args, **kwargs)
            self.notes = self.graphs[graph] = []

        return capture_begin

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        to = kwargs.get("device")
        target = None if to is None else torch.device(to).type
        is_here = any(one.is_cuda for one in tensors)
        if not is_here and target != "cuda":
            return func(*args, **kwargs)
        if name in ALLOCATE | PINNED:
            return func(*args, **kwargs)
        with self:
            composed = func.decompose(*args, **kwargs)
        if composed is not NotImplemented:  # it was made of others, which came here
            return composed
        if func.is_view:
            return func(*args, **kwargs)
        if name not in BETWEEN:
            refuse_two_devices(name, tensors)
        if torch.cuda.is_current_stream_capturing():
            refuse_in_capture(name, tensors, target)
            return self._note(func, args, kwargs)
        return self._on_cpu(func, args, kwargs, "cuda" if target is None else target)

    def _on_cpu(self, func: Any, args: Any, kwargs: dict[str, Any], device: str) -> Any:
        """The operation on the same memory. device: where new results go."""
        here = Lowered(args, kwargs, host_view, "cpu")

        def up(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            if id(one) in here.originals:
                return here.originals[id(one)]
            return one if device == "cpu" else to_card(one)

        return tree_map(up, func(*here.args, **here.kwargs))

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note the operation; its results have memory and no values yet."""
        args, kwargs = tree_map(as_of_now, (args, kwargs))
        here = Lowered(args, kwargs, host_view, "cpu")
        shapes = Lowered(args, kwargs, without_memory, "meta")
        made: list[Tensor | None] = []

        def up(one: Any) -> Any:
            made.append(None)
            if not isinstance(one, Tensor):
                return one
            if id(one) in shapes.originals:
                return shapes.originals[id(one)]
            new = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="cuda")
            made[-1] = host_view(new)
            return new

        results = tree_map(up, func(*shapes.args, **shapes.kwargs))
        self.notes.append(Noted(func, here.args, here.kwargs, made))
        return results

    def replaying(self, replay: Callable[..., None]) -> Callable[..., None]:
        """`CUDAGraph.replay`, which computes the graph's notes as well. replay: torch's own."""

        def computed(graph: CUDAGraph) -> None:
            replay(graph)
            for noted in self.graphs[graph]:
                noted.compute()

        return computed


class Lowered:
    """An operation's arguments on another device: what stands there for each tensor of the card."""

    def __init__(
        self, args: Any, kwargs: dict[str, Any], place: Callable[[Tensor], Tensor], device: str
    ) -> None:
        """place: makes what stands for a tensor, once for each. device: in place of the card."""
        places: dict[int, Tensor] = {}

        def down(one: Any) -> Any:
            if isinstance(one, torch.device):
                return torch.device(device)
            if not isinstance(one, Tensor) or not one.is_cuda:
                return one
            if id(one) not in places:
                places[id(one)] = place(one)
                self.originals[id(places[id(one)])] = one
            return places[id(one)]

        self.originals: dict[int, Tensor] = {}  # by the id of what stands for them
        self.args = tree_map(down, args)
        self.kwargs = tree_map(down, kwargs)
        if "device" in self.kwargs:
            self.kwargs["device"] = torch.device(device)


def as_of_now(one: Any) -> Any:
    """A number of the host is in a graph as it was when it was captured."""
    is_number = isinstance(one, Tensor) and not one.is_cuda
    return one.clone() if is_number else one


def without_memory(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that has no values."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def refuse_in_capture(name: str, tensors: list[Tensor], target: str | None) -> None:
    """A capture takes nothing that waits for the card, and no memory of the host, which is another's by the next replay."""
    from_host = any(not one.is_cuda and one.dim() > 0 for one in tensors)
    if name in WAITS or from_host or target == "cpu":
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")


def refuse_two_devices(name: str, tensors: list[Tensor]) -> None:
    """A card takes numbers of the host where they have no axis, and no other tensor of its."""
    strangers = [one for one in tensors if not one.is_cuda and one.dim() > 0]
    if strangers:
        shapes = ", ".join(str(tuple(one.shape)) for one in strangers)
        raise RuntimeError(f"{name}: tensors on cuda, and on the CPU of shapes {shapes}")


def host_view(tensor: Tensor) -> Tensor:
    """A tensor of the CPU over the memory of one on the null device."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    raw = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(raw, tensor.storage_offset(), tensor.shape, tensor.stride())


def host_list(tensor: Tensor) -> Any:
    """`Tensor.tolist`, which reads memory past the dispatcher."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tolist: operation not permitted when stream is capturing")
    read = host_view(tensor) if tensor.is_cuda else tensor
    return _tolist(read)


def to_card(tensor: Tensor) -> Tensor:
    """A copy on the null device."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    host_view(made).copy_(tensor)
    return made
