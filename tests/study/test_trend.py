"""The line over a ladder: planted trends and predictions lie in their intervals as often as promised, and answers follow."""

from __future__ import annotations

import numpy as np
import pytest

from paribus.study.trend import Answer, Trend, answer, check_of

SIZES = (1e12, 3e12, 1e13, 4e13)
BEYOND = 1.5e14


def effects(
    rng: np.random.Generator,
    level: float,
    slope: float,
    noise: float = 0.004,
    off_line: float = 0.0,
    seeds: int = 3,
) -> dict[float, list[float]]:
    """Differences of `seeds` seeds on each rung; level: of the smallest, slope: for each tenfold of compute."""
    found = {}
    for compute in SIZES:
        true = level + slope * np.log10(compute / SIZES[0]) + rng.normal(0, off_line)
        found[compute] = list(true + rng.normal(0, noise, seeds))
    return found


@pytest.mark.parametrize("off_line", [0.0, 0.004])
def test_planted_slopes_and_predictions_are_covered(off_line: float) -> None:
    rng = np.random.default_rng(5)
    trials, slopes, predictions = 600, 0, 0
    for _ in range(trials):
        trend = Trend.of(effects(rng, -0.05, 0.01, off_line=off_line))
        assert trend is not None
        slopes += not trend.change(0.05).beside(0.01)
        measured = -0.05 + 0.01 * np.log10(BEYOND / SIZES[0])
        measured += rng.normal(0, off_line) + rng.normal(0, 0.004, 3).mean()
        predictions += not trend.at(BEYOND, 0.05).beside(measured)
    assert 0.92 <= slopes / trials <= 0.99
    assert 0.92 <= predictions / trials <= 0.99


def test_without_noise_to_speak_of_the_line_is_found() -> None:
    trend = Trend.of(effects(np.random.default_rng(1), -0.05, 0.01, noise=1e-7))
    assert trend is not None
    assert trend.slope == pytest.approx(0.01, rel=1e-3)
    assert trend.at(BEYOND, 0.05).mean == pytest.approx(trend.line(BEYOND))
    assert trend.line(SIZES[0]) == pytest.approx(-0.05, rel=1e-3)


def test_rungs_that_scatter_more_than_their_seeds_widen_the_interval() -> None:
    line = {compute: [-0.051, -0.05, -0.049] for compute in SIZES}
    straight = Trend.of(line)
    crooked = Trend.of(line | {SIZES[1]: [-0.031, -0.03, -0.029]})
    assert straight is not None
    assert crooked is not None
    assert straight.df == 10
    assert crooked.df == 2, "seeds say nothing of a line that does not hold"
    assert crooked.variance > straight.variance


@pytest.mark.parametrize(
    "level, slope, said",
    [
        (-0.05, 0.0, "holds"),
        (-0.05, -0.01, "holds"),
        (-0.08, 0.025, "shrinks"),
        (0.001, 0.0, "vanishes"),
        (-0.05, 0.0225, "vanishes"),
    ],
)
def test_the_answer_is_that_of_the_planted_effect(level: float, slope: float, said: Answer) -> None:
    found = effects(np.random.default_rng(3), level, slope, noise=0.0004)
    trend = Trend.of(found)
    assert trend is not None
    predicted = trend.at(BEYOND, 0.05)
    assert answer(trend, predicted, 0.05, 0.005, check_of(found, 0.05)) == said


def test_noise_is_no_answer() -> None:
    found = effects(np.random.default_rng(4), -0.01, 0.0, noise=0.05)
    trend = Trend.of(found)
    assert trend is not None
    assert answer(trend, trend.at(BEYOND, 0.05), 0.05, 0.005, check_of(found, 0.05)) == "unknown"


def test_a_largest_rung_off_the_line_of_the_others_leaves_the_answer_unknown() -> None:
    found = effects(np.random.default_rng(6), -0.05, 0.0, noise=0.0004)
    found[SIZES[-1]] = [value + 0.03 for value in found[SIZES[-1]]]
    check, trend = check_of(found, 0.05), Trend.of(found)
    assert check is not None
    assert trend is not None
    assert not check.passed
    assert answer(trend, trend.at(BEYOND, 0.05), 0.05, 0.005, check) == "unknown"


def test_two_rungs_or_one_seed_have_no_line() -> None:
    found = effects(np.random.default_rng(7), -0.05, 0.0)
    assert Trend.of(dict(list(found.items())[:2])) is None
    assert Trend.of({compute: values[:1] for compute, values in found.items()}) is None
