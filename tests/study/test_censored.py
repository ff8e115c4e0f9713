"""Times to a target: where curves cross it, and runs that never do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from paribus.study.censored import (
    CensoredDifference,
    Reach,
    Times,
    crossing,
    logrank_p,
    paired_times,
)


def times(values: list[float], bound: list[float] | None = None) -> Times:
    return Times(np.array(values), np.array(bound or [0.0] * len(values)))


def test_a_curve_reaches_its_target_between_its_points() -> None:
    steps, values = [100, 200, 300, 400], [4.0, 3.5, 3.1, 3.2]
    assert crossing(steps, values, 3.3, "lower").time == pytest.approx(250)
    assert crossing(steps, values, 3.0, "lower") == Reach(400, "not reached")
    assert crossing(steps, values, 5.0, "lower") == Reach(100, "before the first point")
    assert crossing(steps, [0.1, 0.2, 0.4, 0.5], 0.3, "higher").time == pytest.approx(250)


def test_without_censoring_it_is_students_t_test() -> None:
    a, b = [5.1, 4.9, 5.6, 5.3], [6.0, 6.2, 5.8]
    found = CensoredDifference((times(a), times(b)))
    expected = stats.ttest_ind(b, a)
    low, high = expected.confidence_interval(0.95)
    assert found.p() == pytest.approx(expected.pvalue, rel=1e-3)
    assert found.estimate() == pytest.approx(np.mean(b) - np.mean(a), abs=1e-3)
    assert found.interval(0.05) == pytest.approx((low, high), abs=2e-3)


def test_matched_without_censoring_it_is_the_paired_t_test() -> None:
    differences = [0.4, 0.9, 0.1, 0.7]
    found = CensoredDifference((times(differences),))
    assert found.p() == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-3)


def test_the_likelihood_is_that_of_scipy() -> None:
    """The likeliest mean of censored normal times, against scipy's own fit of censored data."""
    data = stats.CensoredData(uncensored=[3.0, 3.4, 2.8], right=[3.6, 3.6])
    mean, _ = stats.norm.fit(data)
    found = CensoredDifference((times([3.0, 3.4, 2.8, 3.6, 3.6], [0, 0, 0, 1, 1]),))
    assert found.estimate() == pytest.approx(mean, abs=5e-3)


def test_runs_that_never_arrive_bound_the_difference_from_one_side() -> None:
    found = CensoredDifference((times([10, 11, 10.5, 10.2]), times([15, 15, 15], [1, 1, 1])))
    low, high = found.interval(0.05)
    assert found.estimate() == math.inf
    assert low > 2
    assert high == math.inf
    assert found.p() < 0.01


def test_runs_that_never_arrive_are_not_dropped() -> None:
    base, arm = [10.0, 12.0, 11.0, 13.0], [11.0, 12.5, 14.0, 14.0]
    known = CensoredDifference((times(base), times(arm[:2])))
    all_runs = CensoredDifference((times(base), times(arm, [0, 0, 1, 1])))
    assert all_runs.estimate() > known.estimate() + 0.5


def test_pairs_of_which_both_never_arrive_say_nothing() -> None:
    late, early = Reach(20, "not reached"), Reach(12, "reached")
    differences = paired_times([late, early, late], [late, late, early])
    assert list(differences.values) == [8, -8]
    assert list(differences.bound) == [1, -1]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_censored_verdicts_keep_their_rate(seeds: int, share: float) -> None:
    """Of the planted difference, where a share of the baseline's runs does not arrive."""
    rng = np.random.default_rng(9)
    end = float(stats.norm.isf(share))
    missed, trials = 0, 200
    for _ in range(trials):
        base, arm = rng.standard_normal(seeds), rng.standard_normal(seeds) + 0.5
        cut = [Times(np.minimum(of, end), np.where(of > end, 1.0, 0.0)) for of in (base, arm)]
        found = CensoredDifference((cut[0], cut[1]))
        if found.df >= 1:
            missed += 2 * stats.t.sf(abs(found.t_at(0.5)), found.df) < 0.05
    assert missed / trials <= 0.06


def test_logrank_agrees_with_scipy_where_there_are_many_runs() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.exponential(1, 60), rng.exponential(1.7, 60)
    censored = [np.minimum(values, 2) for values in (a, b)]
    bound = [np.where(values > 2, 1.0, 0.0) for values in (a, b)]
    found = logrank_p(Times(censored[0], bound[0]), Times(censored[1], bound[1]))
    sets = [
        stats.CensoredData(uncensored=values[flags == 0], right=values[flags == 1])
        for values, flags in zip(censored, bound, strict=True)
    ]
    assert found == pytest.approx(stats.logrank(sets[0], sets[1]).pvalue, abs=0.02)
