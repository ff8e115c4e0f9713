"""The one training loop: objective in, weights out; exact resume, pause, and a watch on spikes.

The loop knows nothing of stages, MLflow or evaluation: those come in as callables. A run is a function of
(weights, objective, schedule); where it stands is a `Position`, saved with the weights and the optimiser.
"""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paribus.data.loader import Prefetcher
from paribus.errors import Diverged
from paribus.files import Extent
from paribus.machine.interrupt import Interrupt
from paribus.machine.process import restore_rng, rng_state
from paribus.model.gpt import GPT
from paribus.train import parallel
from paribus.train.checkpoint import State, StateStore
from paribus.train.objectives import MicroBatch, Objective, Work
from paribus.train.optim import MuonAdamW
from paribus.train.within import Abandoned, Say, nothing

# Steps in a row without a finite gradient before the weights themselves are taken as spoilt.
MAX_NONFINITE = 3
MAX_ROLLBACKS = 3
CURE = "lower the learning rate (lr_scale) or the weight decay, or set optimizer.grad_clip"
# Time between saves, as a multiple of what a save costs: saving slows a run by a fiftieth at most.
SAVE_SPACING = 50
# The last part of a run whose mean loss is its `train_loss`: one step in twenty.
LAST_PART = 20


# What a rank without rows of its own puts through, as all ranks take part in each forward: it learns nothing.
IDLE = MicroBatch(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), -1))


class Paused(Exception):
    """The run stopped before its end, its state saved; starting it again goes on."""


@dataclass
class Position:
    """Where a run stands. `step` is the next one."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # spent in the loop, over all sessions, evaluation included
    train_seconds: float = 0.0  # spent in steps
    nonfinite: int = 0  # steps skipped because loss or gradient was not finite
    skipped: list[int] = field(default_factory=list)  # steps passed over after a rollback
    rollbacks: int = 0
    nonfinite_in_a_row: int = 0  # up to here; 0 in every state but one of the last step
    last_losses: list[float] = field(default_factory=list)  # finite ones, of the last part
    peak_memory_bytes: int = 0  # over all sessions, as of the last save


@dataclass(frozen=True)
class Hooks:
    """What the loop calls out to. Rank 0's are heard; on the others all but `evaluate` do nothing."""

    log: Callable[[int, dict[str, float]], None]
    event: Callable[[int, str, str], None]  # step, name, detail
    sync: Callable[[], Extent | None]  # bring the log to the disk; what it holds, None: no log
    rewind: Callable[[int], None]  # forget what was logged after a step
    evaluate: Callable[[int], dict[str, float]]  # metrics after so many steps, or nothing
    progress: Callable[[int, dict[str, float]], None]
    within: Say = nothing  # between the parts of a step; may raise Abandoned

    @classmethod
    def silent(cls, evaluate: Callable[[int], dict[str, float]]) -> Hooks:
        """Those of a rank that is not heard."""
        return cls(
            lambda *_: None,
            lambda *_: None,
            lambda: None,
            lambda _: None,
            evaluate,
            lambda *_: None,
        )


@dataclass(frozen=True)
class Plan:
    """How long and how fast."""

    steps: int
    lr_factor: Callable[[int], float]
    flops_per_token: float
    peak_flops: float  # of the device, for MFU
    save_seconds: float  # least time between saves; 0: after every step
    log_every: int = 1  # steps without metrics of their own between logged ones

    @property
    def last_steps(self) -> int:
        """Steps of the last part."""
        return max(self.steps // LAST_PART, 1)


class Readback:
    """Numbers on their way from a device: reading them waits for them, and not for what was queued behind them."""

    def __init__(self, numbers: Tensor) -> None:
        """numbers (n,). From CUDA into pinned memory, without waiting."""
        self._host = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


@dataclass
class Started:
    """An optimiser step that was started; what comes out of it is filled in as it becomes known."""

    step: int
    work: Work
    factor: float
    tokens: int
    numbers: Readback | None  # None: known
    loss: float = math.nan
    grad_norm: float = math.nan
    elapsed: float = math.nan  # seconds
    metrics: dict[str, float] = field(default_factory=dict)  # of an evaluation after it

    def read(self) -> None:
        if self.numbers is not None:
            self.loss, self.grad_norm = self.numbers.read()

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Loop:
    """Trains `model` in place. Raises Paused when interrupted, UserError when training cannot go on."""

    def __init__(
        self,
        model: GPT,
        forward: Callable[..., Tensor],
        optimizer: MuonAdamW,
        objective: Objective,
        plan: Plan,
        store: StateStore,
        interrupt: Interrupt,
        hooks: Hooks,
    ) -> None:
        self.model, self.forward, self.optimizer = model, forward, optimizer
        self.objective, self.plan, self.store, self.interrupt, self.hooks = (
            objective,
            plan,
            store,
            interrupt,
            hooks,
        )
        self.position = Position()
        # Start a step before the numbers of the one before it are read: a GPU then never waits for the host. RL samples
        # from the weights of the step before, and waits for them anyway.
        self.ahead = model.device.type == "cuda" and objective.pure
        self._before: Started | None = None  # ahead: the step whose numbers are still to be read
        self._settled = False
        self._restored = False
        self._evaluating = False
        self._saved_at = time.monotonic()
        self._gather_seconds = 0.0  # of the last save: bringing its tensors together

    def restore(self, state: State) -> None:
        """Go to a state."""
        tensors, values = state.tensors, state.values
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parallel.assign(parameter, tensors[f"model.{name}"])
        self.optimizer.load_state(
            {
                name.removeprefix("optimizer."): tensor
                for name, tensor in tensors.items()
                if name.startswith("optimizer.")
            },
            values["updates"],
        )
        restore_rng(
            {name.removeprefix("rng."): t for name, t in tensors.items() if name.startswith("rng.")}
        )
        self.position = Position(**values["position"])
        self._restored = True
        # Another number of ranks groups the same sums otherwise: equal but for rounding.
        if values["ranks"] != parallel.ranks():
            self.hooks.event(
                self.position.step,
                "processes",
                f"{parallel.ranks()} processes, {values['ranks']} before",
            )

    def run(self) -> Position:
        """Train to the last step. `restore` first to continue. Raises UserError for a run that diverged.

        A run that begins saves its first state before its first step, so that there is always a state to go back to,
        however soon the loss diverges.
        """
        self.model.train()
        if not self._restored:
            self.save()
        try:
            self._train()
        except Abandoned:
            self._pause_within_a_step()
        self.store.wait()
        self._refuse_a_lost_end()
        return self.position

    def _train(self) -> None:
        while self.position.step < self.plan.steps:
            with self._works() as works:
                self._clock, self._settled = time.perf_counter(), False
                for step, work in works:
                    if self._step(step, work):
                        break  # rolled back: start again from the restored step

    def _pause_within_a_step(self) -> None:
        """Raises Paused. What the step began is dropped, and the state before it is saved.

        None is saved between a step and its evaluation, which the next start would pass over.
        """
        self.optimizer.zero_grad()
        rolled_back = self._settle_before()
        is_saved = rolled_back or self.store.newest_step == self.position.step
        if not (is_saved or self._evaluating or self.position.nonfinite_in_a_row):
            self.save()
        self.store.wait()
        raise Paused(f"{self.interrupt.reason}, within a step: {self._what_is_saved()}")

    @contextmanager
    def _works(self) -> Iterator[Iterator[tuple[int, Work]]]:
        """(step, work) from the current step on; prepared ahead where the objective allows it."""
        steps = range(self.position.step, self.plan.steps)
        if not self.objective.pure:
            yield ((step, self.objective.work(step)) for step in steps)
            return
        make = self._pinned_work if self.model.device.type == "cuda" else self.objective.work
        making = self.objective.making
        making.called_off.clear()
        with Prefetcher(
            make,
            steps.start,
            steps.stop,
            waiting=lambda: self.hooks.within("rows read", making.done, making.total),
            call_off=making.called_off.set,
        ) as prefetcher:
            self._prefetcher = prefetcher
            yield iter(prefetcher)

    def _pinned_work(self, step: int) -> Work:
        """Work in memory that a GPU copies from while the host goes on; pinned by the thread that prepares it."""
        torch.cuda.set_device(
            self.model.device
        )  # a new thread would else take memory on the first GPU
        work = self.objective.work(step)
        pinned = []
        for micro in work.micro_batches:
            tensors = [None if tensor is None else tensor.pin_memory() for tensor in micro.tensors]
            pinned.append(MicroBatch(*tensors))  # type: ignore[arg-type]
        return dataclasses.replace(work, micro_batches=pinned)

    def _step(self, step: int, work: Work) -> bool:
        """One optimiser step and what goes with it. True if the run was rolled back.

        Ahead, a step is started before the numbers of the one before are read, and its own are read at once only where
        something hangs on them.
        """
        if step in self.position.skipped:
            if self._settle_before():
                return True
            self.position.step = step + 1
            return False
        started = self._start(step, work)
        if self._settle_before():
            return True
        at_once = self._wanted_at_once(step)
        if at_once and self._settle(started):
            return True
        started.metrics = self._evaluate(step + 1)
        if not at_once:
            if not any(parallel.any_rank(bool(started.metrics), *self._wishes())):
                self._before = started
                return False
            if self._settle(started):
                return True
        self._report(started)
        self._between_steps(started.finite)
        return False

    def _start(self, step: int, work: Work) -> Started:
        """Gradient and update. Ahead, both are queued on the device, which itself leaves out an update that is not finite."""
        total, norm, tokens = self._gradient(work)
        factor = self.plan.lr_factor(step)
        if self.ahead:
            parallel.add_up(total)
            if tokens:
                self.optimizer.step(factor, torch.isfinite(total) & torch.isfinite(norm))
            numbers = Readback(torch.stack((total, norm)))
            started = Started(step, work, factor, tokens, numbers)
        else:
            started = Started(
                step, work, factor, tokens, None, parallel.sums(float(total))[0], float(norm)
            )
            if started.finite and tokens:
                self.optimizer.step(factor)
        self.optimizer.zero_grad()
        return started

    def _settle_before(self) -> bool:
        """Settle and report the step before, if that is still to do. True if the run was rolled back."""
        before, self._before = self._before, None
        if before is None:
            return False
        if self._settle(before):
            return True
        self._report(before)
        return False

    def _settle(self, started: Started) -> bool:
        """Read a step's numbers and count it. True if the run was rolled back."""
        started.read()
        now = time.perf_counter()
        started.elapsed = now - self._clock  # making the work, or waiting for it, included
        self._clock = now
        self._settled = True
        self._advance(started)
        if started.finite:
            self.position.nonfinite_in_a_row = 0
            return False
        return self._watch(started.step, started.loss, started.grad_norm)

    def _wanted_at_once(self, step: int) -> bool:
        """Whether a step's numbers are wanted before the next one starts; the first step's too, to be timed by itself."""
        if not self.ahead:
            return True
        return (
            any(parallel.any_rank(*self._wishes()))
            or not self._settled
            or step + 1 == self.plan.steps
        )

    def _gradient(self, work: Work) -> tuple[Tensor, Tensor, int]:
        """Accumulate the gradient of the whole global batch; returns this rank's loss (), gradient norm () and tokens."""
        device = self.model.device
        normaliser, tokens = parallel.sums(work.normaliser, work.tokens)
        most = int(max(parallel.of_each(len(work.micro_batches))))
        total = torch.zeros((), device=device)
        for index, micro in enumerate(
            work.micro_batches + [IDLE] * (most - len(work.micro_batches))
        ):
            with self._sync_gradients(last=index == most - 1):
                batch = _to(device, micro)
                loss = self.forward(*batch, **micro.sampling) / max(normaliser, 1)
                # DDP and FSDP average over ranks; a sum over the global batch is meant
                (loss * parallel.ranks()).backward()
            total += loss.detach()
            self.hooks.within("passes", index + 1, most)
        return total, self.optimizer.clip() if most else torch.zeros((), device=device), int(tokens)

    def _sync_gradients(self, last: bool) -> Any:
        if last or not isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return torch.enable_grad()
        return self.forward.no_sync()

    def _advance(self, started: Started) -> None:
        self.position.step = started.step + 1
        self.position.tokens += started.tokens
        self.position.seconds += started.elapsed
        self.position.train_seconds += started.elapsed
        if math.isfinite(started.loss):
            losses = [*self.position.last_losses, started.loss]
            self.position.last_losses = losses[-self.plan.last_steps :]

    def _watch(self, step: int, loss: float, grad_norm: float) -> bool:
        """Count a step that was not finite; after a run of them go back to the last state and pass those steps over."""
        self.position.nonfinite += 1
        self.position.nonfinite_in_a_row += 1
        self.hooks.event(step, "nonfinite", f"loss {loss}, gradient norm {grad_norm}: step skipped")
        counts = self.position
        in_a_row = counts.nonfinite_in_a_row
        if in_a_row < MAX_NONFINITE:
            return False
        bad = list(range(step - in_a_row + 1, step + 1))
        self.store.wait()
        state = parallel.newest(self.store)
        if counts.rollbacks >= MAX_ROLLBACKS or state is None:
            raise Diverged(
                f"step {step + 1} of {self.plan.steps}: diverged: loss or gradient not finite for {in_a_row} "
                f"steps in a row, after {counts.rollbacks} rollbacks; {CURE}"
            )
        self.restore(state)
        self.hooks.rewind(state.step)
        self.position = dataclasses.replace(
            self.position,
            nonfinite=counts.nonfinite,
            rollbacks=counts.rollbacks + 1,
            skipped=counts.skipped + bad,
        )
        self.hooks.event(
            step,
            "rollback",
            f"back to step {state.step}; steps {bad[0]} to {bad[-1]} will be passed over",
        )
        return True

    def _refuse_a_lost_end(self) -> None:
        """Raises UserError if no step was finite at the end, so that nothing says what the weights are worth."""
        first = self.plan.steps - self.position.nonfinite_in_a_row
        while first > 0 and first - 1 in self.position.skipped:
            first -= 1
        lost = self.plan.steps - first
        if lost >= min(MAX_NONFINITE, self.plan.steps):
            raise Diverged(
                f"step {first + 1} of {self.plan.steps}: diverged: loss or gradient not finite in all of the last "
                f"{lost} steps; {CURE}"
            )

    def _report(self, started: Started) -> None:
        step, metrics, speed = started.step, started.metrics, started.tokens / started.elapsed
        last = step + 1 == self.plan.steps
        # Metrics of the work itself (RL's samples) are of this step alone, and are counted from the log.
        if (step + 1) % self.plan.log_every == 0 or last or metrics or started.work.metrics:
            metrics |= {
                "train/loss": started.loss,
                "train/grad_norm": started.grad_norm,
                "train/lr_factor": started.factor,
                "train/tokens": self.position.tokens,
                "train/seconds": self.position.seconds,
                "train/tokens_per_second": speed,
                "train/mfu": speed * self.plan.flops_per_token / self.plan.peak_flops,
                "train/peak_memory_bytes": peak_memory_bytes(self.model.device),
                "train/nonfinite": self.position.nonfinite,
                "train/data_wait_seconds": self._data_wait(),
            } | started.work.metrics
            self.hooks.log(step + 1, metrics)
        self.hooks.progress(
            step + 1, {"loss": started.loss, "tokens_per_second": speed} | started.work.metrics
        )

    def _evaluate(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        self._evaluating = True
        self.model.eval()
        metrics = dict(self.hooks.evaluate(step))
        self.model.train()
        self._evaluating = False
        taken = time.perf_counter() - began
        self.position.seconds += taken
        self._clock += taken
        return metrics

    def _data_wait(self) -> float:
        return self._prefetcher.waited if self.objective.pure else 0.0

    def _between_steps(self, finite: bool) -> None:
        """Save when it is time, stop when asked to."""
        done = self.position.step >= self.plan.steps
        stop, due = parallel.any_rank(*self._wishes())
        if finite and (due or stop) or done:
            self.save()
        if stop and not done:
            self.store.wait()
            reason = self.interrupt.reason or "another process was asked to stop"
            raise Paused(f"{reason}: {self._what_is_saved()}")
        self._clock = time.perf_counter()

    def _what_is_saved(self) -> str:
        """Where the next start goes on; a step without a finite gradient is not saved, nor is any on a full disk."""
        step = self.store.newest_step
        if step is None:
            return "no state could be saved; the next start begins anew"
        saved = f"saved at step {step} of {self.plan.steps}"
        lost = self.position.step - step
        return saved if lost <= 0 else f"{saved}; the next start repeats the {lost} after it"

    def _wishes(self) -> tuple[bool, bool]:
        """This rank's: to stop, and to save. Rank 0 alone knows what a save costs, and so when the next is due."""
        due = parallel.rank() == 0 and self._save_is_due()
        return self.interrupt.requested(), due

    def _save_is_due(self) -> bool:
        if not self.plan.save_seconds:
            return True
        if self.store.writing:
            return False
        cost = self._gather_seconds + self.store.cost
        spacing = max(self.plan.save_seconds, SAVE_SPACING * cost)
        return time.monotonic() - self._saved_at >= spacing

    def save(self) -> None:
        """Save the state, whole, so that any number of ranks can go on with it; rank 0 writes."""
        began = time.perf_counter()
        here = peak_memory_bytes(self.model.device)
        self.position.peak_memory_bytes = max(self.position.peak_memory_bytes, here)
        tensors: dict[str, Tensor] = {
            f"model.{name}": parallel.full(p) for name, p in self.model.named_parameters()
        }
        tensors |= {
            f"optimizer.{name}": tensor for name, tensor in self.optimizer.full_state().items()
        }
        tensors |= {f"rng.{name}": tensor for name, tensor in rng_state().items()}
        values = {
            "position": dataclasses.asdict(self.position),
            "updates": self.optimizer.updates,
            "ranks": parallel.ranks(),
        }
        self._gather_seconds = time.perf_counter() - began
        if parallel.rank() == 0:
            self._save_after_the_log(tensors, values)
        self._saved_at = time.monotonic()

    def _save_after_the_log(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Bring the log to the disk, then the state: no state may be ahead of the log that leads to it.

        A disk that does not take the log has failed to save.
        """
        self.store.refuse_if_hopeless()
        try:
            log = self.hooks.sync()
        except OSError as error:
            self.store.note_failure(self.position.step, error)
            return
        self.store.save(self.position.step, tensors, values, log)


def _to(device: torch.device, micro: MicroBatch) -> list[Tensor | None]:
    return [
        None if tensor is None else tensor.to(device, non_blocking=device.type == "cuda")
        for tensor in micro.tensors
    ]


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory taken so far: by torch on CUDA, by the whole process elsewhere.

    Linux keeps getrusage's figure over an exec, so that a process started by a larger one would show its parent's.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
