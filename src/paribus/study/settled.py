"""A running study: the values that are decided once for all of its runs, and the runs it needs next."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from paribus.errors import UserError
from paribus.files import Optional, Shape, Values, read_json
from paribus.journal import write_json
from paribus.machine.hardware import available_cores, detect_hardware
from paribus.study.budget import (
    MEASURED,
    measure_step,
    measure_token,
    pretrain_steps,
    steps_for,
    text_problems,
)
from paribus.study.compute import unneeded
from paribus.study.events import folder_of, given_up
from paribus.study.experiment import BASELINE, Experiment, Run
from paribus.study.identity import chain_key
from paribus.study.ladder import judge
from paribus.study.outcomes import Outcomes
from paribus.study.record import recorded
from paribus.study.results import Codes, Result, codes_of, collect, done
from paribus.study.sequence import Step, steps
from paribus.study.timing import time_in_turns


@dataclass
class Study:
    """A running ablation: its settled values, its results, and its next runs."""

    experiment: Experiment
    settled: dict[str, Any]  # threads, steps of each arm, an open study's goal: decided once
    known: dict[tuple[str, int], Run] = field(default_factory=dict)

    def run(self, arm: str, number: int) -> Run:
        """A run, complete with the settled values.

        Args:
            arm: its name, or that of a group.
            number: of the seed, from 0.
        """
        if (arm, number) not in self.known:
            self.known[arm, number] = self._run(arm, number)
        return self.known[arm, number]

    def _run(self, arm: str, number: int) -> Run:
        extra: dict[str, Any] = {}
        if self.settled["threads"]:
            extra["train.threads"] = self.settled["threads"]
        steps = self.settled["steps"].get(arm)
        if steps:
            extra["pretrain.steps"] = steps
        return self.experiment.run(arm, number, extra)

    def groups_planned(self) -> list[str]:
        """Groups of runs that the study needs whatever its results."""
        horizons = self.experiment.horizons
        planned = {1.0, *(horizons.first if horizons else ())}
        groups = self.experiment.groups
        return [name for name, group in groups.items() if group.scale in planned]

    def runs(self, seeds: int, arms: Sequence[str] | None = None) -> list[Run]:
        """Runs of all groups of some arms, seed by seed.

        Args:
            seeds: how many, from the first.
            arms: their names; all by default.
        """
        groups = self.experiment.groups_of(arms or self.experiment.names)
        runs = []
        for number in range(seeds):
            for name in groups:
                runs.append(self.run(name, number))
        return runs

    @cached_property
    def code(self) -> Codes:
        """The key of today's code of every arm."""
        return codes_of(self.experiment)

    @cached_property
    def record(self) -> tuple[Step, ...]:
        """The looks that were taken before."""
        return recorded(self.experiment.name)

    def wanted(self, results: Sequence[Result]) -> list[Run]:
        """The runs that the results so far call for.

        A study with looks needs the seeds of its first look, and those of the next only for arms without a verdict;
        so its runs follow from its results alone, and are the same after any interruption. An open study needs those up to
        its goal.
        """
        return self._runs_to(results, self._goal(results))

    def possible(self, results: Sequence[Result]) -> list[Run]:
        """Every run that the study may call for up to its last look, or an open one up to its goal."""
        return self.runs(self._goal(results))

    def aim(self, results: Sequence[Result], looks: int) -> int:
        """Set the goal of an open study, so many looks from the first that is not complete, and return its seeds.

        Args:
            results: so far.
            looks: how many.
        """
        goal = self.experiment.seeds.first
        for step in steps(self.experiment, self.record):
            goal = step.seeds
            runs = self._runs_to(results, goal)
            all_decided = max(run.seed for run in runs) < self.experiment.first_seed + goal - 1
            if self._missing(results, runs):
                looks -= 1
            if looks == 0 or all_decided:
                break
        self.settled["goal"] = goal
        return goal

    def _runs_to(self, results: Sequence[Result], goal: int) -> list[Run]:
        """The runs up to the look after `goal` seeds, or up to the first that is not complete."""
        experiment = self.experiment
        asked: dict[str, Run] = {}
        open_arms = list(experiment.arms)
        needless = unneeded(experiment, self._done(results))
        for step in steps(experiment, self.record):
            if step.seeds > goal or not open_arms:
                break
            for run in self.runs(step.seeds, [BASELINE, *open_arms]):
                if run.arm not in needless:
                    asked[run.name] = run
            runs = list(asked.values())
            if self._missing(results, runs):
                break
            have = done(results, runs, self.code)
            outcomes = Outcomes.of(list(have.values()), runs, given_up(experiment.name, runs))
            found = judge(experiment, outcomes, self.record, upto=step.seeds)
            open_arms = [arm for arm in open_arms if found.is_open(arm)]
        return list(asked.values())

    def _done(self, results: Sequence[Result]) -> list[Result]:
        """The results that count, of the seeds of the first look."""
        runs = self.runs(self.experiment.seeds.first)
        return list(done(results, runs, self.code).values())

    def _missing(self, results: Sequence[Result], runs: Sequence[Run]) -> set[str]:
        """Names of runs that have neither ended nor been given up."""
        have = done(results, runs, self.code)
        return (
            {run.name for run in runs} - have.keys() - given_up(self.experiment.name, runs).keys()
        )

    def _goal(self, results: Sequence[Result]) -> int:
        """Seeds beyond which no run is wanted unless it is asked for."""
        schedule = self.experiment.seeds
        if schedule.last is not None:
            return schedule.last
        seeds = [result.seed for result in results if not result.superseded]
        begun = max(seeds, default=0) - self.experiment.first_seed + 1
        return max(self.settled.get("goal") or 0, schedule.after(begun - 1) or 0)


COUNTED: Shape = {"key": str, "bytes": (int, float)}
TIMED: Shape = {"key": str, "seconds": (int, float), "error": Optional((int, float))}
# study.json: its values are computed again where the file is lost or damaged.
_SETTLED = {
    "threads": Optional((int, type(None))),
    "goal": Optional((int, type(None))),
    "steps": Optional(Values(int)),
    "step_seconds": Optional(Values(TIMED)),
    "token_bytes": Optional(Values(COUNTED)),
}


def _read_settled(experiment: Experiment) -> dict[str, object]:
    return read_json(folder_of(experiment.name) / "study.json", _SETTLED) or {}


def settle(experiment: Experiment, workers: int) -> dict[str, object]:
    """The values that are decided once for all runs: threads of each, and steps of an equal budget.

    Args:
        experiment: the study.
        workers: runs side by side, which share the cores.

    Raises:
        UserError: where whole steps of an arm miss the bytes of text that are held equal.
    """
    path = folder_of(experiment.name) / "study.json"
    known = _read_settled(experiment)
    if "threads" not in known:
        known["threads"] = _threads(experiment, workers)
    if experiment.equal == "seconds":
        known["step_seconds"] = _timed(experiment, known)
    if experiment.equal == "bytes":
        counted = _counted(experiment, known)
        known["token_bytes"] = counted
        bytes_of_token = {arm: entry["bytes"] for arm, entry in counted.items()}
        if problems := text_problems(experiment, bytes_of_token):
            raise UserError(problems)
    known["steps"] = derived_steps(experiment, known)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known)
    return known


def _threads(experiment: Experiment, workers: int) -> int | None:
    """Threads of every run on a CPU: those of the runs there are, else the cores shared among the workers."""
    train = experiment.config().train
    if detect_hardware(train).device != "cpu":
        return None
    seen: Counter[int] = Counter()
    for result in collect(experiment):
        hardware = result.provenance.hardware
        if hardware.get("device") == "cpu" and isinstance(hardware.get("threads"), int):
            seen[hardware["threads"]] += 1
    if seen:
        return seen.most_common(1)[0][0]
    return train.threads or max(available_cores() // workers, 1)


def _counted(experiment: Experiment, known: dict[str, Any]) -> dict[str, Any]:
    """Arm -> {key, bytes of a token}; counted again where its corpus or tokenizer has changed, once for arms that share both."""
    before: dict[str, Any] = known.get("token_bytes") or {}
    by_key = {entry["key"]: entry["bytes"] for entry in before.values()}
    counted = {}
    for arm in experiment.names:
        config = experiment.config(arm)
        key = chain_key(["corpus", "tokenizer"], config)
        if key not in by_key:
            print(f"{experiment.name}: counting the bytes of {arm}'s tokens", file=sys.stderr)
            by_key[key] = measure_token(config)
        counted[arm] = {"key": key, "bytes": by_key[key]}
    return counted


def _timed(experiment: Experiment, known: dict[str, Any]) -> dict[str, Any]:
    """Arm -> {key, seconds of a step, error}; measured again, beside the baseline, where its pretraining has changed."""
    seconds: dict[str, Any] = dict(known.get("step_seconds") or {})
    keys = {arm: chain_key(["pretrain"], experiment.config(arm)) for arm in experiment.names}
    stale = [arm for arm in experiment.names if seconds.get(arm, {}).get("key") != keys[arm]]
    if not stale:
        return seconds
    print(f"{experiment.name}: measuring a step of {', '.join(stale)} in turns", file=sys.stderr)
    extra = {"train.threads": known["threads"]} if known["threads"] else {}
    timed = [BASELINE, *(arm for arm in stale if arm != BASELINE)]
    settled = None if BASELINE in stale else float(seconds[BASELINE]["seconds"])
    configs = {arm: experiment.config(arm, extra) for arm in timed}
    found = time_in_turns(configs, measure_step, settled)
    for arm in stale:
        of_step, error = found[arm]
        seconds[arm] = {"key": keys[arm], "seconds": of_step, "error": error}
    return seconds


def derived_steps(experiment: Experiment, known: dict[str, Any]) -> dict[str, int]:
    """Group of runs -> steps of pretraining, where it needs a number other than its own.

    Args:
        experiment: the study.
        known: what is settled, seconds of a step and bytes of a token among it.
    """
    measured = _measured_of_arms(experiment, known)
    steps_of = {}
    for name, group in experiment.groups.items():
        where = experiment.on_rung(group.rung)
        own = pretrain_steps(where.config(group.arm))[0]
        steps = round(group.scale * (steps_for(where, group.arm, measured) or own))
        if steps != own:
            steps_of[name] = max(steps, 1)
    return steps_of


def _measured_of_arms(experiment: Experiment, known: dict[str, Any]) -> dict[str, float] | None:
    """Arm -> seconds of a step or bytes of a token, whichever holds the budget equal; None where neither is known or needed."""
    entries = known.get(MEASURED.get(experiment.equal, ""))
    if not entries:
        return None
    return {arm: entry[experiment.equal] for arm, entry in entries.items()}


def keep_goal(study: Study) -> None:
    """Keep an open study's goal, for `paribus ablate status` and the next call after a kill."""
    path = folder_of(study.experiment.name) / "study.json"
    write_json(path, _read_settled(study.experiment) | {"goal": study.settled["goal"]})


def study_of(experiment: Experiment) -> Study:
    """The study with its settled values, or those that are known before its first run."""
    known = _read_settled(experiment)
    known.setdefault("threads", None)
    if "steps" not in known:
        known["steps"] = derived_steps(experiment, known)
    return Study(experiment, known)
