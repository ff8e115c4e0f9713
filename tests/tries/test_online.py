"""The error budget of a stream of tries is ADDIS as it was published, and counts what is under way as the dearest outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from online_fdr.p_values.async_methods import AddisAsync
from online_fdr.p_values.investing.addis.addis import Addis

from paribus.tries.online import CANDIDATE, DISCARDED, FIRST_SHARE, ErrorBudget

ALPHA = 0.1


def gamma(number: int) -> float:
    """The sequence of the paper's experiments, which sums to 1."""
    return 0.4374901658 / math.pow(number, 1.6)


def published(p_values: Sequence[float], kept: Sequence[bool]) -> float:
    """The level of the next test by equation (7) of Tian & Ramdas (2019), written down independently."""

    def tests_since(begin: int) -> int:
        """Tests after the first `begin` that are neither discarded nor candidates."""
        return sum(CANDIDATE < p <= DISCARDED for p in p_values[begin:])

    wealth = FIRST_SHARE * ALPHA
    rejections = [number for number, one in enumerate(kept, start=1) if one]
    level = wealth * gamma(tests_since(0) + 1)
    for rank, number in enumerate(rejections):
        reward = ALPHA - wealth if rank == 0 else ALPHA
        level += reward * gamma(tests_since(number) + 1)
    return min(CANDIDATE, (DISCARDED - CANDIDATE) * level)


def test_the_sequence_sums_to_one() -> None:
    whole = sum(gamma(number) for number in range(1, 200_000))
    rest = 0.4374901658 / 0.6 * 200_000**-0.6
    assert whole + rest == pytest.approx(1, abs=1e-4)


def test_the_levels_are_those_of_the_published_procedure() -> None:
    rng = np.random.default_rng(5)
    for share in (0.0, 0.3, 0.8):
        budget = ErrorBudget(ALPHA)
        p_values: list[float] = []
        kept: list[bool] = []
        for better in rng.random(60) < share:
            level = budget.level()
            assert level == pytest.approx(published(p_values, kept), rel=1e-12)
            p = float(rng.random() ** (8 if better else 1))
            p_values.append(p)
            kept.append(p <= level)
            budget.note(p, p <= level)


def test_a_kept_change_earns_and_a_doubtful_one_costs() -> None:
    budget = ErrorBudget(ALPHA)
    first = budget.level()
    budget.note(0.2, False)
    after_doubt = budget.level()
    budget.note(1e-6, True)
    assert after_doubt < first < budget.level()


def test_what_looks_worse_or_promising_costs_nothing() -> None:
    budget = ErrorBudget(ALPHA)
    first = budget.level()
    for p in (1.0, 0.6, 0.05):
        budget.note(p, False)
    assert budget.level() == first


def test_a_try_under_way_costs_as_much_as_the_dearest_outcome() -> None:
    levels = {}
    for p in (None, 0.01, 0.15, 0.25, 0.7, 1.0):
        budget = ErrorBudget(ALPHA)
        budget.note(p, False)
        levels[p] = budget.level()
    assert levels[None] == min(levels.values())


def test_what_was_not_kept_earns_nothing_when_the_level_rose_since() -> None:
    """The level of a try is fixed when it begins; a later replay may come to a higher one."""
    budget, with_it = ErrorBudget(ALPHA), ErrorBudget(ALPHA)
    for number in range(6):
        budget.note(1e-9, True)
        with_it.note(1e-9, True)
        if number == 4:
            with_it.note(with_it.level(), False)
    assert with_it.level() <= budget.level()


def test_the_library_agrees_with_itself_where_nothing_overlaps_but_for_its_asynchronous_addis() -> (
    None
):
    """Why the asynchronous class of the library is not used: with nothing in flight it is not ADDIS."""
    plain = Addis(alpha=ALPHA, wealth=0.05, lambda_=0.25, tau=0.5)
    asynchronous = AddisAsync(alpha=ALPHA, wealth=0.05, lambda_=0.25, tau=0.5)
    plain.test_one(0.2)  # a candidate: below 0.25
    asynchronous.test_one(0.2)
    expected = (0.5 - 0.25) * 0.05 * gamma(1)
    assert plain.calc_alpha_t() == pytest.approx(expected)
    assert not math.isclose(asynchronous.start_test().test_level, expected)
