"""Optimisers of libraries by name, `optimizer.kind: heavyball.SOAP`: which there are, and what arguments they take.

They are imported only where a configuration names one.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from paribus.errors import did_you_mean, escaped, shown

OWN_KINDS = ("muon", "adamw")
# What an optimiser's name may begin with; `own` is train/own.py, where a branch puts a class of its own.
PLACES = ("torch.optim", "heavyball", "pytorch_optimizer", "own")
EXTRAS = ("heavyball", "pytorch_optimizer")  # of the optional extra `optimizers`
OWN_FILE = Path(__file__).resolve().parent.parent / "train/own.py"
# Arguments that other keys decide, or that would make a step differ from what the state says.
GIVEN = {
    "params": "the block matrices",
    "lr": "optimizer.matrix_lr",
    "weight_decay": "optimizer.weight_decay",
}


@dataclass(frozen=True)
class Signature:
    """The arguments of an optimiser: their names, and those without a default."""

    names: tuple[str, ...]
    required: tuple[str, ...]


def is_foreign(kind: str) -> bool:
    """Whether an `optimizer.kind` names a class, and not one of this project's own rules."""
    return "." in kind


def kind_problems(kind: str, arguments: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with `optimizer.kind`, and with `optimizer.arguments` under it."""
    if not is_foreign(kind):
        if kind not in OWN_KINDS:
            hint = did_you_mean(kind, OWN_KINDS)
            yield (
                f"optimizer.kind: {shown(kind)} is not allowed; expected one of {', '.join(OWN_KINDS)}, or a class of "
                f"{', '.join(PLACES)}, as torch.optim.SGD{'; ' + hint if hint else ''}"
            )
        elif arguments:
            yield (
                f"optimizer.arguments: {shown(arguments)} is not allowed with optimizer.kind: {kind}, which has keys of its "
                "own; expected {}, or a class as optimizer.kind"
            )
        return
    place, _, name = kind.rpartition(".")
    if place not in PLACES:
        yield (
            f"optimizer.kind: {shown(kind)}: a class of {escaped(place)} is not allowed; expected one of "
            f"{', '.join(PLACES)}"
        )
        return
    try:
        known = names_in(place)
    except ImportError:
        yield (
            f"optimizer.kind: {shown(kind)}: {place} is not installed; "
            "pip install --no-deps -r requirements-optimizers.lock"
        )
        return
    if name not in known:
        yield f"optimizer.kind: {place} has no optimizer {escaped(name)}; {did_you_mean(name, known) or _few(known)}"
        return
    if _needs_closure(kind):
        yield f"optimizer.kind: {kind} computes the loss again within a step (its closure), and a step here does that once"
        return
    yield from _argument_problems(kind, arguments)


def _needs_closure(kind: str) -> bool:
    """Whether a library's optimiser cannot step without a function that computes the loss."""
    place, _, name = kind.rpartition(".")
    if place == "own":
        return False
    step = inspect.signature(getattr(library(place), name).step)
    return any(
        one.name == "closure" and one.default is inspect.Parameter.empty
        for one in step.parameters.values()
    )


def _argument_problems(kind: str, arguments: Mapping[str, object]) -> Iterator[str]:
    """Arguments that an optimiser does not take, or that other keys decide; and those that it needs."""
    signature = signature_of(kind)
    free = [name for name in signature.names if name not in GIVEN]
    for name in arguments:
        if name in GIVEN:
            yield f"optimizer.arguments.{name}: {GIVEN[name]} decides this; leave it out"
        elif name not in free:
            hint = did_you_mean(name, free) or f"it takes {', '.join(free) or 'none'}"
            yield f"optimizer.arguments.{escaped(name)}: {kind} has no such argument; {hint}"
    for name in signature.required:
        if name not in arguments and name not in GIVEN:
            yield f"optimizer.arguments.{name}: missing; {kind} needs it"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"there are {', '.join(names[:10])}{more}" if names else "there is none"


def names_in(place: str) -> list[str]:
    """The optimisers of a place. Raises ImportError where the library is not installed."""
    if place == "own":
        return sorted(_own_classes())
    import torch

    found = []
    for name, value in vars(library(place)).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer):
            found.append(name)
    return sorted(found)


def signature_of(kind: str) -> Signature:
    """The arguments of an optimiser that is there; those that it takes without naming them are none."""
    place, _, name = kind.rpartition(".")
    if place == "own":
        return _own_classes()[name]
    taken = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [
        one
        for one in inspect.signature(getattr(library(place), name)).parameters.values()
        if one.kind not in taken
    ]
    required = [one.name for one in named if one.default is inspect.Parameter.empty]
    return Signature(tuple(one.name for one in named), tuple(required))


def library(place: str) -> ModuleType:
    """The module of a library. Raises ImportError where it is not installed."""
    found: ModuleType
    if place == "heavyball":
        import heavyball
        import heavyball.utils

        # Compiled, it chooses kernels by their times, and so other bits each time.
        heavyball.utils.compile_mode = None
        found = heavyball
    elif place == "pytorch_optimizer":
        import pytorch_optimizer

        found = pytorch_optimizer
    else:
        import torch.optim

        found = torch.optim
    return found


def library_version(kind: str) -> str | None:
    """The version of the optional library that an optimiser is of; None where it is of none, or it is not installed."""
    from importlib import metadata

    place, _, _ = kind.rpartition(".")
    if place not in EXTRAS:
        return None
    try:
        return f"{place} {metadata.version(place)}"
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _own_classes() -> dict[str, Signature]:
    """The classes of train/own.py and the arguments of each, read without running it."""
    found = {}
    for node in ast.parse(OWN_FILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = _own_signature(node)
    return found


def _own_signature(node: ast.ClassDef) -> Signature:
    """The arguments of a class's construction."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments: Any = statement.args
            positional = [one.arg for one in arguments.args[1:]]
            optional = len(arguments.defaults)
            required = positional[: len(positional) - optional]
            for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
                positional.append(one.arg)
                if default is None:
                    required.append(one.arg)
            return Signature(tuple(positional), tuple(required))
    return Signature(("params",), ("params",))
