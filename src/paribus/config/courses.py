"""The course of a learning rate over a stage: the common one, and those of groups of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paribus.config.training_schema import Conversations, Pretrain, Shape

GROUPS = ("matrix", "embedding", "head", "scalar")  # as in optimizer.matrix_lr and so on


@dataclass(frozen=True)
class Course:
    """Warm-up, plateau, warm-down; each field is a key of a supervised stage, and `group_KEY` that of a group."""

    warmup_fraction: float
    warmdown_fraction: float
    final_lr_fraction: float
    warmdown_shape: Shape
    power: float


FIELDS = tuple(Course.__annotations__)


def course_of(schedule: Pretrain | Conversations, group: str = "") -> Course:
    """The course of a group of parameters; by default that of all groups without one of their own.

    Args:
        schedule: of a stage.
        group: of parameters: one of GROUPS; "": all.
    """
    values = {}
    for name in FIELDS:
        own = getattr(schedule, f"group_{name}")
        values[name] = own.get(group, getattr(schedule, name))
    return Course(**values)


def groups_apart(schedule: Pretrain | Conversations) -> list[str]:
    """The groups of parameters with a value of their own in some field."""
    named: set[str] = set()
    for name in FIELDS:
        named |= getattr(schedule, f"group_{name}").keys()
    return sorted(named)


def has_warm_down(course: Course, steps: int) -> bool:
    """Whether it takes a step or more.

    Args:
        course: of a group's rates.
        steps: of the stage.
    """
    return round(course.warmdown_fraction * steps) > 0


def has_plateau(course: Course, steps: int) -> bool:
    """Whether a power is felt between warm-up and warm-down: at a second step of it, or at the first after a warm-up.

    Args:
        course: of a group's rates.
        steps: of the stage.
    """
    warmup_steps = round(course.warmup_fraction * steps)
    between = steps - warmup_steps - round(course.warmdown_fraction * steps)
    return between > (0 if warmup_steps else 1)
