"""The parts of a study with equal tuning: its trials, and the study with the values that they pick.

Trials are runs like any other. Optuna (TPE) only suggests their values, in rounds: those of a round follow from the results of
the rounds before, so that they are the same whoever runs them, in whatever order they end, and after any kill.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from paribus.config import flatten
from paribus.errors import UserError
from paribus.study.arms import Arm
from paribus.study.budget import pretrain_steps, steps_for
from paribus.study.events import GivenUp, given_up
from paribus.study.experiment import BASELINE, Experiment, Run, own_seeds
from paribus.study.results import Result, collect, done
from paribus.study.settled import Study, study_of
from paribus.study.spaces import distribution, inside, is_whole
from paribus.study.tuning import TRIALS, UNTUNED, Space, Tuning

if TYPE_CHECKING:
    import optuna

ROUND = 4  # trials of an arm that are suggested together, and may run side by side
FIGURES = 3  # significant, of a suggested number: what a person would write
EDGE = 0.05  # of a range, from its end: a best that lies there may have a better beyond


@dataclass(frozen=True)
class Trial:
    """One trial of an arm.

    Attributes:
        number: from 0.
        values: dotted key -> value that it was run with.
        scores: of the metric, at the first tuning seed and, where it was run again, the second; None: it has no finite one.
        ended: whether nothing of it is to be run any more.
    """

    number: int
    values: dict[str, Any]
    scores: tuple[float | None, ...]
    ended: bool

    @property
    def score(self) -> float | None:
        """The mean over its tuning seeds; None where one of them has no finite value."""
        known = [score for score in self.scores if score is not None]
        if not known or len(known) < len(self.scores):
            return None
        return sum(known) / len(known)


@dataclass(frozen=True)
class Tuned:
    """How an arm was tuned.

    Attributes:
        space: what it reads of the study's space.
        trials: in order.
        best: that its verdict is on; None while trials are to be run, or where none has a finite metric.
    """

    space: Space
    trials: tuple[Trial, ...]
    best: Trial | None

    @property
    def ended(self) -> bool:
        """Whether every trial whose values are known has ended."""
        return all(trial.ended for trial in self.trials)

    def on_edge(self) -> list[str]:
        """Keys whose best value lies on the edge of the space, each with the edge."""
        if self.best is None:
            return []
        found = []
        for key, spread in self.space.items():
            edge = edge_of(spread, self.best.values[key])
            if edge:
                found.append(f"{key} = {self.best.values[key]:g} ({edge} end of its range)")
        return found


def edge_of(spread: Mapping[str, Any], value: Any) -> str:
    """At which end of a range a value lies: `lower`, `upper` or ""; "" for choices, which have no order.

    Args:
        spread: range or choices.
        value: of the key.
    """
    if "choices" in spread:
        return ""
    low, high = float(spread["low"]), float(spread["high"])
    place = float(value)
    if spread.get("log"):
        low, high, place = math.log(low), math.log(high), math.log(place)
    part = (place - low) / (high - low)
    if part <= EDGE:
        return "lower"
    return "upper" if part >= 1 - EDGE else ""


# ---------------------------------------------------------------- the parts


def trials_part(experiment: Experiment) -> Experiment:
    """The study of the trials: an arm for each of them.

    Args:
        experiment: a study with `tune`, as its file has it.
    """
    tuning = tuning_of(experiment)
    name = experiment.name + TRIALS
    arms = {}
    for arm in experiment.names:
        own = experiment.arms[arm] if arm != BASELINE else Arm({})
        for number in range(tuning.trials):
            arms[name_of_trial(arm, number)] = own
    seed = tuning.seed
    if seed is None:
        seed = experiment.config().seed + own_seeds(name)
    return replace(
        experiment, name=name, of=experiment.name, arms=arms, seeds_from=seed, warnings=[]
    )


def name_of_trial(arm: str, number: int) -> str:
    """The name of a trial of an arm, as an arm of the study of trials."""
    return f"{arm}-t{number:02d}"


def untuned_part(experiment: Experiment) -> Experiment:
    """The study as its file has it, without tuning."""
    return replace(
        experiment,
        name=experiment.name + UNTUNED,
        of=experiment.name,
        seeds_from=experiment.first_seed,
        warnings=[],
    )


def tuned_part(experiment: Experiment, tuned: Mapping[str, Tuned]) -> Experiment:
    """The study with the values that each arm's trials picked.

    Args:
        experiment: as its file has it.
        tuned: arm -> how it was tuned, all of them to the end.
    """
    best = {arm: one.best.values for arm, one in tuned.items() if one.best is not None}
    base = experiment.base | best[BASELINE]
    arms = {}
    for arm, definition in experiment.arms.items():
        what = definition.as_one or ", ".join(sorted(definition.overrides) or ["code"])
        arms[arm] = replace(
            definition,
            overrides=definition.overrides | best[arm],
            as_one=f"{what}, the arm and the baseline each tuned",
        )
    return replace(experiment, base=base, arms=arms)


def names_of_parts(experiment: Experiment) -> list[str]:
    """The names that the parts of a study have for DVC and the journal, in the order in which they run."""
    if experiment.tune is None:
        return [experiment.name]
    return [experiment.name + TRIALS, experiment.name, experiment.name + UNTUNED]


def tuning_of(experiment: Experiment) -> Tuning:
    """The tuning of a study that has one."""
    assert experiment.tune is not None
    return experiment.tune


# ---------------------------------------------------------------- the trials


@dataclass
class TrialStudy(Study):
    """The trials of a study: which are done, what they gave, and which are next.

    Args:
        experiment: the part with the trials.
        settled: threads of each run.
        whole: the study that they are of.
    """

    whole: Experiment = field(kw_only=True)

    def wanted(self, results: Sequence[Result]) -> list[Run]:
        """The trials whose values are known by now, done or not, arm by arm in turn."""
        of_arms = [runs for runs, _ in self._all(results).values()]
        return [run for turn in _in_turn(of_arms) for run in turn]

    def possible(self, results: Sequence[Result]) -> list[Run]:
        """The same: others are not known yet."""
        return self.wanted(results)

    def tuned(self, results: Sequence[Result]) -> dict[str, Tuned]:
        """Arm -> how far it is tuned.

        Args:
            results: of all finished runs of the part.
        """
        return {arm: tuned for arm, (_, tuned) in self._all(results).items()}

    def _all(self, results: Sequence[Result]) -> dict[str, tuple[list[Run], Tuned]]:
        ended = _Ended(self, results)
        return {arm: self._arm(arm, ended) for arm in self.whole.names}

    def _arm(self, arm: str, ended: _Ended) -> tuple[list[Run], Tuned]:
        """(runs of an arm whose values are known, how far it is tuned)."""
        tuning, space = tuning_of(self.whole), self.spaces[arm]
        runs: list[Run] = []
        trials: list[Trial] = []
        for values in self._suggested(arm, trials):
            number = len(trials)
            try:
                run = self._trial(arm, number, values, 0)
            except UserError:  # values that are fine one by one and not together
                trials.append(Trial(number, values, (None,), True))
                continue
            runs.append(run)
            trials.append(Trial(number, values, (ended.value(run),), ended.has(run)))
        complete = len(trials) == tuning.trials and all(trial.ended for trial in trials)
        if not complete:
            return runs, Tuned(space, tuple(trials), None)
        leading = ranked(trials, self.whole.direction)[: tuning.pick]
        if tuning.pick > 1:
            for trial in leading:
                run = self._trial(arm, trial.number, trial.values, 1)
                runs.append(run)
                again = replace(
                    trial, scores=(*trial.scores, ended.value(run)), ended=ended.has(run)
                )
                trials[trial.number] = again
            leading = [trials[trial.number] for trial in leading]
        best = None
        if all(trial.ended for trial in leading):
            best = next(iter(ranked(leading, self.whole.direction)), None)
        return runs, Tuned(space, tuple(trials), best)

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """Arm -> what it tunes."""
        tuning = tuning_of(self.whole)
        return {arm: tuning.space_of(self.whole, arm) for arm in self.whole.names}

    def _trial(self, arm: str, number: int, values: Mapping[str, object], seed: int) -> Run:
        """A run of a trial. seed: number of its tuning seed."""
        name = name_of_trial(arm, number)
        if (name, seed) not in self.known:
            extra = dict(values)
            if self.settled["threads"]:
                extra["train.threads"] = self.settled["threads"]
            point = _at_values(self.whole, arm, values)
            steps = steps_for(point, arm)
            if steps and steps != pretrain_steps(point.config(arm))[0]:
                extra["pretrain.steps"] = steps
            self.known[name, seed] = self.experiment.run(name, seed, extra)
        return self.known[name, seed]

    # ------------------------------------------------------------ suggestions

    def _suggested(self, arm: str, trials: Sequence[Trial]) -> Iterator[dict[str, Any]]:
        """The values of an arm's trials, one after another, as far as they are known.

        Args:
            arm: its name.
            trials: of which each is added before the next is requested.
        """
        space = self.spaces[arm]
        study = _optuna_study(self.whole, arm)
        own = flatten(self.whole.config(arm))
        start = {key: own[key] for key in space if inside(own[key], space[key])}
        study.enqueue_trial(start)
        shapes = {key: distribution(key, spread) for key, spread in space.items()}
        count = tuning_of(self.whole).trials
        for first in range(0, count, ROUND):
            asked = []
            for number in range(first, min(first + ROUND, count)):
                suggestion = study.ask(shapes)
                asked.append(suggestion)
                values = {
                    key: rounded(key, value, space[key]) for key, value in suggestion.params.items()
                }
                yield values | start if number == 0 else values
            mine = trials[first:]
            if not all(trial.ended for trial in mine):
                return
            for suggestion, trial in zip(asked, mine, strict=True):
                _tell(study, suggestion, trial)


def _at_values(experiment: Experiment, arm: str, values: Mapping[str, object]) -> Experiment:
    """The study with an arm at other values."""
    if arm == BASELINE:
        return replace(experiment, base=experiment.base | dict(values))
    definition = experiment.arms[arm]
    changed = replace(definition, overrides=definition.overrides | dict(values))
    return replace(experiment, arms=experiment.arms | {arm: changed})


def _optuna_study(experiment: Experiment, arm: str) -> optuna.Study:
    """A study in memory whose suggestions follow from the names and the results alone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=ROUND,
        multivariate=True,
        constant_liar=True,
        seed=zlib.crc32(f"{experiment.name}.{arm}".encode()),
    )
    lower = experiment.direction == "lower"
    return optuna.create_study(sampler=sampler, direction="minimize" if lower else "maximize")


def _tell(study: optuna.Study, suggestion: optuna.trial.Trial, trial: Trial) -> None:
    """Report a trial to Optuna; one without a finite metric counts as pruned, which is worse than any that has one."""
    from optuna.trial import TrialState

    if trial.scores[0] is None:
        study.tell(suggestion, state=TrialState.PRUNED)
    else:
        study.tell(suggestion, trial.scores[0])


def rounded(key: str, value: Any, spread: Mapping[str, Any]) -> Any:
    """A suggested value with FIGURES significant digits, within its range.

    Args:
        key: dotted.
        value: as suggested.
        spread: its range or choices.
    """
    if "choices" in spread or is_whole(key) or "step" in spread:
        return value
    short = float(f"{value:.{FIGURES}g}")
    return min(max(short, float(spread["low"])), float(spread["high"]))


def ranked(trials: Sequence[Trial], direction: str) -> list[Trial]:
    """Trials with a finite metric, the best first; of equals the earlier.

    Args:
        trials: of one arm.
        direction: "lower" or "higher" is better.
    """
    sign = 1 if direction == "lower" else -1
    known = [
        (sign * trial.score, trial.number, trial) for trial in trials if trial.score is not None
    ]
    return [trial for _, _, trial in sorted(known, key=lambda one: one[:2])]


def _in_turn(of_arms: Sequence[Sequence[Run]]) -> Iterator[list[Run]]:
    """The first run of every arm, then the second of every arm, and so on."""
    for number in range(max(map(len, of_arms), default=0)):
        yield [runs[number] for runs in of_arms if number < len(runs)]


class _Ended:
    """Which trials have ended, and with what.

    Args:
        study: of trials.
        results: of all its finished runs.
    """

    def __init__(self, study: TrialStudy, results: Sequence[Result]) -> None:
        self.study, self.results = study, results

    def value(self, run: Run) -> float | None:
        """The metric of a run; None where it has no finite one."""
        found = done(self.results, [run], self.study.code)
        return found[run.name].value if run.name in found else None

    def has(self, run: Run) -> bool:
        """Whether a run has ended, or was given up."""
        if done(self.results, [run], self.study.code):
            return True
        failures: dict[str, GivenUp] = given_up(self.study.experiment.name, [run])
        return bool(failures)


# ---------------------------------------------------------------- how far it is


def trial_study(experiment: Experiment, settled: dict[str, Any] | None = None) -> TrialStudy:
    """The trials of a study.

    Args:
        experiment: the study, as its file has it.
        settled: values that are decided once; None: those that are known.
    """
    part = trials_part(experiment)
    known = study_of(replace(part, equal="none")).settled if settled is None else settled
    return TrialStudy(part, known, whole=experiment)


def tuning_so_far(experiment: Experiment) -> dict[str, Tuned]:
    """Arm -> how far it is tuned, by the results that there are.

    Args:
        experiment: the study, as its file has it.
    """
    study = trial_study(experiment)
    return study.tuned(collect(study.experiment))


def settled_by_tuning(experiment: Experiment) -> Experiment:
    """The study that is judged: with the values that its trials picked, where it is tuned to the end; else as it is.

    Args:
        experiment: a study as its file has it.

    Raises:
        UserError: where every trial of an arm ended without a finite metric.
    """
    if experiment.tune is None:
        return experiment
    tuned = tuning_so_far(experiment)
    hopeless = [arm for arm, one in tuned.items() if one.ended and one.best is None]
    if hopeless:
        raise UserError(
            f"{experiment.name}: no trial of {arm} has a finite {experiment.metric.name}; `paribus ablate status "
            f"{experiment.name}` shows how they ended, `--retry` tries them again"
            for arm in hopeless
        )
    if any(one.best is None for one in tuned.values()):
        return experiment
    return tuned_part(experiment, tuned)


def parts(experiment: Experiment) -> list[Study]:
    """The studies that one consists of, as far as they are known, in the order in which they run.

    Args:
        experiment: the study, as its file has it.
    """
    if experiment.tune is None:
        return [study_of(experiment)]
    trials = trial_study(experiment)
    if any(one.best is None for one in tuning_so_far(experiment).values()):
        return [trials]
    judged = settled_by_tuning(experiment)
    return [trials, study_of(judged), study_of(untuned_part(experiment))]
