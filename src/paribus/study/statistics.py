"""From matched differences to a verdict: paired t, Holm, equivalence, paid looks, power, noise floors, curves.

Pure functions over numbers, no files. A difference is arm - baseline at one seed, in the metric's own unit; matched
seeds share data order and initial values, so what both arms have in common cancels.

Sources: Student (1908), the t distribution; Holm (1979), many arms; Schuirmann (1987), two one-sided tests for
equivalence; Lan & DeMets (1983) and Kim & DeMets (1987), paying for looks; Armitage, McPherson & Rowe (1969), the
recursion behind their boundaries; Jennison & Turnbull (1989; 2000, §4.4), repeated intervals, and t statistics at the
nominal levels of normal looks; Maurer & Bretz (2013), Holm with looks. Outcomes item by item: items.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from paribus.errors import UserError

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Floats = NDArray[np.float64]

POWER = 0.8  # what studies are planned for
MIN_SEEDS = 3  # the fewest from which a spread is worth planning with
MOST_SEEDS = 100_000  # beyond it "how many seeds" has no useful answer
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # on [-1, 1]: of an angle, of a chance
STEP = 0.04  # of the grid of normal scores on which looks are followed
GRID = np.arange(-200, 201) * STEP
MASS = np.exp(-(GRID**2) / 2) * STEP / math.sqrt(2 * math.pi)
SMALLEST_P, LARGEST_P = 1e-15, 0.5  # between which a p-value of several looks is solved for
CURVES = 5_000  # simulated for a band over steps


@dataclass(frozen=True)
class Effect:
    """What the matched seeds of one arm say, in the metric's unit.

    low, high: the 1 - alpha interval of the mean, of this arm alone (not corrected for other arms); at a look of a sequential
    study the repeated interval, which holds at all looks together. One seed has no interval: -inf to inf.
    p: two-sided, of this arm and look alone; p_adjusted: over all looks and, by Holm, all arms. stdev: of the differences
    (None of one seed). more_seeds: for the undecided, how many more to plan (None: decided, more than MOST_SEEDS, or no
    difference was seen at all, so that no number of seeds follows from it).
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    p_adjusted: float
    stdev: float | None
    verdict: Verdict
    more_seeds: int | None


def effects(
    differences: Mapping[str, Sequence[float]],
    *,
    direction: str,
    smallest_effect: float,
    alpha: float,
    plan: Sequence[int] | None = None,
) -> dict[str, Effect]:
    """The verdict on every arm from its matched differences (arm - baseline, one a seed).

    better, worse: the mean differs from 0 at `alpha`, after Holm over the arms, towards `direction` ("lower" or "higher")
    or away from it. equivalent: it is within ±smallest_effect (TOST at alpha, after Holm over the arms), **also where it
    differs from 0**: too small to matter, by the study's own word. undecided: neither. Differences that are all the same
    have no spread to judge by, also where all are 0: a metric at its floor, or too coarse, gives that for arms that differ.

    How often a verdict is false: of any one arm only one of the two claims can be false (0 is not outside
    ±smallest_effect), so each arm errs with a chance of at most alpha. Over all arms each question is held to alpha by
    Holm; that any claim of either kind is false has a chance of at most 2 alpha.

    plan: of a sequential study, the numbers of seeds at which it looks, its last included (`looks`); an arm's n says
    which look this is. None: this is the only look.

    Raises UserError with everything that is wrong: no arms, no or non-finite differences, unknown direction,
    alpha outside (0, 0.5), smallest_effect not above 0, more seeds than the plan has.
    """
    _check(differences, direction, smallest_effect, alpha, plan)
    samples = {arm: _Sample.of(values) for arm, values in differences.items()}
    p_values = {arm: sample.p() for arm, sample in samples.items()}
    different = holm({arm: _over_looks(p, samples[arm].n, plan) for arm, p in p_values.items()})
    # One-sided tests at alpha have the two-sided boundaries of 2 alpha.
    equal = holm(
        {
            arm: _over_looks(min(2 * sample.p_equivalent(smallest_effect), 1.0), sample.n, plan) / 2
            for arm, sample in samples.items()
        }
    )
    judged = {}
    for arm, sample in samples.items():
        verdict = verdict_of(sample.mean, direction, different[arm] <= alpha, equal[arm] <= alpha)
        low, high = sample.interval(alpha if plan is None else alpha_at(sample.n, plan, alpha))
        more = (
            _more(sample, smallest_effect, alpha / len(samples), plan)
            if verdict == "undecided"
            else None
        )
        judged[arm] = Effect(
            sample.n,
            sample.mean,
            low,
            high,
            p_values[arm],
            different[arm],
            sample.stdev,
            verdict,
            more,
        )
    return judged


@dataclass(frozen=True)
class _Sample:
    n: int
    mean: float
    stdev: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> _Sample:
        array = np.asarray(values, dtype=float)
        return cls(
            len(array), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None
        )

    @property
    def usable(self) -> bool:
        """Whether it has a spread to judge by. Equal differences are a coarse metric, rounding, or seeds that do nothing."""
        return bool(self.stdev)

    @property
    def identical(self) -> bool:
        return self.stdev == 0 and self.mean == 0

    @property
    def error(self) -> float:
        assert self.stdev is not None
        return self.stdev / math.sqrt(self.n)

    def p(self) -> float:
        return (
            float(2 * stats.t.sf(abs(self.mean) / self.error, self.n - 1)) if self.usable else 1.0
        )

    def p_equivalent(self, margin: float) -> float:
        """TOST: the larger p of "the mean is at most -margin" and "at least margin"."""
        if not self.usable:
            return 1.0
        return float(stats.t.sf((margin - abs(self.mean)) / self.error, self.n - 1))

    def interval(self, alpha: float) -> tuple[float, float]:
        if not self.usable:
            return -math.inf, math.inf
        half = float(stats.t.isf(alpha / 2, self.n - 1)) * self.error
        return self.mean - half, self.mean + half


def _check(
    differences: Mapping[str, Sequence[float]],
    direction: str,
    smallest_effect: float,
    alpha: float,
    plan: Sequence[int] | None,
) -> None:
    problems = [] if differences else ["differences: no arms to judge"]
    for arm, values in differences.items():
        problems += _value_problems(arm, values)
        if plan and len(values) > plan[-1]:
            problems.append(
                f"differences: {arm} has {len(values)} seeds; the plan ends at {plan[-1]}"
            )
    problems += settings_problems(direction, smallest_effect, alpha)
    if plan is not None:
        problems += _plan_problems(plan)
    if problems:
        raise UserError(problems)


def _value_problems(arm: str, values: Sequence[float]) -> list[str]:
    """An arm without values, or with one that is not finite."""
    if len(values) == 0:
        return [f"differences: {arm} has none"]
    return [
        f"differences: {arm}, number {number} is {value}; a run without a result has no place here"
        for number, value in enumerate(values, start=1)
        if not math.isfinite(value)
    ]


def settings_problems(direction: str, smallest_effect: float, alpha: float) -> list[str]:
    """What is wrong with the settings of a verdict.

    Args:
        direction: "lower" or "higher" is better.
        smallest_effect: that matters, in the metric's unit.
        alpha: the rate of false verdicts.
    """
    problems = []
    if direction not in ("lower", "higher"):
        problems.append(f"direction: {direction!r} is neither lower nor higher")
    if not (math.isfinite(smallest_effect) and smallest_effect > 0):
        problems.append(f"smallest_effect: {smallest_effect} is not above 0, in the metric's unit")
    if not 0 < alpha < 0.5:
        problems.append(f"alpha: {alpha} is not between 0 and 0.5")
    return problems


def _plan_problems(plan: Sequence[int]) -> list[str]:
    if not plan or plan[0] < 2 or any(a >= b for a, b in pairwise(plan)):
        return [f"plan: {list(plan)} is not a rising list of numbers of seeds, each at least 2"]
    return []


def verdict_of(mean: float, direction: str, differs: bool, within: bool) -> Verdict:
    """The verdict in a word.

    Args:
        mean: difference of the metric, arm - baseline.
        direction: "lower" or "higher" is better.
        differs: whether it is shown to differ from 0.
        within: whether it is shown to be too small to matter.
    """
    if within:
        return "equivalent"
    if not differs:
        return "undecided"
    return "better" if (mean < 0) == (direction == "lower") else "worse"


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The smallest p counts for all, the next for one fewer, and none may undercut a smaller one."""
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for rank, arm in enumerate(sorted(p_values, key=p_values.__getitem__)):
        still_to_come = len(p_values) - rank
        so_far = max(so_far, min(still_to_come * p_values[arm], 1.0))
        adjusted[arm] = so_far
    return adjusted


# ---- Levels of the looks of a sequential study


def looks(first: int, last: int) -> tuple[int, ...]:
    """The numbers of seeds at which a sequential study looks: each half as many again, so 3, 5, 8, 12, 18, … up to `last`.

    Raises UserError unless 2 <= first <= last.
    """
    if not 2 <= first <= last:
        raise UserError(
            f"seeds: looks from {first} to {last} seeds; from must be at least 2 and at most to"
        )
    plan = [first]
    while plan[-1] < last:
        plan.append(min(plan[-1] + math.ceil(plan[-1] / 2), last))
    return tuple(plan)


def spent(fraction: float, alpha: float) -> float:
    """How much of alpha is used up when `fraction` of the seeds are in: in proportion (Kim & DeMets 1987, power 1).

    O'Brien & Fleming's keeps nearly all for the end, and t tests of three seeds then stop at nothing: it took up to half as many
    runs again where the truth is more than was planned for, and saved one in a hundred where it is not (docs/statistics.md).
    """
    return alpha * fraction


def alpha_at(look: int, plan: Sequence[int], alpha: float) -> float:
    """The two-sided level to test at when `look` seeds are in, so that all looks together err at most alpha of the time.

    plan: the numbers of seeds at which the study looks, its last included. A look between them is allowed (a seed was
    lost): the plan's earlier looks count as made. Raises UserError for a look outside the plan's range or a faulty plan.
    """
    problems = _plan_problems(plan)
    if not problems and not 1 <= look <= plan[-1]:
        problems = [f"look: {look} seeds; the plan ends at {plan[-1]}"]
    if problems:
        raise UserError(problems)
    return _nominal(tuple(n for n in plan if n < look) + (look,), plan[-1], alpha)


@lru_cache(maxsize=4096)
def _nominal(made: tuple[int, ...], last: int, alpha: float) -> float:
    """Level of the last of the looks made. `alive`: chance to have passed all looks so far, given the statistic now."""
    paid = spent(made[0] / last, alpha)
    alive, bound = np.ones(GRID.size), -float(special.ndtri(paid / 2))
    for before, n in pairwise(made):
        alive = alive * (1 - _outside(bound))
        for seeds in range(before, n):
            alive = _back(seeds) @ alive
        owed = spent(n / last, alpha) - paid

        def excess(at: float, owed: float = owed, alive: Floats = alive) -> float:
            return float(MASS @ (alive * _outside(at))) - owed

        bound = float(optimize.brentq(excess, 0, GRID[-1] + STEP, xtol=1e-10))
        paid += owed
    return float(2 * special.ndtr(-bound))


def _outside(bound: float) -> Floats:
    """Share of each cell of the grid that lies beyond ±bound."""
    share: Floats = np.clip((np.abs(GRID) - bound) / STEP + 0.5, 0, 1)
    return share


@lru_cache(maxsize=128)
def _back(n: int) -> Floats:
    """(grid, grid): where t, as a normal score, was at n seeds, given where it is at n + 1; no difference between arms.

    Under no difference the seeds' direction x/|x| is uniform on a sphere, and r = sum(x)/|x| carries t. Given r at n + 1, the
    share of the last seed is r/(n + 1) plus a coordinate of a uniform direction in the n dimensions that keep r: exact at
    any n, where known-variance boundaries let t tests at 3 and 5 seeds err 5.4 % of the time (docs/statistics.md).
    """
    t = np.sign(GRID) * special.stdtrit(n, special.ndtr(np.abs(GRID)))
    r = (math.sqrt(n + 1) * t / np.sqrt(n + t**2))[:, None]
    angle, weight = np.pi / 2 * (NODES + 1), WEIGHTS * np.sin(np.pi / 2 * (NODES + 1)) ** (n - 2)
    last = r / (n + 1) + np.cos(angle) * np.sqrt((1 - r**2 / (n + 1)) * n / (n + 1))
    was = (r - last) / np.sqrt(1 - last**2)
    tail = special.stdtr(n - 1, -np.abs(was) * np.sqrt((n - 1) / np.maximum(n - was**2, 1e-30)))
    score = -np.sign(was) * special.ndtri(np.maximum(tail, 1e-30))
    place = np.clip((score - GRID[0]) / STEP, 0, GRID.size - 1.000001)
    found = np.zeros((GRID.size, GRID.size))
    rows, column, part = np.arange(GRID.size)[:, None], place.astype(int), place % 1
    np.add.at(found, (rows, column), (1 - part) * weight)
    np.add.at(found, (rows, column + 1), part * weight)
    return np.asarray(found / weight.sum())


def _over_looks(p: float, n: int, plan: Sequence[int] | None) -> float:
    """The smallest alpha at which a study with this plan rejects on `p` at n seeds; 1 where it is above LARGEST_P."""
    if plan is None or p >= 1:
        return p

    def excess(alpha: float) -> float:
        return math.log(max(alpha_at(n, plan, alpha), 1e-300) / max(p, SMALLEST_P))

    if excess(LARGEST_P) <= 0:
        return 1.0
    return float(optimize.brentq(excess, SMALLEST_P, LARGEST_P, rtol=1e-6, xtol=1e-18))


# ---- Power


def seeds_needed(
    effect: float, stdev: float, *, alpha: float = 0.05, power: float = POWER, paired: bool = True
) -> int | None:
    """Seeds an arm for `power` to distinguish `effect` from 0, two-sided at alpha, by the t test; None beyond MOST_SEEDS.

    stdev: paired, of the differences; unpaired, of one arm over its seeds. The baseline needs as many.
    """
    if not stdev:
        return 2
    return _smallest(
        lambda n: power_of(abs(effect) / stdev, n, alpha=alpha, paired=paired) >= power
    )


def power_of(size: float, n: int, *, alpha: float = 0.05, paired: bool = True) -> float:
    """Chance that the t test finds an effect, on either side.

    Args:
        size: of the effect, in standard deviations.
        n: seeds an arm.
        alpha: level of the test.
        paired: whether seeds are matched.
    """
    df, shift = (n - 1, size * math.sqrt(n)) if paired else (2 * n - 2, size * math.sqrt(n / 2))
    bound = stats.t.isf(alpha / 2, df) * _measured_spread(df)
    return float(WEIGHTS / 2 @ (special.ndtr(shift - bound) + special.ndtr(-shift - bound)))


def seeds_for_equivalence(
    margin: float, stdev: float, *, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """Seeds for two equal arms to be called equivalent, by TOST on matched differences.

    Args:
        margin: within which they are equivalent.
        stdev: of the differences.
        alpha: level of the test.
        power: chance that they are.
    """

    def enough(n: int) -> bool:
        room = math.sqrt(n) * margin / stdev - stats.t.isf(alpha, n - 1) * _measured_spread(n - 1)
        return float(WEIGHTS / 2 @ np.clip(2 * special.ndtr(room) - 1, 0, 1)) >= power

    return _smallest(enough) if stdev else 2


def _measured_spread(df: int) -> Floats:
    """Quantiles at (NODES + 1) / 2 of a measured over a true standard deviation; scipy's noncentral t is nan far out."""
    return np.asarray(np.sqrt(special.gammaincinv(df / 2, (NODES + 1) / 2) * 2 / df))


def _smallest(enough: Any) -> int | None:
    high = 2
    while not enough(high):
        high *= 2
        if high > MOST_SEEDS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _more(
    sample: _Sample, smallest_effect: float, alpha: float, plan: Sequence[int] | None
) -> int | None:
    """More seeds until a difference of smallest_effect would be seen, and none at all called equivalent, with POWER each.

    Looks that are still ahead come first. The spread is taken as measured, which from three seeds is a rough guide.
    """
    looks_ahead = [seeds for seeds in plan or () if seeds > sample.n]
    if looks_ahead:
        return looks_ahead[0] - sample.n
    if sample.identical:
        return None
    if not sample.usable:
        return max(MIN_SEEDS - sample.n, 1)
    assert sample.stdev is not None
    to_see_it = seeds_needed(smallest_effect, sample.stdev, alpha=alpha)
    to_call_none = seeds_for_equivalence(smallest_effect, sample.stdev, alpha=alpha)
    if to_see_it is None or to_call_none is None:
        return None
    return max(max(to_see_it, to_call_none) - sample.n, 1)


# ---- The noise floor of a profile


def farthest_twins(stdev: float, seeds: int, alpha: float = 0.05) -> float:
    """How far two single runs that differ in the seed alone lie apart, but for one pair in 1 / alpha.

    The prediction interval of a difference: t of n - 1 degrees times the standard deviation over n seeds times the root
    of 2, so 6.1 standard deviations where three seeds measured it, and 2.8 where it is known.

    Args:
        stdev: over the seeds.
        seeds: how many measured it.
        alpha: share of the pairs that lie farther apart.
    """
    return float(stats.t.isf(alpha / 2, seeds - 1)) * math.sqrt(2) * stdev


@dataclass(frozen=True)
class NoiseRow:
    """How many seeds an arm a metric needs for an effect, at alpha .05 and POWER.

    stdev: over seeds, with its 95 % interval (from few seeds it is wide). correlation: of matched seeds of two recipes,
    where both are known; without it `paired` is None, as the gain of pairing is not measured.
    """

    metric: str
    seeds: int
    mean: float
    stdev: float
    stdev_low: float
    stdev_high: float
    correlation: float | None
    effect: float
    unpaired: int | None
    paired: int | None


def noise_table(
    values: Mapping[str, Sequence[float]],
    sizes: Mapping[str, Sequence[float]],
    matched: Mapping[str, Sequence[float]] | None = None,
) -> list[NoiseRow]:
    """One row a metric and effect.

    Args:
        values: metric -> its value at every seed.
        sizes: metric -> effects to plan for.
        matched: the same metrics of another recipe at the same seeds, from which pairing's gain is measured.

    Raises:
        UserError: for a metric with fewer than MIN_SEEDS seeds, or matched values that are not as many.
    """
    matched = matched or {}
    problems = []
    for metric, seen in values.items():
        if len(seen) < MIN_SEEDS:
            problems.append(
                f"noise: {metric} has {len(seen)} seeds; a spread needs at least {MIN_SEEDS}"
            )
        others = len(matched.get(metric, seen))
        if others != len(seen):
            problems.append(f"noise: {metric} has {len(seen)} seeds, {others} of them matched")
    if problems:
        raise UserError(problems)
    rows = []
    for metric, seen in values.items():
        other = np.asarray(matched[metric], float) if metric in matched else None
        for size in sizes.get(metric, ()):
            rows.append(_noise_row(metric, np.asarray(seen, float), other, size))
    return rows


def _noise_row(metric: str, seen: Floats, other: Floats | None, size: float) -> NoiseRow:
    n, stdev = len(seen), float(seen.std(ddof=1))
    low, high = (stdev * math.sqrt((n - 1) / stats.chi2.ppf(q, n - 1)) for q in (0.975, 0.025))
    correlation = paired = None
    if other is not None:
        correlation = float(np.corrcoef(seen, other)[0, 1]) if stdev and other.std() else None
        paired = seeds_needed(size, float((other - seen).std(ddof=1)))
    return NoiseRow(
        metric,
        n,
        float(seen.mean()),
        stdev,
        low,
        high,
        correlation,
        size,
        seeds_needed(size, stdev, paired=False),
        paired,
    )


def unpaired_z(baseline: Sequence[float], arm: Sequence[float]) -> float:
    """Two-sided p of what people use: two means, their standard errors, a normal table.

    For comparison only; at few seeds its errors are far above what it says (docs/statistics.md).

    Args:
        baseline: a value a seed.
        arm: the same, of any number of seeds.
    """
    first, second = np.asarray(baseline, float), np.asarray(arm, float)
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return float(2 * special.ndtr(-abs(second.mean() - first.mean()) / error)) if error else 1.0


# ---- The difference over training


@dataclass(frozen=True)
class Curve:
    """Mean difference at every step (T,), its pointwise 1 - alpha interval, and the band that holds at all steps at once."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    band_low: Floats
    band_high: Floats


def difference_curve(
    steps: Sequence[float], baseline: Floats, arm: Floats, alpha: float = 0.05
) -> Curve:
    """The curve of arm - baseline, both (seeds, T) at the same seeds and steps.

    Pointwise: Student's t at each step. The band: t with the 1 - alpha quantile of the largest |t| over the steps, from
    simulated sets of as many seeds, with the correlation of neighbouring steps as measured. Raises UserError for shapes that
    differ, or fewer than two seeds (no interval).
    """
    differences = (
        np.asarray(arm, float) - np.asarray(baseline, float)
        if np.shape(arm) == np.shape(baseline)
        else None
    )
    if (
        differences is None
        or differences.ndim != 2
        or differences.shape[1] != len(steps)
        or len(differences) < 2
    ):
        raise UserError(
            f"curve: baseline {np.shape(baseline)} and arm {np.shape(arm)} over {len(steps)} steps; "
            "both must be (seeds, steps), with at least two seeds"
        )
    n = len(differences)
    mean, error = differences.mean(axis=0), differences.std(axis=0, ddof=1) / math.sqrt(n)
    point, band = stats.t.isf(alpha / 2, n - 1) * error, _largest_t(differences, alpha) * error
    return Curve(
        np.asarray(steps, float), mean, mean - point, mean + point, mean - band, mean + band
    )


def _largest_t(differences: Floats, alpha: float) -> float:
    """The 1 - alpha quantile of max |t| over the steps under no difference, for curves whose neighbouring steps correlate so.

    A resample of three seeds has no tails, so curves are simulated: normal, each step correlated with the one before (the
    measured correlation of neighbours, pooled over the steps, since of one pair of steps few seeds know little).
    """
    n, steps = differences.shape
    spread = differences.std(axis=0, ddof=1)
    moving = np.flatnonzero(spread)
    if len(moving) < 2:
        return float(stats.t.isf(alpha / 2, n - 1))
    scaled = (differences[:, moving] - differences[:, moving].mean(axis=0)) / spread[moving]
    near = float(np.clip((scaled[:, 1:] * scaled[:, :-1]).sum(axis=0).mean() / (n - 1), 0, 0.999))
    rng, largest = np.random.default_rng(0), np.zeros(CURVES)
    walk = rng.standard_normal((CURVES, n), dtype=np.float32)
    for _ in range(steps):
        t = walk.mean(axis=1) / walk.std(axis=1, ddof=1) * math.sqrt(n)
        largest = np.maximum(largest, np.abs(t))
        walk = near * walk + math.sqrt(1 - near**2) * rng.standard_normal(
            (CURVES, n), dtype=np.float32
        )
    return float(np.quantile(largest, 1 - alpha))
