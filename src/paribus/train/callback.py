"""Callbacks: the moments of a training run at which other code takes part in it."""

from __future__ import annotations

from collections.abc import Sequence

from paribus.files import Extent


class Callback:
    """Takes part in a training run. The methods do nothing here; override those you need.

    The loop calls each method on every rank that has the callback. A callback for one report (a log, a progress bar)
    belongs to rank 0 alone; one that measures on all ranks together belongs to all. A callback may read the model, on
    its device; it leaves weights, gradients, and torch's generators as they are.
    """

    def on_start(self) -> dict[str, float]:
        """Before the first step of a run that begins, not of one that goes on from a saved state.

        Returns metrics, which are logged at step 0.
        """
        return {}

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after `step` steps. The answer depends on `step` alone, so that all ranks agree.

        Called once or twice after every step, possibly before the device is through with it: keep it quick.
        """
        return False

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the weights after `step` steps; called where `is_due(step)`, the model in evaluation mode.

        They are logged with those of the step. A step that is undone later has been evaluated all the same.
        """
        return {}

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics after `step` steps, of the training and of every `evaluate`; not of every step (`train.log_every`)."""

    def on_progress(self, step: int, metrics: dict[str, float]) -> None:
        """After every step: its loss, the speed, and the metrics of its own work."""

    def on_event(self, step: int, name: str, detail: str) -> None:
        """Something out of the ordinary in `step`: `nonfinite`, `rollback` or `processes`, with what happened in words."""

    def within(self, part: str, done: int, total: int) -> None:
        """Between the parts of a step: `done` of `total` passes, rows or answers are through.

        Raises Abandoned to give up the step: a stop was requested, and the step would take too long. Takes microseconds.
        """

    def before_save(self) -> Extent | None:
        """Before a state is saved, on rank 0: bring the log that leads to the state to the disk.

        Returns the extent of the log, which the state names; None: there is no log. Raises OSError where the disk
        refuses; the state is then not saved.
        """
        return None

    def on_rollback(self, step: int) -> None:
        """The run went back to its state after `step` steps: forget what was logged after that."""


class Callbacks(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_start(self) -> dict[str, float]:
        """Metrics of all callbacks; of two with one name the later callback's counts."""
        metrics: dict[str, float] = {}
        for callback in self.callbacks:
            metrics |= callback.on_start()
        return metrics

    def is_due(self, step: int) -> bool:
        """Whether any callback is due after `step` steps."""
        return any(callback.is_due(step) for callback in self.callbacks)

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the callbacks that are due after `step` steps."""
        metrics: dict[str, float] = {}
        for callback in self.callbacks:
            if callback.is_due(step):
                metrics |= callback.evaluate(step)
        return metrics

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Pass `step` and its `metrics` on to every callback."""
        for callback in self.callbacks:
            callback.on_log(step, metrics)

    def on_progress(self, step: int, metrics: dict[str, float]) -> None:
        """Pass `step` and its `metrics` on to every callback."""
        for callback in self.callbacks:
            callback.on_progress(step, metrics)

    def on_event(self, step: int, name: str, detail: str) -> None:
        """Pass the event of `step`, its `name` and `detail`, on to every callback."""
        for callback in self.callbacks:
            callback.on_event(step, name, detail)

    def within(self, part: str, done: int, total: int) -> None:
        """Pass `part`, `done` and `total` on to every callback; the first that raises Abandoned ends the step."""
        for callback in self.callbacks:
            callback.within(part, done, total)

    def before_save(self) -> Extent | None:
        """The extent of the log of the last callback that has one."""
        log = None
        for callback in self.callbacks:
            log = callback.before_save() or log
        return log

    def on_rollback(self, step: int) -> None:
        """Pass on that the run went back to its state after `step` steps."""
        for callback in self.callbacks:
            callback.on_rollback(step)
