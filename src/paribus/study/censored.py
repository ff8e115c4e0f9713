"""When a curve reaches a target, and what runs that never did say: censored times.

A run that ends before the target has not "no result": its time is longer than what it ran. Leaving it out, or taking its
length for its time, favours the slower arm. Here such runs enter by the chance of a time at least that long (Tobit, 1958):
the likelihood of normal times with one spread, profiled over the difference. The likelihood ratio is brought to Student's t
by the relation that holds exactly where nothing is censored, LR = N log(1 + t²/df), so that a complete sample gives the
textbook's t test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from paribus.study.power import Floats

Known = Literal["reached", "not reached", "before the first point"]
WIDEST = 20.0  # ranges of the times: beyond it a likelihood changes no more
LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
FLAT = 1e-6  # of a log likelihood that has stopped to change


@dataclass(frozen=True)
class Reach:
    """Where a curve reaches a target.

    time: on its axis; where it did not, the last place it was seen at (the true one is later); where it had before the
    first point, that point (the true one is earlier).
    """

    time: float
    known: Known


def crossing(
    places: Sequence[float], values: Sequence[float], target: float, direction: str
) -> Reach:
    """The first place at which a curve is at the target or beyond, on the line between its points.

    Args:
        places: of the points along the curve, rising.
        values: of the curve there.
        target: to be reached.
        direction: "lower" or "higher" is better.
    """
    sign = -1 if direction == "lower" else 1
    above = [sign * (value - target) for value in values]
    for index, excess in enumerate(above):
        if excess < 0:
            continue
        if index == 0:
            return Reach(places[0], "before the first point")
        before = above[index - 1]
        part = before / (before - excess)
        return Reach(places[index - 1] + part * (places[index] - places[index - 1]), "reached")
    return Reach(places[-1], "not reached")


@dataclass(frozen=True)
class Times:
    """Times of one arm, or differences of two, of which some are only bounded.

    values (n,): the time, or its bound. bound (n,): 0 known, +1 at least the value, -1 at most the value.
    """

    values: Floats
    bound: Floats

    @classmethod
    def of(cls, reaches: Sequence[Reach]) -> Times:
        """The times of curves."""
        signs = {"reached": 0.0, "not reached": 1.0, "before the first point": -1.0}
        values = np.array([reach.time for reach in reaches], float)
        return cls(values, np.array([signs[reach.known] for reach in reaches]))

    @property
    def known(self) -> int:
        """How many are not censored."""
        return int((self.bound == 0).sum())


def paired_times(baseline: Sequence[Reach], arm: Sequence[Reach]) -> Times:
    """Differences arm - baseline of matched runs; a pair of which both are censored alike says nothing and is left out.

    Args:
        baseline: of each pair.
        arm: of each pair.
    """
    of_base, of_arm = Times.of(baseline), Times.of(arm)
    difference = of_arm.values - of_base.values
    bound = of_arm.bound - of_base.bound
    says_something = ~((of_arm.bound != 0) & (of_arm.bound == of_base.bound))
    return Times(difference[says_something], np.sign(bound)[says_something])


@dataclass(frozen=True)
class CensoredDifference:
    """The likelihood of a difference between two groups, or of the mean of differences.

    groups: (baseline, arm), or one group of differences.
    """

    groups: tuple[Times, ...]

    @property
    def df(self) -> int:
        """Degrees of freedom of the spread: known times less one for each group that has any."""
        with_known = sum(1 for group in self.groups if group.known)
        return sum(group.known for group in self.groups) - with_known

    @property
    def known(self) -> int:
        """Times that are not censored."""
        return sum(group.known for group in self.groups)

    @property
    def size(self) -> int:
        """Runs, or pairs, that say something."""
        return sum(len(group.values) for group in self.groups)

    def t_at(self, difference: float) -> float:
        """Student's t of the hypothesis that the difference is this; positive where it seems larger.

        Args:
            difference: arm - baseline.
        """
        best, peak = self.peak
        ratio = max(2 * (peak - self._profile(difference)), 0.0)
        n = self.size
        full = max(n - len(self.groups), 1)
        t = math.sqrt(full * math.expm1(min(ratio / n, 700.0)))
        return t if best > difference else -t

    def p(self) -> float:
        """Two-sided p of no difference."""
        return float(2 * stats.t.sf(abs(self.t_at(0.0)), self.df)) if self.df >= 1 else 1.0

    def estimate(self) -> float:
        """The likeliest difference; infinite where no run of one arm has a known time."""
        best, top = self.peak
        for side in (-1, 1):
            if top - self._profile(self._far(side)) < FLAT:
                return side * math.inf
        return best

    def interval(self, alpha: float) -> tuple[float, float]:
        """The 1 - alpha interval; infinite on a side that the runs do not bound.

        Args:
            alpha: share of intervals that miss.
        """
        if self.df < 1:
            return -math.inf, math.inf
        bound = float(stats.t.isf(alpha / 2, self.df))
        best, _ = self.peak
        ends = []
        for side in (-1, 1):
            far = self._far(side)
            if abs(self.t_at(far)) <= bound:
                ends.append(side * math.inf)
                continue
            ends.append(
                float(optimize.brentq(lambda at: abs(self.t_at(at)) - bound, best, far, rtol=1e-9))
            )
        return ends[0], ends[1]

    # ---- the likelihood

    def _far(self, side: int) -> float:
        """A difference so far on one side that the likelihood changes no more."""
        return self._centre + side * WIDEST * self._scale

    @property
    def _scale(self) -> float:
        values = np.concatenate([group.values for group in self.groups])
        spread = float(np.ptp(values))
        return spread if spread > 0 else max(abs(float(values[0])), 1.0)

    @property
    def _centre(self) -> float:
        if len(self.groups) == 1:
            return float(self.groups[0].values.mean())
        return float(self.groups[1].values.mean() - self.groups[0].values.mean())

    @functools.cached_property
    def peak(self) -> tuple[float, float]:
        """(the likeliest difference, its profile log likelihood)."""
        reach = WIDEST * self._scale
        grid = np.linspace(-1, 1, 41)
        places = self._centre + reach * np.sign(grid) * grid**2
        heights = [self._profile(float(place)) for place in places]
        top = int(np.argmax(heights))
        low, high = places[max(top - 1, 0)], places[min(top + 1, len(places) - 1)]
        fine = optimize.minimize_scalar(
            lambda at: -self._profile(float(at)), bounds=(low, high), method="bounded"
        )
        best = float(fine.x) if -fine.fun >= heights[top] else float(places[top])
        return best, self._profile(best)

    def _profile(self, difference: float) -> float:
        """The largest log likelihood with this difference, over the level and the spread."""
        if len(self.groups) == 1:
            values = self.groups[0].values - difference
            bound = self.groups[0].bound
            level_is_free = False
        else:
            base, arm = self.groups
            values = np.concatenate([base.values, arm.values - difference])
            bound = np.concatenate([base.bound, arm.bound])
            level_is_free = True
        return _likelihood(values, bound, level_is_free, self._scale)


def _likelihood(values: Floats, bound: Floats, level_is_free: bool, scale: float) -> float:
    """The largest log likelihood of censored normal values, over their spread and, where free, their level.

    In the parameters (level/spread, 1/spread) it is concave (Olsen, 1978), so that any local maximum is the one.
    """
    scaled = values / scale
    known = bound == 0
    side = bound[~known]
    exact, censored = scaled[known], scaled[~known]

    def minus(parameters: Floats) -> tuple[float, Floats]:
        """The negative log likelihood and its slope in (level/spread, log of 1/spread)."""
        precision = math.exp(min(parameters[-1], 50.0))
        level = float(parameters[0]) if level_is_free else 0.0
        residual = precision * exact - level
        argument = side * (level - precision * censored)
        log_chance = special.log_ndtr(argument)
        hazard = side * np.exp(-(argument**2) / 2 - LOG_ROOT_2_PI - log_chance)
        height = -0.5 * (residual**2).sum() + len(exact) * math.log(precision) + log_chance.sum()
        by_level = residual.sum() + hazard.sum()
        by_precision = (
            -precision * (exact * residual).sum()
            + len(exact)
            - precision * (censored * hazard).sum()
        )
        slope = [by_level, by_precision] if level_is_free else [by_precision]
        return -float(height), -np.array(slope)

    spread = max(float(scaled.std() if level_is_free else np.sqrt((scaled**2).mean())), 1e-9)
    start = [-math.log(spread)]
    if level_is_free:
        start = [float(scaled.mean()) / spread, *start]
    found = optimize.minimize(minus, start, method="BFGS", jac=True)
    return -float(found.fun)


def logrank_p(baseline: Times, arm: Times) -> float | None:
    """Two-sided p of the log-rank test by permutation of the arms (at most 20,000 of them, drawn with a fixed seed).

    None for an arm of one run, and where a time is bounded from above, which the test does not know.

    Args:
        baseline: times of the baseline.
        arm: times of the arm.
    """
    values = np.concatenate([baseline.values, arm.values])
    bound = np.concatenate([baseline.bound, arm.bound])
    smallest = min(len(baseline.values), len(arm.values))
    if smallest < 2 or (bound < 0).any() or not (bound == 0).any():
        return None
    scores = _logrank_scores(values, bound == 0)
    observed = abs(scores[len(baseline.values) :].sum())
    rng = np.random.default_rng(0)
    found = stats.permutation_test(
        (scores[len(baseline.values) :], scores[: len(baseline.values)]),
        lambda first, second, axis: first.sum(axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=20_000,
        alternative="two-sided",
        rng=rng,
    )
    extreme = np.abs(found.null_distribution) >= observed * (1 - 1e-9)
    return float(extreme.mean())


def _logrank_scores(values: Floats, known: Floats) -> Floats:
    """Score of each run: whether its time is known, less the hazard summed up to it (Nelson & Aalen)."""
    scores = np.zeros(len(values))
    for index, value in enumerate(values):
        hazard = 0.0
        for time in np.unique(values[known & (values <= value)]):
            hazard += float((known & (values == time)).sum()) / float((values >= time).sum())
        scores[index] = float(known[index]) - hazard
    return scores
