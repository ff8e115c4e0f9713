"""Looks: however many there are, and whatever decides when they end, they err at most alpha of the time together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from paribus.study import looks as looks_module
from paribus.study.looks import OPEN, Look, Schedule, anytime_bound, level, p_over_looks
from paribus.study.statistics import effects, estimate, open_look


def levels(schedule: Schedule, last: int, alpha: float = 0.05) -> list[float]:
    made = schedule.upto(last)
    return [level(schedule.taken(made[:k]), alpha) for k in range(1, len(made) + 1)]


def test_looks_grow_by_half_and_end_where_asked() -> None:
    assert Schedule(3, 12).upto(1000) == (3, 5, 8, 12)
    assert Schedule(4, 4).upto(9) == (4,)
    assert Schedule(2, 7).upto(7) == (2, 3, 5, 7)
    assert OPEN.upto(30) == (3, 5, 8, 12, 18, 27)
    assert [OPEN.after(n) for n in (0, 3, 4, 5)] == [3, 5, 5, 8]
    assert Schedule(3, 12).after(12) is None


def test_a_closed_schedule_ends_at_alpha_and_an_open_one_stays_below() -> None:
    assert Schedule(3, 12).taken([3, 5, 8, 12])[-1].share == 1
    assert levels(Schedule(5, 5), 5) == pytest.approx([0.05])
    shares = [look.share for look in OPEN.taken(OPEN.upto(1000))]
    assert shares == sorted(shares)
    assert shares[:3] == pytest.approx([1 / 2, 2 / 3, 3 / 4])
    assert shares[-1] < 1


def test_a_look_that_a_lost_seed_made_is_allowed() -> None:
    """What is looked at after the look at 5 has to share what is spent from there on: the sooner, the less."""
    schedule = Schedule(3, 12)
    found = [level(schedule.taken([3, 5, n]), 0.05) for n in (6, 7, 8)]
    assert found == sorted(found)
    assert 0 < found[0] < 0.05


@pytest.mark.parametrize("plan", [Schedule(3, 12), Schedule(2, 5), OPEN])
def test_looking_often_at_few_seeds_errs_no_more_than_alpha(plan: Schedule) -> None:
    """Type I error of t tests at these levels: within three standard errors of the share of alpha that is spent."""
    made = plan.upto(plan.last or 41)
    samples = np.random.default_rng(0).normal(size=(60_000, made[-1]))
    rejected = np.zeros(len(samples), bool)
    for n, at in zip(made, levels(plan, made[-1]), strict=True):
        part = samples[:, :n]
        t = part.mean(1) / part.std(1, ddof=1) * math.sqrt(n)
        rejected |= 2 * stats.t.sf(np.abs(t), n - 1) <= at
    spent = 0.05 * plan.taken(made)[-1].share
    assert rejected.mean() == pytest.approx(
        spent, abs=3 * math.sqrt(spent * (1 - spent) / len(samples))
    )


@pytest.mark.soak
def test_many_seeds_are_followed_as_a_normal_mean_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the exact chain of t, one seed after another, to 140 seeds."""
    quick = levels(OPEN, 140)
    monkeypatch.setattr(looks_module, "MANY_SEEDS", 140)
    looks_module._between.cache_clear()
    looks_module._passed.cache_clear()
    exact = levels(OPEN, 140)
    looks_module._between.cache_clear()
    looks_module._passed.cache_clear()
    assert quick == pytest.approx(exact, rel=0.015)
    assert quick[-1] != exact[-1]


def test_adjusted_p_of_a_look_agrees_with_the_level_of_that_look() -> None:
    values = [-0.010, -0.012, -0.016, -0.004, -0.009]
    for plan in (Schedule(3, 8), OPEN):
        found = effects(
            {"arm": values}, direction="lower", smallest_effect=0.001, alpha=0.05, plan=plan
        )["arm"]
        taken = plan.taken([3, 5])
        assert found.looks == taken
        assert found.p < found.p_adjusted
        for alpha in (found.p_adjusted * 1.01, found.p_adjusted * 0.99):
            assert (found.p <= level(taken, alpha)) == (found.p_adjusted <= alpha)


def test_what_another_schedule_spent_is_not_spent_again() -> None:
    """A look at 5 that spent all of alpha leaves nothing; one that spent half leaves the other half, whatever is planned."""
    assert level([Look(5, 1.0), *OPEN.taken([8], begun=Look(5, 1.0))], 0.05) == 0
    assert p_over_looks(1e-9, [Look(5, 1.0), *OPEN.taken([8], begun=Look(5, 1.0))]) == 1
    shares = [look.share for look in OPEN.taken([8, 12], begun=Look(5, 0.5))]
    assert shares == pytest.approx([0.75, 0.5 + 0.5 * 2 / 3])
    assert Schedule(3, 12).taken([12], begun=Look(5, 0.4))[-1].share == 1


def test_one_look_after_another_says_what_it_spent_and_when_the_next_is() -> None:
    first = open_look([-0.011, -0.013, -0.012], direction="lower", smallest_effect=0.002)
    assert (first.verdict, first.spent) == ("better", 0.5)
    unclear = [0.1, -0.2, 0.1, 0.0, -0.1]
    second = open_look(unclear, [3], direction="lower", smallest_effect=0.002)
    assert second.verdict == "undecided"
    assert second.spent == pytest.approx(2 / 3)
    assert second.more_seeds == 3
    alone = open_look(unclear, direction="lower", smallest_effect=0.002)
    assert alone.high - alone.low < second.high - second.low, "a look before it costs"


def test_an_interval_between_looks_holds_however_often_one_looks() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(20_000, 60))
    missed = np.zeros(len(samples), bool)
    for n in range(2, 61):
        part = samples[:, :n]
        t = np.abs(part.mean(1)) / part.std(1, ddof=1) * math.sqrt(n)
        missed |= t > anytime_bound(n, 0.05)
    assert missed.mean() <= 0.05
    few, more = estimate([0.1, 0.2, 0.3], 0.05), estimate([0.1, 0.2, 0.3, 0.15, 0.25], 0.05)
    assert few.high == math.inf
    assert more.high < math.inf
    assert more.verdict == "not yet"
    assert not more.decided
