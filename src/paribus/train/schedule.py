"""The learning rate over a run: warm-up, constant, warm-down."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine", "sqrt", "square"]


def lr_factor(
    step: int, steps: int, warmup: float, warmdown: float, final: float, shape: Shape = "linear"
) -> float:
    """Multiplier of the learning rate at one step of a run.

    Args:
        step: from 0.
        steps: of the run.
        warmup: share of the steps over which the rate rises in a line.
        warmdown: share of the steps over which it falls.
        final: the multiplier of the last step.
        shape: how it falls.
    """
    warmup_steps, warmdown_steps = round(warmup * steps), round(warmdown * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = steps - 1 - step
    if left < warmdown_steps:
        return final + (1 - final) * height(left / warmdown_steps, shape)
    return 1.0


def height(left: float, shape: Shape) -> float:
    """How high the rate still is within the warm-down, from 1 to 0. left: share of the warm-down's steps to come."""
    if shape == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    if shape == "sqrt":
        return 1 - math.sqrt(1 - left)
    if shape == "square":
        return left**2
    return left
