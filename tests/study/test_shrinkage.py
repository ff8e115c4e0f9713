"""Arms lend each other their variance: more is found, nothing is believed that an arm's own seeds contradict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.ablation_file import parse

from paribus.study.looks import OPEN, p_over_looks
from paribus.study.sample import Sample, Unmatched
from paribus.study.shrinkage import GUARD, lent
from paribus.study.statistics import Effect, effects


def judge(values: np.ndarray, borrow: bool) -> dict[str, Effect]:
    """values: (arms, seeds)."""
    return effects(
        {f"a{arm}": list(row) for arm, row in enumerate(values)},
        direction="lower",
        smallest_effect=1e-6,
        alpha=0.05,
        plan=OPEN,
        borrow=borrow,
    )


def test_a_loan_at_most_halves_an_arms_own_p() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        values = rng.normal(size=(4, 3)) * rng.choice([1, 1, 10], size=(4, 1))
        own, found = judge(values, borrow=False), judge(values, borrow=True)
        for arm, effect in found.items():
            p = p_over_looks(effect.p, effect.looks)
            least = min(GUARD * p, own[arm].p_adjusted * 5, 1.0)
            assert effect.p_adjusted >= least - 1e-12
            assert (effect.low, effect.high) == (own[arm].low, own[arm].high)


def test_more_is_found_where_noise_is_equal_and_no_more_is_false_where_it_is_not() -> None:
    rng = np.random.default_rng(2)
    studies = 200
    found = {True: 0, False: 0}
    false = 0
    for _ in range(studies):
        values = rng.normal(size=(4, 3))
        values[0] -= 4
        for borrow in found:
            found[borrow] += judge(values, borrow)["a0"].verdict == "better"
        noisy = rng.normal(size=(4, 3)) * np.array([[1], [1], [20], [20]])
        said = [effect.verdict for effect in judge(noisy, borrow=True).values()]
        false += "better" in said or "worse" in said
    assert found[True] > 1.3 * found[False]
    assert false / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_two_arms_arms_without_a_spread_and_unmatched_runs_lend_nothing() -> None:
    some = [Sample.of([0.1, 0.2, 0.4]), Sample.of([0.3, 0.1, 0.2])]
    flat = Sample.of([0.1, 0.1, 0.1])
    other = Sample.of(Unmatched([0.0, 0.1, 0.2], [0.3, 0.5, 0.4]))
    assert lent({"a": some[0], "b": some[1], "c": flat, "d": other}) == {}
    third = Sample.of([0.0, 0.6, -0.3])
    shrunk = lent({"a": some[0], "b": some[1], "c": third, "d": flat})
    assert shrunk.keys() == {"a", "b", "c"}
    assert shrunk["a"].df == 2 + 4
    assert third.stdev is not None
    assert shrunk["c"].stdev is not None
    assert shrunk["c"].stdev < third.stdev


@pytest.mark.usefixtures("in_checkout")
def test_open_studies_borrow_and_those_registered_with_looks_of_their_own_do_not() -> None:
    assert parse(seeds="open").borrow
    assert not parse(seeds=5).borrow
    assert parse(seeds={"from": 3, "to": 12}).borrow is False
    assert parse(seeds=5, borrow=True).borrow
    assert not parse(seeds="open", borrow=False).borrow
