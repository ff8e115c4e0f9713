"""How much a metric varies from seed to seed, and how many seeds an effect then needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from paribus.errors import UserError
from paribus.study.power import Floats, seeds_needed

MIN_SEEDS = 3  # the fewest from which a spread is worth planning with


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
