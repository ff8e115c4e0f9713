"""The parabola at equal compute: it finds a planted best size, says so when there is none, and its interval covers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from paribus.study.scaling import fit

SIZES = [1e6, 3e6, 8e6, 2e7]
DIAL = [2.0, 4.0, 6.0, 8.0]


def measured(
    best: float, rng: np.random.Generator, seeds: int = 3, noise: float = 0.002
) -> NDArray[np.float64]:
    """(seeds, sizes): a parabola with its best at `best`, a level of each seed's own, and noise of each run."""
    bend = 0.01 * (np.log2(SIZES) - np.log2(best)) ** 2
    levels = rng.normal(0, 0.02, (seeds, 1))
    of_runs = rng.normal(0, noise, (seeds, len(SIZES)))
    values: NDArray[np.float64] = 0.9 + bend + levels + of_runs
    return values


def test_intervals_hold_the_planted_best_size() -> None:
    rng = np.random.default_rng(3)
    found = [fit("model.depth", SIZES, DIAL, measured(5e6, rng), "lower").best for _ in range(300)]
    held = np.mean([best is not None and best[1] <= 5e6 <= best[2] for best in found])
    assert 0.91 < held < 0.985
    assert np.median([best[0] for best in found if best]) == pytest.approx(5e6, rel=0.05)


def test_noise_of_single_runs_is_measured_and_that_of_seeds_is_not() -> None:
    values = measured(5e6, np.random.default_rng(1), seeds=200)
    assert fit("model.depth", SIZES, DIAL, values, "lower").scatter == pytest.approx(0.002, rel=0.2)
    assert fit("model.depth", SIZES[:3], DIAL[:3], values[:, :3], "lower").scatter is None


def test_no_best_is_made_up() -> None:
    falling = 1 - 0.05 * np.log2(SIZES)[None] + np.random.default_rng(2).normal(0, 0.01, (3, 4))
    found = fit("model.depth", SIZES, DIAL, falling, "lower")
    assert found.best is None
    assert found.sentence("bits per byte").startswith("No best size is bracketed")
    at_the_end = fit("model.depth", SIZES, DIAL, measured(1.1e6, np.random.default_rng(1)), "lower")
    assert at_the_end.best is None  # of the sizes tried the smallest is the best
    assert (
        fit("model.depth", SIZES, DIAL, measured(5e6, np.random.default_rng(1)), "higher").best
        is None
    )
