"""What an effect is worth in compute: how much less the arm needs for the baseline's result, and how much more the baseline.

"Lower by .012" buys nothing; "the same loss with 9 % fewer tokens" does. A curve read in the middle of a decaying learning
rate does not say it: a run that is to end earlier decays earlier. So the baseline is trained to the end at a few horizons
around that of the arm, and its result as a function of the logarithm of compute is a straight line (two horizons) or a
parabola (three or more). The arm's result lies at some place on that curve. Its interval holds every place that the runs do
not reject (Fieller, 1954): noise of the arm, of the baseline and of the slope all enter, and where the slope is not known to
differ from 0 the interval is open, as it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from paribus.study.power import Floats

FARTHEST = math.log(16)  # of the compute searched: sixteen times as much, or as little
STEPS = 400  # of the search on each side
SAME_HORIZON = 1.05  # ratio up to which measured amounts of compute count as one horizon


@dataclass(frozen=True)
class Trained:
    """A run to its end: its compute, its result, and what matches it to others ("" for nothing)."""

    compute: float
    result: float
    pair: str = ""


@dataclass(frozen=True)
class Amount:
    """An amount of compute with its interval; None is unbounded or unknown. extrapolated: beyond the horizons trained."""

    estimate: float | None
    low: float | None
    high: float | None
    extrapolated: bool = False


@dataclass(frozen=True)
class Saved:
    """An effect in compute.

    Attributes:
        arm_horizon: compute of the arm's runs.
        baseline_horizon: compute of the baseline's runs that it is compared with.
        baseline_needs: for the arm's result.
        arm_needs: for the baseline's result.
        own_curve: whether the arm was trained at several horizons itself. If not, its gain is taken as a constant factor of
            compute.
        gain_per_unit: by how much one more unit of compute improves the baseline.
        df: degrees of freedom of the noise.
    """

    arm_horizon: float
    baseline_horizon: float
    baseline_needs: Amount
    arm_needs: Amount
    own_curve: bool
    gain_per_unit: Amount
    df: float

    @property
    def fraction(self) -> Amount:
        """The share of compute that the arm saves on its way to its result; negative where it costs more."""
        needs = self.baseline_needs
        shares = [
            None if end is None or end <= 0 else 1 - self.arm_horizon / end
            for end in (needs.estimate, needs.low, needs.high)
        ]
        return Amount(shares[0], shares[1], shares[2], needs.extrapolated)


def horizons_of(runs: Sequence[Trained]) -> list[float]:
    """The horizons of runs, rising; amounts within SAME_HORIZON of the smallest count as one, under their mean.

    Args:
        runs: with their compute.
    """
    groups: list[list[float]] = []
    for amount in sorted(run.compute for run in runs):
        if groups and amount <= groups[-1][0] * SAME_HORIZON:
            groups[-1].append(amount)
        else:
            groups.append([amount])
    return [sum(group) / len(group) for group in groups]


def compute_saved(
    baseline: Sequence[Trained], arm: Sequence[Trained], direction: str, alpha: float = 0.05
) -> Saved | None:
    """The effect of an arm in compute; None where the baseline has one horizon, or no noise can be measured.

    Args:
        baseline: runs at two horizons or more.
        arm: runs at one horizon or more.
        direction: "lower" or "higher" results are better.
        alpha: share of intervals that miss.
    """
    of_base, of_arm = horizons_of(baseline), horizons_of(arm)
    if len(of_base) < 2:
        return None
    horizon = _main_horizon(arm, of_arm)
    model = _Curves.fitted(baseline, arm, horizon, direction, len(of_base), len(of_arm))
    if model.df < 1 or model.residual <= 0:
        return None
    low, high = math.log(of_base[0] / horizon), math.log(of_base[-1] / horizon)
    needs = model.place(model.arm_level, model.base, alpha, (low, high))
    if len(of_arm) > 1:
        span = math.log(of_arm[0] / horizon), math.log(of_arm[-1] / horizon)
        fewer = model.place(model.base_level, model.arm, alpha, span)
    else:
        fewer = _Place(_minus(needs.at), _minus(needs.high), _minus(needs.low), needs.extrapolated)
    return Saved(
        arm_horizon=horizon,
        baseline_horizon=horizon,
        baseline_needs=needs.amount(horizon),
        arm_needs=fewer.amount(horizon),
        own_curve=len(of_arm) > 1,
        gain_per_unit=model.gain(alpha, horizon),
        df=model.df,
    )


def _main_horizon(arm: Sequence[Trained], horizons: Sequence[float]) -> float:
    """The horizon at which most of the arm's runs are; of several, the one in the middle."""

    def runs_at(horizon: float) -> int:
        return sum(
            1 for run in arm if abs(math.log(run.compute / horizon)) < math.log(SAME_HORIZON)
        )

    middle = horizons[len(horizons) // 2]
    return max(horizons, key=lambda one: (runs_at(one), one == middle))


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


@dataclass(frozen=True)
class _Place:
    """A place on a curve, as the logarithm of compute over that of the horizon."""

    at: float | None
    low: float | None
    high: float | None
    extrapolated: bool

    def amount(self, horizon: float) -> Amount:
        ends = [
            None if end is None else horizon * math.exp(end)
            for end in (self.at, self.low, self.high)
        ]
        return Amount(ends[0], ends[1], ends[2], self.extrapolated)


@dataclass(frozen=True)
class _Curves:
    """Least squares of all runs: a curve of the baseline, a level or a curve of the arm, a level for each pair.

    Results count as improvements, so that curves rise. base, arm: powers of the logarithm of compute -> column.
    """

    coefficients: Floats
    covariance: Floats
    residual: float
    df: int
    base: Sequence[int]
    arm: Sequence[int]

    @classmethod
    def fitted(
        cls,
        baseline: Sequence[Trained],
        arm: Sequence[Trained],
        horizon: float,
        direction: str,
        base_horizons: int,
        arm_horizons: int,
    ) -> _Curves:
        base_powers, arm_powers = min(base_horizons, 3), min(arm_horizons, 3)
        runs = [*baseline, *arm]
        pairs = list(dict.fromkeys(run.pair for run in runs if run.pair))
        width = base_powers + arm_powers
        design = np.zeros((len(runs), width + max(len(pairs) - 1, 0)))
        for number, run in enumerate(runs):
            is_arm = number >= len(baseline)
            place = math.log(run.compute / horizon)
            powers = arm_powers if is_arm else base_powers
            first = base_powers if is_arm else 0
            for power in range(powers):
                design[number, first + power] = place**power
            if run.pair and run.pair != pairs[0]:
                design[number, width + pairs.index(run.pair) - 1] = 1.0
        sign = -1 if direction == "lower" else 1
        results = sign * np.array([run.result for run in runs])
        inverse = np.linalg.pinv(design)
        coefficients = inverse @ results
        left = results - design @ coefficients
        df = len(runs) - int(np.linalg.matrix_rank(design))
        residual = math.sqrt(float(left @ left) / df) if df > 0 else 0.0
        scale = float(np.abs(results).max())
        return cls(
            coefficients,
            residual**2 * (inverse @ inverse.T),
            residual if residual > 1e-12 * scale else 0.0,
            df,
            range(base_powers),
            range(base_powers, width),
        )

    @property
    def base_level(self) -> Floats:
        """Weights of the baseline's result at the horizon."""
        return self._weights(self.base, 0.0)

    @property
    def arm_level(self) -> Floats:
        """Weights of the arm's result at the horizon."""
        return self._weights(self.arm, 0.0)

    def _weights(self, columns: Sequence[int], place: float) -> Floats:
        weights = np.zeros(len(self.coefficients))
        for power, column in enumerate(columns):
            weights[column] = place**power
        return weights

    def place(
        self, level: Floats, curve: Sequence[int], alpha: float, trained: tuple[float, float]
    ) -> _Place:
        """Where a curve has a level, with all places that the runs do not reject.

        Args:
            level: weights of the level.
            curve: columns of the curve.
            alpha: share of intervals that miss.
            trained: first and last place at which the curve was trained.
        """

        def gap(place: float) -> float:
            return float((level - self._weights(curve, place)) @ self.coefficients)

        bound = float(stats.t.isf(alpha / 2, self.df))

        def excess(place: float) -> float:
            weights = level - self._weights(curve, place)
            error = math.sqrt(max(float(weights @ self.covariance @ weights), 1e-300))
            return abs(float(weights @ self.coefficients)) / error - bound

        first, last = self._rising(curve)
        at = _root(gap, first, last)
        if at is None:
            return _Place(None, None, None, True)
        low, high = _end(excess, at, first), _end(excess, at, last)
        return _Place(at, low, high, not trained[0] <= at <= trained[1])

    def _rising(self, curve: Sequence[int]) -> tuple[float, float]:
        """The stretch around the horizon on which a curve rises with compute; empty where it falls there."""
        slope = float(self.coefficients[curve[1]])
        if slope <= 0:
            return 0.0, 0.0
        bend = float(self.coefficients[curve[2]]) if len(curve) > 2 else 0.0
        if bend == 0:
            return -FARTHEST, FARTHEST
        turn = -slope / (2 * bend)
        return (-FARTHEST, min(turn, FARTHEST)) if bend < 0 else (max(turn, -FARTHEST), FARTHEST)

    def gain(self, alpha: float, horizon: float) -> Amount:
        """By how much one more unit of compute improves the baseline at the horizon."""
        weights = np.zeros(len(self.coefficients))
        weights[self.base[1]] = 1 / horizon
        gain = float(weights @ self.coefficients)
        half = float(stats.t.isf(alpha / 2, self.df)) * math.sqrt(
            float(weights @ self.covariance @ weights)
        )
        return Amount(gain, gain - half, gain + half)


def _root(gap: Callable[[float], float], first: float, last: float) -> float | None:
    """Where a falling function is 0 between two places; None where it is not."""
    if first == last or gap(first) < 0 or gap(last) > 0:
        return None
    return float(optimize.brentq(gap, first, last, xtol=1e-12))


def _end(excess: Callable[[float], float], at: float, edge: float) -> float | None:
    """The first place from `at` towards `edge` that the runs reject; None where they reject none."""
    before = at
    for place in np.linspace(at, edge, STEPS)[1:]:
        if excess(float(place)) > 0:
            return float(optimize.brentq(excess, before, float(place), xtol=1e-12))
        before = float(place)
    return None


def saved_by_slope(
    gain: tuple[float, float],
    df: float,
    horizons: tuple[float, float],
    slope: tuple[float, float],
    alpha: float = 0.05,
) -> Saved:
    """The effect of an arm in compute where the slope is stated: gain over slope, by Fieller's theorem.

    Args:
        gain: improvement of the arm's result over the baseline's, as they are, and its standard error.
        df: degrees of freedom of that error.
        horizons: compute of the arm and of the baseline.
        slope: by how much one more unit improves the result, and its standard error (0: exact).
        alpha: share of intervals that miss.
    """
    more, low, high = _ratio(gain, slope, float(stats.t.isf(alpha / 2, df)))
    of_arm, of_base = horizons
    half = float(stats.t.isf(alpha / 2, df)) * slope[1]
    return Saved(
        arm_horizon=of_arm,
        baseline_horizon=of_base,
        baseline_needs=Amount(of_base + more, _plus(of_base, low), _plus(of_base, high)),
        arm_needs=Amount(of_arm - more, _plus(of_arm, _minus(high)), _plus(of_arm, _minus(low))),
        own_curve=False,
        gain_per_unit=Amount(slope[0], slope[0] - half, slope[0] + half),
        df=df,
    )


def _plus(amount: float, more: float | None) -> float | None:
    return None if more is None else amount + more


def _ratio(
    gain: tuple[float, float], slope: tuple[float, float], bound: float
) -> tuple[float, float | None, float | None]:
    """(gain / slope, its ends): every u with |gain - u slope| <= bound * error; None where that is not an interval."""
    square = slope[0] ** 2 - (bound * slope[1]) ** 2
    middle = gain[0] * slope[0]
    level = gain[0] ** 2 - (bound * gain[1]) ** 2
    under_root = middle**2 - square * level
    if square <= 0 or under_root < 0:
        return gain[0] / slope[0], None, None
    half = math.sqrt(under_root)
    return gain[0] / slope[0], (middle - half) / square, (middle + half) / square


def horizons_around(saved_fraction: float) -> tuple[float, ...]:
    """Horizons, in units of the arm's, at which to train the baseline so that an effect lies within them.

    Args:
        saved_fraction: a guess of the effect: the share of compute that the arm saves (negative: costs more).
    """
    reach = max(abs(math.log1p(-min(saved_fraction, 0.9))) * 1.25, math.log(1.25))
    return round(math.exp(-reach), 2), 1.0, round(math.exp(reach), 2)
