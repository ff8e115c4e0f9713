"""The differences of one arm as a sample: their mean, its error, and what Student's t says of it.

Kinds of differences: those of matched runs (a plain list), of runs that share nothing at a seed (`Unmatched`), and of a
metric that is a mean over items (`ByItem`), whose error holds the noise of the items beside that of the seeds; times to a
target are in targets.py.

Sources: Student (1908); Welch (1947); Schuirmann (1987), two one-sided tests; Satterthwaite (1946), degrees of freedom of a
sum of variances; Hanley & Lippman-Hand (1983), what is bounded by items of which none differs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

ROUNDING = 1e-12  # of the largest difference: a spread below it is of the arithmetic, and no noise


@dataclass(frozen=True)
class ItemNoise:
    """What other items of the same kind would add to the error of a difference.

    Attributes:
        items: that both arms answered.
        units: that vary independently: items, or the tasks that they come in.
        error: standard error of the mean difference from items alone, at least that of one item.
        largest: difference that an item can make.
        none_differs: whether every outcome is the same in both arms.
    """

    items: int
    units: int
    error: float
    largest: float = 1.0
    none_differs: bool = False

    def p_equivalent(self, margin: float) -> float:
        """P of "a share of margin or more of such items differs", of which none was seen: (1 - margin)^units."""
        return float(max(1 - margin / self.largest, 0.0) ** self.units)

    def bound(self, alpha: float) -> float:
        """What the difference is below but for a chance of alpha, where none was seen: the rule of three."""
        return float(self.largest * (1 - alpha ** (1 / self.units)))


class OwnSample(list[float], ABC):
    """Differences whose sample is more than their mean and standard deviation."""

    @abstractmethod
    def sample(self) -> Sample:
        """The sample of the differences."""


class Unmatched(OwnSample):
    """Differences at each seed of runs that share nothing there: they are compared as two samples (Welch, 1947).

    Args:
        baseline: its values, one a run.
        arm: its values, as many.
    """

    def __init__(self, baseline: Sequence[float], arm: Sequence[float]) -> None:
        super().__init__(own - base for base, own in zip(baseline, arm, strict=True))
        self.baseline, self.arm = list(baseline), list(arm)

    def sample(self) -> Sample:
        """The sample of the difference of the means, with Welch's degrees of freedom."""
        n, mean = len(self), float(np.mean(self))
        if n < 2:
            return Sample(n, mean, None, matched=False)
        spreads = [float(np.var(values, ddof=1)) for values in (self.baseline, self.arm)]
        total = sum(spreads)
        if total == 0:
            return Sample(n, mean, 0.0, matched=False)
        squares = sum(spread**2 for spread in spreads)
        return Sample(n, mean, math.sqrt(total), total**2 * (n - 1) / squares, matched=False)


class ByItem(OwnSample):
    """Differences at each seed of a metric that is a mean over items.

    Args:
        differences: matched or `Unmatched`, one a seed.
        noise: of the items.
    """

    def __init__(self, differences: Sequence[float], noise: ItemNoise) -> None:
        super().__init__(differences)
        self.differences, self.noise = differences, noise

    def sample(self) -> Sample:
        """The sample of the differences, with the noise of the items."""
        return replace(Sample.of(self.differences), items=self.noise)


class Timed(OwnSample):
    """Differences at each seed of runs whose length follows from measured seconds.

    Args:
        differences: of any kind, one a seed.
        error: that the measurement gives all of them alike.
        rounds: of the measurement.
    """

    def __init__(self, differences: Sequence[float], error: float, rounds: int) -> None:
        super().__init__(differences)
        self.differences, self.error, self.rounds = differences, error, rounds

    def sample(self) -> Sample:
        """The sample of the differences, with the error of the seconds."""
        common = (self.error, self.rounds - 1)
        return replace(Sample.of(self.differences), common=common)


@dataclass(frozen=True)
class Sample:
    """The differences of one arm.

    Attributes:
        n: how many.
        mean: of them.
        stdev: of them; None of one.
        degrees: of freedom of that, where they are not n - 1.
        matched: whether they are differences of matched runs.
        items: noise of the items, where the metric is a mean over items.
        reserve: tests and intervals hold with one more seed so many standard deviations on the other side; 0: as they are.
        common: (standard error that all seeds share, its degrees of freedom): of measured seconds.
    """

    n: int
    mean: float
    stdev: float | None
    degrees: float | None = None
    matched: bool = True
    items: ItemNoise | None = None
    reserve: float = 0.0
    common: tuple[float, int] | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """The sample of these differences, at least one."""
        if isinstance(values, OwnSample):
            return values.sample()
        array = np.asarray(values, dtype=float)
        stdev = float(array.std(ddof=1)) if len(array) > 1 else None
        if stdev is not None and stdev <= ROUNDING * float(np.abs(array).max()):
            stdev = 0.0
        return cls(len(array), float(array.mean()), stdev)

    @property
    def usable(self) -> bool:
        """Whether it has a spread to judge by. Equal differences are a coarse metric, rounding, or seeds that do nothing."""
        return bool(self.stdev)

    @property
    def identical(self) -> bool:
        """Whether both arms have the same value at every seed."""
        return self.stdev == 0 and self.mean == 0

    @property
    def seed_error(self) -> float:
        """Standard error of the mean from seeds, of more than one difference; with a reserve, of one seed more."""
        assert self.stdev is not None
        n = self.n
        if not self.reserve:
            return self.stdev / math.sqrt(n)
        squares = n - 1 + self.reserve**2 * n / (n + 1)
        return self.stdev * math.sqrt(squares / (n * (n + 1)))

    @property
    def error(self) -> float:
        """Standard error of the mean, from seeds and from what no seed makes smaller."""
        return math.hypot(self.seed_error, self.lasting_error)

    @property
    def lasting_error(self) -> float:
        """The standard error that more seeds leave as it is: of items, and of measured seconds."""
        return math.hypot(*(error for error, _ in self._lasting()))

    def _lasting(self) -> list[tuple[float, float]]:
        """(standard error, its degrees of freedom) of what no seed makes smaller."""
        parts: list[tuple[float, float]] = []
        if self.items is not None:
            parts.append((self.items.error, self.items.units - 1))
        if self.common is not None:
            parts.append(self.common)
        return parts

    @property
    def shift(self) -> float:
        """By how much a reserve moves the mean towards the other side."""
        return self.reserve * (self.stdev or 0.0) / (self.n + 1)

    @property
    def seed_df(self) -> float:
        """Degrees of freedom of the spread over seeds."""
        return self.n - 1 if self.degrees is None else self.degrees

    @property
    def df(self) -> float:
        """Degrees of freedom of Student's t."""
        lasting = self._lasting()
        if not lasting:
            return self.seed_df
        squares = [error**4 / df for error, df in [(self.seed_error, self.seed_df), *lasting]]
        return self.error**4 / sum(squares)

    def _scales(self) -> list[tuple[float, float]]:
        """(standard error, degrees of freedom) of the seeds, and of all noise together where there is more; each has to pass.

        Where few seeds happen to lie close, the degrees of freedom of all noise together (Satterthwaite, 1946) promise too
        much: alone, with three seeds and 400 items, they called equal arms different in 14 % of studies
        (benchmarks/claims.json, "by item").
        """
        scales = [(self.seed_error, self.seed_df)]
        if self._lasting():
            scales.append((self.error, self.df))
        return scales

    def _tail(self, distance: float) -> float:
        """One-sided p of a distance from the mean."""
        return max(float(stats.t.sf(distance / error, df)) for error, df in self._scales())

    def p(self) -> float:
        """Two-sided p of "the mean is 0"; 1 without a spread."""
        if not self.usable:
            return 1.0
        return 2 * self._tail(max(abs(self.mean) - self.shift, 0.0))

    def p_equivalent(self, margin: float) -> float:
        """TOST: the larger p of "the mean is at most -margin" and "at least margin"; without a spread what the items bound."""
        if self.usable:
            return self._tail(margin - abs(self.mean) - self.shift)
        unseen = self._unseen()
        return 1.0 if unseen is None else unseen.p_equivalent(margin)

    def p_below(self, bound: float, sign: int = 1) -> float:
        """One-sided p of "sign times the mean is at least bound"; 1 without a spread."""
        if not self.usable:
            return 1.0
        return self._tail(bound - sign * self.mean - self.shift)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Student's interval of the mean; without a spread what the items bound, else -inf to inf, as where alpha is spent."""
        unseen = self._unseen()
        if unseen is not None and alpha > 0:
            return -unseen.bound(alpha), unseen.bound(alpha)
        if not self.usable or alpha <= 0:
            return -math.inf, math.inf
        half = max(float(stats.t.isf(alpha / 2, df)) * error for error, df in self._scales())
        return self.mean - half - self.shift, self.mean + half + self.shift

    def _unseen(self) -> ItemNoise | None:
        """The items, where none of them differs at any of several seeds."""
        if self.items is None or not self.items.none_differs or self.n < 2:
            return None
        return self.items
