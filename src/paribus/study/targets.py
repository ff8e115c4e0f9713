"""`metric: steps_to:3.28`: the amount of compute at which a run's curve reaches a target, also where it never does.

A run that ends before the target is no missing value: its time is longer than it ran (censored.py). So it has a place in the
verdict, and arm and baseline are compared by the likelihood of all their times, reached or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from paribus.config import Config
from paribus.errors import UserError
from paribus.recipe import Recipe
from paribus.study.censored import CensoredDifference, Reach, Times, crossing, paired_times
from paribus.study.experiment import Experiment, Metric
from paribus.study.fields import shown
from paribus.study.sample import OwnSample, Sample, Unmatched

CURVE = "plots/pretrain.csv"
MEASURE = "val_bpb"
NO_TARGET = "a target is a metric of ablations alone, as a run may never reach it"
# Known differences from which matched runs are judged by them. Fewer leave a spread with one degree of freedom; then the times of
# both arms are two groups, which errs on the safe side where matched times go together.
FEWEST_PAIRS = 3
AMOUNTS = {  # metric -> (what is counted along the curve, unit)
    "steps_to": ("step", "steps"),
    "tokens_to": ("tokens", "tokens"),
    "flops_to": ("flops", "FLOPs"),
    "seconds_to": ("seconds", "seconds"),
}


def is_target(name: object) -> bool:
    """Whether a metric is an amount of compute to a target: `steps_to:3.28`."""
    return str(name).partition(":")[0] in AMOUNTS


def read_target(name: object, stages: Sequence[str], problems: list[str]) -> Metric:
    """The metric of a target.

    Args:
        name: as the file has it.
        stages: that run.
        problems: the list that receives the messages.
    """
    kind, _, text = str(name).partition(":")
    axis, unit = AMOUNTS[kind]
    try:
        target = float(text)
    except ValueError:
        target = math.nan
    if not (math.isfinite(target) and target > 0):
        problems.append(
            f"metric: {shown(name)}: expected a target of the curve in bits per byte, as {kind}:3.28"
        )
        target = 1.0
    if stages and "pretrain" not in stages:
        problems.append(
            f"metric: {shown(name)} is read along pretraining, and the stages chosen are {', '.join(stages)}"
        )
    return Metric(str(name), CURVE, axis, unit, target)


def target_problems(experiment: Experiment) -> list[str]:
    """Arms whose curve would have no points to read a target from.

    Args:
        experiment: the study.
    """
    if experiment.metric.target is None:
        return []
    problems = []
    for arm in experiment.names:
        if not experiment.config(arm).pretrain.eval_every:
            problems.append(
                f"metric: {experiment.metric.name} is read from the points of the curve, and {arm} has none: set "
                "pretrain.eval_every"
            )
    return problems


def reach_of(
    metric: Metric, curve: Sequence[Mapping[str, float | None]], config: Config
) -> Reach | None:
    """When a run's curve reaches the metric's target; None where the curve has no point.

    Args:
        metric: with its target.
        curve: rows of the curve of pretraining.
        config: of the run.
    """
    assert metric.target is not None
    places, values = [], []
    for row in curve:
        value, place = row.get(MEASURE), _place(metric.key, row, config)
        if value is not None and place is not None and math.isfinite(value):
            places.append(place)
            values.append(value)
    return crossing(places, values, metric.target, "lower") if places else None


def _place(axis: str, row: Mapping[str, float | None], config: Config) -> float | None:
    if axis != "flops":
        return row.get(axis)
    step, tokens = row.get("step"), row.get("tokens")
    if not step or not tokens:
        return None
    return step * Recipe.of(config).step_flops(round(tokens / step))


# ---------------------------------------------------------------- differences of times


@dataclass(frozen=True)
class CensoredSample(Sample):
    """Differences of times of which some are only bounded; `mean` is the likeliest, or the bounds' own where it is infinite.

    Attributes:
        likelihood: of the difference.
    """

    likelihood: CensoredDifference | None = None

    @property
    def usable(self) -> bool:
        """False: it has no plain standard deviation, so that other arms are not lent one either."""
        return False

    def p(self) -> float:
        """Two-sided p of no difference, by the likelihood ratio."""
        return 1.0 if self.likelihood is None else self.likelihood.p()

    def p_below(self, bound: float, sign: int = 1) -> float:
        """One-sided p of "sign times the difference is at least bound", by the likelihood ratio."""
        if self.likelihood is None or self.likelihood.df < 1:
            return 1.0
        return float(stats.t.cdf(sign * self.likelihood.t_at(sign * bound), self.likelihood.df))

    def p_equivalent(self, margin: float) -> float:
        """TOST: the larger p of "at least margin" and "at most -margin"."""
        return max(self.p_below(margin), self.p_below(margin, -1))

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval of the difference; infinite on a side that the runs do not bound."""
        if self.likelihood is None or alpha <= 0:
            return -math.inf, math.inf
        return self.likelihood.interval(alpha)


class TargetTimes(OwnSample):
    """Differences of the times to a target, arm - baseline at each seed.

    Args:
        baseline: when its curves reach the target.
        arm: when its do, at the same seeds.
        matched: whether runs of a seed share anything.
    """

    def __init__(self, baseline: Sequence[Reach], arm: Sequence[Reach], matched: bool) -> None:
        super().__init__(own.time - base.time for base, own in zip(baseline, arm, strict=True))
        self.baseline, self.arm, self.matched = list(baseline), list(arm), matched

    def sample(self) -> Sample:
        """The sample: Student's where every curve reached the target, else by the likelihood of censored times."""
        if all(one.known == "reached" for one in (*self.baseline, *self.arm)):
            if self.matched:
                return Sample.of(list(self))
            times = [[one.time for one in runs] for runs in (self.baseline, self.arm)]
            return Unmatched(*times).sample()
        likelihood = self._likelihood()
        mean = float(np.mean(self))
        if likelihood.known:
            likeliest = likelihood.estimate()
            mean = likeliest if math.isfinite(likeliest) else mean
        return CensoredSample(len(self), mean, None, matched=self.matched, likelihood=likelihood)

    def _likelihood(self) -> CensoredDifference:
        if self.matched:
            differences = paired_times(self.baseline, self.arm)
            if differences.known >= FEWEST_PAIRS:
                return CensoredDifference((differences,))
        return CensoredDifference((Times.of(self.baseline), Times.of(self.arm)))


def times_of(pairs: Sequence[tuple[Any, Any]], matched: bool) -> TargetTimes:
    """The times of matched runs.

    Args:
        pairs: results of the baseline and of the arm, each with its `reach`.
        matched: whether runs of a seed share anything.
    """
    return TargetTimes([base.reach for base, _ in pairs], [own.reach for _, own in pairs], matched)


# ---------------------------------------------------------------- what the runs reached


def reached_notes(experiment: Experiment, results: Sequence[Any]) -> list[str]:
    """How many runs of each arm reached the target, in sentences; none where all did.

    Args:
        experiment: the study.
        results: of its runs.
    """
    target = experiment.metric.target
    with_reach = [one for one in results if one.reach is not None]
    if target is None or all(one.reach.known == "reached" for one in with_reach):
        return []
    parts, early = [], []
    for arm in experiment.names:
        own = [one for one in with_reach if one.arm == arm]
        got_there = [one for one in own if one.reach.known != "not reached"]
        parts.append(f"{arm} {len(got_there)} of {len(own)}")
        early += [one.name for one in own if one.reach.known == "before the first point"]
    notes = [
        f"runs that reached {target:g}: {', '.join(parts)}; those that did not are not left out: their {experiment.metric.unit} "
        "are at least what they ran, and the table of pairs shows that bound"
    ]
    if early:
        notes.append(
            f"{', '.join(early)}: at {target:g} or below at the first point of the curve already; a smaller "
            "pretrain.eval_every shows when"
        )
    return notes


def check_within_curves(experiment: Experiment, results: Sequence[Any]) -> None:
    """Refuse a target that no curve of a study crosses: its amounts would all be bounds of nothing.

    Args:
        experiment: the study.
        results: of its runs.

    Raises:
        UserError: with the values between which a target has to lie.
    """
    metric = experiment.metric
    reaches = [one.reach for one in results if one.reach is not None]
    if metric.target is None or not reaches or any(one.known == "reached" for one in reaches):
        return
    points = [row[MEASURE] for one in results for row in one.curve if row.get(MEASURE) is not None]
    finite = [value for value in points if value is not None and math.isfinite(value)]
    where = "below" if reaches[0].known == "not reached" else "above"
    raise UserError(
        f"{experiment.file}: metric: {metric.name}: {metric.target:g} lies {where} all curves: the {len(reaches)} runs that are "
        f"done have {MEASURE} from {max(finite):.4f} to {min(finite):.4f}; choose a target in between, nearer to the end"
    )
