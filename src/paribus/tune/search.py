"""`paribus tune`: Optuna over any dotted keys, at a fixed budget, within a memory budget.

Optuna is imported in this package alone.

A trial is a process (`tune/trial.py`); this one proposes, watches, prunes and records. What a study knows is in Optuna's
storage and in `.paribus/tune/NAME`, so any number of workers may come and go. However one ends before its trial does
(kill -9, Ctrl-C, a lost storage), its trial falls silent, and the next worker asks it again with the same values and goes
on from its training state.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from paribus import tracking
from paribus.config import Config, fingerprint, flatten
from paribus.errors import UserError
from paribus.journal import Row, read_json, write_json
from paribus.machine.interrupt import EXIT_PAUSED, STOPPING, raises
from paribus.plan.estimate import stage_plan
from paribus.plan.probe import calibrated, here
from paribus.plan.throughput import Device
from paribus.recipe import Recipe
from paribus.study.spaces import inside
from paribus.tune.distributions import all_points, check_space, suggest
from paribus.tune.launch import (
    Discarded,
    TrialCrashed,
    data_digest,
    finished,
    folder_of,
    job_of,
    need_data,
    open_log,
    planned_seconds,
    watch,
)
from paribus.tune.outcome import RETESTS, counted, is_skipped, page, ranked, summary, write_profile
from paribus.tune.space import Study, least_memory, read_study
from paribus.tune.storage import GRACE, HEARTBEAT, LOST, RETRY, connect, lost_is_told, shown

BEGIN_SECONDS = 10.0  # a worker that made the study has put its starting points in by then, or died
MAX_SKIPPED = 50  # points in a row that the planner refuses before the space counts as holding none
MAX_REPEATS = 20  # points in a row that were trained before until the study ends
MAX_CRASHES = 3  # of one trial's process, before it is given up


# ---------------------------------------------------------------- the study


def open_study(
    study: Study, url: str | None, *, create: bool = True, seed: int | None = None
) -> tuple[optuna.Study, bool]:
    """Optuna's study of that name.

    Args:
        study: the study's file.
        url: of the storage; None: the sqlite file of this checkout.
        create: make it where there is none.
        seed: of the sampler.

    Returns:
        (the study, whether it is new).

    Raises:
        UserError: where there is none and none may be made.
    """
    storage = connect(url)
    settings: dict[str, Any] = {
        "study_name": study.name,
        "storage": storage,
        "sampler": optuna.samplers.TPESampler(
            constant_liar=True, n_startup_trials=8, multivariate=True, seed=seed
        ),
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=25),
    }
    with lost_is_told(url):
        if create:
            with contextlib.suppress(DuplicatedStudyError):
                return optuna.create_study(**settings, direction="minimize"), True
        try:
            return optuna.load_study(**settings), False
        except KeyError:
            raise UserError(
                f"{shown(url)}: no study {study.name!r} yet; `paribus tune run {study.name}` begins it"
            ) from None


# ---------------------------------------------------------------- running


def run(
    name: str,
    *,
    url: str | None = None,
    trials: int | None = None,
    worker: bool = False,
    engine: str = "local",
    workers: int | None = None,
) -> None:
    """Run trials until the study has as many as its file says.

    Args:
        name: of the study.
        url: of the storage; None: the sqlite file of this checkout.
        trials: how many; None: as its file says.
        worker: this is one of several: no re-test, no report.
        engine: `local`, this process; `ray` or `ray:HOST:PORT`, workers on the machines of a Ray cluster, then the re-test
            here.
        workers: on the machines of the cluster; None: one for each machine, or each GPU.
    """
    study = read_study(name)
    study = replace(study, trials=trials or study.trials)
    if workers is not None and engine == "local":
        raise UserError(
            f"--workers {workers}: is for --engine ray; on one machine start `paribus tune run {name} --worker` as often"
        )
    need_data()
    device, dtype = here(Recipe.of(study.config()))
    _smallest_fits(study, device, dtype)
    handler = raises(lambda _: KeyboardInterrupt())
    for number in STOPPING:  # a background job of a shell inherits SIGINT ignored
        signal.signal(number, handler)
    try:
        with lost_is_told(url):
            optuna_study, new = open_study(study, url, seed=None if worker else study.config().seed)
            begin(study, optuna_study, url, new)
            if engine != "local":
                from paribus.tune.machines import work_on_machines

                address = engine.partition(":")[2]
                work_on_machines(address, name, url, trials, workers, study.config())
            Worker(study, optuna_study, device, dtype).work()
            if not worker:
                retest(study, optuna_study, device, dtype)
                report(name, url)
    except KeyboardInterrupt:
        print(
            f"study {name}: stopped; the same command goes on, the trial under way from its training state",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_PAUSED) from None


def _smallest_fits(study: Study, device: Device, dtype: str) -> None:
    """Raises UserError if not even the smallest point of the space is within the budget."""

    def memory(config: Config) -> int:
        return stage_plan(Recipe.of(config), "pretrain", device, dtype).memory.total

    least = least_memory(study, memory)
    if least > study.memory:
        raise UserError(
            f"study {study.name}: memory: {study.memory / 2**20:,.0f} MiB is below the smallest model of the space "
            f"({least / 2**20:,.0f} MiB by `paribus plan`)"
        )


def begin(study: Study, optuna_study: optuna.Study, url: str | None, new: bool) -> None:
    """Store starting points and the question when the study is created; later the question must stay, or the name change."""
    until = time.monotonic() + BEGIN_SECONDS
    while not new and "question" not in optuna_study.user_attrs and time.monotonic() < until:
        time.sleep(0.2)
    question = {
        "budget": {study.budget: study.amount},
        "memory": study.memory,
        "overrides": study.overrides,
        "base": fingerprint(config=flatten(study.config())),
        "data": data_digest(),
    }
    before = optuna_study.user_attrs.get("question")
    if before is None:
        for start in _starts(study, url):
            optuna_study.enqueue_trial(start, skip_if_exists=True)
        optuna_study.set_user_attr("question", question)
    elif before != question:
        changed = ", ".join(key for key in question if before.get(key) != question[key])
        raise UserError(
            f"study {study.name}: {changed} changed since it began, so that its trials would not compare; give the "
            "study's file another name"
        )
    check_space(study, optuna_study)


def _starts(study: Study, url: str | None) -> list[dict[str, object]]:
    """The default, then the best of each earlier study; a value that is outside the space is left to the sampler."""
    flat = flatten(study.config())
    starts = [{key: flat[key] for key in study.space}]
    for name in study.warm_start:
        earlier, _ = open_study(replace(study, name=name), url, create=False)
        starts += [trial.params for trial in ranked(earlier)[:1]]
    return [_inside_space(start, study) for start in starts]


def _inside_space(values: Mapping[str, object], study: Study) -> dict[str, object]:
    """The values that the study's space holds."""
    kept = {}
    for key, value in values.items():
        if key in study.space and inside(value, study.space[key]):
            kept[key] = value
    return kept


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

    def _one(self, trial: Trial) -> None:
        """Run a trial and store its outcome. After an exception a worker takes it up again."""
        try:
            trial.set_user_attr("alive", trial.number)
            value = self._objective(trial)
            self.optuna.tell(trial, value)
        except optuna.TrialPruned as why:
            trial.set_user_attr("why", str(why))
            self.optuna.tell(trial, state=TrialState.PRUNED)
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
        with open_log(self.study, config, folder, {"trial": str(trial.number)}) as log:
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


# ---------------------------------------------------------------- the winner's curse


def retest(study: Study, optuna_study: optuna.Study, device: Device, dtype: str) -> None:
    """Train the best trials and the default again on fresh seeds: the best of many is better by luck, too.

    Args:
        study: the study's file, which says how many, on how many seeds.
        optuna_study: holds the trials, and then the outcome.
        device: on which a model has to fit.
        dtype: of its products.
    """
    best = ranked(optuna_study)
    if not best:
        print(f"study {study.name}: no trial was feasible; nothing to re-test", file=sys.stderr)
        return
    flat = flatten(study.config())
    arms: dict[str, dict[str, object]] = {
        f"trial {trial.number}": trial.params for trial in best[: study.top]
    }
    arms["default"] = {key: flat[key] for key in study.space}
    first = study.config().seed + 1000
    values: dict[str, dict[str, float]] = {}
    lost: dict[str, dict[str, str]] = {}
    for arm, params in arms.items():
        values[arm], lost[arm] = {}, {}
        for seed in range(first, first + study.seeds):
            outcome = _retest_run(study, arm, params, seed, device, dtype)
            if isinstance(outcome, str):
                lost[arm][str(seed)] = outcome
            else:
                values[arm][str(seed)] = outcome
    claimed = {f"trial {trial.number}": trial.value for trial in best[: study.top]}
    optuna_study.set_user_attr(
        RETESTS, {"claimed": claimed, "values": values, "lost": lost, "params": arms}
    )


def _retest_run(
    study: Study, arm: str, values: dict[str, Any], seed: int, device: Device, dtype: str
) -> float | str:
    """Bits per byte of one arm and seed, or the reason for their absence; stored, so that a killed re-test resumes."""
    config = study.config(values | {"seed": seed})
    planned = stage_plan(Recipe.of(config), "pretrain", device, dtype).memory.total
    if planned > study.memory:
        return f"planned at {planned / 2**20:,.0f} MiB, over the memory budget"
    folder = folder_of(study.name, f"retest-{fingerprint(config=flatten(config))[:12]}")
    job = job_of(config, study.memory, {study.budget: study.amount})
    result = finished(folder, job)
    if result is None:
        with open_log(study, config, folder, {"retest": arm}) as log:
            result = watch(folder, job)
            log.summary(result)
    value = result.get("val_bpb", math.nan)
    if math.isfinite(value):
        return float(value)
    if result.get("out_of_memory"):
        return f"over the memory budget at {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    return str(result.get("diverged", "not finite"))


def report(name: str, url: str | None = None) -> None:
    """Print the summary; write the profile, the offline figures, summary.json, and the same to MLflow.

    Args:
        name: of the study.
        url: of the storage; None: the sqlite file of this checkout.
    """
    from paribus.tune.figures import write_figures

    study = read_study(name)
    optuna_study, _ = open_study(study, url, create=False)
    found = summary(study, optuna_study)
    folder = Path("report/tune") / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", found)
    figures = write_figures(optuna_study, folder, study.memory)
    if found["best"]:
        write_profile(study, found)
    with open_log(study, study.config(), folder_of(name, "report"), {"report": "true"}) as log:
        log.summary({"trials": found["trials"], "refused_by_plan": found["refused_by_plan"]})
        for path in [folder / "summary.json", *figures]:
            log.artifact(path, "tune")
    print(page(found))
