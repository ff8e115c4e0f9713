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
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError

from paribus.config import Config, fingerprint, flatten
from paribus.errors import UserError
from paribus.journal import write_json
from paribus.machine.interrupt import EXIT_PAUSED, STOPPING, raises
from paribus.plan.estimate import stage_plan
from paribus.plan.probe import here
from paribus.plan.throughput import Device
from paribus.recipe import Recipe
from paribus.study.spaces import inside
from paribus.tune.distributions import check_space
from paribus.tune.launch import (
    data_digest,
    finished,
    folder_of,
    job_of,
    need_data,
    open_log,
    watch,
)
from paribus.tune.note import UNIT, write_note
from paribus.tune.outcome import RETESTS, page, ranked, summary, write_profile
from paribus.tune.space import Study, least_memory, read_study
from paribus.tune.storage import connect, lost_is_told, shown
from paribus.tune.worker import Worker

BEGIN_SECONDS = 10.0  # a worker that made the study has put its starting points in by then, or died


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
                made = optuna.create_study(**settings, direction="minimize")
                made.set_metric_names([UNIT])
                return made, True
        try:
            return optuna.load_study(**settings), False
        except KeyError:
            raise UserError(
                f"{study.name}: not started in {shown(url) if url else 'this checkout'}; "
                f"`paribus tune run {study.name}` begins it"
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
        write_note(study, optuna_study)
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
        with open_log(study, config, folder, f"retest {arm} s{seed}", {"arm": arm}) as log:
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
    study = read_study(name)
    from paribus.tune.figures import write_figures

    optuna_study, _ = open_study(study, url, create=False)
    found = summary(study, optuna_study)
    folder = Path("report/tune") / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", found)
    figures = write_figures(optuna_study, folder, study.memory)
    written = [folder / "summary.json", *figures]
    if found["best"]:
        written.append(write_profile(study, found))
    at = folder_of(name, "report")
    with open_log(study, study.config(), at, f"report {name}", {"report": "true"}) as log:
        log.summary({"trials": found["trials"], "refused_by_plan": found["refused_by_plan"]})
        for path in [folder / "summary.json", *figures]:
            log.artifact(path, "tune")
    print(page(found))
    for path in written:
        print(f"written: {path}")
