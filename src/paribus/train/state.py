"""What an optimiser keeps from step to step: `kind.parameter` -> tensor, so that it is saved and sharded by name."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def buffer(state: State, kind: str, name: str, like: Tensor) -> Tensor:
    """The tensor of that kind for a parameter, made of zeros in the shape of `like` where there is none.

    Args:
        state: of the optimiser, which gets the tensor.
        kind: first, second, momentum and so on.
        name: of the parameter.
        like: the parameter.
    """
    key = f"{kind}.{name}"
    if key not in state:
        state[key] = torch.zeros_like(like)
    return state[key]


def gradients_of(parameters: dict[str, Tensor]) -> list[Tensor]:
    """Their gradients, in order; each has one."""
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def move_towards(
    means: list[Tensor], values: list[Tensor], weight: float, gate: Tensor | None
) -> None:
    """Move running means towards values by `weight`, or by nothing where the gate is closed."""
    if gate is None:
        torch._foreach_lerp_(means, values, weight)
    else:
        torch._foreach_lerp_(means, values, [weight * gate] * len(means))
