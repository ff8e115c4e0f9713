"""Variance that a study's arms lend each other, with a guard that keeps the error rate where their noise differs.

Three seeds measure a spread badly, but all arms of a study measure much the same one. An arm's variance shrunk to the mean
over the arms has more degrees of freedom, and Holm's correction then costs less. Where some arms are noisier than others the
mean is too small for them, so a loan is guarded: an adjusted p is never below GUARD times the arm's own p, which holds
whatever the noise of the others. And an arm that is quieter than the others may do without the loan: it counts as well where
its own p passes Holm at a fifth of alpha.

Source: Smyth (2004), the form of the shrunk variance. Guard and rates: benchmarks/borrowing.py (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paribus.study.sample import Sample

PRIOR = 4  # degrees of freedom that the mean over the arms counts for
GUARD = 2  # times an arm's own p that its adjusted p is at least
ALONE = 5  # times Holm's adjusted own p at which an arm counts without a loan
FEWEST = 3  # arms; of two, a guarded loan finds no more than Holm does


def lent(samples: Mapping[str, Sample]) -> dict[str, Sample]:
    """The samples with their variance shrunk to the mean over the arms, for those that take part; {} for fewer than FEWEST.

    Args:
        samples: arm -> its differences. Those without a spread, and runs that are not matched, take no part.
    """
    part = {arm: sample for arm, sample in samples.items() if sample.usable and sample.matched}
    if len(part) < FEWEST:
        return {}
    mean = float(np.mean([(sample.stdev or 0.0) ** 2 for sample in part.values()]))
    shrunk = {}
    for arm, sample in part.items():
        freedom = sample.seed_df + PRIOR
        variance = (sample.seed_df * (sample.stdev or 0.0) ** 2 + PRIOR * mean) / freedom
        shrunk[arm] = replace(sample, stdev=math.sqrt(variance), degrees=freedom)
    return shrunk


def guarded(
    own: Mapping[str, float], holm_of_own: Mapping[str, float], holm_with_loans: Mapping[str, float]
) -> dict[str, float]:
    """Adjusted p-values with loans.

    Args:
        own: arm -> p of its own variance, over all looks.
        holm_of_own: the same after Holm.
        holm_with_loans: p of the shrunk variance after Holm.
    """
    adjusted = {}
    for arm, p in own.items():
        with_loan = max(holm_with_loans[arm], GUARD * p)
        without = ALONE * holm_of_own[arm]
        adjusted[arm] = min(with_loan, without, 1.0)
    return adjusted
