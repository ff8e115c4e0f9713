"""The effect on outcomes of the same items (GSM8K problems, CORE questions), with two sources of noise: seeds and items.

Sources: two-way analysis of variance (Fisher, 1925); resampling rows and columns, and why the rest must not count twice
(Owen, 2007); whole clusters (Field & Welsh, 2007); McNemar (1947), exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paribus.errors import UserError
from paribus.evaluate.intervals import mcnemar_exact
from paribus.study.statistics import Floats, Verdict, settings_problems, verdict_of

DRAWS = 10_000  # of a bootstrap


@dataclass(frozen=True)
class ItemEffect:
    """What items and seeds say together: mean difference of the outcome, with both noises in low, high and p.

    seed_stderr: from run to run, on the same items (None of one pair: then the claim is about these two models, not about
    the recipes that made them). item_stderr: from other items of the same kind. mcnemar_p: of one pair with outcomes 0 and
    1, exact. units: clusters, or items where there are none.
    """

    seeds: int
    items: int
    units: int
    mean: float
    low: float
    high: float
    p: float
    seed_stderr: float | None
    item_stderr: float
    mcnemar_p: float | None
    verdict: Verdict


def item_effect(
    baseline: Sequence[Floats],
    arm: Sequence[Floats],
    clusters: NDArray[Any] | None = None,
    *,
    smallest_effect: float,
    direction: str = "higher",
    alpha: float = 0.05,
    equal_clusters: bool = False,
    draws: int = DRAWS,
) -> ItemEffect:
    """The effect on outcomes of the same items (I), one array (I,) a matched seed and arm: GSM8K's 0 and 1, CORE's answers.

    A difference is seed effect + item effect + rest. Means of seeds hold the first and the rest: Student's t. Means of
    items hold the second and, again, the rest, which is taken out: Student's t over items, or with `clusters` (I,) a
    bootstrap that draws whole clusters (tasks), since items of a task move together. The interval and p are of the sum
    of both, drawn `draws` times from a fixed seed. equal_clusters: every cluster counts the same, as tasks do in CORE;
    otherwise every item does. The verdict follows `effects`, for one arm.

    Raises UserError for arrays of different lengths, no items, fewer than two units, outcomes that are not finite, and
    settings that `effects` refuses.

    Where no outcome differs there is no noise to measure, and that is no proof of equality (both may be at a floor): the
    interval is then what a share of items is bounded by of which none was seen, 1 - alpha^(1 / units), or about
    3 / units at alpha .05 (the rule of three; Hanley & Lippman-Hand, 1983).
    """
    problems = settings_problems(direction, smallest_effect, alpha) + _item_problems(
        baseline, arm, clusters
    )
    if problems:
        raise UserError(problems)
    difference = np.stack(arm).astype(float) - np.stack(baseline).astype(float)
    table = _units(difference, clusters, equal_clusters)
    seeds, units = table.shape
    if not difference.any():
        return _no_difference(np.stack(baseline), seeds, units, smallest_effect, alpha)
    mean, seed_error, item_error = _components(table)
    rng = np.random.default_rng(0)
    shift = item_error * _item_noise(table.mean(axis=0), clusters is not None, draws, rng)
    if seed_error is not None:
        shift = shift + seed_error * rng.standard_t(seeds - 1, draws)
    low, high = (float(mean + q) for q in np.quantile(shift, (alpha / 2, 1 - alpha / 2)))
    p = 2 * _tail(shift, abs(mean))
    equal = _tail(shift, smallest_effect - abs(mean))
    binary = seeds == 1 and np.isin(np.stack([*baseline, *arm]), (0, 1)).all()
    exact = (
        mcnemar_exact(int((difference < 0).sum()), int((difference > 0).sum())) if binary else None
    )
    return ItemEffect(
        seeds,
        difference.shape[1],
        units,
        mean,
        low,
        high,
        min(p, 1.0),
        seed_error,
        item_error,
        exact,
        verdict_of(mean, direction, p <= alpha, equal <= alpha),
    )


def _no_difference(
    outcomes: Floats, seeds: int, units: int, smallest_effect: float, alpha: float
) -> ItemEffect:
    """Every outcome (seeds, items) is the same in both arms: the bound of a kind of item that was not met."""
    lowest = min(float(outcomes.min()), 0.0)  # of a wrong answer, where outcomes are above guessing
    bound = (1 - lowest) * (1 - alpha ** (1 / units))
    verdict: Verdict = "equivalent" if bound < smallest_effect else "undecided"
    binary = seeds == 1 and bool(np.isin(outcomes, (0, 1)).all())
    return ItemEffect(
        seeds,
        outcomes.shape[1],
        units,
        0.0,
        -bound,
        bound,
        1.0,
        None if seeds == 1 else 0.0,
        0.0,
        1.0 if binary else None,
        verdict,
    )


def _item_problems(
    baseline: Sequence[Floats], arm: Sequence[Floats], clusters: NDArray[Any] | None
) -> list[str]:
    problems = []
    lengths = {len(outcomes) for outcomes in [*baseline, *arm]}
    if len(baseline) != len(arm) or not baseline:
        problems.append(
            f"items: {len(baseline)} seeds of the baseline and {len(arm)} of the arm; they must be matched"
        )
    if len(lengths) != 1 or lengths == {0}:
        problems.append(f"items: runs have {sorted(lengths)} items; all must have the same ones")
    elif clusters is not None and {len(clusters)} != lengths:
        problems.append(f"items: {len(clusters)} clusters named for {lengths.pop()} items")
    elif (len(np.unique(clusters)) if clusters is not None else lengths.pop()) < 2:
        problems.append("items: at least two items, or clusters, are needed")
    if not all(np.isfinite(outcomes).all() for outcomes in [*baseline, *arm]):
        problems.append("items: some outcomes are not finite")
    return problems


def _units(difference: Floats, clusters: NDArray[Any] | None, equal: bool) -> Floats:
    """(seeds, units) whose plain mean is the effect; a cluster's entry is its mean, weighted about the effect."""
    if clusters is None:
        return difference
    _, place, count = np.unique(clusters, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(place, row) for row in difference]) / count
    weight = np.ones(len(count)) if equal else count * len(count) / count.sum()
    centre = float((means * weight).mean())
    return np.asarray(centre + weight * (means - centre))


def _components(table: Floats) -> tuple[float, float | None, float]:
    """Mean, its standard error from seeds (with the rest), and from items alone: a two-way analysis of variance."""
    seeds, units = table.shape
    by_item = table.mean(axis=0)
    item_variance = float(by_item.var(ddof=1)) / units
    if seeds == 1:
        return float(table.mean()), None, math.sqrt(item_variance)
    by_seed = table.mean(axis=1)
    rest = table - by_seed[:, None] - by_item + table.mean()
    twice = (
        float((rest**2).sum()) / ((seeds - 1) * (units - 1)) / (seeds * units)
    )  # it is in by_seed's spread already
    return (
        float(table.mean()),
        float(by_seed.std(ddof=1)) / math.sqrt(seeds),
        math.sqrt(max(item_variance - twice, 0.0)),
    )


def _item_noise(by_unit: Floats, resample: bool, draws: int, rng: np.random.Generator) -> Floats:
    """Draws of the error of the mean over units, in standard errors."""
    units, spread = len(by_unit), float(by_unit.std(ddof=1))
    if not resample or spread == 0:
        return rng.standard_t(units - 1, draws)
    counts = rng.multinomial(units, np.full(units, 1 / units), draws)
    deviations = counts @ (by_unit - by_unit.mean()) / units
    return np.asarray(deviations / (float(by_unit.std()) / math.sqrt(units)))


def _tail(shift: Floats, at: float) -> float:
    """Share of draws beyond `at` on the heavier side, never 0: what was drawn counts as one of them."""
    return (1 + max(int((shift >= at).sum()), int((shift <= -at).sum()))) / (len(shift) + 1)
