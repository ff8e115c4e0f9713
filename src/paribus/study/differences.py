"""Differences of a metric at matched seeds, of any two arms of a study, as the tests need them."""

from __future__ import annotations

from collections.abc import Sequence

from paribus.study.answers import answers_of
from paribus.study.experiment import BASELINE, Experiment, Metric
from paribus.study.items import item_noise
from paribus.study.matching import matching_of
from paribus.study.results import Result, value_of
from paribus.study.sample import ByItem, Timed, Unmatched
from paribus.study.targets import times_of
from paribus.study.timing import ROUNDS, error_of_timing

Pair = tuple[Result, Result]


def matched(results: Sequence[Result], arm: str, other: str = BASELINE) -> list[Pair]:
    """(other, arm) at every seed that both have a value for, in order.

    Args:
        results: of all runs that count.
        arm: its name.
        other: that it is compared with.
    """
    measured = [result for result in results if result.value is not None]
    of_other = {result.seed: result for result in measured if result.arm == other}
    of_arm = {result.seed: result for result in measured if result.arm == arm}
    shared = sorted(of_other.keys() & of_arm.keys())
    return [(of_other[seed], of_arm[seed]) for seed in shared]


def differences_of(
    experiment: Experiment, results: Sequence[Result], arm: str, other: str = BASELINE
) -> list[float]:
    """Differences of the study's metric, arm - other, at every seed that both have, in order.

    Args:
        experiment: the study.
        results: of all runs that count.
        arm: its name. One whose code changes what a seed decides gives `Unmatched` differences; a metric that is a mean over
            items gives differences `ByItem`, and one with a target `TargetTimes`.
        other: that it is compared with.
    """
    pairs = matched(results, arm, other)
    return differences_in(experiment, results, pairs, experiment.metric)


def differences_in(
    experiment: Experiment, results: Sequence[Result], pairs: Sequence[Pair], metric: Metric
) -> list[float]:
    """Differences of a metric in pairs of runs; [] where a run has no finite value of it.

    Args:
        experiment: the study.
        results: of all runs that count.
        pairs: of runs of two arms, one a seed.
        metric: the study's, or another one that its runs wrote.
    """
    of_first = [_value(experiment, metric, first) for first, _ in pairs]
    of_second = [_value(experiment, metric, second) for _, second in pairs]
    before = [value for value in of_first if value is not None]
    after = [value for value in of_second if value is not None]
    if not pairs or len(before) < len(pairs) or len(after) < len(pairs):
        return []
    differences = [own - base for base, own in zip(before, after, strict=True)]
    is_matched = _seeds_match(experiment, results, pairs[0])
    if metric.target is not None:
        return times_of(pairs, is_matched)
    if not is_matched:
        differences = Unmatched(before, after)
    if metric.name == "val_bpb" and experiment.equal == "seconds":
        return Timed(differences, error_of_timing(experiment, pairs), ROUNDS)
    answers = answers_of(metric, pairs)
    if answers is None:
        return differences
    noise = item_noise(
        answers.baseline, answers.arm, answers.tasks, equal_clusters=answers.equal_clusters
    )
    return ByItem(differences, noise)


def _value(experiment: Experiment, metric: Metric, result: Result) -> float | None:
    if metric == experiment.metric:
        return result.value
    return value_of(metric, result.experiment, result.metrics)


def _seeds_match(experiment: Experiment, results: Sequence[Result], pair: Pair) -> bool:
    """Whether both arms share with the baseline what a seed decides."""
    matchings = matching_of(experiment, results)
    for result in pair:
        matching = matchings.get(result.arm)
        if matching is not None and not matching.holds:
            return False
    return True
