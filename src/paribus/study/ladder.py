"""The verdict on an arm over a ladder of sizes: its effect on each rung, the trend, and the effect predicted beyond.

A look is taken when every run of every rung up to it has ended. What a look may spend of alpha is divided by the number of
arms, and both intervals of an arm, of its trend and of its prediction, are at that level, so that a chain of looks makes a
false claim about any arm with a chance of at most alpha for each of the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paribus.study import sequence
from paribus.study.differences import matched
from paribus.study.divergence import Survivors, survivors
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.groups import Ladder, Rung
from paribus.study.outcomes import Outcomes
from paribus.study.sample import Sample
from paribus.study.sequence import Judged, Step
from paribus.study.trend import Answer, Check, Estimate, Trend, answer, check_of


@dataclass(frozen=True)
class RungEffect:
    """An arm's effect on one rung: an estimate, without a verdict.

    Attributes:
        rung: the size.
        seeds: matched, of the differences.
        baseline, values: of the metric at these seeds.
        effect: their mean difference with Student's interval at 1 - alpha; None: no pair is done.
        survivors: runs that diverged.
    """

    rung: Rung
    seeds: tuple[int, ...]
    baseline: tuple[float, ...]
    values: tuple[float, ...]
    effect: Estimate | None
    survivors: Survivors

    @property
    def differences(self) -> list[float]:
        """Arm - baseline at each seed."""
        return [own - base for base, own in zip(self.baseline, self.values, strict=True)]


@dataclass(frozen=True)
class Climb:
    """What the rungs say of one arm.

    Attributes:
        answer: what becomes of its effect at the size not trained.
        rungs: its effect on each, rising in compute.
        seeds: that every rung has, on which the line rests.
        trend: the line; None: fewer than three rungs or two seeds.
        change: its slope for each tenfold of compute, at `level`.
        predicted: the effect at the size not trained, at `level`.
        check: of the largest rung, kept out of a fit of its own.
        level: of the intervals; None where no look was taken, or nothing was left to spend: then they are at alpha, and
            the answer is unknown.
        lost: runs that diverged, in words; "" for none.
    """

    answer: Answer
    rungs: tuple[RungEffect, ...]
    seeds: int
    trend: Trend | None
    change: Estimate | None
    predicted: Estimate | None
    check: Check | None
    level: float | None
    lost: str = ""


@dataclass(frozen=True)
class LadderJudged(Judged):
    """What the looks at a ladder gave; climbs: arm -> what its rungs say."""

    climbs: Mapping[str, Climb] = field(default_factory=dict)

    def is_decided(self, arm: str) -> bool:
        """Whether an arm has an answer."""
        return arm in self.climbs and self.climbs[arm].answer != "unknown"

    def is_open(self, arm: str) -> bool:
        """Whether an arm has results and no answer yet."""
        return arm in self.climbs and self.climbs[arm].answer == "unknown"


def judge(
    experiment: Experiment,
    outcomes: Outcomes,
    record: Sequence[Step] = (),
    upto: int | None = None,
) -> Judged:
    """Take every look of a study that is due, at its arms or at its ladder.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        record: looks that were taken before.
        upto: seeds beyond which there is no look; None: there may be.
    """
    if experiment.ladder is None:
        return sequence.judge(experiment, outcomes, record, upto)
    climbs: dict[str, Climb] = {}
    taken = []
    for step, share in sequence.affordable(experiment, record, upto):
        if _is_due(experiment, outcomes, step):
            taken.append(step)
            level = experiment.alpha * share / len(experiment.arms)
            for arm in _undecided(experiment, climbs, step):
                climbs[arm] = climb(experiment, outcomes, arm, step.seeds, level)
        elif step not in record:
            break
    for arm in experiment.arms:
        if arm not in climbs:
            climbs[arm] = climb(experiment, outcomes, arm, None, None)
    with_runs = {arm: one for arm, one in climbs.items() if any(of.seeds for of in one.rungs)}
    return LadderJudged({}, tuple(taken), with_runs)


def _undecided(experiment: Experiment, climbs: Mapping[str, Climb], step: Step) -> list[str]:
    """The arms without an answer so far, all of whose groups a look covers."""
    arms = []
    for arm in experiment.arms:
        is_covered = set(step.arms) >= set(experiment.groups_of([arm]))
        is_decided = arm in climbs and climbs[arm].answer != "unknown"
        if is_covered and not is_decided:
            arms.append(arm)
    return arms


def _is_due(experiment: Experiment, outcomes: Outcomes, step: Step) -> bool:
    """Whether every run up to a look has ended, of the groups that it looks at and of the baseline on their rungs."""
    first = experiment.first_seed
    wanted = set(range(first, first + step.seeds))
    known = [name for name in step.arms if name in experiment.groups]
    rungs = {experiment.groups[name].rung for name in known}
    of_baseline = [
        name for name in experiment.groups_of([BASELINE]) if experiment.groups[name].rung in rungs
    ]
    return bool(known) and all(wanted <= outcomes.ended(name) for name in [*known, *of_baseline])


def climb(
    experiment: Experiment,
    outcomes: Outcomes,
    arm: str,
    seeds: int | None,
    level: float | None,
) -> Climb:
    """What the rungs say of an arm.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        arm: its name.
        seeds: of the look; None: all that there are.
        level: of the intervals; None: no look was taken.
    """
    ladder = experiment.ladder
    assert ladder is not None
    if seeds is not None:
        outcomes = outcomes.upto(experiment.first_seed + seeds - 1)
    rungs = tuple(_rung_effect(experiment, outcomes, arm, rung) for rung in ladder.rungs)
    whole = set(rungs[0].seeds)
    lost_at = []
    for one in rungs:
        whole &= set(one.seeds)
        sentence = one.survivors.sentence(arm)
        if sentence:
            lost_at.append(f"{sentence} at {ladder.key} {one.rung.value:g}")
    lost = "; ".join(lost_at)
    effects = {}
    for one in rungs:
        pairs = zip(one.seeds, one.differences, strict=True)
        effects[one.rung.flops] = [difference for seed, difference in pairs if seed in whole]
    trend = Trend.of(effects)
    if trend is None:
        return Climb("unknown", rungs, len(whole), None, None, None, None, level, lost)
    at = experiment.alpha if level is None else level
    predicted = trend.at(ladder.beyond.flops, at)
    check = check_of(effects, at)
    said: Answer = "unknown"
    if level is not None and not lost:
        said = answer(trend, predicted, at, experiment.smallest_effect, check)
    change = trend.change(at)
    return Climb(said, rungs, len(whole), trend, change, predicted, check, level, lost)


def _rung_effect(experiment: Experiment, outcomes: Outcomes, arm: str, rung: Rung) -> RungEffect:
    here = on_rung(experiment, outcomes, rung)
    pairs = matched(here.results, arm)
    differences = [(own.value or 0.0) - (base.value or 0.0) for base, own in pairs]
    effect = None
    if differences:
        sample = Sample.of(differences)
        effect = Estimate(sample.mean, *sample.interval(experiment.alpha))
    return RungEffect(
        rung,
        tuple(base.seed for base, _ in pairs),
        tuple(base.value or 0.0 for base, _ in pairs),
        tuple(own.value or 0.0 for _, own in pairs),
        effect,
        survivors(here.results, here.diverged, arm),
    )


def on_rung(experiment: Experiment, outcomes: Outcomes, rung: Rung) -> Outcomes:
    """The outcomes of one rung, under the names of its arms.

    Args:
        experiment: the study.
        outcomes: of all its groups.
        rung: of its ladder.
    """
    arm_of = {
        name: group.arm for name, group in experiment.groups.items() if group.rung == rung.name
    }
    results = [
        replace(result, arm=arm_of[result.arm])
        for result in outcomes.results
        if result.arm in arm_of
    ]
    diverged = {arm_of[name]: seeds for name, seeds in outcomes.diverged.items() if name in arm_of}
    lost = {arm_of[name]: seeds for name, seeds in outcomes.lost.items() if name in arm_of}
    return Outcomes(results, diverged, lost)


def as_json(experiment: Experiment, judged: LadderJudged) -> dict[str, Any]:
    """What a ladder gave as JSON's values; names are a contract, and what is unbounded is null.

    Args:
        experiment: the study.
        judged: what its looks gave.
    """
    ladder = experiment.ladder
    assert ladder is not None
    arms = {}
    for arm, climb in judged.climbs.items():
        rungs = []
        for one in climb.rungs:
            effect = {"seeds": list(one.seeds), "difference": _interval(one.effect)}
            rungs.append(_size(one.rung) | effect)
        check = climb.check
        arms[arm] = {
            "answer": climb.answer,
            "seeds": climb.seeds,
            "level": climb.level,
            "rungs": rungs,
            "change_per_tenfold_compute": _interval(climb.change),
            "predicted": _interval(climb.predicted),
            "kept_out": None
            if check is None
            else {
                "measured": check.measured,
                "predicted": _interval(check.predicted),
                "passed": check.passed,
            },
            "diverged": climb.lost,
        }
    return sizes_of(ladder) | {"arms": arms}


def sizes_of(ladder: Ladder) -> dict[str, Any]:
    """The sizes of a ladder as JSON's values.

    Args:
        ladder: of a study.
    """
    return {
        "key": ladder.key,
        "rule": ladder.rule(),
        "sizes": [_size(rung) for rung in ladder.rungs],
        "beyond": _size(ladder.beyond),
    }


def _size(rung: Rung) -> dict[str, Any]:
    return {
        "value": rung.value,
        "parameters": rung.parameters,
        "tokens": rung.tokens,
        "flops": rung.flops,
    }


def _interval(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None:
        return None
    ends = {"low": estimate.low, "high": estimate.high}
    finite = {name: value if math.isfinite(value) else None for name, value in ends.items()}
    return {"mean": estimate.mean, **finite}
