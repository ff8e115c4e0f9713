"""Times to a target: Student's where every run gets there, by the likelihood where some do not, and none is dropped."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from paribus.config import load_config
from paribus.study.censored import Reach
from paribus.study.experiment import Metric
from paribus.study.sample import Sample
from paribus.study.statistics import effects
from paribus.study.targets import TargetTimes, reach_of, read_target

CURVE: list[dict[str, float | None]] = [
    {"step": 10.0, "tokens": 1000.0, "seconds": 1.0, "val_bpb": 3.0},
    {"step": 20.0, "tokens": 2000.0, "seconds": 2.0, "val_bpb": None},
    {"step": 30.0, "tokens": 3000.0, "seconds": 3.0, "val_bpb": 2.0},
]


def metric(name: str) -> Metric:
    problems: list[str] = []
    found = read_target(name, ["pretrain"], problems)
    assert problems == []
    return found


def reached(*times: float) -> list[Reach]:
    return [Reach(time, "reached") for time in times]


@pytest.mark.parametrize(
    "name, time", [("steps_to:2.5", 20), ("tokens_to:2.5", 2000), ("seconds_to:2.5", 2)]
)
@pytest.mark.usefixtures("in_checkout")
def test_a_target_is_read_between_the_points_of_the_curve(name: str, time: float) -> None:
    found = reach_of(metric(name), CURVE, load_config("params.yaml"))
    assert found == Reach(time, "reached")


@pytest.mark.usefixtures("in_checkout")
def test_flops_are_counted_as_equal_flops_counts_them() -> None:
    from paribus.recipe import Recipe

    config = load_config("params.yaml")
    found = reach_of(metric("flops_to:2.5"), CURVE, config)
    assert found is not None
    assert found.time == pytest.approx(20 * Recipe.of(config).step_flops(100))


def test_where_every_run_gets_there_it_is_the_paired_t_test() -> None:
    base, arm = [100.0, 110, 95, 104], [92.0, 99, 90, 97]
    sample = Sample.of(TargetTimes(reached(*base), reached(*arm), matched=True))
    assert sample.p() == pytest.approx(stats.ttest_rel(arm, base).pvalue)


def test_runs_that_never_get_there_bound_the_difference_from_below() -> None:
    arm = [Reach(200.0, "not reached"), Reach(200.0, "not reached"), *reached(180, 190)]
    times = TargetTimes(reached(100, 110, 95, 104), arm, matched=True)
    found = effects({"arm": times}, direction="lower", smallest_effect=5, alpha=0.05)["arm"]
    assert found.n == 4
    assert found.mean > 80
    assert found.low > 0
    assert found.verdict == "worse"


def test_an_arm_that_never_gets_there_is_no_missing_value() -> None:
    never = [Reach(200.0, "not reached") for _ in range(4)]
    times = TargetTimes(reached(100, 110, 95, 104), never, matched=True)
    found = effects({"arm": times}, direction="lower", smallest_effect=5, alpha=0.05)["arm"]
    assert found.high == math.inf
    assert found.low > 50
    assert math.isfinite(found.mean)
    assert found.verdict == "worse"
    assert found.more_seeds is None


def test_equal_times_are_equivalent_although_one_is_only_a_bound() -> None:
    base = reached(100, 101, 99, 100, 102, 98)
    arm = [*reached(100.5, 100.5, 99.5, 99.5, 102), Reach(98.0, "not reached")]
    sample = Sample.of(TargetTimes(base, arm, matched=True))
    assert sample.p_equivalent(20) < 0.05
    assert sample.p_equivalent(0.1) > 0.05
