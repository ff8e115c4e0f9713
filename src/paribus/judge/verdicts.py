"""A verdict on every arm of a table: corrections for many arms, equivalence, what it would cost to decide.

The words are those of a study (better, worse, equivalent, undecided) and so are the tests behind them
(study/statistics.py); what differs is where the runs come from, and that they need not be matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paribus.errors import UserError, did_you_mean, shown
from paribus.judge.bench import Bench
from paribus.judge.estimates import Estimate
from paribus.judge.options import Options
from paribus.judge.rules import Rule, TargetRule, rule_of, target_rule
from paribus.judge.runs import Run, Runs, arm_order
from paribus.study.power import seeds_for_equivalence, seeds_needed
from paribus.study.saved import Saved
from paribus.study.statistics import Verdict, holm, verdict_of


@dataclass(frozen=True)
class Plan:
    """Runs an arm that would decide with power .8, at alpha over the number of comparisons (Holm's first level).

    Attributes:
        noise: standard deviation that it rests on: of differences where runs are matched, else of a run.
        stated: whether the user stated it.
        matched: whether runs are matched.
        to_see_smallest: runs to see a difference of the smallest effect; None without one, or beyond 100,000.
        to_call_equivalent: runs to call equal arms equivalent.
        to_see_this: runs to see a difference as large as the one seen.
        to_see_this_alone: the same at alpha, were this the only comparison.
    """

    noise: float
    stated: bool
    matched: bool
    to_see_smallest: int | None
    to_call_equivalent: int | None
    to_see_this: int | None
    to_see_this_alone: int | None


@dataclass(frozen=True)
class Comparison:
    """An arm against its reference: the baseline, or in a chain the arm before it.

    p, p_equivalent and p_margin are of this comparison alone; the adjusted ones after the correction for all of them.
    low, high: the 1 - alpha interval of this comparison alone. None: there is no spread to judge by.
    """

    arm: str
    reference: str
    runs: int
    reference_runs: int
    estimate: Estimate
    verdict: Verdict
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    p_equivalent: float | None = None
    p_equivalent_adjusted: float | None = None
    p_margin: float | None = None
    p_margin_adjusted: float | None = None
    p_logrank: float | None = None
    plan: Plan | None = None
    rule: Rule | None = None
    saved: Saved | None = None
    note: str = ""

    @property
    def difference(self) -> float:
        """The arm less its reference, at equal compute where a slope is stated."""
        return self.estimate.difference


@dataclass(frozen=True)
class ArmSummary:
    """An arm by itself.

    mean: of its results; of a target metric, with runs that did not get there at what they ran, so at least this.
    horizon: mean compute of its runs. reached: of a target metric, the runs that got there.
    """

    name: str
    runs: int
    mean: float
    stdev: float | None
    horizon: float | None
    diverged: int
    reached: int | None
    target: TargetRule | None


@dataclass(frozen=True)
class Judgement:
    """What a table says. Arms and comparisons stand in the order of the arms."""

    source: str
    options: Options
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def arm(self, name: str) -> ArmSummary:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def judge_runs(runs: Runs, options: Options, source: str = "the table") -> Judgement:
    """The verdict on every arm.

    Args:
        runs: of all arms.
        options: what is compared, and how.
        source: name of the table.

    Raises:
        UserError: where there is nothing to compare, or nothing to judge by.
    """
    order = arm_order(runs, options)
    pairs = _pairs_of_arms(order, options)
    _check_reach(runs, options)
    _check_matching(runs, pairs, options)
    bench = Bench(runs, options)
    compared = {arm: bench.compared(arm, reference) for arm, reference in pairs}
    plain = {arm: bench.estimate(both) for arm, both in compared.items()}
    estimates = {
        arm: bench.at_equal_compute(compared[arm], estimate) for arm, estimate in plain.items()
    }
    _check_spread(runs, estimates, options)
    comparisons = []
    judged = _tests(estimates, options)
    for arm, reference in pairs:
        both, estimate = compared[arm], estimates[arm]
        comparison = Comparison(
            arm=arm,
            reference=reference,
            runs=len(both.arm),
            reference_runs=len(both.reference),
            estimate=estimate,
            verdict="undecided",
            p_logrank=bench.logrank(both),
            rule=rule_of(estimate.difference, len(both.arm), len(both.reference), options),
            saved=bench.saved(both, plain[arm]),
            note=bench.remark(both, estimate),
        )
        comparison = judged.applied(comparison)
        comparison = _withheld(comparison, runs)
        if comparison.verdict == "undecided":
            comparison = replace(comparison, plan=_plan(estimate, len(pairs), bench))
        comparisons.append(comparison)
    arms = _summaries(order, runs, bench)
    return Judgement(source, options, tuple(arms), tuple(comparisons), tuple(runs.notes))


# ---------------------------------------------------------------- what is compared


def _pairs_of_arms(order: Sequence[str], options: Options) -> list[tuple[str, str]]:
    """(arm, reference) of each comparison."""
    baseline = options.baseline
    if baseline is not None and baseline not in order:
        near = did_you_mean(baseline, order)
        there = near or f"there are: {', '.join(order[:8])}{', …' if len(order) > 8 else ''}"
        raise UserError(f"--baseline: no arm {shown(baseline)} in the table; {there}")
    if len(order) < 2:
        raise UserError(f"--arm: one arm alone, {shown(order[0])}; a comparison needs two")
    if baseline is None:
        return [(order[index], order[index - 1]) for index in range(1, len(order))]
    return [(arm, baseline) for arm in order if arm != baseline]


def _check_reach(runs: Runs, options: Options) -> None:
    """Refuse a target that no curve reaches, or that all have passed before their first point."""
    if options.reach is None:
        return
    known = {run.reach.known for run in runs.runs if run.reach is not None}
    if "reached" in known:
        return
    target = options.reach[1]
    if known == {"not reached"}:
        raise UserError(
            f"--metric {options.metric}: no run of any arm reaches {target:g}; choose a target within the curves"
        )
    raise UserError(
        f"--metric {options.metric}: no run crosses {target:g} within its curve; it is passed before the first point"
    )


def _check_matching(runs: Runs, pairs: Sequence[tuple[str, str]], options: Options) -> None:
    """Refuse a pairing that matches nothing."""
    if not options.pair_by or options.block:
        return
    names = {arm: {run.pair for run in runs.of(arm)} for arm in runs.arms}
    if any(names[arm] & names[reference] for arm, reference in pairs):
        return
    arm, reference = pairs[0]
    raise UserError(
        f"--pair-by {' '.join(options.pair_by)}: compared arms have none in common: {shown(reference)} has "
        f"{_some(names[reference])}, {shown(arm)} has {_some(names[arm])}; leave it out to compare unmatched"
    )


def _some(names: set[str]) -> str:
    listed = sorted(names)[:5]
    return ", ".join(listed) + (", …" if len(names) > 5 else "")


def _check_spread(runs: Runs, estimates: Mapping[str, Estimate], options: Options) -> None:
    """Refuse a table of one run an arm, unless a noise is stated and a plan can be made."""
    if any(estimate.usable for estimate in estimates.values()):
        return
    single = len(runs.runs) == len(runs.arms)
    if single and options.noise is None and options.fixed_sigma is None:
        raise UserError(
            "one run an arm: without a spread every arm is undecided; run each at least twice, better three times, or say "
            "--noise S, the standard deviation over seeds that you expect, to see how many runs would decide"
        )


# ---------------------------------------------------------------- tests


@dataclass(frozen=True)
class _Tests:
    """p-values of all comparisons that have a spread, by themselves and corrected."""

    options: Options
    different: dict[str, float]
    different_adjusted: dict[str, float]
    equal: dict[str, float]
    equal_adjusted: dict[str, float]
    margin: dict[str, float]
    margin_adjusted: dict[str, float]

    def applied(self, comparison: Comparison) -> Comparison:
        """The comparison with its tests and its verdict."""
        arm, estimate, options = comparison.arm, comparison.estimate, self.options
        if arm not in self.different:
            return comparison
        differs = self.different_adjusted[arm] <= options.alpha
        within = arm in self.equal and self.equal_adjusted[arm] <= options.alpha
        low, high = estimate.interval(options.alpha)
        return replace(
            comparison,
            verdict=verdict_of(estimate.t_at(0.0), options.result_direction, differs, within),
            low=low,
            high=high,
            p=self.different[arm],
            p_adjusted=self.different_adjusted[arm],
            p_equivalent=self.equal.get(arm),
            p_equivalent_adjusted=self.equal_adjusted.get(arm),
            p_margin=self.margin.get(arm),
            p_margin_adjusted=self.margin_adjusted.get(arm),
        )


def _tests(estimates: Mapping[str, Estimate], options: Options) -> _Tests:
    usable = {arm: estimate for arm, estimate in estimates.items() if estimate.usable}
    order = list(estimates)
    different = {arm: estimate.p() for arm, estimate in usable.items()}
    equal: dict[str, float] = {}
    margin: dict[str, float] = {}
    if options.smallest_effect is not None:
        equal = {
            arm: estimate.p_within(options.smallest_effect) for arm, estimate in usable.items()
        }
    if options.margin is not None:
        sign = options.result_sign
        asked = sign * options.margin
        margin = {arm: estimate.p_beyond(asked, sign) for arm, estimate in usable.items()}
    return _Tests(
        options,
        different,
        corrected(different, order, options.correction),
        equal,
        corrected(equal, order, options.correction),
        margin,
        corrected(margin, order, options.correction),
    )


def corrected(
    p_values: Mapping[str, float], order: Sequence[str], correction: str
) -> dict[str, float]:
    """p-values corrected for their number.

    Args:
        p_values: arm -> p; an arm without a test is absent.
        order: of all arms, in which the hierarchical correction tests them: an arm counts only where all before it do.
        correction: "holm", "hierarchical" or "none".
    """
    if correction == "holm":
        return holm(p_values)
    if correction == "none":
        return dict(p_values)
    so_far = 0.0
    adjusted = {}
    for arm in order:
        so_far = max(so_far, p_values.get(arm, 1.0))
        if arm in p_values:
            adjusted[arm] = so_far
    return adjusted


def _withheld(comparison: Comparison, runs: Runs) -> Comparison:
    """The comparison, undecided where its verdict would rest on the runs that survived.

    As in a study: an arm of which runs diverged is not better, one beside a reference of which runs diverged is not worse,
    and neither is equivalent.
    """
    arm, reference = (
        runs.diverged.get(comparison.arm, 0),
        runs.diverged.get(comparison.reference, 0),
    )
    withheld = (arm and comparison.verdict in ("better", "equivalent")) or (
        reference and comparison.verdict in ("worse", "equivalent")
    )
    if not withheld:
        return comparison
    lost = [f"{arm} of its runs diverged"] if arm else []
    lost += [f"{reference} runs of {comparison.reference} diverged"] if reference else []
    note = f"no verdict rests on the others alone: {' and '.join(lost)}"
    return replace(comparison, verdict="undecided", note=note)


# ---------------------------------------------------------------- plans, arms


def _plan(estimate: Estimate, comparisons: int, bench: Bench) -> Plan | None:
    """What would decide, at a noise that is stated, else of these runs, else of all arms; None where none is known."""
    options = bench.options
    of_arms = bench.spread if bench.df else None
    noise = options.noise or estimate.spread or of_arms or options.fixed_sigma
    if not noise or estimate.design == "censored":
        return None
    stated = bool(options.noise) or not (estimate.spread or of_arms)
    paired = estimate.design in ("matched", "partly matched") and not stated
    level = options.alpha / comparisons if options.correction == "holm" else options.alpha
    smallest, effect = options.smallest_effect, abs(estimate.difference)

    def to_see(size: float | None, alpha: float) -> int | None:
        return seeds_needed(size, noise, alpha=alpha, paired=paired) if size else None

    # An unmatched comparison of n runs each has the error of n differences whose spread is larger by the root of 2.
    of_differences = noise if paired else noise * float(np.sqrt(2))
    return Plan(
        noise=noise,
        stated=stated,
        matched=paired,
        to_see_smallest=to_see(smallest, level),
        to_call_equivalent=(
            seeds_for_equivalence(smallest, of_differences, alpha=level) if smallest else None
        ),
        to_see_this=to_see(effect, level),
        to_see_this_alone=to_see(effect, options.alpha),
    )


def _summaries(order: Sequence[str], runs: Runs, bench: Bench) -> list[ArmSummary]:
    options = bench.options
    targets = {}
    for arm in order:
        values = np.array([run.value for run in runs.of(arm)])
        pool = (bench.spread, bench.df) if options.pooled else None
        targets[arm] = target_rule(values, options, pool)
    p_values = {arm: one.p for arm, one in targets.items() if one is not None and one.p is not None}
    adjusted = corrected(p_values, order, options.correction)
    return [_summary(arm, runs, targets[arm], adjusted.get(arm), options) for arm in order]


def _summary(
    arm: str, runs: Runs, target: TargetRule | None, adjusted: float | None, options: Options
) -> ArmSummary:
    own = runs.of(arm)
    values = np.array([run.value for run in own])
    if target is not None and adjusted is not None:
        target = replace(target, p_adjusted=adjusted, reaches=adjusted <= options.alpha)
    horizons = [run.horizon for run in own if run.horizon is not None]
    return ArmSummary(
        name=arm,
        runs=len(own),
        mean=float(values.mean()),
        stdev=float(values.std(ddof=1)) if len(values) > 1 else None,
        horizon=sum(horizons) / len(horizons) if horizons else None,
        diverged=runs.diverged.get(arm, 0),
        reached=_reached(own) if options.reach else None,
        target=target,
    )


def _reached(runs: Sequence[Run]) -> int:
    return sum(1 for run in runs if run.reach is not None and run.reach.known != "not reached")
