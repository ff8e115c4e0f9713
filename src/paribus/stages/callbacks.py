"""What the training stages measure while they train, and where they record it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from paribus import tracking
from paribus.config import Config
from paribus.curriculum import CORPUS
from paribus.progress import Progress
from paribus.recipe import Recipe
from paribus.stages.context import core_is_synthetic
from paribus.train import parallel
from paribus.train.callback import Callback

if TYPE_CHECKING:
    from paribus.data.tokenizer import Tokenizer
    from paribus.evaluate.bpb import HeldOut
    from paribus.files import Extent
    from paribus.generate import Engine
    from paribus.model.gpt import GPT
    from paribus.train.within import Within


class Record(Callback):
    """Rank 0's callback: keeps the run's log and the progress line."""

    def __init__(
        self, log: tracking.RunLog, bar: Progress, within: Within, expected: dict[str, float]
    ) -> None:
        """within: reports to the bar from now on. expected: the planner's predictions for the stage, logged at its start."""
        self.log, self.bar, self.expected = log, bar, expected
        self._within = within
        within.say = bar.within

    def on_start(self) -> dict[str, float]:
        """Return what the plan expects of the run, to be logged at step 0."""
        return self.expected

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics after `step` steps to the run's log; the progress line keeps what an evaluation measured."""
        self.log.log(step, metrics)
        self.bar.measured(metrics)

    def on_progress(self, step: int, metrics: dict[str, float]) -> None:
        """Show the step and its metrics on the progress line."""
        self.bar.update(step, **metrics)

    def on_event(self, step: int, name: str, detail: str) -> None:
        """Add the event of `step` to the run's log: its `name`, and `detail` in words."""
        self.log.event(step, name, detail)

    def within(self, part: str, done: int, total: int) -> None:
        """Pass on that `done` of `total` units of `part` are through."""
        self._within(part, done, total)

    def before_save(self) -> Extent:
        """Write the log to the disk and return how far it reaches."""
        return self.log.sync()

    def on_rollback(self, step: int) -> None:
        """Cut the log back to what it held after `step` steps."""
        self.log.rewind(step)


class Validation(Callback):
    """Bits per byte on some held-out documents, every `pretrain.eval_every` steps but the last."""

    def __init__(self, held_out: HeldOut, recipe: Recipe) -> None:
        self.held_out, self.schedule = held_out, recipe.pretrain
        self.steps = recipe.steps("pretrain")

    def is_due(self, step: int) -> bool:
        """After every `pretrain.eval_every` steps but the last, as the stage's end evaluates the final weights."""
        every = self.schedule.eval_every
        return every > 0 and step % every == 0 and step < self.steps

    def evaluate(self, step: int) -> dict[str, float]:
        """Bits per byte of the held-out documents, measured on rank 0 while the others wait."""

        def measure() -> dict[str, float]:
            return {"val/bpb": self.held_out.bits_per_byte(self.schedule.eval_tokens)}

        return parallel.leads(self.held_out.model, measure)


class CoreEstimate(Callback):
    """CORE on a few items of each task, every `pretrain.core_every` steps.

    It draws from none of the training's generators, so that the weights are the same with it and without.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, recipe: Recipe, within: Within) -> None:
        """If estimates are configured, check the bundle before any training. Raises UserError for a bad one."""
        from paribus.data.core_bundle import read_bundle

        self.model, self.tokenizer, self.within_evaluation = model, tokenizer, within
        self.schedule = recipe.pretrain
        self.batch_size = recipe.config.eval.core.batch_size
        if self.schedule.core_every:
            most = self.schedule.core_max_per_task
            read_bundle(CORPUS / "core", most, complete=core_is_synthetic())

    def is_due(self, step: int) -> bool:
        """After every `pretrain.core_every` steps; 0 turns the estimate off."""
        every = self.schedule.core_every
        return every > 0 and step % every == 0

    def evaluate(self, step: int) -> dict[str, float]:
        """The estimate of CORE, measured on rank 0 while the others wait."""
        return parallel.leads(self.model, self._estimate)

    def _estimate(self) -> dict[str, float]:
        from paribus.evaluate.core import evaluate_core

        found = evaluate_core(
            self.model,
            self.tokenizer,
            CORPUS / "core",
            max_per_task=self.schedule.core_max_per_task,
            batch_size=self.batch_size,
            synthetic=core_is_synthetic(),
            on_progress=self.within_evaluation,
        ).summary()
        name = "core_partial" if found["partial"] else "core"
        return {f"val/{name}": found[name], "val/core_stderr": found["core_stderr"]}


class Watch(Callback):
    """RL's accuracy on problems held out of its training: at the start, the end and every `rl.watch_every` steps.

    Greedy answers; at the start and the end sampled ones too, for pass@k.
    """

    def __init__(
        self, engine: Engine, problems: list[dict[str, str]], config: Config, within: Within
    ) -> None:
        self.engine, self.problems, self.config = engine, problems, config
        self.within_evaluation = within

    def on_start(self) -> dict[str, float]:
        """Accuracy before the first step, with sampled answers too."""
        return self._on_rank_0(lambda: self._accuracy(sample=True))

    def is_due(self, step: int) -> bool:
        """After every `rl.watch_every` steps, and after the last."""
        every = self.config.rl.watch_every
        return self._is_last(step) or (every > 0 and step % every == 0)

    def evaluate(self, step: int) -> dict[str, float]:
        """Accuracy of greedy answers, after the last step of sampled ones too."""
        return self._on_rank_0(lambda: self._accuracy(sample=self._is_last(step)))

    def _is_last(self, step: int) -> bool:
        return step == self.config.rl.steps

    def _on_rank_0(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        return parallel.leads(self.engine.model, measure)

    def _accuracy(self, *, sample: bool) -> dict[str, float]:
        from paribus.evaluate.gsm8k import evaluate_gsm8k

        rl = self.config.rl
        self.engine.model.eval()
        settings = dataclasses.replace(
            self.config.eval.gsm8k,
            questions=None,
            max_new_tokens=rl.max_new_tokens,
            rows=rl.rollout_rows,
            sampled_questions=None if sample else 0,
        )
        summary = evaluate_gsm8k(
            self.engine,
            self.problems,
            settings,
            stage="rl",
            seed=self.config.seed,
            within=self.within_evaluation,
        ).summary
        metrics = {"watch/accuracy": summary["accuracy"]}
        if sample:
            for name, value in summary.items():
                if name.startswith("pass_at_"):
                    metrics[f"watch/{name}"] = value
        return metrics
