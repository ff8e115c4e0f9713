"""What a configuration means for the trainer and the planner: every value that follows from others, filled in once.

A `Config` is what was written, with null where a value follows from others. A `Recipe` is made of it at the top of a
command or a stage and handed down; nothing below fills in a value again. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from paribus.config import (
    RL,
    Architecture,
    Batches,
    Config,
    Conversations,
    Pretrain,
    batches_of,
    resolve_model,
    resolve_pretrain,
)
from paribus.model import accounting


@dataclass(frozen=True)
class Recipe:
    """A configuration with all derived values.

    vocab_size: entries of the tokenizer. architecture: the model's shape. pretrain: the schedule of pretraining, its
    `steps` and `batch_tokens` filled in.
    """

    config: Config
    vocab_size: int
    architecture: Architecture
    pretrain: Pretrain

    @classmethod
    def of(
        cls,
        config: Config,
        vocab_size: int | None = None,
        architecture: Architecture | None = None,
    ) -> Recipe:
        """The recipe of a configuration.

        vocab_size: of the trained tokenizer; before one exists, the size that the configuration requests.
        architecture: of the checkpoint that is trained on; by default the one that `config.model` describes.
        """
        if vocab_size is None:
            vocab_size = config.tokenizer.vocab_size
        if architecture is None:
            architecture = resolve_model(config.model)
        total = accounting.parameters(architecture, vocab_size)["total"]
        pretrain = resolve_pretrain(config.pretrain, total, architecture.seq_len)
        return cls(config, vocab_size, architecture, pretrain)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters of the model by kind, and in `total`."""
        return accounting.parameters(self.architecture, self.vocab_size)

    @cached_property
    def flops_per_token(self) -> float:
        """FLOPs of the forward and backward pass of one token of pretraining, as MFU counts them."""
        return self.flops_per_token_of("pretrain")

    def flops_per_token_of(self, stage: str) -> float:
        """The same for any training stage."""
        return self._over_steps(
            stage, lambda trained: accounting.flops_per_token(trained, self.vocab_size)
        )

    @property
    def short_steps(self) -> int:
        """Steps of pretraining, the first ones, with rows of `short_context`."""
        pretrain = self.pretrain
        if pretrain.short_context is None:
            return 0
        return round(pretrain.short_fraction * self.steps("pretrain"))

    def trained_in(self, stage: str) -> Architecture:
        """The model that a stage trains: only pretraining predicts further tokens."""
        if stage == "pretrain" or not self.architecture.future_tokens:
            return self.architecture
        return dataclasses.replace(self.architecture, future_tokens=0)

    def _over_steps(self, stage: str, flops: Callable[[Architecture], float]) -> float:
        """The mean over a stage's steps of what follows from the model and its context."""
        whole = flops(self.trained_in(stage))
        if stage != "pretrain" or self.pretrain.short_context is None or not self.short_steps:
            return whole
        short = dataclasses.replace(self.architecture, seq_len=self.pretrain.short_context)
        batches = self.batches("pretrain")
        share = batches.before(self.short_steps) / batches.total
        return share * flops(short) + (1 - share) * whole

    def schedule(self, stage: str) -> Pretrain | Conversations | RL:
        """The schedule of a training stage."""
        if stage == "pretrain":
            return self.pretrain
        schedule: Conversations | RL = getattr(self.config, stage)
        return schedule

    def supervised_schedule(self, stage: str) -> Pretrain | Conversations:
        """The schedule of a stage that learns from text: pretrain, midtrain or sft."""
        schedule = self.schedule(stage)
        assert not isinstance(schedule, RL), stage
        return schedule

    def steps(self, stage: str) -> int:
        """Optimiser steps of a training stage."""
        steps = self.schedule(stage).steps
        assert steps is not None, stage
        return steps

    def batch_tokens(self, stage: str) -> int:
        """Tokens of one optimiser step of a supervised stage; where batches grow, the mean."""
        if self.batches(stage).growing:
            return round(self.tokens(stage) / self.steps(stage))
        return self._full_batch_tokens(stage)

    def _full_batch_tokens(self, stage: str) -> int:
        """Tokens of a step whose batch does not grow, or no longer does."""
        batch_tokens = self.supervised_schedule(stage).batch_tokens
        assert batch_tokens is not None, stage
        return batch_tokens

    def rows(self, stage: str) -> int:
        """Rows of one optimiser step of a supervised stage, the most that a step has."""
        return max(self._full_batch_tokens(stage) // self.architecture.seq_len, 1)

    def batches(self, stage: str, steps: int | None = None) -> Batches:
        """Rows of every optimiser step of a training stage. steps: in place of the schedule's."""
        steps = steps or self.steps(stage)
        if stage == "rl":  # its rows are answers
            return Batches(steps, 1, 1)
        if stage != "pretrain":
            return Batches(steps, self.rows(stage), self.rows(stage))
        full = self._full_batch_tokens(stage)
        return batches_of(self.pretrain, steps, full, self.architecture.seq_len)

    def tokens(self, stage: str) -> int:
        """Tokens of a whole supervised stage."""
        batches = self.batches(stage)
        if batches.growing:
            return batches.total * self.architecture.seq_len
        return self.steps(stage) * self._full_batch_tokens(stage)

    def step_flops(self, batch_tokens: int, stage: str = "pretrain") -> float:
        """FLOPs of one optimiser step of so many tokens: what "equal FLOPs" counts."""
        optimizer = self.config.optimizer
        return self._over_steps(
            stage,
            lambda trained: accounting.step_flops(
                trained, self.vocab_size, optimizer, batch_tokens
            ),
        )
