"""The learning rates and the weight decay over a run: warm-up, plateau, warm-down, and groups with a course of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paribus.config import (
    RL,
    Conversations,
    Course,
    Pretrain,
    Shape,
    course_of,
    groups_apart,
)


def lr_factor(
    step: float,
    steps: int,
    warmup: float,
    warmdown: float,
    final: float,
    shape: Shape = "linear",
    power: float = 0.0,
) -> float:
    """Multiplier of the learning rate at one step of a run.

    Args:
        step: from 0. With a batch that grows, the step of an even batch after as many tokens.
        steps: of the run.
        warmup: share of the steps over which the rate rises in a line.
        warmdown: share of the steps over which it falls.
        final: the rate of the last step / that before the warm-down.
        shape: how it falls.
        power: between the two the rate falls as 1 / tokens^power.
    """
    warmup_steps, warmdown_steps = round(warmup * steps), round(warmdown * steps)
    if warmup_steps and step < warmup_steps:
        return min((step + 1) / warmup_steps, 1.0)
    left = steps - 1 - step
    top = plateau(min(step, steps - 1 - warmdown_steps), warmup_steps, power)
    if left < warmdown_steps:
        return top * (final + (1 - final) * height(left / warmdown_steps, shape))
    return top


def plateau(step: float, warmup_steps: int, power: float) -> float:
    """The multiplier after the warm-up, where it is 1, and before the warm-down.

    Args:
        step: from 0, or a fraction between two.
        warmup_steps: before it.
        power: by which the rate falls.
    """
    start = max(warmup_steps, 1)
    return float((max(step + 1, start) / start) ** -power)


def height(left: float, shape: Shape) -> float:
    """How high the rate still is within the warm-down, from 1 to 0.

    Args:
        left: share of the warm-down's steps to come.
        shape: of the fall.
    """
    if shape == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    if shape == "sqrt":
        return 1 - math.sqrt(1 - left)
    if shape == "square":
        return left**2
    return left


@dataclass(frozen=True)
class OwnFactors:
    """What a step multiplies by besides the common factor of the learning rates.

    rates: group -> the factor of its learning rate, in place of the common one. decay: multiplies the weight decay.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    decay: float = 1.0


NOTHING_OWN = OwnFactors()


def common_factor(schedule: Pretrain | Conversations | RL, step: float, steps: int) -> float:
    """The factor of all learning rates whose group has no course of its own.

    Args:
        schedule: of the stage.
        step: from 0, or a fraction between two.
        steps: of the stage.
    """
    if isinstance(schedule, RL):  # its rates fall from the end of the warm-up to the last step
        course = Course(schedule.warmup_fraction, 1.0, schedule.final_lr_fraction, "linear", 0.0)
    else:
        course = course_of(schedule)
    return schedule.lr_scale * lr_factor(step, steps, *dataclasses.astuple(course))


def own_factors(
    schedule: Pretrain | Conversations | RL, decay_schedule: str, step: float, steps: int
) -> OwnFactors:
    """The factors of a step besides the common one.

    Args:
        schedule: of the stage.
        decay_schedule: `optimizer.weight_decay_schedule`.
        step: from 0, or a fraction between two.
        steps: of the stage.
    """
    decay = 1.0
    if decay_schedule in ("constant", "linear"):
        decay = schedule.lr_scale
    if decay_schedule in ("linear", "rate_linear"):
        decay *= 1 - step / steps
    if isinstance(schedule, RL):
        return OwnFactors({}, decay)
    rates = {}
    for group in groups_apart(schedule):
        factor = lr_factor(step, steps, *dataclasses.astuple(course_of(schedule, group)))
        rates[group] = schedule.lr_scale * factor
    return OwnFactors(rates, decay)
