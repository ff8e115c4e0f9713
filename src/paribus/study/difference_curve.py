"""The difference of two arms over training, with a band that holds at all steps at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from paribus.errors import UserError
from paribus.study.power import Floats

CURVES = 5_000  # simulated for a band over steps


@dataclass(frozen=True)
class Curve:
    """Mean difference at every step (T,), its pointwise 1 - alpha interval, and the band that holds at all steps at once."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    band_low: Floats
    band_high: Floats


def difference_curve(
    steps: Sequence[float], baseline: Floats, arm: Floats, alpha: float = 0.05
) -> Curve:
    """The curve of arm - baseline, both (seeds, T) at the same seeds and steps.

    Pointwise: Student's t at each step. The band: t with the 1 - alpha quantile of the largest |t| over the steps, from
    simulated sets of as many seeds, with the correlation of neighbouring steps as measured. Raises UserError for shapes that
    differ, or fewer than two seeds (no interval).
    """
    differences = (
        np.asarray(arm, float) - np.asarray(baseline, float)
        if np.shape(arm) == np.shape(baseline)
        else None
    )
    if (
        differences is None
        or differences.ndim != 2
        or differences.shape[1] != len(steps)
        or len(differences) < 2
    ):
        raise UserError(
            f"curve: baseline {np.shape(baseline)} and arm {np.shape(arm)} over {len(steps)} steps; "
            "both must be (seeds, steps), with at least two seeds"
        )
    n = len(differences)
    mean, error = differences.mean(axis=0), differences.std(axis=0, ddof=1) / math.sqrt(n)
    point, band = stats.t.isf(alpha / 2, n - 1) * error, _largest_t(differences, alpha) * error
    return Curve(
        np.asarray(steps, float), mean, mean - point, mean + point, mean - band, mean + band
    )


def _largest_t(differences: Floats, alpha: float) -> float:
    """The 1 - alpha quantile of max |t| over the steps under no difference, for curves whose neighbouring steps correlate so.

    A resample of three seeds has no tails, so curves are simulated: normal, each step correlated with the one before (the
    measured correlation of neighbours, pooled over the steps, since of one pair of steps few seeds know little).
    """
    n, steps = differences.shape
    spread = differences.std(axis=0, ddof=1)
    moving = np.flatnonzero(spread)
    if len(moving) < 2:
        return float(stats.t.isf(alpha / 2, n - 1))
    scaled = (differences[:, moving] - differences[:, moving].mean(axis=0)) / spread[moving]
    near = float(np.clip((scaled[:, 1:] * scaled[:, :-1]).sum(axis=0).mean() / (n - 1), 0, 0.999))
    rng, largest = np.random.default_rng(0), np.zeros(CURVES)
    walk = rng.standard_normal((CURVES, n), dtype=np.float32)
    for _ in range(steps):
        t = walk.mean(axis=1) / walk.std(axis=1, ddof=1) * math.sqrt(n)
        largest = np.maximum(largest, np.abs(t))
        walk = near * walk + math.sqrt(1 - near**2) * rng.standard_normal(
            (CURVES, n), dtype=np.float32
        )
    return float(np.quantile(largest, 1 - alpha))
