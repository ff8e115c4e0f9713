"""How far two arms lie apart, and how surely: one estimate for each design of the runs.

| design | estimate | error | source |
| --- | --- | --- | --- |
| matched | mean of the differences | their spread, n - 1 degrees | Student (1908) |
| unmatched | difference of the means | each arm's own spread | Welch (1947) |
| pooled | difference of the means | one spread of all arms | analysis of variance |
| partly matched | pairs and single runs by their worth | of the runs, and of the weights | Ekbohm (1976), Meier (1953) |
| blocks | least squares with a level for each block | residuals | Fisher (1935) |
| target times | likelihood, where runs are censored | study/censored.py | Tobin (1958) |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from paribus.study.censored import CensoredDifference
from paribus.study.power import Floats

LARGEST_CORRELATION = 0.9999  # of matched runs, for the weights of a partly matched comparison
TINY = 1e-9  # of the values: a spread below it is rounding


@dataclass(frozen=True)
class Estimate:
    """A difference arm - reference, with its error.

    Attributes:
        design: in a word, as in the module's table; "no spread" where it has no error.
        difference: in the metric's unit.
        error: its standard error; None where the runs have no spread to judge by.
        df: degrees of freedom of the error.
        spread: standard deviation to plan with: of differences where runs are matched, else of a run.
        pairs: matched runs that it rests on.
        why: without an error, why there is none.
    """

    design: str
    difference: float
    error: float | None = None
    df: float = 0.0
    spread: float | None = None
    pairs: int = 0
    why: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is a spread to judge by."""
        return self.error is not None

    def t_at(self, difference: float) -> float:
        """Student's t of the hypothesis that the difference is this; positive where it seems larger."""
        assert self.error is not None
        return (self.difference - difference) / self.error

    def p(self) -> float:
        """Two-sided p of no difference."""
        return float(2 * stats.t.sf(abs(self.t_at(0.0)), self.df))

    def p_beyond(self, difference: float, side: int) -> float:
        """One-sided p against "not beyond this difference", on the side of +1 (above) or -1 (below)."""
        return float(stats.t.sf(side * self.t_at(difference), self.df))

    def p_within(self, margin: float) -> float:
        """Two one-sided tests: the larger p of "at most -margin" and "at least margin"."""
        return max(self.p_beyond(-margin, 1), self.p_beyond(margin, -1))

    def interval(self, alpha: float) -> tuple[float, float]:
        """The 1 - alpha interval of the difference."""
        assert self.error is not None
        half = float(stats.t.isf(alpha / 2, self.df)) * self.error
        return self.difference - half, self.difference + half


@dataclass(frozen=True)
class CensoredEstimate(Estimate):
    """A difference of times of which some are only bounded."""

    likelihood: CensoredDifference | None = None

    @property
    def usable(self) -> bool:
        """Whether known times are enough for a spread."""
        return self.likelihood is not None and self.likelihood.df >= 1

    def t_at(self, difference: float) -> float:
        """Student's t that corresponds to the likelihood ratio of this difference."""
        assert self.likelihood is not None
        return self.likelihood.t_at(difference)

    def interval(self, alpha: float) -> tuple[float, float]:
        """The 1 - alpha interval; infinite on a side that the runs do not bound."""
        assert self.likelihood is not None
        return self.likelihood.interval(alpha)


def censored(likelihood: CensoredDifference, pairs: int = 0) -> CensoredEstimate:
    """The estimate of a difference of censored times.

    Args:
        likelihood: of the difference.
        pairs: matched runs in it.
    """
    return CensoredEstimate(
        design="censored, matched" if pairs else "censored",
        difference=likelihood.estimate(),
        df=float(likelihood.df),
        pairs=pairs,
        why="" if likelihood.df >= 1 else "too few runs reached the target to measure a spread",
        likelihood=likelihood,
    )


# ---------------------------------------------------------------- two groups


def matched(reference: Floats, arm: Floats) -> Estimate:
    """The mean of the differences of matched runs.

    Args:
        reference: (n,) results.
        arm: (n,) results of the same pairs.
    """
    differences = arm - reference
    n = len(differences)
    mean = float(differences.mean())
    if n < 2:
        return Estimate("no spread", mean, pairs=n, why="one matched pair has no spread")
    spread = float(differences.std(ddof=1))
    if _is_rounding(spread, arm):
        return Estimate("no spread", mean, pairs=n, why=_alike(mean, "differences"))
    return Estimate("matched", mean, spread / math.sqrt(n), n - 1, spread, n)


def unmatched(reference: Floats, arm: Floats) -> Estimate:
    """The difference of two means, each with the spread of its own runs.

    Args:
        reference: (m,) results.
        arm: (n,) results.
    """
    difference = float(arm.mean() - reference.mean())
    if len(reference) < 2 or len(arm) < 2:
        return Estimate("no spread", difference, why=_single(reference, arm))
    parts = [float(values.var(ddof=1)) / len(values) for values in (reference, arm)]
    error = math.sqrt(sum(parts))
    if _is_rounding(error, arm):
        return Estimate("no spread", difference, why=_alike(difference, "results"))
    squares = [
        part**2 / (len(values) - 1) for part, values in zip(parts, (reference, arm), strict=True)
    ]
    spread = math.sqrt((float(reference.var(ddof=1)) + float(arm.var(ddof=1))) / 2)
    return Estimate("unmatched", difference, error, sum(parts) ** 2 / sum(squares), spread)


def _single(reference: Floats, arm: Floats) -> str:
    if len(reference) == len(arm) == 1:
        return "one run of each arm has no spread"
    return (
        "the arm has one run" if len(arm) == 1 else "the arm that it is compared with has one run"
    )


def _alike(difference: float, what: str) -> str:
    if difference == 0:
        return (
            "the results are all the same, which does not show that the arms are equal: the metric may be at its floor, "
            "too coarse, or not touched by the change"
        )
    return f"the {what} have no spread to judge by: the metric is coarse or rounded, or the seed does nothing"


def _is_rounding(spread: float, values: Floats) -> bool:
    return spread <= TINY * max(float(np.abs(values).max()), 1e-300)


def pooled(reference: Floats, arm: Floats, spread: float, df: int) -> Estimate:
    """The difference of two means with one spread for all arms.

    Args:
        reference: (m,) results.
        arm: (n,) results.
        spread: standard deviation of a run about its arm's mean, over all arms.
        df: its degrees of freedom.
    """
    difference = float(arm.mean() - reference.mean())
    if df < 1:
        return Estimate("no spread", difference, why="no arm has two runs")
    if _is_rounding(spread, arm):
        return Estimate("no spread", difference, why=_alike(difference, "results"))
    error = spread * math.sqrt(1 / len(reference) + 1 / len(arm))
    return Estimate("pooled", difference, error, df, spread)


def pooled_spread(groups: Sequence[Floats]) -> tuple[float, int]:
    """(standard deviation of a run about its group's mean, degrees of freedom).

    Args:
        groups: the results of each arm.
    """
    df = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return (math.sqrt(squares / df), df) if df else (0.0, 0)


def partly_matched(
    reference: Floats, arm: Floats, single_reference: Floats, single_arm: Floats
) -> Estimate:
    """A difference from pairs and from runs whose partner is missing.

    Each arm's mean is a weighted mean of its matched and its single runs. The weights make the error least under one spread
    and one correlation, both estimated (Ekbohm, 1976); the error itself comes from the runs, each arm with its own spread,
    and is widened for weights that were estimated (Meier, 1953). docs/judge.md has its error rates.

    Args:
        reference: (p,) results of the pairs, at least two.
        arm: (p,) results of the same pairs.
        single_reference: (a,) results without a partner.
        single_arm: (b,) results without a partner.
    """
    pairs, a, b = len(arm), len(single_reference), len(single_arm)
    all_reference = np.concatenate([reference, single_reference])
    all_arm = np.concatenate([arm, single_arm])
    spread, _ = pooled_spread([all_reference, all_arm])
    of_differences = float((arm - reference).std(ddof=1))
    if _is_rounding(spread, all_arm):
        difference = float(all_arm.mean() - all_reference.mean())
        return Estimate("no spread", difference, pairs=pairs, why=_alike(difference, "results"))
    correlation = min(max(1 - (of_differences / spread) ** 2 / 2, 0.0), LARGEST_CORRELATION)
    weight_arm, weight_reference = _weights(pairs, a, b, correlation)

    combined = weight_arm * arm - weight_reference * reference
    difference = float(combined.mean())
    parts = [(float(combined.var(ddof=1)) / pairs, pairs - 1)]
    if b:
        difference += (1 - weight_arm) * float(single_arm.mean())
        part = (1 - weight_arm) ** 2 * float(all_arm.var(ddof=1)) / b
        parts.append((part, len(all_arm) - 1))
    if a:
        difference -= (1 - weight_reference) * float(single_reference.mean())
        part = (1 - weight_reference) ** 2 * float(all_reference.var(ddof=1)) / a
        parts.append((part, len(all_reference) - 1))
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return Estimate("no spread", difference, pairs=pairs, why=_alike(difference, "differences"))
    df = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    of_singles = 1 - (weight_arm + weight_reference) / 2
    degrees = 1 / (pairs - 1) + 1 / (len(all_arm) + len(all_reference) - 2)
    variance *= 1 + 4 * of_singles * (1 - of_singles) * degrees
    return Estimate("partly matched", difference, math.sqrt(variance), df, of_differences, pairs)


def _weights(pairs: int, a: int, b: int, correlation: float) -> tuple[float, float]:
    """Weights of the matched runs in the means of (arm, reference), with the least error.

    With one spread the variance is (u² + v² - 2 u v correlation)/pairs + (1 - u)²/b + (1 - v)²/a; where an arm has no
    single runs its weight is 1.
    """
    shared = correlation / pairs
    if not b:
        return 1.0, (1 / a + shared) / (1 / pairs + 1 / a)
    if not a:
        return (1 / b + shared) / (1 / pairs + 1 / b), 1.0
    of_arm, of_reference = 1 / pairs + 1 / b, 1 / pairs + 1 / a
    determinant = of_arm * of_reference - shared**2
    weight_arm = (of_reference / b + shared / a) / determinant
    weight_reference = (of_arm / a + shared / b) / determinant
    return weight_arm, weight_reference


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Layout:
    """A linear model of all runs: a level for each arm, and one for each block (and pair)."""

    arms: Sequence[str]
    coefficients: Floats
    covariance: Floats  # without the residual variance
    basis: Floats  # rows that span what the runs can tell
    residual: float
    df: int

    def contrast(self, arm: str, reference: str) -> Estimate:
        """The difference of two arms, blocks taken out."""
        contrast = np.zeros(len(self.coefficients))
        contrast[self.arms.index(arm)] = 1.0
        contrast[self.arms.index(reference)] = -1.0
        told = self.basis.T @ (self.basis @ contrast)
        difference = float(contrast @ self.coefficients)
        if not np.allclose(told, contrast, atol=1e-8):
            return Estimate(
                "no spread",
                math.nan,
                why="no block links the two arms, so that arm and block cannot be told apart",
            )
        if self.df < 1:
            return Estimate("no spread", difference, why="no runs are left to measure a spread by")
        error = self.residual * math.sqrt(float(contrast @ self.covariance @ contrast))
        if _is_rounding(error, self.coefficients):
            return Estimate("no spread", difference, why=_alike(difference, "results"))
        return Estimate("blocks", difference, error, self.df, self.residual)


def layout(
    arms: Sequence[str], values: Sequence[float], levels: Sequence[Mapping[int, str]]
) -> Layout:
    """Least squares with a level for each arm, and for each level of each factor (randomised blocks).

    Args:
        arms: of each run.
        values: result of each run.
        levels: for each factor, as block and pair, number of the run -> its level.
    """
    names = list(dict.fromkeys(arms))
    columns = [[float(arm == name) for arm in arms] for name in names]
    for factor in levels:
        known = list(dict.fromkeys(factor[number] for number in range(len(arms))))
        columns += [
            [float(factor[number] == level) for number in range(len(arms))] for level in known[1:]
        ]
    design = np.array(columns).T
    results = np.asarray(values, float)
    centre = results.mean()
    _, singular, rows = np.linalg.svd(design, full_matrices=False)
    rank = int((singular > singular[0] * 1e-10).sum())
    inverse = np.linalg.pinv(design, rcond=1e-10)
    coefficients = inverse @ (results - centre)
    left = results - centre - design @ coefficients
    df = len(results) - rank
    residual = math.sqrt(float(left @ left) / df) if df > 0 else 0.0
    return Layout(names, coefficients, inverse @ inverse.T, rows[:rank], residual, df)
