"""An optimiser of a library, or of train/own.py, in Muon's place: any `torch.optim.Optimizer` whose state can be saved.

Every parameter is a group of its own, so that all that is kept of it goes by its name: tensors one by one, and what is
no tensor as JSON. Nothing is pickled.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paribus.config import library, signature_of
from paribus.errors import UserError
from paribus.train import own
from paribus.train.state import State

Groups = list[dict[str, Any]]

PROBE_SHAPE = (12, 8)
PROBE_STEPS = 12  # libraries renew some of their state every ten steps
_KIND = "library/"  # what the names of its tensors begin with in an optimiser's state
_PLAIN = f"{_KIND}plain"  # the tensor that holds JSON


def is_kept_for(key: str) -> bool:
    """Whether a tensor of an optimiser's state is a library's. key: kind.parameter."""
    return key.startswith(_KIND)


class Unsaved(Exception):
    """A state holds something that is neither a tensor nor plain."""


class Library:
    """The optimiser of a name (`optimizer.kind`), for these parameters (name -> matrix). Raises UserError.

    It cannot leave a step out on the device, and takes whole matrices.
    """

    def __init__(
        self, kind: str, arguments: Mapping[str, Any], parameters: Mapping[str, Tensor]
    ) -> None:
        self.kind, self.arguments, self.parameters = kind, arguments, parameters
        self._optimizer: torch.optim.Optimizer | None = None  # None: this rank has no matrix
        self._first: Groups = []
        self._first_counters: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        """An optimiser without a past."""
        groups = [{"params": [parameter]} for parameter in self.parameters.values()]
        if groups:
            self._optimizer = make(self.kind, self.arguments, groups)
            self._first = [dict(group) for group in self._optimizer.param_groups]
            self._first_counters = _counters(self._optimizer)

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """Step all parameters that have a gradient."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def state(self) -> State:
        """All that is kept: `library/what.parameter` -> tensor."""
        state: State = {}
        if self._optimizer is None:
            return state
        kept = self._optimizer.state
        counters = {}
        for key, value in _counters(self._optimizer).items():
            if value != self._first_counters.get(key):
                counters[key] = value
        items = zip(self.parameters.items(), self._optimizer.param_groups, self._first, strict=True)
        for (name, parameter), group, first in items:
            changed = {}
            for key, value in group.items():
                if key not in ("params", "lr") and value is not first.get(key):
                    changed[key] = value
            tensors: State = {}
            plain = {
                "state": packed(dict(kept.get(parameter, {})), "", tensors),
                "group": packed(changed, "group", tensors),
                "counters": counters,
            }
            for path, tensor in tensors.items():
                state[f"{_KIND}{path}.{name}"] = tensor
            written = json.dumps(plain).encode()
            state[f"{_PLAIN}.{name}"] = torch.frombuffer(bytearray(written), dtype=torch.uint8)
        return state

    def load(self, state: State) -> None:
        """Go on from a `state`, which may hold more than is this optimiser's; {}: begin anew."""
        self._start()
        if self._optimizer is None:
            return
        for (name, parameter), group in zip(
            self.parameters.items(), self._optimizer.param_groups, strict=True
        ):
            written = state.get(f"{_PLAIN}.{name}")
            if written is None:
                continue
            plain = json.loads(bytes(written.cpu().tolist()))
            kept = unpacked(plain["state"], name, state, parameter.device)
            if kept:
                self._optimizer.state[parameter] = kept
            group.update(unpacked(plain["group"], name, state, parameter.device))
            for key, value in plain["counters"].items():
                setattr(self._optimizer, key, unpacked(value, name, state, parameter.device))


def make(kind: str, arguments: Mapping[str, Any], groups: Groups) -> torch.optim.Optimizer:
    """The optimiser of a name, with these arguments. Raises UserError where it refuses them.

    Args:
        kind: `module.Class`, as `optimizer.kind` has it.
        arguments: of the class, as `optimizer.arguments` has them.
        groups: of parameters, as torch's optimisers take them.
    """
    place, _, name = kind.rpartition(".")
    made_by: Any = getattr(own if place == "own" else library(place), name)
    given: dict[str, Any] = dict(arguments)
    for key, value in arguments.items():
        if isinstance(value, list):
            given[key] = tuple(value)
    if "weight_decay" in signature_of(kind).names:
        given["weight_decay"] = 0.0
    try:
        optimizer: torch.optim.Optimizer = made_by(groups, lr=1e-3, **given)
    except Exception as error:
        raise UserError(f"optimizer.arguments: {kind} refuses them: {_first_line(error)}") from None
    return optimizer


# ---------------------------------------------------------------- state as tensors and JSON


def packed(value: object, path: str, tensors: State) -> Any:
    """A value as JSON that names its tensors, which go into `tensors` under their path. Raises Unsaved."""
    if isinstance(value, Tensor):
        name = path.replace(".", "_")
        if name in tensors:
            raise Unsaved(f"two tensors {name}")
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise Unsaved(f"{path} has the key {key!r}")
            below = f"{path}/{key}" if path else str(key)
            items.append([key, packed(item, below, tensors)])
        return {"dict": items}
    for kind in (list, tuple, set):
        if type(value) is kind:
            parts = [packed(item, f"{path}/{at}", tensors) for at, item in enumerate(value)]
            return {kind.__name__: parts}
    raise Unsaved(f"{path} is a {type(value).__name__}")


def _counters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser itself keeps besides its groups, as JSON: numbers, texts, and dicts and lists of them.

    All else is taken to be the same in every optimiser of the kind; a trial before the run shows whether it is.
    """
    found: dict[str, Any] = {}
    for key, value in vars(optimizer).items():
        if key in ("state", "param_groups", "defaults"):
            continue
        tensors: State = {}
        try:
            plain = packed(value, key, tensors)
        except Unsaved:
            continue
        if not tensors:
            found[key] = plain
    return found


def unpacked(value: Any, name: str, state: State, device: torch.device) -> Any:
    """What was `packed` for the parameter `name`.

    Args:
        value: as `packed` gave it.
        name: of the parameter.
        state: that holds the tensors of `packed`.
        device: of the parameter.
    """
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return state[f"{_KIND}{content}.{name}"].to(device, copy=True)
    if kind == "dict":
        return {key: unpacked(item, name, state, device) for key, item in content}
    parts = [unpacked(item, name, state, device) for item in content]
    return {"list": list, "tuple": tuple, "set": set}[kind](parts)


# ---------------------------------------------------------------- what cannot be resumed is refused


def checked(kind: str, arguments: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Library:
    """A `Library` that was tried on a small matrix first. Raises UserError.

    Args:
        kind: `module.Class`, as `optimizer.kind` has it.
        arguments: of the class.
        parameters: name -> weights that it is to train.
    """
    try_out(kind, json.dumps(arguments))
    return Library(kind, arguments, parameters)


@functools.cache
def try_out(kind: str, arguments: str) -> None:
    """Raises UserError unless a small training is the same to the bit with a resume in its middle.

    Args:
        kind: `module.Class`, as `optimizer.kind` has it.
        arguments: of the class, as JSON.
    """
    given = json.loads(arguments)
    try:
        straight = _trained(kind, given, resume=False)
        resumed = _trained(kind, given, resume=True)
    except Unsaved as error:
        raise UserError(f"optimizer.kind: {kind} cannot be resumed: in its state {error}") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"optimizer.kind: {kind} fails on a matrix: {_first_line(error)}") from None
    if not torch.equal(straight, resumed):
        raise UserError(
            f"optimizer.kind: {kind} cannot be resumed: it keeps more than its state holds, and goes on differently "
            "after a pause"
        )


def _trained(kind: str, arguments: Mapping[str, Any], *, resume: bool) -> Tensor:
    """A small matrix after some steps with gradients that are always the same. resume: in the middle, from the state."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.randn(PROBE_SHAPE, generator=generator))
    tried = Library(kind, arguments, {"matrix": matrix})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(PROBE_STEPS):
            matrix.grad = torch.randn(PROBE_SHAPE, generator=generator)
            tried.update(1e-3)
            if resume and step == PROBE_STEPS // 2:
                kept = tried.state()
                matrix = torch.nn.Parameter(matrix.detach().clone())
                tried = Library(kind, arguments, {"matrix": matrix})
                tried.load(kept)
    return matrix.detach()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
