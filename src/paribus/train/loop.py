"""The one training loop: objective in, weights out; exact resume, pause, and a watch on spikes.

The loop is what happens between steps; a `Stepper` does the steps, and a `Callback` is where stages, logs and evaluations
come in. A run is a function of (weights, objective, schedule); where it stands is a `Position`, saved with the weights
and the optimiser.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paribus.data.loader import Prefetcher
from paribus.errors import Diverged
from paribus.machine.interrupt import Interrupt
from paribus.machine.process import most_resident, restore_rng, rng_state
from paribus.train import parallel
from paribus.train.callback import Callback
from paribus.train.checkpoint import State, StateStore
from paribus.train.objectives import Objective, Work
from paribus.train.stepper import FinishedStep, Stepper, pinned
from paribus.train.within import Abandoned

# Steps in a row without a finite gradient before the weights themselves are taken as spoilt.
MAX_NONFINITE = 3
MAX_ROLLBACKS = 3
CURE = "lower the learning rate (lr_scale) or the weight decay, or set optimizer.grad_clip"
# Time between saves, as a multiple of what a save costs: saving slows a run by a fiftieth at most.
SAVE_SPACING = 50
# The last part of a run whose mean loss is its `train_loss`: one step in twenty.
LAST_PART = 20


class Paused(Exception):
    """The run stopped before its end, its state saved; starting it again goes on."""


class RolledBack(Exception):
    """The run went back to an earlier state, and goes on from there."""


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


class Loop:
    """Trains a model in place. Raises Paused when interrupted, UserError when training cannot go on."""

    def __init__(
        self,
        stepper: Stepper,
        objective: Objective,
        plan: Plan,
        store: StateStore,
        interrupt: Interrupt,
        callback: Callback,
    ) -> None:
        """store: where states are saved. interrupt: what asks the run to pause."""
        self.stepper, self.objective, self.plan = stepper, objective, plan
        self.model, self.optimizer = stepper.model, stepper.optimizer
        self.store, self.interrupt, self.callback = store, interrupt, callback
        self.position = Position()
        self._restored = False
        self._evaluating = False
        self._clock = time.perf_counter()  # the time from which the current step counts
        self._any_counted = False  # whether a step was counted since the run began or went back
        self._prefetcher: Prefetcher[Work] | None = None
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
            processes = f"{parallel.ranks()} processes, {values['ranks']} before"
            self.callback.on_event(self.position.step, "processes", processes)

    def run(self) -> Position:
        """Train to the last step. `restore` first to continue. Raises UserError for a run that diverged."""
        if not self._restored:
            self._begin()
        self.model.train(self.objective.dropout)
        try:
            while self.position.step < self.plan.steps:
                with suppress(RolledBack):
                    self._take_steps()
        except Abandoned:
            self._pause_within_a_step()
        self.store.wait()
        self._refuse_a_lost_end()
        return self.position

    def _pause_within_a_step(self) -> None:
        """Raises Paused. What the step began is dropped, and the state before it is saved.

        None is saved between a step and its evaluation, which the next start would pass over.
        """
        self.optimizer.zero_grad()
        rolled_back = not self._count_what_is_under_way()
        is_saved = rolled_back or self.store.newest_step == self.position.step
        if not (is_saved or self._evaluating or self.position.nonfinite_in_a_row):
            self.save()
        self.store.wait()
        raise Paused(f"{self.interrupt.reason}, within a step: {self._what_is_saved()}")

    def _count_what_is_under_way(self) -> bool:
        """Count and report the step in progress, if there is one. False if the run was rolled back."""
        finished = self.stepper.flush()
        if finished is None:
            return True
        try:
            self._report(finished, self._count(finished), {})
        except RolledBack:
            return False
        return True

    def _begin(self) -> None:
        """Log what is known before the first step, and save the state that an early divergence returns to."""
        metrics = self.callback.on_start()
        if metrics:
            self.callback.on_log(0, metrics)
        self.save()

    def _take_steps(self) -> None:
        """All steps from the current one on. Raises RolledBack."""
        self.stepper.forget()
        self._any_counted = False
        with self._works() as works:
            self._clock = time.perf_counter()
            for step, work in works:
                self._step(step, work)

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

        def waiting() -> None:
            self.callback.within("rows read", making.done, making.total)

        with Prefetcher(
            make, steps.start, steps.stop, waiting=waiting, call_off=making.called_off.set
        ) as prefetcher:
            self._prefetcher = prefetcher
            yield iter(prefetcher)

    def _pinned_work(self, step: int) -> Work:
        """The work of a step for a GPU, made in the thread that prepares it."""
        # a new thread would else take memory on the first GPU
        torch.cuda.set_device(self.model.device)
        return pinned(self.objective.work(step))

    def _step(self, step: int, work: Work) -> None:
        """Take one step, and do the work that follows every step whose numbers are known by then. Raises RolledBack."""
        if step in self.position.skipped:
            self._finish(self.stepper.flush())
            self.position.step = step + 1
            return
        lr_factor = self.plan.lr_factor(step)
        self._finish(self.stepper.submit(step, work, lr_factor, self.callback.within))
        if self.stepper.under_way and self._is_wanted_at_once(step):
            self._finish(self.stepper.flush())

    def _is_wanted_at_once(self, step: int) -> bool:
        """Whether a step's numbers are needed before the next one starts, as for the first step, which is timed by itself."""
        if not self._any_counted or step + 1 == self.plan.steps:
            return True
        return self.callback.is_due(step + 1) or any(parallel.any_rank(*self._wishes()))

    def _finish(self, finished: FinishedStep | None) -> None:
        """Count and report a step; with no other step in progress, evaluate, save and pause after it. Raises RolledBack."""
        if finished is None:
            return
        seconds = self._count(finished)
        if self.stepper.under_way:
            self._report(finished, seconds, {})
            return
        metrics = self._evaluate(finished.step + 1)
        self._report(finished, seconds, metrics)
        self._between_steps(finished.finite)

    def _count(self, finished: FinishedStep) -> float:
        """Advance the position by a step. Returns its seconds, making its work or waiting for that included."""
        now = time.perf_counter()
        seconds = now - self._clock
        self._clock = now
        self._any_counted = True
        position = self.position
        position.step = finished.step + 1
        position.tokens += finished.tokens
        position.seconds += seconds
        position.train_seconds += seconds
        if math.isfinite(finished.loss):
            losses = [*position.last_losses, finished.loss]
            position.last_losses = losses[-self.plan.last_steps :]
        if finished.finite:
            position.nonfinite_in_a_row = 0
        else:
            self._watch(finished)
        return seconds

    def _watch(self, finished: FinishedStep) -> None:
        """Count a step that was not finite. Raises RolledBack after a run of them, UserError after too many such runs."""
        step, counts = finished.step, self.position
        counts.nonfinite += 1
        counts.nonfinite_in_a_row += 1
        numbers = f"loss {finished.loss}, gradient norm {finished.grad_norm}"
        self.callback.on_event(step, "nonfinite", f"{numbers}: step skipped")
        if counts.nonfinite_in_a_row >= MAX_NONFINITE:
            self._roll_back(step)

    def _roll_back(self, step: int) -> None:
        """Go back to the newest state, and pass over the steps up to `step` that were not finite. Raises RolledBack."""
        counts = self.position
        in_a_row = counts.nonfinite_in_a_row
        bad = list(range(step - in_a_row + 1, step + 1))
        self.store.wait()
        state = parallel.newest(self.store)
        if counts.rollbacks >= MAX_ROLLBACKS or state is None:
            raise Diverged(
                f"step {step + 1} of {self.plan.steps}: diverged: loss or gradient not finite for {in_a_row} "
                f"steps in a row, after {counts.rollbacks} rollbacks; {CURE}"
            )
        self.restore(state)
        self.callback.on_rollback(state.step)
        self.position = dataclasses.replace(
            self.position,
            nonfinite=counts.nonfinite,
            rollbacks=counts.rollbacks + 1,
            skipped=counts.skipped + bad,
        )
        passed_over = f"steps {bad[0]} to {bad[-1]} will be passed over"
        self.callback.on_event(step, "rollback", f"back to step {state.step}; {passed_over}")
        raise RolledBack

    def _refuse_a_lost_end(self) -> None:
        """Raises UserError if no step was finite at the end, so that nothing shows how good the weights are."""
        first = self.plan.steps - self.position.nonfinite_in_a_row
        while first > 0 and first - 1 in self.position.skipped:
            first -= 1
        lost = self.plan.steps - first
        if lost >= min(MAX_NONFINITE, self.plan.steps):
            raise Diverged(
                f"step {first + 1} of {self.plan.steps}: diverged: loss or gradient not finite in all of the last "
                f"{lost} steps; {CURE}"
            )

    def _report(self, finished: FinishedStep, seconds: float, metrics: dict[str, float]) -> None:
        """Log a step, with what an evaluation after it measured, and show it."""
        own = finished.work.metrics
        speed = finished.tokens / seconds
        steps = finished.step + 1
        # Metrics of the work itself (RL's samples) are of this step alone, and are counted from the log.
        is_logged = steps % self.plan.log_every == 0 or steps == self.plan.steps
        if is_logged or metrics or own:
            self.callback.on_log(steps, metrics | self._training_metrics(finished, speed) | own)
        self.callback.on_progress(steps, {"loss": finished.loss, "tokens_per_second": speed} | own)

    def _training_metrics(self, finished: FinishedStep, speed: float) -> dict[str, float]:
        """The logged metrics of a step. speed: its tokens per second."""
        return {
            "train/loss": finished.loss,
            "train/grad_norm": finished.grad_norm,
            "train/lr_factor": finished.lr_factor,
            "train/tokens": self.position.tokens,
            "train/seconds": self.position.seconds,
            "train/tokens_per_second": speed,
            "train/mfu": speed * self.plan.flops_per_token / self.plan.peak_flops,
            "train/peak_memory_bytes": peak_memory_bytes(self.model.device),
            "train/nonfinite": self.position.nonfinite,
            "train/data_wait_seconds": self._data_wait(),
        }

    def _evaluate(self, step: int) -> dict[str, float]:
        """The callbacks' metrics after `step` steps; their time does not count for the next step."""
        if not self.callback.is_due(step):
            return {}
        began = time.perf_counter()
        self._evaluating = True
        self.model.eval()
        with self.optimizer.evaluated():
            metrics = self.callback.evaluate(step)
        self.model.train(self.objective.dropout)
        self._evaluating = False
        taken = time.perf_counter() - began
        self.position.seconds += taken
        self._clock += taken
        return metrics

    def _data_wait(self) -> float:
        """Seconds that steps have waited for their work so far; 0 where it is made in the step itself."""
        if self._prefetcher is None or not self.objective.pure:
            return 0.0
        return self._prefetcher.waited

    def _between_steps(self, finite: bool) -> None:
        """Save when it is time, stop when asked to."""
        done = self.position.step >= self.plan.steps
        stop, due = parallel.any_rank(*self._wishes())
        if (finite and (due or stop)) or done:
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
            log = self.callback.before_save()
        except OSError as error:
            self.store.note_failure(self.position.step, error)
            return
        self.store.save(self.position.step, tensors, values, log)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory taken so far: by torch on CUDA, by the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return most_resident()
