"""AdamW (arXiv:1711.05101), without weight decay of its own: `optim.py` does that for every rule."""

from __future__ import annotations

import torch
from torch import Tensor

from paribus.config import Optimizer as OptimizerConfig
from paribus.train.state import State, buffer, gradients_of


def update(
    parameters: dict[str, Tensor], state: State, config: OptimizerConfig, lr: float, updates: int
) -> None:
    """Step all parameters of a group.

    Args:
        parameters: name -> weights, changed in place; each has a gradient.
        state: of the optimiser: moments by name, changed in place.
        config: section `optimizer` of params.yaml.
        lr: learning rate of the step.
        updates: made so far, this one included.
    """
    beta1, beta2 = config.beta1, config.beta2
    gradients = gradients_of(parameters)
    first, second = _moments(parameters, state)
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    denominators = torch._foreach_sqrt(second)
    torch._foreach_div_(denominators, (1 - beta2**updates) ** 0.5)
    torch._foreach_add_(denominators, config.eps)
    torch._foreach_addcdiv_(
        list(parameters.values()), first, denominators, -lr / (1 - beta1**updates)
    )


def fused_update(
    parameters: dict[str, Tensor],
    state: State,
    config: OptimizerConfig,
    lr: float,
    updates: Tensor,
    gate: Tensor | None,
) -> None:
    """`update` as one kernel.

    Args:
        parameters: name -> weights, changed in place.
        state: of the optimiser: moments by name, changed in place.
        config: section `optimizer` of params.yaml.
        lr: learning rate of the step.
        updates: made so far, this one included, (); on the device of the parameters.
        gate: 1, or 0 to change nothing, (); None: 1.
    """
    first, second = _moments(parameters, state)
    torch._fused_adamw_(
        list(parameters.values()),
        gradients_of(parameters),
        first,
        second,
        [],
        [updates] * len(first),
        lr=lr,
        beta1=config.beta1,
        beta2=config.beta2,
        weight_decay=0.0,
        eps=config.eps,
        amsgrad=False,
        maximize=False,
        found_inf=None if gate is None else 1 - gate,
    )


def _moments(parameters: dict[str, Tensor], state: State) -> tuple[list[Tensor], list[Tensor]]:
    """Running means of the gradients, and of their squares."""
    first = [buffer(state, "first", name, one) for name, one in parameters.items()]
    second = [buffer(state, "second", name, one) for name, one in parameters.items()]
    return first, second
