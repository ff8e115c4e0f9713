"""Rules that benchmarks publish for themselves: a spread taken as known, a target to reach. They stand beside the verdict.

The optimiser benchmark of modded-nanogpt has both: a record's mean over n runs has to satisfy
(target - mean) √n >= bound, and of two records (difference + steps saved x slope) / √(1/n + 1/m) >= bound, with a bound of
.004 for a standard deviation of .0013: a one-sided z test at .001. A rule of this kind is as good as its spread; the test
beside it uses the spread that the runs themselves show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special, stats

from paribus.judge.options import Options
from paribus.study.power import Floats

LEVEL = 0.001  # one-sided, of a rule that states no bound


@dataclass(frozen=True)
class Rule:
    """A published rule for two arms.

    Attributes:
        score: improvement / √(1/n + 1/m), at equal compute where a slope is stated.
        bound: that the score has to reach.
        z: score over the fixed spread.
        p: one-sided, of z.
        kept: whether the bound is reached.
    """

    score: float
    bound: float
    z: float
    p: float
    kept: bool


@dataclass(frozen=True)
class TargetRule:
    """Whether an arm reaches a target: by the rule, and by the spread of its own runs.

    Attributes:
        target: to be reached.
        rule: with the fixed spread; None where none is stated.
        p: one-sided, by Student's t; None where there is no spread.
        p_adjusted: after the correction for all arms.
        reaches: whether p_adjusted is at most alpha.
    """

    target: float
    rule: Rule | None
    p: float | None
    p_adjusted: float | None = None
    reaches: bool = False


def bound_of(options: Options) -> float:
    """What a rule asks of a score."""
    assert options.fixed_sigma is not None
    if options.fixed_bound is not None:
        return options.fixed_bound
    return float(special.ndtri(1 - LEVEL)) * options.fixed_sigma


def _rule(improvement: float, runs: float, options: Options) -> Rule:
    assert options.fixed_sigma is not None
    score = improvement * math.sqrt(runs)
    bound = bound_of(options)
    z = score / options.fixed_sigma
    return Rule(score, bound, z, float(special.ndtr(-z)), score >= bound)


def rule_of(difference: float, runs: int, reference_runs: int, options: Options) -> Rule | None:
    """The published rule for an arm and its reference; None where no fixed spread is stated.

    Args:
        difference: arm - reference, at equal compute.
        runs: of the arm.
        reference_runs: of the reference.
        options: fixed_sigma, fixed_bound, direction.
    """
    if options.fixed_sigma is None:
        return None
    harmonic = 1 / (1 / runs + 1 / reference_runs)
    return _rule(options.result_sign * difference, harmonic, options)


def target_rule(
    values: Floats, options: Options, pooled: tuple[float, int] | None = None
) -> TargetRule | None:
    """Whether an arm reaches the target; None where none is stated.

    Args:
        values: (n,) results of the arm.
        options: target, fixed_sigma, fixed_bound, direction.
        pooled: (spread, degrees of freedom) of all arms, where they share one.
    """
    if options.target is None:
        return None
    improvement = options.sign * (float(values.mean()) - options.target)
    n = len(values)
    rule = _rule(improvement, n, options) if options.fixed_sigma is not None else None
    spread, df = pooled or (float(values.std(ddof=1)) if n > 1 else 0.0, n - 1)
    if not spread or df < 1:
        return TargetRule(options.target, rule, None)
    t = improvement * math.sqrt(n) / spread
    return TargetRule(options.target, rule, float(stats.t.sf(t, df)))
