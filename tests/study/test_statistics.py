"""Verdicts: planted effects are found, null ones not, interim looks corrected for; intervals cover; bad input is explained."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from paribus.errors import UserError
from paribus.study import items, noise_floor, power
from paribus.study import statistics as study
from paribus.study.difference_curve import difference_curve
from paribus.study.looks import Schedule
from paribus.study.sample import ByItem, Sample, Unmatched


def judge(
    differences: dict[str, list[float]],
    plan: Schedule | None = None,
    direction: str = "lower",
    smallest: float = 0.01,
    alpha: float = 0.05,
) -> dict[str, study.Effect]:
    return study.effects(
        differences, direction=direction, smallest_effect=smallest, alpha=alpha, plan=plan
    )


def verdict(differences: list[float], **options: object) -> str:
    return judge({"arm": differences}, **options)["arm"].verdict  # type: ignore[arg-type]


def test_planted_effects_get_their_verdicts() -> None:
    assert verdict([-0.030, -0.028, -0.031, -0.029]) == "better"
    assert verdict([-0.030, -0.028, -0.031, -0.029], direction="higher") == "worse"
    assert verdict([0.001, -0.001, 0.002, -0.002]) == "equivalent"
    assert verdict([0.05, -0.04, 0.03, -0.02]) == "undecided"


def test_a_difference_that_is_real_but_too_small_to_matter_is_equivalent() -> None:
    found = judge({"arm": [-0.0021, -0.0020, -0.0019, -0.0020]})["arm"]
    assert found.p_adjusted < 0.05
    assert found.high < 0
    assert found.verdict == "equivalent"


def test_unmatched_runs_are_compared_by_welchs_t() -> None:
    rng = np.random.default_rng(11)
    base, own = list(rng.normal(0, 1, 5)), list(rng.normal(1, 3, 5))
    found = judge({"arm": Unmatched(base, own)})["arm"]
    expected = stats.ttest_ind(own, base, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert not found.matched
    assert judge({"arm": [1.0, 2.0]})["arm"].matched


def test_interval_and_p_are_scipys_paired_t() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=6), rng.normal(1, size=6)
    found = judge({"arm": list(second - first)}, smallest=0.1)["arm"]
    peer = stats.ttest_rel(second, first)
    interval = peer.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx(
        (peer.pvalue, interval.low, interval.high)
    )


def test_one_seed_decides_nothing_and_two_seeds_have_a_wide_interval() -> None:
    one = judge({"arm": [-5.0]})["arm"]
    assert (one.low, one.high, one.p, one.stdev, one.verdict, one.more_seeds) == (
        -math.inf,
        math.inf,
        1.0,
        None,
        "undecided",
        2,
    )
    two = judge({"arm": [-0.030, -0.028]})["arm"]
    assert two.high - two.low == pytest.approx(2 * 12.706 * 0.001, rel=1e-3)


@pytest.mark.parametrize("differences", [[0.0, 0.0], [0.0] * 8, [-0.02, -0.02], [0.1] * 3])
def test_differences_without_a_spread_prove_nothing(differences: list[float]) -> None:
    found = judge({"arm": differences})["arm"]
    assert found.verdict == "undecided"
    assert found.p_adjusted == 1.0
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    "seeds, questions, base, arm, margin",
    [
        (3, 4, 0.01, 0.05, 0.02),
        (2, 20, 0.005, 0.04, 0.02),
        (3, 20, 0.005, 0.04, 0.02),
        (2, 50, 0.002, 0.03, 0.02),
        (3, 50, 0.002, 0.03, 0.02),
        (5, 20, 0.0, 0.03, 0.02),
    ],
)
def test_arms_at_the_floor_that_differ_by_more_than_matters_are_rarely_called_equivalent(
    seeds: int, questions: int, base: float, arm: float, margin: float
) -> None:
    """Shares of so few right answers are mostly 0 in both; two seeds and four items called half of these equivalent."""
    rng = np.random.default_rng(8)
    first = rng.binomial(questions, base, (1500, seeds)) / questions
    second = rng.binomial(questions, arm, (1500, seeds)) / questions
    kinds, count = np.unique(
        np.sort(second - first), axis=0, return_counts=True
    )  # few: each is judged once
    called = count[
        [verdict(list(kind), direction="higher", smallest=margin) == "equivalent" for kind in kinds]
    ]
    assert called.sum() / 1500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_each_arm_errs_at_alpha_and_any_claim_of_many_arms_at_twice_that() -> None:
    """The worst case known: one noisy arm that is equal, four quiet ones exactly as far off as matters."""
    rng = np.random.default_rng(9)
    margin, quiet, studies, seeds = 1.0, 0.2, 600, 4
    wrong = np.zeros((studies, 5), bool)
    for number in range(studies):
        values = {"a0": list(rng.normal(0, 6 * quiet, seeds))}
        values |= {f"a{i}": list(margin + rng.normal(0, quiet, seeds)) for i in range(1, 5)}
        for i, found in enumerate(judge(values, smallest=margin).values()):
            false = ("better", "worse") if i == 0 else ("equivalent",)
            wrong[number, i] = found.verdict in false
    error = 3 * math.sqrt(0.1 * 0.9 / studies)
    assert (wrong.mean(axis=0) <= 0.05 + error).all()
    assert wrong.any(axis=1).mean() <= 0.10 + error


def test_items_that_never_differ_are_bounded_by_the_rule_of_three() -> None:
    """No difference on 40 items says that fewer than about 3 in 40 differ; on 400, than 3 in 400."""
    for count, verdict_of_them in ((40, "undecided"), (400, "equivalent")):
        nothing = [np.zeros(count)] * 3
        found = items.item_effect(nothing, nothing)
        assert found.high == -found.low == pytest.approx(3 / count, rel=0.05)
        assert found.p == 1.0
        by_item = ByItem([0.0] * 3, items.item_noise(nothing, nothing))
        judged = judge({"arm": by_item}, smallest=0.02)["arm"]
        assert judged.verdict == verdict_of_them
        assert (judged.low, judged.high) == pytest.approx((found.low, found.high))


def by_item(base: np.ndarray, arm: np.ndarray, tasks: np.ndarray | None = None) -> ByItem:
    """Differences of a metric that is a mean over items; base, arm (seeds, items)."""
    noise = items.item_noise(list(base), list(arm), tasks, equal_clusters=tasks is not None)
    return ByItem(list(arm.mean(axis=1) - base.mean(axis=1)), noise)


@pytest.mark.soak  # a simulation
def test_items_that_favour_an_arm_by_luck_are_noise_in_its_verdict() -> None:
    """Seeds alone call arms better that only these 100 items favour: an arm and an item interact, by 1 logit."""
    rng = np.random.default_rng(12)
    wrong = {"seeds": 0, "seeds and items": 0}
    for _ in range(400):
        ease = rng.normal(0, 1, 100)
        chances = [1 / (1 + np.exp(-ease - rng.normal(0, 1, 100))) for _ in range(2)]
        base, arm = ((rng.random((10, 100)) < chance).astype(float) for chance in chances)
        differences = by_item(base, arm)
        both = {"seeds": list(differences), "seeds and items": differences}
        for name, values in both.items():
            wrong[name] += verdict(values, direction="higher") in ("better", "worse")
    assert wrong["seeds"] / 400 > 0.15
    assert wrong["seeds and items"] / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_more_noise_never_makes_a_verdict_surer() -> None:
    """Three seeds that lie close by chance have few degrees of freedom, which many items must not lend them."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        base, arm = (rng.random((3, 400)) < 0.5).astype(float), (rng.random((3, 400)) < 0.5)
        both = by_item(base, arm.astype(float))
        seeds, joint = Sample.of(list(both)), Sample.of(both)
        assert joint.p() >= seeds.p()
        assert joint.interval(0.05)[1] >= seeds.interval(0.05)[1]
        assert joint.p_equivalent(0.2) >= seeds.p_equivalent(0.2)


def test_where_items_are_the_noise_no_number_of_seeds_is_named() -> None:
    rng = np.random.default_rng(13)
    base = (rng.random((4, 100)) < 0.5).astype(float)
    arm = (rng.random((4, 100)) < 0.5).astype(float)
    by_seed, by_both = list(by_item(base, arm)), by_item(base, arm)
    assert judge({"arm": by_seed}, smallest=0.02)["arm"].more_seeds is not None
    assert judge({"arm": by_both}, smallest=0.02)["arm"].more_seeds is None


@pytest.mark.parametrize("seeds", [3, 5, 30])
def test_two_runs_of_a_recipe_lie_farther_apart_than_said_in_one_of_twenty(seeds: int) -> None:
    rng = np.random.default_rng(11)
    spreads = rng.normal(size=(20_000, seeds)).std(axis=1, ddof=1)
    apart = np.abs(rng.normal(size=20_000) - rng.normal(size=20_000))
    bound = noise_floor.farthest_twins(1.0, seeds) * spreads
    assert (apart > bound).mean() == pytest.approx(0.05, abs=0.006)


def test_holm_in_order_over_the_arms() -> None:
    found = judge(
        {
            name: [mean + x for x in (-0.01, 0.0, 0.01, 0.005, -0.005)]
            for name, mean in {"a": -0.011, "b": -0.05, "c": -0.009}.items()
        },
        smallest=0.001,
    )
    p = {name: effect.p for name, effect in found.items()}
    assert found["b"].p_adjusted == pytest.approx(3 * p["b"])
    assert found["a"].p_adjusted == pytest.approx(2 * p["a"])
    assert found["c"].p_adjusted == pytest.approx(max(p["c"], 2 * p["a"]))
    assert p["a"] < 0.05 < found["a"].p_adjusted
    assert found["a"].verdict == "undecided"


def test_holm_and_power_are_those_of_statsmodels() -> None:
    rng = np.random.default_rng(5)
    p = {str(arm): float(value) for arm, value in enumerate(rng.random(9) ** 3)}
    adjusted = study.holm(p)
    assert [adjusted[arm] for arm in p] == pytest.approx(
        multipletests(list(p.values()), method="holm")[1]
    )
    for n in (2, 3, 12):
        assert power.power_of(0.9, n) == pytest.approx(TTestPower().power(0.9, n, 0.05), abs=1e-5)
        assert power.power_of(0.9, n, paired=False) == pytest.approx(
            TTestIndPower().power(0.9, n, 0.05), abs=1e-5
        )


def test_equivalence_is_two_one_sided_t_tests() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0.002, 0.004, 8)
    lower, upper = (
        stats.ttest_1samp(values, at, alternative=side).pvalue
        for at, side in ((-0.01, "greater"), (0.01, "less"))
    )
    for alpha, expected in (
        (max(lower, upper) * 1.01, "equivalent"),
        (max(lower, upper) * 0.99, "undecided"),
    ):
        assert alpha < min(0.5, judge({"arm": list(values)})["arm"].p), "not a difference either"
        assert verdict(list(values), alpha=alpha) == expected


def test_interval_covers_at_three_seeds() -> None:
    samples = np.random.default_rng(1).normal(0.3, 1, size=(1000, 3))
    found = [Sample.of(list(row)).interval(0.05) for row in samples]
    assert np.mean([low <= 0.3 <= high for low, high in found]) == pytest.approx(0.95, abs=0.02)


def test_seeds_needed_reaches_the_power_asked_and_not_with_one_less() -> None:
    rng = np.random.default_rng(2)
    for paired in (True, False):
        n = power.seeds_needed(1.0, 0.9, paired=paired)
        assert n is not None

        def chance(seeds: int, paired: bool = paired) -> float:
            a, b = rng.normal(0, 0.9, (40_000, seeds)), rng.normal(1, 0.9, (40_000, seeds))
            test = stats.ttest_1samp(b, 0, axis=1) if paired else stats.ttest_ind(a, b, axis=1)
            return float((test.pvalue <= 0.05).mean())

        assert chance(n) >= 0.793
        assert chance(n - 1) < 0.8


def test_more_seeds_are_enough_for_the_upper_limit_of_a_spread() -> None:
    """Planned with what three seeds measured, seven studies in ten would reach the power wanted on 0.5 sd."""
    values = np.array([-1.0, 0.0, 1.0]) * 0.012 + 0.008  # stdev .012
    more = judge({"arm": list(values)})["arm"].more_seeds
    assert more is not None
    stdev = power.upper_stdev(0.012, 3)
    assert stdev == pytest.approx(2.117 * 0.012, rel=1e-3)
    samples = np.random.default_rng(3).normal(0, stdev, size=(20_000, 3 + more))
    seen = stats.ttest_1samp(samples + 0.01, 0, axis=1).pvalue <= 0.05
    half = stats.t.isf(0.05, 2 + more) * samples.std(1, ddof=1) / math.sqrt(3 + more)
    assert seen.mean() >= 0.79
    assert (np.abs(samples.mean(1)) + half <= 0.01).mean() >= 0.79


def test_an_upper_limit_of_a_spread_is_above_it_four_times_in_five() -> None:
    rng = np.random.default_rng(12)
    for seeds in (3, 8):
        spreads = rng.normal(size=(20_000, seeds)).std(axis=1, ddof=1)
        limits = spreads * power.upper_stdev(1.0, seeds)
        assert (limits >= 1).mean() == pytest.approx(0.8, abs=0.01)


def test_the_detectable_effect_is_found_with_the_power_asked() -> None:
    for n, alpha in ((3, 0.05), (5, 0.01)):
        size = power.detectable_effect(n, alpha=alpha)
        assert power.power_of(size, n, alpha=alpha) == pytest.approx(0.8, abs=1e-4)
    assert power.detectable_effect(3) == pytest.approx(3.26, abs=0.01)


def test_hopeless_sizes_are_said_to_be_so() -> None:
    assert power.seeds_needed(1e-6, 1.0) is None
    assert power.seeds_needed(1.0, 1e-9) in (2, 3)


# ---- Items


def outcomes(
    rng: np.random.Generator, seeds: int, count: int, shift: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two arms on the same items: noise of the seed, of the item, of the arm on the item, and the rest."""
    item, moved = rng.normal(0, 1, count), rng.normal(0, 0.3, count)
    base, arm = (
        [item + rng.normal(0, 0.1) + rng.normal(0, 0.5, count) for _ in range(seeds)]
        for _ in range(2)
    )
    return base, [one + moved + shift for one in arm]


def test_items_and_seeds_are_both_in_the_interval() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(300):
        found = items.item_effect(*outcomes(rng, 4, 60, 0.2), draws=1000)
        covered.append(found.low <= 0.2 <= found.high)
    assert np.mean(covered) >= 0.93


def test_one_pair_of_models_is_mcnemar_and_has_no_seed_noise() -> None:
    rng = np.random.default_rng(5)
    first, second = (rng.random((2, 200)) < [[0.5], [0.6]]).astype(float)
    found = items.item_effect([first], [second])
    lost, won = int((first > second).sum()), int((second > first).sum())
    assert found.mcnemar_p == pytest.approx(stats.binomtest(won, won + lost, 0.5).pvalue)
    assert found.seed_stderr is None
    assert found.mean == pytest.approx((won - lost) / 200)


def test_clusters_widen_the_interval_when_items_of_a_task_move_together() -> None:
    rng = np.random.default_rng(5)
    task = np.repeat(np.arange(20), 30)
    shift = rng.normal(0, 0.3, 20)[task] + rng.normal(0, 0.3, 600)
    base = [np.zeros(600)] * 2
    alone = items.item_effect(base, [shift, shift + 0.01])
    together = items.item_effect(base, [shift, shift + 0.01], task)
    assert together.item_stderr > 3 * alone.item_stderr
    assert together.units == 20
    assert together.mean == pytest.approx(alone.mean)


def test_tasks_count_the_same_when_asked() -> None:
    task = np.array([0] * 90 + [1] * 10)
    arm = np.where(task == 0, 0.0, 1.0)
    by_item, by_task = (
        items.item_effect([np.zeros(100)], [arm], task, equal_clusters=equal).mean
        for equal in (False, True)
    )
    assert (by_item, by_task) == pytest.approx((0.1, 0.5))


# ---- Noise floors and curves


def test_noise_table_measures_what_pairing_gains() -> None:
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 0.010, 30)
    seen, other = shared + rng.normal(0, 0.004, 30), shared + rng.normal(0, 0.004, 30)
    rows = noise_floor.noise_table(
        {"val_bpb": list(seen)}, {"val_bpb": [0.01, 0.005]}, {"val_bpb": list(other)}
    )
    assert [row.effect for row in rows] == [0.01, 0.005]
    for row in rows:
        assert row.correlation is not None
        assert row.correlation > 0.7
        assert row.paired is not None
        assert row.unpaired is not None
        assert row.paired < row.unpaired
        assert row.stdev_low < row.stdev < row.stdev_high
    assert noise_floor.noise_table({"val_bpb": list(seen)}, {"val_bpb": [0.01]})[0].paired is None


def test_the_band_of_a_curve_holds_at_all_steps_and_the_interval_at_each() -> None:
    rng = np.random.default_rng(6)
    at_each, at_all = [], []
    for _ in range(25):
        noise = rng.normal(size=(4, 20)).cumsum(axis=1) / np.sqrt(np.arange(1, 21))
        curve = difference_curve(range(20), np.zeros((4, 20)), noise + 1)
        at_each.append(np.mean((curve.low <= 1) & (curve.high >= 1)))
        at_all.append(((curve.band_low <= 1) & (curve.band_high >= 1)).all())
    assert np.mean(at_each) == pytest.approx(0.95, abs=0.05)
    assert np.mean(at_all) >= 0.84


# ---- Bad input


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(UserError) as told:
        study.effects(
            {"muon": [0.1, math.nan], "adamw": []},
            direction="down",
            smallest_effect=0,
            alpha=5,
        )
    assert len(told.value.problems) == 5
    assert "muon, number 2 is nan" in str(told.value)
    assert "'down' is neither lower nor higher" in str(told.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: study.effects({}, direction="lower", smallest_effect=1, alpha=0.05),
        lambda: study.effects(
            {"a": [1.0] * 9}, direction="lower", smallest_effect=1, alpha=0.05, plan=Schedule(3, 8)
        ),
        lambda: Schedule(5, 3),
        lambda: Schedule(3, 8).taken([3, 9]),
        lambda: Schedule().taken([3, 3]),
        lambda: items.item_effect([np.zeros(3)], [np.zeros(4)]),
        lambda: items.item_effect([np.zeros(3)], [np.zeros(3)], np.zeros(3)),
        lambda: noise_floor.noise_table({"val_bpb": [1.0, 2.0]}, {"val_bpb": [1.0]}),
        lambda: difference_curve([1, 2], np.zeros((3, 2)), np.zeros((3, 3))),
    ],
)
def test_bad_input_is_refused(call: object) -> None:
    with pytest.raises(UserError):
        call()  # type: ignore[operator]
