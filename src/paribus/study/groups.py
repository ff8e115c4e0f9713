"""Runs of a study beside one another: the baseline and its arms, at one size or on every rung, at one horizon or at several.

A *group* is an arm, or the baseline, under conditions that the study sets: `none-depth-6` is the arm `none` on the rung
`model.depth: 6`; `baseline-0p8x` is the baseline trained for 0.8 times its steps. A group has a run at every seed, whose
experiment is `STUDY.GROUP.sSEED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Group:
    """An arm under some conditions.

    Attributes:
        arm: the arm's name, or the baseline's.
        overrides: dotted key -> value, of the conditions.
        rung: of a ladder; "" for none.
        scale: of the steps of pretraining, where the group is another horizon.
    """

    arm: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rung: str = ""
    scale: float = 1.0


def number_in_name(value: float) -> str:
    """A number as part of a name, which has no dot: 0p8."""
    return f"{value:g}".replace(".", "p").replace("+", "")


@dataclass(frozen=True)
class Rung:
    """One size of a ladder.

    Attributes:
        name: `depth-6`.
        value: of the ladder's key.
        overrides: dotted key -> value: the size and the length of its pretraining.
        parameters: of the baseline.
        tokens: of its pretraining.
        flops: of its pretraining, as "equal FLOPs" counts them.
    """

    name: str
    value: float
    overrides: Mapping[str, Any]
    parameters: int
    tokens: int
    flops: float


@dataclass(frozen=True)
class Ladder:
    """Sizes at which every arm is compared with the baseline.

    Attributes:
        key: that the sizes turn.
        rungs: rising in compute.
        beyond: a size that is not trained, for which the effect is predicted.
        tokens_per_parameter: by which the baseline's parameters give the length of pretraining on a rung.
    """

    key: str
    rungs: tuple[Rung, ...]
    beyond: Rung
    tokens_per_parameter: float

    def rule(self) -> str:
        """How long each rung is trained, in words."""
        return (
            f"each rung is trained for {self.tokens_per_parameter:g} tokens for each parameter of its baseline "
            "(pretrain.tokens_per_parameter)"
        )


@dataclass(frozen=True)
class Horizons:
    """Lengths of pretraining, in units of the baseline's, at which the baseline is trained besides its own.

    Attributes:
        scales: rising, without 1.
        auto: whether the effect decides which of them are needed.
    """

    scales: tuple[float, ...]
    auto: bool = False

    def words(self) -> str:
        """The lengths, in words."""
        lengths = ", ".join(f"{scale:g}" for scale in self.first)
        more = "; further ones, where the arm's result lies beyond them" if self.auto else ""
        return f"the baseline is trained for {lengths} times its steps too{more}"

    @property
    def first(self) -> tuple[float, ...]:
        """The lengths that are trained whatever the effect: of `auto` the two next to 1."""
        if not self.auto:
            return self.scales
        shorter = max(scale for scale in self.scales if scale < 1)
        longer = min(scale for scale in self.scales if scale > 1)
        return shorter, longer

    def groups(self, baseline: str) -> dict[str, Group]:
        """Name -> group of the baseline at each of the lengths.

        Args:
            baseline: its name.
        """
        found = {}
        for scale in self.scales:
            found[f"{baseline}-{number_in_name(scale)}x"] = Group(baseline, scale=scale)
        return found
