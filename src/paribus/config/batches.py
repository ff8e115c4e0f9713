"""How many rows each optimiser step of a stage has, where its batch grows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paribus.config.training_schema import Pretrain


@dataclass(frozen=True)
class Batches:
    """The rows of every step: a function of the step alone, so that they survive a restart and another number of processes.

    Attributes:
        steps: of the stage.
        rows: of a step whose batch no longer grows.
        first: rows of the first step.
        growing: steps, the first ones, over which the batch grows.
        doubling: whether it doubles at equal distances; else it grows in a line.
    """

    steps: int
    rows: int
    first: int
    growing: int = 0
    doubling: bool = False

    def of(self, step: int) -> int:
        """Rows of a step, from 0."""
        if step >= self.growing:
            return self.rows
        if not self.doubling:
            return self.first + (self.rows - self.first) * step // self.growing
        times = -(-self.rows // self.first)  # as large at the end, rounded up
        doublings = (times - 1).bit_length()
        return min(self.first << (doublings * step // self.growing), self.rows)

    def before(self, step: int) -> int:
        """Rows of all steps before one."""
        grown = self._grown
        if step < len(grown):
            return grown[step]
        return grown[-1] + (step - self.growing) * self.rows

    @cached_property
    def _grown(self) -> list[int]:
        """Rows before each step up to the first one that has all."""
        growing = (self.of(step) for step in range(self.growing))
        return list(itertools.accumulate(growing, initial=0))

    @property
    def total(self) -> int:
        """Rows of all steps."""
        return self.before(self.steps)

    def even(self, step: int) -> float:
        """The step after which even batches would have had as many tokens: what schedules count, as tokens do not grow."""
        if not self.growing:
            return step
        return self.before(step + 1) * self.steps / self.total - 1


def batches_of(pretrain: Pretrain, steps: int, batch_tokens: int, seq_len: int) -> Batches:
    """The batches of pretraining.

    Args:
        pretrain: section of params.yaml.
        steps: optimiser steps of the stage, derived ones filled in.
        batch_tokens: tokens of the largest step, derived ones filled in.
        seq_len: tokens of a row.
    """
    rows = max(batch_tokens // seq_len, 1)
    if pretrain.first_batch_tokens is None:
        return Batches(steps, rows, rows)
    first = max(pretrain.first_batch_tokens // seq_len, 1)
    growing = round(pretrain.growth_fraction * steps)
    return Batches(steps, rows, first, growing, pretrain.growth == "doubling")
