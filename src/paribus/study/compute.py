"""What a study's effects are worth in compute: from its runs to amounts of tokens, FLOPs and seconds (saved.py has the method).

The baseline's results at its horizons give a curve over tokens. Tokens become FLOPs and seconds by what one token of the
baseline, or of the arm, takes: counted for FLOPs, the mean over its runs for seconds, whose error is not in the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paribus.study.budget import training_flops
from paribus.study.differences import matched
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.looks import level
from paribus.study.matching import matching_of
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.saved import Amount, Saved, Trained, compute_saved
from paribus.study.sequence import Judged
from paribus.text import quantity

UNITS = ("tokens", "flops", "seconds")
UNIT_WORDS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}


@dataclass(frozen=True)
class Worth:
    """An effect in one unit of compute.

    Attributes:
        unit: tokens, flops or seconds.
        arm_took: of the arm's runs, in the mean.
        baseline_took: of the baseline's at its own horizon.
        baseline_needs: for the arm's result.
        arm_needs: for the baseline's result, if the arm's gain is a constant factor of compute.
        saved: the share that the arm saves on the way to its result; negative where it costs more.
    """

    unit: str
    arm_took: float
    baseline_took: float
    baseline_needs: Amount
    arm_needs: Amount
    saved: Amount


@dataclass(frozen=True)
class InCompute:
    """An arm's effect in compute.

    Attributes:
        found: over tokens; None: the runs do not tell yet.
        worth: the same in each unit that the runs report.
        horizons: tokens at which the baseline was trained, with the number of runs.
        why: why there is nothing; "" where there is.
    """

    found: Saved | None
    worth: tuple[Worth, ...]
    horizons: Mapping[float, int]
    why: str = ""


def in_compute(experiment: Experiment, outcomes: Outcomes, judged: Judged) -> dict[str, InCompute]:
    """Arm -> its effect in compute, of a study with horizons.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        judged: its verdicts, whose looks decide the level of the intervals.
    """
    if experiment.horizons is None:
        return {}
    of_baseline = _of_baseline(experiment, outcomes.results)
    usable = [one for one in of_baseline if _is_usable(one)]
    shared = matching_of(experiment, outcomes.results)
    horizons: dict[float, int] = {}
    for run in map(_trained, usable):
        horizons[run.compute] = horizons.get(run.compute, 0) + 1
    found = {}
    for arm in experiment.arms:
        own = [own for _, own in matched(outcomes.results, arm) if _is_usable(own)]
        alpha = _level_of(experiment, judged, arm)
        is_matched = arm not in shared or shared[arm].holds
        curve = [_trained(one, is_matched) for one in usable]
        arm_runs = [_trained(one, is_matched) for one in own]
        is_known = bool(own) and len(horizons) > 1 and alpha > 0
        saved = compute_saved(curve, arm_runs, experiment.direction, alpha) if is_known else None
        if saved is None:
            why = "more runs of the baseline at two horizons are needed, and of the arm"
            found[arm] = InCompute(None, (), horizons, why)
        else:
            worth = _worth(experiment, outcomes.results, arm, saved)
            found[arm] = InCompute(saved, tuple(worth), horizons, _why_open(saved))
    return found


def _level_of(experiment: Experiment, judged: Judged, arm: str) -> float:
    """The level of an arm's intervals: what its looks leave of alpha."""
    effect = judged.effects.get(arm)
    if effect is None or not effect.looks:
        return experiment.alpha
    return level(effect.looks, experiment.alpha)


def _of_baseline(experiment: Experiment, results: Sequence[Result]) -> list[Result]:
    """Runs of the baseline at all horizons."""
    groups = experiment.groups
    return [one for one in results if groups[one.arm].arm == BASELINE]


def _is_usable(result: Result) -> bool:
    return result.value is not None and bool(result.number("pretrain", "train_tokens"))


def _trained(result: Result, is_matched: bool = True) -> Trained:
    tokens = result.number("pretrain", "train_tokens") or 0.0
    return Trained(tokens, result.value or 0.0, str(result.seed) if is_matched else "")


def _why_open(saved: Saved) -> str:
    """Why an amount has no estimate or no end; "" where it has all."""
    needs = saved.baseline_needs
    if needs.estimate is None:
        return "no amount of compute between a sixteenth and sixteen times brings the baseline to the arm's result"
    if needs.low is None or needs.high is None:
        return "the slope of the baseline is too uncertain for an end of the interval"
    return ""


def _worth(
    experiment: Experiment, results: Sequence[Result], arm: str, saved: Saved
) -> list[Worth]:
    """The effect in each unit. saved: over tokens."""
    of_baseline = _of_baseline(experiment, results)
    of_arm = [one for one in results if one.arm == arm]
    found = []
    for unit in UNITS:
        a_token = _of_a_token(experiment, BASELINE, of_baseline, unit)
        own_token = _of_a_token(experiment, arm, of_arm, unit)
        if a_token is None or own_token is None:
            continue
        took = saved.arm_horizon * own_token
        needs = _times(saved.baseline_needs, a_token)
        shares = [
            None if end is None or end <= 0 else 1 - took / end
            for end in (needs.estimate, needs.low, needs.high)
        ]
        found.append(
            Worth(
                unit,
                took,
                saved.baseline_horizon * a_token,
                needs,
                _times(saved.arm_needs, own_token),
                Amount(shares[0], shares[1], shares[2], needs.extrapolated),
            )
        )
    return found


def _times(amount: Amount, factor: float) -> Amount:
    ends = [
        None if end is None else end * factor for end in (amount.estimate, amount.low, amount.high)
    ]
    return Amount(ends[0], ends[1], ends[2], amount.extrapolated)


def _of_a_token(
    experiment: Experiment, arm: str, results: Sequence[Result], unit: str
) -> float | None:
    """What one token of pretraining takes: FLOPs by count, seconds by the mean of the runs; None where none reports it."""
    if unit == "tokens":
        return 1.0
    total, tokens = 0.0, 0.0
    for result in results:
        of_run = result.number("pretrain", "train_tokens")
        steps, seconds = result.number("pretrain", "steps"), result.number("pretrain", "seconds")
        if not of_run or (unit == "flops" and not steps) or (unit == "seconds" and not seconds):
            continue
        tokens += of_run
        if unit == "seconds":
            total += seconds or 0.0
        else:
            total += training_flops(experiment.config(arm), steps or 1, of_run / (steps or 1))
    return total / tokens if tokens else None


# ---------------------------------------------------------------- which horizons are needed


def unneeded(experiment: Experiment, results: Sequence[Result]) -> set[str]:
    """Groups of the baseline that `horizons: auto` does not need: beyond the two next to 1, those that no arm's result reaches.

    The seeds of the study's first look alone decide, so that the answer stays the same when more come.

    Args:
        experiment: the study.
        results: of its runs that count.
    """
    horizons = experiment.horizons
    if horizons is None or not horizons.auto:
        return set()
    first = [
        one
        for one in results
        if one.seed < experiment.first_seed + experiment.seeds.first and _is_usable(one)
    ]
    low, high = horizons.first
    for arm in experiment.arms:
        reach = _reach(experiment, first, arm)
        low, high = min(low, reach[0]), max(high, reach[1])
    outside = {scale for scale in horizons.scales if not low <= scale <= high}
    return {name for name, group in experiment.groups.items() if group.scale in outside}


def _reach(experiment: Experiment, first: Sequence[Result], arm: str) -> tuple[float, float]:
    """The least and the largest horizon that an arm's result needs, from the runs at the two next to 1; (1, 1): no more."""
    horizons = experiment.horizons
    assert horizons is not None
    scale = _scale_needed(experiment, first, arm, {1.0, *horizons.first})
    if scale is None:
        return 1.0, 1.0
    if scale > 1:
        beyond = [one for one in horizons.scales if one >= scale]
        return 1.0, min(beyond, default=horizons.scales[-1])
    below = [one for one in horizons.scales if one <= scale]
    return max(below, default=horizons.scales[0]), 1.0


def _scale_needed(
    experiment: Experiment, first: Sequence[Result], arm: str, near: set[float]
) -> float | None:
    """The horizon, as a share of its own, at which the baseline has an arm's result; None where the runs do not tell."""
    baseline = [one for one in first if experiment.groups[one.arm].arm == BASELINE]
    near_runs = [one for one in baseline if experiment.groups[one.arm].scale in near]
    own = [one for one in first if one.arm == arm]
    wanted = experiment.seeds.first
    if len(near_runs) < len(near) * wanted or len(own) < wanted:
        return None
    saved = compute_saved(
        [_trained(one) for one in near_runs], [_trained(one) for one in own], experiment.direction
    )
    needs = saved.baseline_needs.estimate if saved else None
    return None if needs is None else needs / _own_horizon(experiment, near_runs)


def _own_horizon(experiment: Experiment, runs: Sequence[Result]) -> float:
    own = [_trained(one).compute for one in runs if experiment.groups[one.arm].scale == 1.0]
    return sum(own) / len(own)


# ---------------------------------------------------------------- for people and programs


def sentence(arm: str, one: InCompute, metric: str) -> str:
    """An arm's effect in compute, in words.

    Args:
        arm: its name.
        one: its effect in compute.
        metric: whose result is meant.
    """
    if one.found is None or not one.worth or one.found.baseline_needs.estimate is None:
        return f"{arm} in compute: not known: {one.why}."
    first = one.worth[0]
    parts = []
    for worth in one.worth:
        share = worth.saved
        interval = f"{_percent(share.low)} to {_percent(share.high)}"
        parts.append(f"{_percent(share.estimate)} of the {UNIT_WORDS[worth.unit]} ({interval})")
    beyond = ", beyond the horizons trained" if one.found.baseline_needs.extrapolated else ""
    negative = any((worth.saved.estimate or 0.0) < 0 for worth in one.worth)
    sign = "; below 0 it costs more" if negative else ""
    return (
        f"{arm} in compute: for the {metric} that it has after {_amount(first.arm_took)} tokens, the baseline needs "
        f"{_amount(first.baseline_needs.estimate)} ({_amount(first.baseline_needs.low)} to "
        f"{_amount(first.baseline_needs.high)}){beyond}: it saves {', '.join(parts)}{sign}."
    )


def _amount(value: float | None) -> str:
    return "no bound" if value is None else quantity(value)


def _percent(share: float | None) -> str:
    return "no bound" if share is None else f"{100 * share:.3g} %".replace("-", "−")


def as_json(one: InCompute) -> dict[str, Any]:
    """An arm's effect in compute as JSON's values; names are a contract, and what is unbounded or unknown is null.

    Args:
        one: the effect.
    """
    return {
        "horizons": [{"tokens": at, "runs": runs} for at, runs in sorted(one.horizons.items())],
        "gain_per_token": None if one.found is None else asdict(one.found.gain_per_unit),
        "worth": {worth.unit: asdict(worth) for worth in one.worth},
        "why": one.why,
    }
