"""The one assembly of a training run: model, forward pass, optimiser, schedule, loop.

Stages, trials of a tuning study, the planner's probe and the benchmarks train with a `Trainer`; they differ in what they
learn from, in where states go, and in the callbacks they pass.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from paribus.data.loader import Batch
from paribus.model.gpt import GPT
from paribus.recipe import Recipe
from paribus.train import parallel
from paribus.train.callback import Callback, Callbacks
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Loop, Plan
from paribus.train.objectives import Loader, NextToken, Objective, ShortRows
from paribus.train.optim import MuonAdamW
from paribus.train.schedule import OwnFactors, common_factor, own_factors
from paribus.train.stepper import Forward, make_stepper, to_device

if TYPE_CHECKING:
    from paribus.machine.hardware import Hardware
    from paribus.machine.interrupt import Interrupt

TINY_RATE = 1e-6  # of the learning rates, in steps that are only timed: the weights hardly move


class Trainer:
    """A model with all that trains it. `loop` makes the run; `time_step` takes single steps to time them."""

    def __init__(
        self,
        recipe: Recipe,
        stage: str,
        model: GPT,
        objective: Objective,
        hardware: Hardware,
        *,
        peak_flops: float = math.inf,
        forward: Forward | None = None,
    ) -> None:
        """Wrap the model for the training pass, and make its optimiser.

        stage: the training stage whose schedule holds. model: on its device, at its first values (`new_model`, or a
        checkpoint). peak_flops: FLOP/s of all devices together, for MFU; inf where it is not used. forward: the callable
        for the training pass; by default the model, compiled and wrapped as the hardware and `train.sharding` say.
        """
        self.recipe, self.stage = recipe, stage
        self.model, self.objective = model, objective
        self.peak_flops = peak_flops
        self._batches = recipe.batches(stage)
        if forward is None:
            sharding = recipe.config.train.sharding
            forward = parallel.wrap(model, sharding, hardware.compile, objective.ragged)
        self.forward = forward
        # of what FSDP has sharded; on a CPU compiling it takes longer than it saves
        compiled = hardware.compile and hardware.device == "cuda"
        self.optimizer = MuonAdamW(model, recipe.config.optimizer, compiled=compiled)

    def lr_factor(self, step: int, steps: int) -> float:
        """The factor of the learning rates in one step of a run with `steps` steps."""
        place = self._even(step, steps)
        return common_factor(self.recipe.schedule(self.stage), place, steps)

    def own_factors(self, step: int, steps: int) -> OwnFactors:
        """What else the step multiplies by: of groups with a schedule of their own, and of the weight decay.

        Args:
            step: from 0.
            steps: of the run.
        """
        decay = self.recipe.config.optimizer.weight_decay_schedule
        place = self._even(step, steps)
        return own_factors(self.recipe.schedule(self.stage), decay, place, steps)

    def _even(self, step: int, steps: int) -> float:
        """Where a step stands in a run of `steps` steps, in even ones."""
        if self._batches.steps != steps:
            self._batches = self.recipe.batches(self.stage, steps)
        return self._batches.even(step)

    def plan(self, steps: int | None = None) -> Plan:
        """How long and how fast to train. steps: in place of the schedule's."""
        train = self.recipe.config.train
        total = self.recipe.steps(self.stage) if steps is None else steps
        return Plan(
            steps=total,
            lr_factor=lambda step: self.lr_factor(step, total),
            flops_per_token=self.recipe.flops_per_token_of(self.stage),
            peak_flops=self.peak_flops,
            save_seconds=train.save_seconds,
            log_every=train.log_every,
        )

    def loop(
        self,
        store: StateStore,
        interrupt: Interrupt,
        callbacks: Sequence[Callback] = (),
        plan: Plan | None = None,
    ) -> Loop:
        """The run, at its beginning; `Loop.restore` goes to a state.

        Args:
            store: of the run's states.
            interrupt: what asks it to stop.
            callbacks: that watch it.
            plan: in place of the schedule's.
        """
        plan = plan or self.plan()
        stepper = make_stepper(
            self.model, self.forward, self.optimizer, self.objective, self.recipe.config.seed
        )
        stepper.own_factors = functools.partial(self.own_factors, steps=plan.steps)
        return Loop(
            stepper,
            self.objective,
            plan,
            store,
            interrupt,
            Callbacks(callbacks),
        )

    def time_step(self, step: int, objective: Objective | None = None) -> float:
        """Seconds of one optimiser step on this process alone. objective: in place of the trainer's."""
        device = self.model.device
        work = (objective or self.objective).work(step)
        began = time.perf_counter()
        for micro in work.micro_batches:
            loss = self.forward(*to_device(device, micro)) / work.normaliser
            loss.backward()
        float(self.optimizer.clip())
        self.optimizer.step(TINY_RATE)
        self.optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def start_over(self) -> None:
        """Undo all steps: the model's first values again, and an optimiser without a past."""
        self.model.initialise(self.recipe.config.seed)
        self.optimizer.load_state({}, 0)


# ---------------------------------------------------------------- what a trainer is made of


def new_model(recipe: Recipe, hardware: Hardware) -> GPT:
    """An untrained model on the hardware's device, at the first values that the seed gives.

    Args:
        recipe: of the model.
        hardware: of this process.
    """
    model = GPT(recipe.architecture, recipe.vocab_size, getattr(torch, hardware.dtype))
    model.activation_checkpointing = recipe.config.train.activation_checkpointing
    model.window_kernel = hardware.window_kernel
    if hardware.fp8:
        model.use_float8()
    model = model.to(hardware.device)
    model.initialise(recipe.config.seed)
    return model


def next_token(rows: Loader, recipe: Recipe, stage: str) -> NextToken:
    """The objective of a supervised stage: this rank's share of its rows.

    Args:
        rows: of the stage, all ranks' together.
        recipe: of the run.
        stage: pretrain, midtrain or sft.
    """
    schedule = recipe.supervised_schedule(stage)
    terms = {"z_loss": schedule.z_loss, "label_smoothing": schedule.label_smoothing}
    if stage == "pretrain" and recipe.architecture.future_tokens:
        terms["future_loss"] = recipe.pretrain.future_loss
    batches = recipe.batches(stage)
    short = None
    if stage == "pretrain" and recipe.pretrain.short_context is not None:
        short = ShortRows(recipe.short_steps, recipe.pretrain.short_context)
    return NextToken(
        rows,
        recipe.rows(stage),
        schedule.device_batch_size,
        parallel.rank(),
        parallel.ranks(),
        terms={name: value for name, value in terms.items() if value},
        short=short,
        batches=batches if batches.growing else None,
    )


class RandomRows:
    """Rows of random tokens: the speed and the memory of a step do not depend on what it learns."""

    def __init__(self, recipe: Recipe) -> None:
        self.vocab_size, self.seq_len = recipe.vocab_size, recipe.architecture.seq_len

    def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
        """Random tokens for `rows` of the batch; `step` and `batch_rows` change nothing."""
        tokens = torch.randint(0, self.vocab_size, (len(rows), self.seq_len + 1))
        return Batch(tokens[:, :-1], tokens[:, 1:], None)
