"""An arm's effect over sizes: its trend over the logarithm of compute, and what it is predicted to be at a size not trained.

Each rung of a ladder gives the mean of its matched differences. A straight line over log compute goes through these means;
how far they lie from it is the noise that every claim is measured by. It has two parts: seeds, and rungs whose true effects
lie off the line. Where the rungs scatter no more than their seeds explain, both are pooled; where they scatter more, only the
scatter of the rungs counts, with the few degrees of freedom it has. So a line that does not hold gives wide intervals,
however many seeds there are. Coverage from four rungs on is 92 to 97 %, and more where the rungs of a seed share noise
(docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Answer = Literal["holds", "shrinks", "vanishes", "unknown"]
FEWEST_RUNGS = 4  # a line needs three, and one is kept out as a check


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    mean: float
    low: float
    high: float

    def beside(self, value: float) -> bool:
        """Whether the interval leaves out a value."""
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Trend:
    """A line through the mean effects of rungs.

    Attributes:
        level: of the line at the rungs' mean log compute.
        first: the least compute of a rung.
        slope: change of the effect for each tenfold of compute.
        middle: the rungs' mean of log10 compute. spread: the sum of squares around it.
        rungs: how many.
        variance: of a rung's mean around the line.
        df: degrees of freedom of that variance.
    """

    level: float
    first: float
    slope: float
    middle: float
    spread: float
    rungs: int
    variance: float
    df: int

    @classmethod
    def of(cls, effects: Mapping[float, Sequence[float]]) -> Trend | None:
        """The line of a ladder; None for fewer than three rungs or two seeds, or without noise to judge by.

        Args:
            effects: compute of a rung -> its differences, as many at each rung.
        """
        rungs = len(effects)
        seeds = min((len(differences) for differences in effects.values()), default=0)
        if rungs < 3 or seeds < 2:
            return None
        places = np.log10(np.array(list(effects)))
        differences = np.array([list(of_rung) for of_rung in effects.values()], float)
        means = differences.mean(axis=1)
        middle = float(places.mean())
        spread = float(((places - middle) ** 2).sum())
        slope = float(((places - middle) * means).sum()) / spread
        level = float(means.mean())
        left = means - level - slope * (places - middle)
        of_rungs, freedom_of_rungs = float((left**2).sum()) / (rungs - 2), rungs - 2
        of_seeds = float(differences.var(axis=1, ddof=1).mean()) / seeds
        freedom_of_seeds = rungs * (seeds - 1)
        variance, df = of_rungs, freedom_of_rungs
        if of_rungs <= of_seeds:
            df = freedom_of_rungs + freedom_of_seeds
            variance = (freedom_of_rungs * of_rungs + freedom_of_seeds * of_seeds) / df
        if variance <= 0:
            return None
        return cls(level, min(effects), slope, middle, spread, rungs, variance, df)

    def change(self, alpha: float) -> Estimate:
        """The slope with its interval.

        Args:
            alpha: share of intervals that miss.
        """
        half = self._bound(alpha) * math.sqrt(self.variance / self.spread)
        return Estimate(self.slope, self.slope - half, self.slope + half)

    def at(self, compute: float, alpha: float) -> Estimate:
        """What as many seeds would measure at a size, as the rungs have: the line with its prediction interval.

        Args:
            compute: of the baseline there.
            alpha: share of intervals that miss.
        """
        away = math.log10(compute) - self.middle
        mean = self.level + self.slope * away
        share = 1 + 1 / self.rungs + away**2 / self.spread
        half = self._bound(alpha) * math.sqrt(self.variance * share)
        return Estimate(mean, mean - half, mean + half)

    def line(self, compute: float) -> float:
        """The effect that the line has at an amount of compute."""
        return self.level + self.slope * (math.log10(compute) - self.middle)

    def _bound(self, alpha: float) -> float:
        return float(stats.t.isf(alpha / 2, self.df)) if alpha > 0 else math.inf


@dataclass(frozen=True)
class Check:
    """A rung that was kept out of a fit: what the others predict of it, and what was measured."""

    compute: float
    predicted: Estimate
    measured: float

    @property
    def passed(self) -> bool:
        """Whether the measured effect lies in the prediction interval."""
        return not self.predicted.beside(self.measured)


def check_of(effects: Mapping[float, Sequence[float]], alpha: float) -> Check | None:
    """The largest rung as the others predict it; None where they are too few.

    Args:
        effects: compute of a rung -> its differences.
        alpha: share of intervals that miss.
    """
    if not effects:
        return None
    largest = max(effects)
    trend = Trend.of({at: found for at, found in effects.items() if at != largest})
    if trend is None:
        return None
    measured = float(np.mean(effects[largest]))
    return Check(largest, trend.at(largest, alpha), measured)


def answer(
    trend: Trend, predicted: Estimate, alpha: float, smallest_effect: float, check: Check | None
) -> Answer:
    """What becomes of an effect at the size that was not trained.

    vanishes: the predicted effect lies within ± smallest_effect. shrinks: the trend leads from the effect of the smallest rung
    towards 0, and its interval leaves 0 out. holds: the predicted effect is not 0, on the side where the smallest rung has it.
    unknown: none of these is shown, or the rung that was kept out lies outside what the others predict of it.

    Args:
        trend: of the effect over the rungs.
        predicted: at the size not trained.
        alpha: share of intervals that miss.
        smallest_effect: that matters.
        check: of the rung that was kept out.
    """
    if check is not None and not check.passed:
        return "unknown"
    if -smallest_effect < predicted.low and predicted.high < smallest_effect:
        return "vanishes"
    change = trend.change(alpha)
    at_first = trend.line(trend.first)
    if change.beside(0.0) and change.mean * at_first < 0:
        return "shrinks"
    if predicted.beside(0.0) and predicted.mean * at_first > 0:
        return "holds"
    return "unknown"
