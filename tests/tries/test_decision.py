"""Keep, discard, undecided: what the differences of one try say, at each look."""

from __future__ import annotations

import numpy as np
import pytest

from paribus.tries.decision import Look, Rule, look, seeds_to_know

RULE = Rule("lower", smallest_effect=0.5, first=3, last=8, level=0.005)
SPREAD = (0.1, -0.2, 0.15, -0.05, 0.2, -0.1, 0.05, -0.15)


def outcome(differences: list[float], rule: Rule = RULE) -> Look:
    """The last look of a try."""
    p = 1.0
    for n in rule.plan:
        now = look(differences[:n], rule, p)
        p = now.p
        if now.verdict:
            return now
    raise AssertionError("no verdict at the last look")


def test_a_plain_gain_is_kept_before_the_last_seed() -> None:
    now = outcome([-3 + one for one in SPREAD])
    assert now.verdict == "keep"
    assert now.n < RULE.last
    assert now.p <= RULE.level


def test_the_same_gain_is_a_loss_where_higher_is_better() -> None:
    rule = Rule("higher", 0.5, 3, 8, 0.005)
    assert outcome([-3 + one for one in SPREAD], rule).verdict == "discard"
    assert outcome([3 + one for one in SPREAD], rule).verdict == "keep"


def test_a_gain_too_small_to_matter_is_discarded() -> None:
    now = outcome([-0.2 + 0.1 * one for one in SPREAD])
    assert now.verdict == "discard"
    assert "0.5" in now.why


def test_what_changes_nothing_is_discarded_at_the_last_seed() -> None:
    now = outcome([0.0] * 8)
    assert (now.verdict, now.n) == ("discard", 8)
    assert "same at each seed" in now.why


def test_a_gain_within_its_noise_is_undecided_and_says_how_many_seeds_would_tell() -> None:
    now = outcome([-0.5 + 8 * one for one in SPREAD])
    assert now.verdict == "undecided"
    needed = seeds_to_know(now, RULE)
    assert needed is not None
    assert needed > RULE.last


def test_undecided_comes_early_where_the_last_seed_would_not_help() -> None:
    now = outcome([-0.5 + 8 * one for one in SPREAD])
    assert now.n < RULE.last


def test_the_p_value_never_rises_from_look_to_look() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        differences = list(rng.standard_normal(8) - 0.5)
        p = 1.0
        for n in RULE.plan:
            now = look(differences[:n], RULE, p)
            assert now.p <= p
            p = now.p


@pytest.mark.parametrize("level", [0.02, 0.1])
def test_a_change_that_does_nothing_is_kept_no_more_often_than_its_level(level: float) -> None:
    rule = Rule("lower", 1e-9, 3, 8, level)  # nothing is discarded as too small
    rng = np.random.default_rng(1)
    tries = 400
    kept = 0
    for _ in range(tries):
        kept += outcome(list(rng.standard_normal(8)), rule).verdict == "keep"
    error = (level * (1 - level) / tries) ** 0.5
    assert kept / tries < level + 3 * error
