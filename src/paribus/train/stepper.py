"""One optimiser step: gradient, update, and the numbers that come out of it.

`PlainStepper` reads a step's numbers before it lets anything else happen. `AheadStepper` starts the next step first, so
that a GPU never waits for its host. Both give the same weights and the same numbers, to the bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paribus.model.gpt import GPT
from paribus.train import parallel
from paribus.train.objectives import MicroBatch, Objective, Work
from paribus.train.optim import MuonAdamW
from paribus.train.schedule import NOTHING_OWN, OwnFactors
from paribus.train.within import Say, nothing

# What a rank without rows of its own puts through, as all ranks take part in each forward: it learns nothing.
IDLE = MicroBatch(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), -1))

Forward = Callable[..., Tensor]  # the model's forward pass, perhaps compiled or wrapped


@dataclass(frozen=True)
class FinishedStep:
    """An optimiser step whose numbers are known. `tokens` and `loss` are of all ranks together."""

    step: int
    work: Work  # this rank's
    lr_factor: float
    tokens: int
    loss: float
    grad_norm: float  # before clipping

    @property
    def finite(self) -> bool:
        """Whether the weights were updated: a step whose loss or gradient is not finite leaves them alone."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Stepper(ABC):
    """Does the optimiser steps of a run, in the model's own weights."""

    def __init__(self, model: GPT, forward: Forward, optimizer: MuonAdamW, seed: int = 0) -> None:
        """forward: the callable in place of the model (`parallel.wrap`). seed: of the masks of dropout."""
        self.model, self.forward, self.optimizer, self.seed = model, forward, optimizer, seed
        self.own_factors: Callable[[int], OwnFactors] = lambda step: NOTHING_OWN

    @abstractmethod
    def submit(
        self, step: int, work: Work, lr_factor: float, within: Say = nothing
    ) -> FinishedStep | None:
        """Start a step. Returns the step whose numbers have become known, this one or the one before, if any.

        within("passes", done, total): called after every forward and backward pass; may raise Abandoned.

        work: of the step, as far as this rank does it. lr_factor: by which the schedule multiplies every
        learning rate.
        """

    @abstractmethod
    def flush(self) -> FinishedStep | None:
        """Wait for the step in progress, if there is one, and return it."""

    @property
    @abstractmethod
    def under_way(self) -> bool:
        """Whether a step was started whose numbers are still unknown; the weights are those after it."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the step in progress: the run has returned to an earlier state."""

    def gradient(self, step: int, work: Work, within: Say = nothing) -> tuple[Tensor, Tensor, int]:
        """Accumulate the gradient of the whole global batch of a step, and clip it.

        Returns this rank's share of the loss (), the norm of the gradient before clipping (), and the tokens of all ranks.

        work: of the step, as far as this rank does it. within: called after every pass.
        """
        device = self.model.device
        normaliser, tokens = parallel.sums(work.normaliser, work.tokens)
        passes = int(max(parallel.of_each(len(work.micro_batches))))
        idle = [IDLE] * (passes - len(work.micro_batches))
        loss = torch.zeros((), device=device)
        for number, micro in enumerate(work.micro_batches + idle, 1):
            if self.model.has_dropout:
                seed_dropout(self.seed, step, parallel.rank(), number)
            with self._sync_gradients(last=number == passes):
                share = self.forward(*to_device(device, micro), **micro.terms)
                share = share / max(normaliser, 1)
                # DDP and FSDP average over ranks; a sum over the global batch is meant
                (share * parallel.ranks()).backward()
            loss += share.detach()
            del share  # its graph holds attention's masks, which the next pass makes anew
            within("passes", number, passes)
        norm = self.optimizer.clip() if passes else torch.zeros((), device=device)
        return loss, norm, int(tokens)

    def _sync_gradients(self, last: bool) -> AbstractContextManager[object]:
        """DDP adds up the ranks' gradients in the last backward pass of a step alone."""
        if last or not isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return torch.enable_grad()
        context: AbstractContextManager[object] = self.forward.no_sync()
        return context


class PlainStepper(Stepper):
    """Waits for every step's numbers."""

    def submit(
        self, step: int, work: Work, lr_factor: float, within: Say = nothing
    ) -> FinishedStep:
        """Do the step, and leave out its update where loss or gradient is not finite; returns this step itself.

        work: of the step, as far as this rank does it. lr_factor: of the schedule. within: called after every
        pass.
        """
        own_loss, norm, tokens = self.gradient(step, work, within)
        loss = parallel.sums(float(own_loss))[0]
        finished = FinishedStep(step, work, lr_factor, tokens, loss, float(norm))
        if finished.finite and tokens:
            self.optimizer.step(lr_factor, own=self.own_factors(step))
        self.optimizer.zero_grad()
        return finished

    def flush(self) -> None:
        """Nothing is in progress after `submit`."""
        return

    @property
    def under_way(self) -> bool:
        """False: `submit` returns with the numbers."""
        return False

    def forget(self) -> None:
        """Nothing is in progress that could be dropped."""


class AheadStepper(Stepper):
    """Reads a step's numbers after the next step was started.

    Gradient and update are queued on the device, which itself leaves out an update that is not finite.
    """

    def __init__(self, model: GPT, forward: Forward, optimizer: MuonAdamW, seed: int = 0) -> None:
        """optimizer: one that is `on_device`."""
        super().__init__(model, forward, optimizer, seed)
        self._pending: _PendingStep | None = None

    def submit(
        self, step: int, work: Work, lr_factor: float, within: Say = nothing
    ) -> FinishedStep | None:
        """Queue the step on the device, then wait for the step before it and return that one.

        work: of the step, as far as this rank does it. lr_factor: of the schedule. within: called after every
        pass.
        """
        loss, norm, tokens = self.gradient(step, work, within)
        parallel.add_up(loss)
        if tokens:
            finite = torch.isfinite(loss) & torch.isfinite(norm)
            self.optimizer.step(lr_factor, finite, self.own_factors(step))
        self.optimizer.zero_grad()
        numbers = Readback(torch.stack((loss, norm)))
        started = _PendingStep(step, work, lr_factor, tokens, numbers)
        before = self.flush()
        self._pending = started
        return before

    def flush(self) -> FinishedStep | None:
        """Wait for the step that was queued last and return it; None where nothing is queued."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.read()

    @property
    def under_way(self) -> bool:
        """Whether a step is queued whose numbers have not been read."""
        return self._pending is not None

    def forget(self) -> None:
        """Drop the numbers of the step that was queued last."""
        self._pending = None


def make_stepper(
    model: GPT, forward: Forward, optimizer: MuonAdamW, objective: Objective, seed: int
) -> Stepper:
    """The stepper that suits the device and the objective. seed: of the run.

    An objective that samples from the weights of the step before has to wait for them anyway; a CPU does the steps itself,
    and a library's optimiser cannot leave one out on the device.

    model: what is trained. forward: the same, as torch.compile or the sharding have wrapped it. optimizer: of its
    parameters.
    """
    if optimizer.on_device and objective.pure:
        return AheadStepper(model, forward, optimizer, seed)
    return PlainStepper(model, forward, optimizer, seed)


def seed_dropout(seed: int, step: int, rank: int, number: int) -> None:
    """Make the masks of a forward pass a function of where it stands, so that they survive a restart.

    number: of the pass within the step. The masks depend on how a step is cut into passes and ranks. seed: of the
    run. rank: of this process.
    """
    digest = hashlib.sha256(f"{seed}:dropout:{step}:{rank}:{number}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Readback:
    """Numbers on their way from a device: reading them waits for them, and not for what was queued behind them."""

    def __init__(self, numbers: Tensor) -> None:
        """Start the copy of numbers (n,); from CUDA into pinned memory, without waiting."""
        self._host = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        """Wait until the numbers are on the host and return them (n)."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


@dataclass(frozen=True)
class _PendingStep:
    """A step that was started: loss and norm are on their way."""

    step: int
    work: Work
    lr_factor: float
    tokens: int
    numbers: Readback

    def read(self) -> FinishedStep:
        loss, grad_norm = self.numbers.read()
        return FinishedStep(self.step, self.work, self.lr_factor, self.tokens, loss, grad_norm)


def to_device(device: torch.device, micro: MicroBatch) -> list[Tensor | None]:
    """The tensors of a micro-batch on a device, in the order of the model's forward pass."""
    moved: list[Tensor | None] = []
    for tensor in micro.tensors:
        if tensor is not None:
            tensor = tensor.to(device, non_blocking=device.type == "cuda")
        moved.append(tensor)
    return moved


def pinned(work: Work) -> Work:
    """The work in memory that a GPU copies from while the host goes on."""
    micro_batches = []
    for micro in work.micro_batches:
        tokens, targets, documents, weights = (
            None if tensor is None else tensor.pin_memory() for tensor in micro.tensors
        )
        assert tokens is not None and targets is not None
        micro_batches.append(MicroBatch(tokens, targets, documents, weights, micro.terms))
    return dataclasses.replace(work, micro_batches=micro_batches)
