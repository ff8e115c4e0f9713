"""`paribus tune`: Optuna over any dotted keys, at a fixed budget, within a memory budget. The only import of optuna.

A trial is a process (`study/trial.py`); this one proposes, watches, prunes and records. What a study knows is in Optuna's
storage and in `.paribus/tune/NAME`, so any number of workers may come and go: one that is killed leaves a trial without
heartbeat, which the next asks again with the same values and goes on from its training state.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from paribus import runtime, tracking
from paribus.config import Config, fingerprint, flatten, resolve_model, resolve_pretrain
from paribus.errors import UserError
from paribus.graph import dvc_hash, tree_digest
from paribus.journal import read_json, read_rows, write_json
from paribus.model.accounting import flops_per_token, parameters
from paribus.plan.estimate import stage_plan
from paribus.plan.memory import max_device_batch
from paribus.plan.probe import here
from paribus.plan.throughput import Device
from paribus.study.outcome import interval, page, write_profile
from paribus.study.space import Study, read_study

HEARTBEAT, GRACE = 5, 20  # seconds: a worker that has been silent for GRACE is taken as dead
TOKENS, TOKENIZER = Path("data/tokens"), Path("data/tokenizer/tokenizer.json")
MAX_SKIPPED = 50  # points in a row that the planner refuses before the space is said to hold none
POLL_SECONDS = 0.1


def storage_url(url: str | None) -> str:
    """The storage asked for; by default a sqlite file in the main checkout."""
    return url or f"sqlite:///{runtime.state_root() / 'tune.db'}"


def open_study(study: Study, url: str | None, *, create: bool = True) -> optuna.Study:
    """Optuna's study of that name. Raises UserError where the storage cannot be had."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    import warnings

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    where = storage_url(url)
    try:
        storage = RDBStorage(where, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                             heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback())
        sampler = optuna.samplers.TPESampler(constant_liar=True, n_startup_trials=8, multivariate=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=25)
        if not create:
            return optuna.load_study(study_name=study.name, storage=storage, sampler=sampler, pruner=pruner)
        return optuna.create_study(study_name=study.name, storage=storage, sampler=sampler, pruner=pruner,
                                   load_if_exists=True, direction="minimize")
    except KeyError:
        raise UserError(f"{where}: no study {study.name!r} yet; `paribus tune run {study.name}` begins it") from None
    except ModuleNotFoundError as error:
        raise UserError(f"{where}: needs the package {error.name}; pip install it, or leave --storage out") from None
    except Exception as error:  # SQLAlchemy and its drivers each have errors of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--storage {where}: not to be had: {lines[0][:200]}") from None


# ---------------------------------------------------------------- running


def run(name: str, *, url: str | None = None, trials: int | None = None, worker: bool = False) -> None:
    """Run trials until the study has as many as its file says. worker: one of several; no re-test, no report."""
    study = read_study(name)
    study = replace(study, trials=trials or study.trials)
    _need_data()
    optuna_study = open_study(study, url)
    _same_study(study, optuna_study)
    device, dtype = here(study.config())
    _smallest_fits(study, device, dtype)
    _enqueue(study, optuna_study, url)
    objective = Objective(study, device, dtype)
    try:
        while _counted(optuna_study) < study.trials:
            if _running(optuna_study) + _counted(optuna_study) >= study.trials:
                time.sleep(1.0)  # others are at the last ones; should one of them die, its trial comes to us
                optuna.storages.fail_stale_trials(optuna_study)
                if not any(trial.state == TrialState.WAITING for trial in optuna_study.get_trials(deepcopy=False)):
                    continue
            optuna_study.optimize(objective, n_trials=1, catch=())
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(f"--storage {storage_url(url)}: lost ({str(error).splitlines()[0][:150]}); trials so far are kept, "
                        "the one under way has its training state: run the same command again") from None
    if not worker:
        retest(study, optuna_study, device, dtype)
        report(name, url)


def _need_data() -> None:
    missing = [str(path) for path in (TOKENS, TOKENIZER) if not path.exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: does not exist; `dvc repro tokens` makes what trials train on")


def _same_study(study: Study, optuna_study: optuna.Study) -> None:
    """Trials of one study answer one question: same data, same budget, same settings, or another name."""
    question = {"budget": {study.budget: study.amount}, "memory": study.memory, "overrides": study.overrides,
                "base": fingerprint(config=flatten(study.config())), "data": tree_digest([TOKENS, TOKENIZER])}
    before = optuna_study.user_attrs.get("question")
    if before is None:
        optuna_study.set_user_attr("question", question)
    elif before != question:
        changed = ", ".join(key for key in question if before.get(key) != question[key])
        raise UserError(f"study {study.name}: {changed} changed since it began, so that its trials would not compare; give the "
                        "study's file another name")


def _counted(optuna_study: optuna.Study) -> int:
    """Trials that were run: those the planner refused cost nothing and do not count."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return sum("skipped" not in trial.user_attrs for trial in optuna_study.get_trials(deepcopy=False, states=done))


def _running(optuna_study: optuna.Study) -> int:
    return len(optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _smallest_fits(study: Study, device: Device, dtype: str) -> None:
    """Raises UserError if not even the cheapest corner of the space is within the budget."""
    corner = {key: min(spread["choices"], key=_size) if "choices" in spread else spread["low"]
              for key, spread in study.space.items()}
    least = stage_plan(study.config(corner), "pretrain", device, dtype).memory.total
    if least > study.memory:
        raise UserError(f"study {study.name}: memory: {study.memory / 2**20:,.0f} MiB is below the smallest model of the space "
                        f"({least / 2**20:,.0f} MiB by `paribus plan`)")


def _size(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _enqueue(study: Study, optuna_study: optuna.Study, url: str | None) -> None:
    """Begin with the default, then with the best of earlier studies; what is outside the space is left out."""
    if optuna_study.user_attrs.get("begun"):
        return
    flat = flatten(study.config())
    starts = [{key: flat[key] for key in study.space}]
    for name in study.warm_start:
        earlier = open_study(replace(study, name=name), url, create=False)
        starts += [trial.params for trial in _ranked(earlier)[:1]]
    for start in starts:
        known = {key: value for key, value in start.items() if key in study.space and _inside(value, study.space[key])}
        optuna_study.enqueue_trial(known, skip_if_exists=True)
    optuna_study.set_user_attr("begun", True)


def _inside(value: Any, spread: dict[str, Any]) -> bool:
    if "choices" in spread:
        return value in spread["choices"]
    return isinstance(value, (int, float)) and spread["low"] <= value <= spread["high"]


def suggest(trial: Trial, space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A value for every key of the space."""
    values: dict[str, Any] = {}
    for key, spread in space.items():
        if "choices" in spread:
            values[key] = trial.suggest_categorical(key, spread["choices"])
        elif isinstance(spread["low"], int) and isinstance(spread["high"], int):
            values[key] = trial.suggest_int(key, spread["low"], spread["high"], step=spread.get("step", 1),
                                            log=spread.get("log", False))
        else:
            values[key] = trial.suggest_float(key, spread["low"], spread["high"], log=spread.get("log", False),
                                              step=spread.get("step"))
    return values


class Objective:
    """Plans a point, then trains it in a process of its own."""

    def __init__(self, study: Study, device: Device, dtype: str) -> None:
        self.study, self.device, self.dtype, self.skipped = study, device, dtype, 0

    def __call__(self, trial: Trial) -> float:
        values = suggest(trial, self.study.space)
        try:
            config = self.study.config(values)
        except UserError as error:  # fine one by one and not together
            self._skip(trial, str(error), 1.0, 0.0)
        planned = stage_plan(config, "pretrain", self.device, self.dtype)
        if planned.memory.total > self.study.memory:
            saved = budget_seconds(self.study, config, planned.tokens_per_second or 1.0)
            self._skip(trial, f"planned {planned.memory.total:,} bytes", planned.memory.total / self.study.memory - 1, saved)
        self.skipped = 0
        origin = (RetryHeartbeatStaleTrialCallback.retry_history(_frozen(trial)) or [trial.number])[0]
        trial.set_user_attr("origin", origin)
        trial.set_user_attr("predicted_memory_bytes", planned.memory.total)
        return self._train(trial, config, trial_folder(self.study.name, origin))

    def _skip(self, trial: Trial, why: str, excess: float, seconds: float) -> None:
        self.skipped += 1
        trial.set_user_attr("skipped", why)
        trial.set_user_attr("seconds_saved", seconds)
        trial.set_constraint("memory", excess)
        if self.skipped >= MAX_SKIPPED:
            raise UserError(f"study {self.study.name}: {MAX_SKIPPED} points in a row were refused, the last: {why}; "
                            "raise memory or narrow the space")
        raise optuna.TrialPruned(why)

    def _train(self, trial: Trial, config: Config, folder: Path) -> float:
        folder.mkdir(parents=True, exist_ok=True)
        job = job_of(self.study, config)
        write_json(folder / "trial.json", job)
        with child_log(self.study, config, folder, {"trial": str(trial.number)}) as log:
            try:
                result = watch(folder, trial, log)
            except optuna.TrialPruned:
                log.finish("KILLED")
                raise
            peak = result["peak_memory_bytes"]
            trial.set_user_attr("peak_memory_bytes", peak)
            over = bool(result.get("out_of_memory")) or peak > self.study.memory
            trial.set_constraint("memory", max(peak / self.study.memory - 1, 1e-6) if over else peak / self.study.memory - 1)
            log.summary(result)
            if over:
                log.finish("KILLED")
                trial.set_user_attr("infeasible", f"reached {peak:,} of {self.study.memory:,} bytes")
                raise optuna.TrialPruned("over the memory budget")
            for key in ("steps", "tokens", "seconds", "tokens_per_second"):
                trial.set_user_attr(key, result[key])
            if not math.isfinite(result["val_bpb"]):
                raise optuna.TrialPruned("not finite")
            return float(result["val_bpb"])


def _frozen(trial: Trial) -> FrozenTrial:
    """`retry_history` wants a trial as the storage has it, not a live one."""
    return trial.study.trials[trial.number]


def trial_folder(name: str, number: int) -> Path:
    return runtime.state_root() / "tune" / name / f"trial-{number:04d}"


def job_of(study: Study, config: Config, kind: str = "train") -> dict[str, Any]:
    """What a trial's process is told."""
    from paribus.data.tokenizer import Tokenizer

    vocab = Tokenizer.load(TOKENIZER).vocab_size
    schedule = resolve_pretrain(config.pretrain, parameters(resolve_model(config.model), vocab)["total"], config.model.seq_len)
    assert schedule.batch_tokens
    steps = None
    if study.budget != "seconds":
        tokens = study.amount if study.budget == "tokens" else study.amount / flops_per_token(config.model, vocab)
        steps = max(int(tokens / schedule.batch_tokens), 1)
    values = _nested(replace(config, pretrain=schedule))
    return {"kind": kind, "config": values, "vocab_size": vocab, "tokens": str(TOKENS.resolve()),
            "tokenizer": str(TOKENIZER.resolve()), "memory": study.memory, "steps": steps,
            "seconds": study.amount if study.budget == "seconds" else None, "parent": os.getpid()}


def _nested(config: Config) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config)


def budget_seconds(study: Study, config: Config, tokens_per_second: float) -> float:
    """What a trial would have taken."""
    if study.budget == "seconds":
        return study.amount
    tokens = study.amount
    if study.budget == "flops":
        tokens /= flops_per_token(config.model, config.tokenizer.vocab_size)
    return tokens / tokens_per_second


# ---------------------------------------------------------------- watching


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The trial's process; what it says goes to FOLDER/output.txt."""
    (folder / "result.json").unlink(missing_ok=True)
    environment = os.environ | {"MALLOC_ARENA_MAX": "2"}  # else each thread reserves memory that the cap would count
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "paribus.study.trial", str(folder)], stdout=output,
                                stderr=subprocess.STDOUT, env=environment)


def watch(folder: Path, trial: Trial | None, log: tracking.RunLog | None) -> dict[str, Any]:
    """Follow a trial to its end. Raises TrialPruned, and UserError with its last words if it crashed."""
    process = start(folder)
    seen = 0
    try:
        while True:
            ended = process.poll() is not None
            rows = read_rows(folder / "curve.jsonl") if (folder / "curve.jsonl").exists() else []
            for row in rows[seen:]:
                if log is not None:
                    log.log(row["step"], {"val/bpb": row["val_bpb"], "train/peak_memory_bytes": row["peak_memory_bytes"]})
                if trial is not None:
                    trial.report(row["val_bpb"], round(100 * row["fraction"]))
            if trial is not None and len(rows) > seen and trial.should_prune():
                raise optuna.TrialPruned(f"behind the median at {rows[-1]['fraction']:.0%}")
            seen = max(seen, len(rows))
            if ended:
                break
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    result = read_json(folder / "result.json")
    if result is None and process.returncode in (-signal.SIGKILL, -signal.SIGABRT):  # the kernel's own way with memory
        peak = max([row["peak_memory_bytes"] for row in rows], default=0)
        return {"out_of_memory": True, "peak_memory_bytes": peak}
    if result is None:
        words = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
        raise UserError([f"{folder}: the trial ended with status {process.returncode}; its last words:", *words[-5:]])
    return result


def child_log(study: Study, config: Config, folder: Path, tags: dict[str, str]) -> tracking.RunLog:
    """An MLflow run for a trial, child of the study's; a trial that goes on keeps its run."""
    os.environ["DVC_EXP_NAME"] = f"tune {study.name}"
    rows = read_rows(folder / "curve.jsonl") if (folder / "curve.jsonl").exists() else []
    data = {str(path): (str(path), dvc_hash(path)) for path in (TOKENS,)}
    root = runtime.state_root()
    name = "-".join(folder.relative_to(root).parts)
    return tracking.RunLog.open("tune", folder=root / "runs" / name, config=study.config(), params=flatten(config),
                                fingerprint=fingerprint(config=flatten(config)), tags={"study": study.name, **tags},
                                datasets=data, resume_step=rows[-1]["step"] if rows else None)


# ---------------------------------------------------------------- the winner's curse


def _ranked(optuna_study: optuna.Study) -> list[FrozenTrial]:
    """Finished, feasible trials, the best first."""
    done = optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted((trial for trial in done if all(value <= 0 for value in trial.constraints.values())),
                  key=lambda trial: trial.value or 0.0)


def retest(study: Study, optuna_study: optuna.Study, device: Device, dtype: str) -> None:
    """Train the best `top` and the default again on fresh seeds: the best of many is better by luck, too."""
    ranked = _ranked(optuna_study)
    if not ranked:
        print(f"study {study.name}: no trial was feasible; nothing to re-test", file=sys.stderr)
        return
    flat = flatten(study.config())
    arms: dict[str, dict[str, Any]] = {f"trial {trial.number}": trial.params for trial in ranked[: study.top]}
    arms["default"] = {key: flat[key] for key in study.space}
    results: dict[str, list[float]] = {}
    for arm, values in arms.items():
        for number in range(study.seeds):
            seed = study.config().seed + 1000 + number
            value = _retest_run(study, arm, values, seed, device, dtype)
            if value is not None:
                results.setdefault(arm, []).append(value)
    claimed = {f"trial {trial.number}": trial.value for trial in ranked[: study.top]}
    optuna_study.set_user_attr("retest", {"claimed": claimed, "values": results, "params": arms})


def _retest_run(study: Study, arm: str, values: dict[str, Any], seed: int, device: Device, dtype: str) -> float | None:
    """Bits per byte of one arm and seed; kept, so that a killed re-test goes on. None: over the memory budget."""
    config = study.config(values | {"seed": seed})
    if stage_plan(config, "pretrain", device, dtype).memory.total > study.memory:
        return None
    folder = runtime.state_root() / "tune" / study.name / "retest" / f"{arm.replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    result = read_json(folder / "result.json")
    if result is None:
        write_json(folder / "trial.json", job_of(study, config))
        with child_log(study, config, folder, {"retest": arm}) as log:
            result = watch(folder, None, log)
            log.summary(result)
    return None if result.get("out_of_memory") else float(result["val_bpb"])


# ---------------------------------------------------------------- what came of it


def summary(study: Study, optuna_study: optuna.Study) -> dict[str, Any]:
    """Counts, the best, claimed against re-tested, and the difference to the default seed by seed."""
    trials = optuna_study.get_trials(deepcopy=False)
    skipped = [trial for trial in trials if "skipped" in trial.user_attrs]
    ranked, again = _ranked(optuna_study), optuna_study.user_attrs.get("retest", {"values": {}})
    found: dict[str, Any] = {
        "study": study.name, "trials": _counted(optuna_study), "complete": len(ranked),
        "refused_by_plan": len(skipped), "minutes_saved": sum(t.user_attrs.get("seconds_saved", 0) for t in skipped) / 60,
        "out_of_memory": sum("infeasible" in trial.user_attrs for trial in trials),
        "retried": sum(trial.state == TrialState.FAIL for trial in trials),
        "best": {"trial": ranked[0].number, "val_bpb": ranked[0].value, "params": ranked[0].params} if ranked else None,
        "retest": {},
    }
    default = again["values"].get("default")
    for arm, values in again["values"].items():
        mean, low, high = interval(values)
        entry: dict[str, Any] = {"claimed": again["claimed"].get(arm), "mean": mean, "low": low, "high": high,
                                 "seeds": len(values), "params": again["params"][arm]}
        if default and arm != "default":
            paired = interval([a - b for a, b in zip(values, default, strict=False)])
            entry["minus_default"] = dict(zip(("mean", "low", "high"), paired, strict=True))
        found["retest"][arm] = entry
    return found


def report(name: str, url: str | None = None) -> None:
    """Print the summary; write the profile, the offline figures, summary.json, and the same to MLflow."""
    from paribus.study.figures import write_figures

    study = read_study(name)
    optuna_study = open_study(study, url, create=False)
    found = summary(study, optuna_study)
    folder = Path("report/tune") / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", found)
    figures = write_figures(optuna_study, folder, study.memory)
    if found["best"]:
        write_profile(study, found)
    with child_log(study, study.config(), runtime.state_root() / "tune" / name / "report", {"report": "true"}) as log:
        log.summary({"trials": found["trials"], "refused_by_plan": found["refused_by_plan"]})
        for path in [folder / "summary.json", *figures]:
            log.artifact(path, "tune")
    print(page(found))


# ---------------------------------------------------------------- the device batch


def batch(memory: str | None, *, json_out: bool = False) -> None:
    """The fastest device batch that fits, tokens per step kept: each candidate is measured in a capped process."""
    from paribus.config import load_config
    from paribus.plan.memory import parse_bytes

    config = load_config()
    device, dtype = here(config)
    budget = parse_bytes(memory, "--memory") if memory else device.memory
    largest = max_device_batch(config, "pretrain", budget, device=device.kind, dtype=dtype)
    if not largest:
        raise UserError(f"--memory: not one row fits {budget / 2**20:,.0f} MiB by `paribus plan`")
    tried = {}
    for rows in sorted({min(2**power, largest) for power in range(largest.bit_length() + 1)}):
        tried[rows] = _speed_of(config, rows, budget)
        if tried[rows].get("out_of_memory"):
            break
    fit = {rows: entry["tokens_per_second"] for rows, entry in tried.items() if "tokens_per_second" in entry}
    if not fit:
        raise UserError(f"--memory: one row needs more than {budget / 2**20:,.0f} MiB")
    best = max(fit, key=lambda rows: fit[rows])
    if json_out:
        print(json.dumps({"device_batch_size": best, "tokens_per_second": fit[best], "tried": tried}, indent=1))
        return
    for rows, entry in tried.items():
        speed = f"{entry['tokens_per_second']:>10,.0f} tokens/s" if rows in fit else "  out of memory      "
        mark = "  <- fastest" if rows == best else ""
        print(f"{rows:>6} rows {speed}  peak {entry['peak_memory_bytes'] / 2**20:>8,.0f} MiB{mark}")
    print(f"set pretrain.device_batch_size to {best}; the step's {config.pretrain.batch_tokens:,} tokens stay")


def _speed_of(config: Config, rows: int, budget: int) -> dict[str, Any]:
    study = Study("batch", 1, "tokens", float(2**62), budget, {}, {}, 1, 1, [])
    changed = replace(config, pretrain=replace(config.pretrain, device_batch_size=rows))
    folder = runtime.state_root() / "tune" / "batch" / f"rows-{rows}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / "curve.jsonl").unlink()
    write_json(folder / "trial.json", job_of(study, changed, "speed"))
    return watch(folder, None, None)
