"""The effect on outcomes of the same items (GSM8K problems, CORE questions), with two sources of noise: seeds and items.

Sources: two-way analysis of variance (Fisher, 1925); resampling rows and columns, and why the rest must not count twice
(Owen, 2007); whole clusters (Field & Welsh, 2007); McNemar (1947), exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paribus.errors import UserError
from paribus.evaluate.intervals import mcnemar_exact
from paribus.study.power import Floats
from paribus.study.sample import ItemNoise

DRAWS = 10_000  # of a bootstrap


@dataclass(frozen=True)
class ItemEffect:
    """The effect by items and seeds together: mean difference of the outcome, with both noises in low, high and p.

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


def item_effect(
    baseline: Sequence[Floats],
    arm: Sequence[Floats],
    clusters: NDArray[np.generic] | None = None,
    *,
    alpha: float = 0.05,
    equal_clusters: bool = False,
    draws: int = DRAWS,
) -> ItemEffect:
    """The effect on outcomes of the same I items: GSM8K's 0 and 1, CORE's answers.

    A difference is seed effect + item effect + rest. Means of seeds hold the first and the rest: Student's t. Means of
    items hold the second and, again, the rest, which is taken out: Student's t over items, or with `clusters` a
    bootstrap that draws whole clusters, since items of a task move together. The interval and p are of the sum of both,
    drawn from a fixed seed. There is no verdict: that of a study has the noise of its items in it already (`item_noise`).

    Where no outcome differs there is no noise to measure, which does not prove equality (both may be at a floor): the
    interval is then what a share of items is bounded by of which none was seen, 1 - alpha^(1 / units), or about
    3 / units at alpha .05 (the rule of three; Hanley & Lippman-Hand, 1983).

    Args:
        baseline: outcomes (I,) at each matched seed.
        arm: the same, at the same seeds.
        clusters: (I,), the task of each item.
        alpha: 1 - the interval's coverage.
        equal_clusters: every cluster counts the same, as tasks do in CORE; otherwise every item does.
        draws: of the bootstrap.

    Raises:
        UserError: for arrays of different lengths, no items, fewer than two units, and outcomes that are not finite.
    """
    of_base, difference = _differences(baseline, arm, clusters)
    table = _units(difference, clusters, equal_clusters)
    seeds, units = table.shape
    if not difference.any():
        return _no_difference(of_base, seeds, units, alpha)
    mean, seed_error, item_error = _components(table)
    rng = np.random.default_rng(0)
    shift = item_error * _item_noise(table.mean(axis=0), clusters is not None, draws, rng)
    if seed_error is not None:
        shift = shift + seed_error * rng.standard_t(seeds - 1, draws)
    low, high = (float(mean + q) for q in np.quantile(shift, (alpha / 2, 1 - alpha / 2)))
    p = 2 * _tail(shift, abs(mean))
    exact = None
    if seeds == 1 and np.isin([baseline, arm], (0, 1)).all():
        exact = mcnemar_exact(int((difference < 0).sum()), int((difference > 0).sum()))
    return ItemEffect(
        seeds=seeds,
        items=difference.shape[1],
        units=units,
        mean=mean,
        low=low,
        high=high,
        p=min(p, 1.0),
        seed_stderr=seed_error,
        item_stderr=item_error,
        mcnemar_p=exact,
    )


def item_noise(
    baseline: Sequence[Floats],
    arm: Sequence[Floats],
    clusters: NDArray[np.generic] | None = None,
    *,
    equal_clusters: bool = False,
) -> ItemNoise:
    """What items add to the error of a difference over matched seeds, whose spread holds the rest already.

    At least the error that one item makes: at a floor, where few outcomes differ, items that would differ were not met.

    Args:
        baseline: outcomes (I,) at each matched seed.
        arm: the same, at the same seeds.
        clusters: (I,), the task of each item.
        equal_clusters: every cluster counts the same; otherwise every item does.

    Raises:
        UserError: as `item_effect` does.
    """
    of_base, difference = _differences(baseline, arm, clusters)
    table = _units(difference, clusters, equal_clusters)
    items, units = difference.shape[1], table.shape[1]
    largest = _largest(of_base)
    return ItemNoise(
        items=items,
        units=units,
        error=max(_components(table)[2], largest / items),
        largest=largest,
        none_differs=not difference.any(),
    )


def _differences(
    baseline: Sequence[Floats], arm: Sequence[Floats], clusters: NDArray[np.generic] | None
) -> tuple[Floats, Floats]:
    """(outcomes of the baseline, arm - baseline), both (seeds, items). Raises UserError."""
    problems = _item_problems(baseline, arm, clusters)
    if problems:
        raise UserError(problems)
    of_base = np.stack(baseline).astype(float)
    return of_base, np.stack(arm).astype(float) - of_base


def _largest(outcomes: Floats) -> float:
    """The largest difference of an item: a wrong answer is 0, or below it where outcomes are above guessing."""
    return 1 - min(float(outcomes.min()), 0.0)


def _no_difference(outcomes: Floats, seeds: int, units: int, alpha: float) -> ItemEffect:
    """Every outcome (seeds, items) is the same in both arms: the bound of a kind of item that was not met."""
    bound = _largest(outcomes) * (1 - alpha ** (1 / units))
    binary = seeds == 1 and bool(np.isin(outcomes, (0, 1)).all())
    return ItemEffect(
        seeds=seeds,
        items=outcomes.shape[1],
        units=units,
        mean=0.0,
        low=-bound,
        high=bound,
        p=1.0,
        seed_stderr=None if seeds == 1 else 0.0,
        item_stderr=0.0,
        mcnemar_p=1.0 if binary else None,
    )


def _item_problems(
    baseline: Sequence[Floats], arm: Sequence[Floats], clusters: NDArray[np.generic] | None
) -> list[str]:
    problems = []
    lengths = {len(outcomes) for outcomes in [*baseline, *arm]}
    if len(baseline) != len(arm) or not baseline:
        problems.append(
            f"items: {len(baseline)} seeds of the baseline and {len(arm)} of the arm; they must be matched"
        )
    if len(lengths) != 1 or lengths == {0}:
        problems.append(f"items: runs have {sorted(lengths)} items; all must have the same ones")
    else:
        problems += _cluster_problems(lengths.pop(), clusters)
    if not all(np.isfinite(outcomes).all() for outcomes in [*baseline, *arm]):
        problems.append("items: some outcomes are not finite")
    return problems


def _cluster_problems(items: int, clusters: NDArray[np.generic] | None) -> list[str]:
    if clusters is not None and len(clusters) != items:
        return [f"items: {len(clusters)} clusters named for {items} items"]
    units = items if clusters is None else len(np.unique(clusters))
    return ["items: at least two items, or clusters, are needed"] if units < 2 else []


def _units(difference: Floats, clusters: NDArray[np.generic] | None, equal: bool) -> Floats:
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
    # In by_seed's spread already.
    twice = float((rest**2).sum()) / ((seeds - 1) * (units - 1)) / (seeds * units)
    seed_error = float(by_seed.std(ddof=1)) / math.sqrt(seeds)
    item_error = math.sqrt(max(item_variance - twice, 0.0))
    return float(table.mean()), seed_error, item_error


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
