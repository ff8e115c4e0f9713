"""An emulated card on the null device: tensors are on `cuda` for every check that Python and torch make, and values are right.

Allocation, views and all decisions of the host stay the null device's; an operation itself is computed by the CPU on the
same memory. An operation on tensors of both devices raises, as a card does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from paribus.model import attention, kernels

ALLOCATE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "set_"}
PINNED = {"is_pinned", "_pin_memory", "pin_memory", "record_stream"}
_tolist = Tensor.tolist
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
        with sdpa_kernel([SDPBackend.MATH]), EmulatedCard():  # type: ignore[no-untyped-call]
            yield
    torch.autograd.set_multithreading_enabled(True)


class EmulatedCard(TorchDispatchMode):
    """Computes on the CPU what is called on the card."""

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
        return self._on_cpu(func, args, kwargs, "cuda" if target is None else target)

    def _on_cpu(self, func: Any, args: Any, kwargs: dict[str, Any], device: str) -> Any:
        """The operation on the same memory. device: where new results go."""
        views: dict[int, tuple[Tensor, Tensor]] = {}  # of the tensor on the card; and itself

        def down(one: Any) -> Any:
            if isinstance(one, torch.device):
                return torch.device("cpu")
            if not isinstance(one, Tensor) or not one.is_cuda:
                return one
            return views.setdefault(id(one), (host_view(one), one))[0]

        lowered = {key: down(tree_map(down, value)) for key, value in kwargs.items()}
        if "device" in lowered:
            lowered["device"] = torch.device("cpu")
        results = func(*tree_map(down, args), **lowered)
        changed = {id(view): one for view, one in views.values()}

        def up(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            if id(one) in changed:
                return changed[id(one)]
            return one if device == "cpu" else to_card(one)

        return tree_map(up, results)


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
    read = host_view(tensor) if tensor.is_cuda else tensor
    return _tolist(read)


def to_card(tensor: Tensor) -> Tensor:
    """A copy on the null device."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    host_view(made).copy_(tensor)
    return made
