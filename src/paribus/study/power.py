"""How many seeds an effect takes, and which effect so many seeds find: power of the t test and of two one-sided tests.

Sources: Student (1908); Schuirmann (1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]

POWER = 0.8  # what studies are planned for
MOST_SEEDS = 100_000  # beyond it "how many seeds" has no useful answer
SURE = 0.8  # of the upper limit of a spread with which studies are planned
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # on [-1, 1]: of a chance


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


def _smallest(enough: Callable[[int], bool]) -> int | None:
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


def upper_stdev(stdev: float, seeds: int) -> float:
    """The upper limit of a spread that so many seeds measured, which it is below with a chance of SURE: 2.1 times at 3 seeds.

    Three seeds measure a spread within a factor of .52 to 6.3 (95 %); planning with what they measured reaches the power
    wanted in fewer than two studies of three.

    Args:
        stdev: as measured.
        seeds: that measured it, at least 2.
    """
    return stdev * math.sqrt((seeds - 1) / float(stats.chi2.ppf(1 - SURE, seeds - 1)))


def detectable_effect(
    n: int, *, alpha: float = 0.05, power: float = POWER, paired: bool = True
) -> float:
    """The smallest effect that n seeds find with `power`, in standard deviations (of the differences, where paired).

    Args:
        n: seeds an arm, at least 2.
        alpha: level of the test.
        power: chance to find it.
        paired: whether seeds are matched.
    """

    def excess(size: float) -> float:
        return power_of(size, n, alpha=alpha, paired=paired) - power

    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, 0, high, xtol=1e-6))
