"""Estimates and verdicts of tables against scipy, statsmodels and textbooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from paribus.judge import Judgement, judge
from paribus.judge.estimates import partly_matched

# Student (1908), Cushny & Peebles: hours of sleep gained by two drugs, ten patients; t = 4.0621, p = .002833 paired.
SLEEP = {
    "one": [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    "two": [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
}


def table(groups: Mapping[str, Sequence[float]], **columns: Any) -> pandas.DataFrame:
    rows = []
    for arm, values in groups.items():
        for seed, value in enumerate(values):
            rows.append({"arm": arm, "seed": seed, "loss": value})
    return pandas.DataFrame(rows).assign(**columns)


def judged(frame: Any, **options: Any) -> Judgement:
    return judge(frame, **({"arm": "arm", "metric": "loss"} | options))


def test_unmatched_is_welch() -> None:
    result = judged(table(SLEEP), baseline="one").comparisons[0]
    expected = stats.ttest_ind(SLEEP["two"], SLEEP["one"], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert result.difference == pytest.approx(1.58)
    assert result.p == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert result.estimate.df == pytest.approx(expected.df)
    assert result.verdict == "undecided"


def test_matched_is_students_own_example() -> None:
    result = judged(table(SLEEP), baseline="one", pair_by="seed", higher_is_better=True)
    one = result.comparisons[0]
    assert one.p == pytest.approx(0.002833, abs=5e-7)
    assert (one.low, one.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert one.verdict == "better"


def test_rows_may_stand_in_any_order() -> None:
    frame = table(SLEEP).sample(frac=1, random_state=3)
    one = judged(frame, baseline="one", pair_by="seed").comparisons[0]
    assert one.p == pytest.approx(0.002833, abs=5e-7)


def test_pooled_is_the_spread_of_all_arms() -> None:
    rng = np.random.default_rng(1)
    groups = {
        name: list(rng.normal(shift, 1, n))
        for name, shift, n in (("a", 0, 4), ("b", 1, 6), ("c", 0, 9))
    }
    frame = table(groups)
    fit = smf.ols("loss ~ C(arm)", frame).fit()
    result = judged(frame, baseline="a", pooled=True)
    for one in result.comparisons:
        name = f"C(arm)[T.{one.arm}]"
        assert one.difference == pytest.approx(fit.params[name])
        assert one.p == pytest.approx(fit.pvalues[name])
        assert (one.low, one.high) == pytest.approx(tuple(fit.conf_int().loc[name]))


def test_blocks_are_least_squares_with_a_level_for_each() -> None:
    rng = np.random.default_rng(2)
    rows = []
    for arm, shift in (("a", 0.0), ("b", 0.5), ("c", -0.3)):
        for machine, level in (("x", 0), ("y", 3), ("z", -2)):
            for _ in range(2):
                rows.append(
                    {"arm": arm, "machine": machine, "loss": level + shift + rng.normal(0, 0.2)}
                )
    frame = pandas.DataFrame(rows).drop(index=[0, 7])  # not balanced
    fit = smf.ols("loss ~ C(arm) + C(machine)", frame).fit()
    for one in judged(frame, baseline="a", block="machine").comparisons:
        name = f"C(arm)[T.{one.arm}]"
        assert one.difference == pytest.approx(fit.params[name])
        assert one.p == pytest.approx(fit.pvalues[name])


def test_arms_that_no_block_links_are_undecided() -> None:
    frame = table({"a": [1, 2, 3.5], "b": [2, 3, 4.5], "c": [5, 6, 7.2]})
    frame["machine"] = ["x", "y", "x", "x", "y", "y", "z", "z", "z"]
    one = judged(frame, baseline="a", block="machine").comparisons[1]
    assert (one.arm, one.verdict, one.p) == ("c", "undecided", None)
    assert "no block links" in one.estimate.why


def test_holm_and_equivalence_are_those_of_statsmodels() -> None:
    rng = np.random.default_rng(5)
    groups = {
        name: list(rng.normal(shift, 1, 12))
        for name, shift in (("base", 0), ("b", 0.1), ("c", 2), ("d", 0.9))
    }
    result = judged(table(groups), baseline="base", smallest_effect=1.5)
    p_values = [one.p for one in result.comparisons]
    assert [one.p_adjusted for one in result.comparisons] == pytest.approx(
        list(multipletests(p_values, method="holm")[1])
    )
    for one in result.comparisons:
        expected, *_ = ttost_ind(
            np.array(groups[one.arm]), np.array(groups["base"]), -1.5, 1.5, usevar="unequal"
        )
        assert one.p_equivalent == pytest.approx(expected)


def test_matched_equivalence_is_that_of_statsmodels() -> None:
    one = judged(table(SLEEP), baseline="one", pair_by="seed", smallest_effect=3).comparisons[0]
    expected, *_ = ttost_paired(np.array(SLEEP["two"]), np.array(SLEEP["one"]), -3, 3)
    assert one.p_equivalent == pytest.approx(expected)
    assert one.verdict == "equivalent"


def test_a_hierarchy_stops_at_the_first_arm_that_is_undecided() -> None:
    groups = {
        "base": [1.0, 1.1, 0.9, 1.0],
        "b": [0.5, 0.6, 0.4, 0.5],
        "c": [1.0, 0.7, 1.2, 1.3],
        "d": [0.1, 0.2, 0.1, 0.0],
    }
    verdicts = [
        one.verdict
        for one in judged(table(groups), baseline="base", correction="hierarchical").comparisons
    ]
    assert verdicts == ["better", "undecided", "undecided"]
    assert [one.verdict for one in judged(table(groups), baseline="base").comparisons][
        -1
    ] == "better"


def test_better_by_a_margin_is_a_one_sided_test_at_it() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(3, 0.1, 5), rng.normal(2, 0.1, 5)
    one = judged(table({"a": list(a), "b": list(b)}), baseline="a", margin=0.8).comparisons[0]
    expected = stats.ttest_ind(b + 0.8, a, equal_var=False, alternative="less").pvalue
    assert one.p_margin == pytest.approx(expected)


def test_a_chain_compares_each_arm_with_the_one_before_it() -> None:
    groups = {"late": [1.0, 1.1, 1.0], "early": [3.0, 3.1, 3.0], "middle": [2.0, 2.1, 2.0]}
    frame = table(groups)
    frame["date"] = ["2026-03"] * 3 + ["2026-01"] * 3 + ["2026-02"] * 3
    result = judged(frame, chain=True, order_by="date")
    assert [(one.arm, one.reference) for one in result.comparisons] == [
        ("middle", "early"),
        ("late", "middle"),
    ]
    assert {one.verdict for one in result.comparisons} == {"better"}


def test_the_published_rule_is_a_z_test_with_its_own_spread() -> None:
    groups = {"old": [3.279, 3.281, 3.28, 3.278], "new": [3.277, 3.276, 3.2775]}
    result = judged(
        table(groups), baseline="old", fixed_sigma=0.0013, fixed_bound=0.004, target=3.28
    )
    rule = result.comparisons[0].rule
    assert rule is not None
    improvement = np.mean(groups["old"]) - np.mean(groups["new"])
    assert rule.score == pytest.approx(improvement / np.sqrt(1 / 4 + 1 / 3))
    assert rule.kept == (rule.score >= 0.004)
    assert rule.p == pytest.approx(stats.norm.sf(rule.score / 0.0013))
    target = result.arm("new").target
    assert target is not None
    assert target.rule is not None
    assert target.rule.score == pytest.approx((3.28 - np.mean(groups["new"])) * np.sqrt(3))
    expected = stats.ttest_1samp(groups["new"], 3.28, alternative="less").pvalue
    assert target.p == pytest.approx(expected)


def test_steps_saved_count_by_the_stated_slope() -> None:
    frame = table({"old": [3.28, 3.281, 3.279], "new": [3.28, 3.2805, 3.2795]})
    frame["steps"] = [3000.0] * 3 + [2800.0] * 3
    one = judged(frame, baseline="old", horizon="steps", slope=0.000045).comparisons[0]
    assert one.difference == pytest.approx(-200 * 0.000045)
    assert one.verdict == "better"


def test_runs_to_see_an_effect_are_those_of_the_noncentral_t() -> None:
    frame = table({"a": [3.0], "b": [3.02]})
    plan = judged(frame, baseline="a", noise=0.015).comparisons[0].plan
    assert plan is not None
    assert plan.stated
    expected = TTestIndPower().solve_power(0.02 / 0.015, power=0.8, alpha=0.05)
    assert plan.to_see_this == int(np.ceil(expected))


@pytest.mark.parametrize(("singles_a", "singles_b"), [(0, 3), (4, 0), (3, 3)])
def test_partly_matched_errs_at_most_as_often_as_it_says(singles_a: int, singles_b: int) -> None:
    rng = np.random.default_rng(7)
    wrong, covered, trials = 0, 0, 1500
    for _ in range(trials):
        seeds = rng.standard_normal(5) * 0.9
        noise = rng.standard_normal((2, 5)) * np.sqrt(1 - 0.81)
        singles = rng.standard_normal(singles_a), rng.standard_normal(singles_b) + 1
        estimate = partly_matched(seeds + noise[0], seeds + noise[1] + 1, *singles)
        low, high = estimate.interval(0.05)
        covered += low <= 1 <= high
        wrong += estimate.p_beyond(1, 1) < 0.025
    assert 0.93 <= covered / trials <= 0.975
    assert wrong / trials <= 0.035


def test_partly_matched_is_nearly_the_pairs_where_seeds_decide() -> None:
    """Correlation .999: the single runs say next to nothing, and the pairs next to everything."""
    base = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    arm = base + np.array([0.11, 0.09, 0.1, 0.12, 0.08])
    estimate = partly_matched(base, arm, np.array([2.0, 6.0]), np.array([9.0]))
    assert estimate.difference == pytest.approx(0.1, abs=0.02)


def test_runs_without_a_partner_are_not_left_out() -> None:
    frame = pandas.concat(
        [table(SLEEP), pandas.DataFrame({"arm": ["two"] * 2, "seed": [50, 51], "loss": [9.0, 8.0]})]
    )
    one = judged(frame, baseline="one", pair_by="seed").comparisons[0]
    assert (one.estimate.design, one.estimate.pairs, one.runs) == ("partly matched", 10, 12)
    assert one.difference > 1.58


def test_an_arm_that_lost_runs_is_not_better() -> None:
    groups = {"a": [3.0, 3.1, 3.05], "b": [1.0, 1.1, float("nan")]}
    result = judged(table(groups), baseline="a", missing="diverged")
    one = result.comparisons[0]
    assert (one.verdict, result.arm("b").diverged) == ("undecided", 1)
    assert "1 of its runs diverged" in one.note


def test_results_without_spread_are_undecided() -> None:
    one = judged(table({"a": [1.0, 1.0, 1.0], "b": [0.5, 0.5, 0.5]}), baseline="a").comparisons[0]
    assert (one.verdict, one.p) == ("undecided", None)


def test_one_run_beside_many_is_undecided_unless_the_spread_is_shared() -> None:
    groups = {"a": [1.0, 1.1, 0.9, 1.0], "b": [5.0]}
    assert judged(table(groups), baseline="a").comparisons[0].verdict == "undecided"
    one = judged(table(groups), baseline="a", pooled=True).comparisons[0]
    spread = np.std(groups["a"], ddof=1)
    t = 4.0 / (spread * np.sqrt(1 / 4 + 1))
    assert one.p == pytest.approx(2 * stats.t.sf(t, 3))
    assert one.verdict == "worse"


def test_published_examples_of_the_rule() -> None:
    """The benchmark's own arithmetic: result 11 against 9 has p = .69, 12 against 6 a score of .00648."""
    from paribus.judge import Options
    from paribus.judge.rules import rule_of

    options = Options.of(
        arm="recipe", metric="loss", chain=True, fixed_sigma=0.0013, fixed_bound=0.004
    )
    same = rule_of(-(3.2771 - 3.2785) - 25 * 0.000045, 16, 8, options)
    other = rule_of(0.0002 - 50 * 0.000045, 20, 20, options)
    assert same is not None
    assert other is not None
    assert (round(same.p, 2), same.kept) == (0.69, False)
    assert (round(other.score, 5), other.kept) == (0.00648, True)


def test_the_public_table_gives_the_published_p_value(project_root: Any) -> None:
    path = project_root / "experiments/results/public/optimizer_benchmark.csv"
    result = judge(
        path, arm="recipe", metric="val_loss", baseline="20260501_skylight001", horizon="steps", slope=0.000045,
        fixed_sigma=0.0013,
    )  # fmt: skip
    one = next(one for one in result.comparisons if one.arm == "20260501_contra_muon")
    assert one.rule is not None
    assert one.rule.p == pytest.approx(0.69, abs=0.04)  # they round the means to four decimals


def curves(ends: Mapping[str, Sequence[float]]) -> pandas.DataFrame:
    """Straight curves from 5 at step 0 to an end at step 100."""
    rows = []
    for arm, values in ends.items():
        for seed, end in enumerate(values):
            for step in range(0, 101, 10):
                rows.append(
                    {"arm": arm, "seed": seed, "step": step, "loss": 5 + (end - 5) * step / 100}
                )
    return pandas.DataFrame(rows)


def test_steps_to_a_target_are_compared_and_runs_that_do_not_arrive_count() -> None:
    frame = curves(
        {
            "base": [3.0, 3.05, 2.95, 3.02],
            "fast": [2.0, 2.1, 1.9, 2.05],
            "slow": [3.6, 3.55, 3.65, 3.45],
        }
    )
    options = {
        "baseline": "base",
        "metric": "steps_to:3.5",
        "curve": "loss",
        "run": "seed",
        "step": "step",
    }
    result = judged(frame, **options)
    fast, slow = result.comparisons
    assert fast.verdict == "better"
    assert fast.difference == pytest.approx(50.3 - 75.2, abs=0.5)
    assert slow.verdict == "worse"
    assert result.arm("slow").reached == 1
    assert slow.estimate.design == "censored"
    assert slow.low is not None
    assert slow.low > 10


def test_matched_target_times_are_compared_in_pairs() -> None:
    frame = curves({"base": [3.0, 3.3, 2.6, 2.9], "fast": [2.9, 3.21, 2.52, 2.8]})
    options = {
        "baseline": "base",
        "metric": "steps_to:3.5",
        "curve": "loss",
        "pair_by": "seed",
        "step": "step",
    }
    one = judged(frame, **options).comparisons[0]
    assert (one.estimate.design, one.verdict) == ("matched", "better")


@pytest.mark.parametrize(
    ("target", "words"),
    [(1.0, "no run of any arm reaches 1"), (9.0, "passed before the first point")],
)
def test_a_target_outside_all_curves_is_refused(target: float, words: str) -> None:
    from paribus.errors import UserError

    frame = curves({"base": [3.0, 3.1], "fast": [2.0, 2.1]})
    with pytest.raises(UserError, match=words):
        judged(
            frame,
            baseline="base",
            metric=f"steps_to:{target}",
            curve="loss",
            run="seed",
            step="step",
        )


def test_an_effect_is_said_in_compute_where_the_baseline_has_horizons() -> None:
    rng = np.random.default_rng(6)
    rows = []
    for seed in range(4):
        for tokens in (80e6, 100e6, 125e6):
            rows.append(
                {
                    "arm": "base",
                    "seed": seed,
                    "tokens": tokens,
                    "loss": 3 * (tokens / 1e8) ** -0.1 + rng.normal(0, 0.001),
                }
            )
        rows.append(
            {
                "arm": "new",
                "seed": seed,
                "tokens": 1e8,
                "loss": 3 * 1.1**-0.1 + rng.normal(0, 0.001),
            }
        )
    one = judged(pandas.DataFrame(rows), baseline="base", horizon="tokens").comparisons[0]
    assert (one.runs, one.reference_runs, one.verdict) == (4, 4, "better")
    assert one.saved is not None
    needs = one.saved.baseline_needs
    assert needs.low is not None
    assert needs.high is not None
    assert needs.low < 110e6 < needs.high
    assert needs.high - needs.low < 6e6
