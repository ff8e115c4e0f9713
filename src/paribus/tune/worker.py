"""One worker of a study: asks Optuna for points, plans them, and trains those that fit in processes of their own."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from paribus import tracking
from paribus.config import Config
from paribus.errors import UserError
from paribus.journal import Row, read_json
from paribus.plan.estimate import stage_plan
from paribus.plan.probe import calibrated
from paribus.plan.throughput import Device
from paribus.recipe import Recipe
from paribus.tune.distributions import all_points, suggest
from paribus.tune.launch import (
    Discarded,
    TrialCrashed,
    folder_of,
    job_of,
    open_log,
    planned_seconds,
    watch,
)
from paribus.tune.outcome import counted, is_skipped, ranked, values_words
from paribus.tune.space import Study
from paribus.tune.storage import GRACE, HEARTBEAT, LOST, RETRY

MAX_SKIPPED = 50  # points in a row that the planner refuses before the space counts as holding none
MAX_REPEATS = 20  # points in a row that were trained before until the study ends
MAX_CRASHES = 3  # of one trial's process, before it is given up


class Dropped(Exception):
    """This trial does not run: the reason is kept with it, and it does not count."""


class Worker:
    """Asks for points, plans them, trains those that fit in processes of their own."""

    def __init__(
        self, study: Study, optuna_study: optuna.Study, device: Device, dtype: str
    ) -> None:
        self.study, self.optuna, self.device, self.dtype = study, optuna_study, device, dtype
        self.skipped = 0
        self.repeated = 0
        self.granted: set[int] = set()

    def work(self) -> None:
        """Run trials until the study has all of them.

        While other workers are at the last ones, this one waits: should a worker die, this one takes over its trial.
        """
        while True:
            self.take_up_dead()
            trials = self.optuna.get_trials(deepcopy=False)
            if counted(self.optuna) >= self.study.trials:
                return
            if self.repeated >= MAX_REPEATS:
                print(
                    f"study {self.study.name}: ended after {counted(self.optuna)} trials: the last {MAX_REPEATS} points "
                    "proposed were trained before, or none is left; widen the space for more",
                    file=sys.stderr,
                )
                return
            states = [trial.state for trial in trials]
            under_way = states.count(TrialState.RUNNING) + counted(self.optuna)
            if TrialState.WAITING not in states and under_way >= self.study.trials:
                time.sleep(1.0)
                continue
            trial = self.optuna.ask()
            with heartbeat(self.optuna, trial):
                self._one(trial)

    def take_up_dead(self) -> None:
        """Put the trials of dead workers back, to be asked again with their values.

        Optuna does so for a trial whose heartbeat has stopped. Two kinds it never sees: one whose worker died before the
        first beat, which gets one beat here, to fall silent; and one whose finder died before putting it back.
        """
        optuna.storages.fail_stale_trials(self.optuna)
        trials = self.optuna.get_trials(deepcopy=False)
        put_back: set[int] = set()
        for trial in trials:
            put_back.update(RETRY.retry_history(trial))
        for trial in trials:
            given_up = trial.number in put_back or "dropped" in trial.user_attrs
            beat_before = trial.user_attrs.get("alive") == trial.number
            if trial.state == TrialState.FAIL and not given_up:
                RETRY()(self.optuna, trial)
            elif (
                trial.state == TrialState.RUNNING
                and not beat_before
                and trial.number not in self.granted
            ):
                self.granted.add(trial.number)
                _beat(self.optuna, trial)

    def _say(self, trial: Trial, outcome: str) -> None:
        """Print how a trial ended, how many there are, and the best so far."""
        best = ranked(self.optuna)[:1]
        so_far = f"; best: trial {best[0].number}, {best[0].value:.4f}" if best else ""
        done = f"{counted(self.optuna)} of {self.study.trials} done"
        print(
            f"trial {trial.number}: {outcome} ({values_words(trial.params)}); {done}{so_far}",
            file=sys.stderr,
            flush=True,
        )

    def _one(self, trial: Trial) -> None:
        """Run a trial and store its outcome. After an exception a worker takes it up again."""
        try:
            trial.set_user_attr("alive", trial.number)
            value = self._objective(trial)
            self.optuna.tell(trial, value)
            self._say(trial, f"{value:.4f} bits per byte")
        except optuna.TrialPruned as why:
            trial.set_user_attr("why", str(why))
            self.optuna.tell(trial, state=TrialState.PRUNED)
            self._say(trial, f"pruned: {why}")
        except Dropped as why:
            trial.set_user_attr("dropped", str(why))
            self.optuna.tell(trial, state=TrialState.FAIL)
        except TrialCrashed as crash:
            self._crashed(trial, crash)
        except UpdateFinishedTrialError:
            print(
                f"study {self.study.name}: trial {trial.number} was taken up by another worker, as this one had been silent "
                f"for more than {GRACE} s",
                file=sys.stderr,
            )

    def _crashed(self, trial: Trial, crash: TrialCrashed) -> None:
        """Stop the study: the cause is likely here to stay, and the trial can go on when it is fixed."""
        crashes = trial.user_attrs.get("crashes", 0) + 1
        trial.set_user_attr("crashes", crashes)
        if crashes < MAX_CRASHES:
            raise UserError(
                [
                    *crash.problems,
                    "run the same command again when that is fixed: the trial goes on",
                ]
            )
        trial.set_user_attr("dropped", crash.problems[-1])
        self.optuna.tell(trial, state=TrialState.FAIL)
        raise UserError(
            [
                *crash.problems,
                f"the trial is given up after {crashes} crashes; the same command goes on with others",
            ]
        )

    def _objective(self, trial: Trial) -> float:
        """Bits per byte. Raises TrialPruned, Dropped, TrialCrashed."""
        origin = (RETRY.retry_history(_frozen(trial)) or [trial.number])[0]
        self.admit(trial, origin)
        values = suggest(trial, self.study.space)
        self._refuse_repeat(trial, origin, values)
        try:
            config = self.study.config(values)
        except UserError as error:  # fine one by one and not together
            self._skip(trial, str(error), 1.0, 0.0)
        recipe = Recipe.of(config)
        calibrated_device = calibrated(recipe, self.device, self.dtype)
        planned = stage_plan(recipe, "pretrain", calibrated_device, self.dtype)
        if planned.memory.total > self.study.memory:
            saved = planned_seconds(self.study, config, planned.tokens_per_second or 1.0)
            self._skip(
                trial,
                f"planned {planned.memory.total:,} bytes",
                planned.memory.total / self.study.memory - 1,
                saved,
            )
        self.skipped = 0
        trial.set_user_attr("predicted_memory_bytes", planned.memory.total)
        speed = planned.tokens_per_second or 1.0
        expected = {
            "predicted/memory_bytes": float(planned.memory.total),
            "predicted/tokens_per_second": speed,
            "predicted/seconds": planned_seconds(self.study, config, speed),
        }
        return self._train(
            trial, config, expected, folder_of(self.study.name, f"trial-{origin:04d}")
        )

    def admit(self, trial: Trial, origin: int) -> None:
        """Of workers that ask at the same moment, the one with the lower number goes on. Raises Dropped."""
        trial.set_user_attr("origin", origin)
        before = [
            earlier
            for earlier in self.optuna.get_trials(deepcopy=False)
            if earlier.number < trial.number
            and earlier.state != TrialState.FAIL
            and not is_skipped(earlier)
        ]
        if origin != trial.number:
            if any(earlier.user_attrs.get("origin") == origin for earlier in before):
                raise Dropped("another worker has it")
        elif len(before) >= self.study.trials:
            raise Dropped("the study has its trials")

    def _refuse_repeat(self, trial: Trial, origin: int, values: Mapping[str, object]) -> None:
        """A point that another trial was trained at, or is, would come to the same result. Raises TrialPruned."""
        for earlier in self.optuna.get_trials(deepcopy=False)[: trial.number]:
            same = earlier.params == values and earlier.state != TrialState.FAIL
            if same and earlier.user_attrs.get("origin") != origin and not is_skipped(earlier):
                self.repeated += 1
                for name, value in earlier.constraints.items():
                    trial.set_constraint(name, value)
                trial.set_user_attr("skipped", f"the point of trial {earlier.number}")
                trial.set_user_attr("repeats", earlier.number)
                self._propose_untried()
                raise optuna.TrialPruned(f"the point of trial {earlier.number}")
        self.repeated = 0

    def _propose_untried(self) -> None:
        """Of a space of few points, queue one that no trial has: a sampler that has found the best comes back to it."""
        points = all_points(self.study.space)
        if points is None:
            return
        tried = [trial.params for trial in self.optuna.get_trials(deepcopy=False)]
        untried = [point for point in points if point not in tried]
        if untried:
            self.optuna.enqueue_trial(untried[len(tried) % len(untried)], skip_if_exists=True)
        else:
            self.repeated = MAX_REPEATS

    def _skip(self, trial: Trial, why: str, excess: float, seconds: float) -> None:
        self.skipped += 1
        trial.set_user_attr("skipped", why)
        trial.set_user_attr("seconds_saved", seconds)
        trial.set_constraint("memory", excess)
        if self.skipped >= MAX_SKIPPED:
            self.optuna.tell(trial, state=TrialState.PRUNED)
            raise UserError(
                f"study {self.study.name}: {MAX_SKIPPED} points in a row were refused, the last: {why}; "
                "raise memory or narrow the space"
            )
        raise optuna.TrialPruned(why)

    def _train(
        self, trial: Trial, config: Config, expected: dict[str, float], folder: Path
    ) -> float:
        folder.mkdir(parents=True, exist_ok=True)
        job = job_of(config, self.study.memory, {self.study.budget: self.study.amount})
        values = [f"{key}={_brief(value)}" for key, value in trial.params.items()]
        name = f"trial {trial.number}: {' '.join(values)}"
        with open_log(self.study, config, folder, name, {"trial": str(trial.number)}) as log:
            try:
                result = watch(folder, job, Reporter(trial, log, expected))
            except Discarded as why:
                self._note(trial, read_json(folder / "start.json") or {})
                log.finish("KILLED")
                raise optuna.TrialPruned(str(why)) from None
            return self._result(trial, log, result | (read_json(folder / "start.json") or {}))

    def _result(self, trial: Trial, log: tracking.RunLog, result: dict[str, Any]) -> float:
        """Keep the outcome with the trial and its run."""
        log.summary(result)
        peak = result["peak_memory_bytes"]
        over = bool(result.get("out_of_memory")) or peak > self.study.memory
        excess = peak / self.study.memory - 1
        trial.set_constraint("memory", max(excess, 1e-6) if over else excess)
        self._note(trial, result)
        if not over and math.isfinite(result.get("val_bpb", math.nan)):
            return float(result["val_bpb"])
        log.finish("KILLED")
        if over:
            trial.set_user_attr("infeasible", f"reached {peak:,} of {self.study.memory:,} bytes")
            raise optuna.TrialPruned("over the memory budget")
        raise optuna.TrialPruned(result.get("diverged", "not finite"))

    def _note(self, trial: Trial, found: Mapping[str, object]) -> None:
        for key in (
            "steps",
            "tokens",
            "seconds",
            "tokens_per_second",
            "peak_memory_bytes",
            "went_on_from_step",
        ):
            if key in found:
                trial.set_user_attr(key, found[key])


def _brief(value: object) -> str:
    """A value of a trial as its name shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Reporter:
    """What a trial's curve is for: its log, and whether it is worth going on. Also notes if another has taken the trial."""

    def __init__(self, trial: Trial, log: tracking.RunLog, expected: dict[str, float]) -> None:
        self.trial, self.log = trial, log
        self.logged = max((int(row["step"]) for row in log.rows()), default=-1)
        if self.logged < 0:
            log.log(0, expected)  # what the plan says, beside what it will take
        self.looked = time.monotonic()

    def __call__(self, rows: list[Row]) -> None:
        """Raises Discarded to prune, UpdateFinishedTrialError where the trial is no longer ours."""
        for row in rows:
            if row["step"] > self.logged:
                self.log.log(
                    row["step"],
                    {
                        "val/bpb": row["val_bpb"],
                        "train/peak_memory_bytes": row["peak_memory_bytes"],
                    },
                )
            self.trial.report(row["val_bpb"], round(100 * row["fraction"]))
        if rows and self.trial.should_prune():
            raise Discarded(f"behind the median at {rows[-1]['fraction']:.0%} of the steps")
        if time.monotonic() - self.looked > HEARTBEAT:
            self.looked = time.monotonic()
            if _frozen(self.trial).state.is_finished():
                raise UpdateFinishedTrialError


def _frozen(trial: Trial) -> FrozenTrial:
    """A trial as the storage has it."""
    return trial.study.get_trials(deepcopy=False)[trial.number]


@contextlib.contextmanager
def heartbeat(optuna_study: optuna.Study, trial: Trial) -> Iterator[None]:
    """Report every few seconds that the trial's worker lives. A short absence of the storage is no reason to stop.

    Args:
        optuna_study: where the trial is.
        trial: that is being run.
    """
    over = threading.Event()

    def beats() -> None:
        while not over.wait(HEARTBEAT):
            with contextlib.suppress(*LOST):
                _beat(optuna_study, trial)

    _beat(optuna_study, trial)
    thread = threading.Thread(target=beats, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(optuna_study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    storage: Any = optuna_study._storage
    storage.record_heartbeat(trial._trial_id)
