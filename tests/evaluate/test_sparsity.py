"""Reward sparsity: counts, predictions for other group sizes, and advice that follows from them."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest

from paribus.evaluate.sparsity import predict, sparsity, sparsity_report


def test_groups_are_told_apart() -> None:
    fractions = sparsity([0, 0, 0, 8, 3], 8)
    assert fractions == {
        "zero_reward_groups": 0.6,
        "all_reward_groups": 0.2,
        "zero_gradient_groups": 0.8,
    }


def test_prediction_is_exact_over_all_subsets() -> None:
    counts, samples, size = [0, 1, 5, 6], 6, 3
    subsets = [
        sum(subset)
        for count in counts
        for subset in combinations([1] * count + [0] * (samples - count), size)
    ]
    predicted = predict(counts, samples, size)
    assert predicted["zero_reward_groups"] == pytest.approx(subsets.count(0) / len(subsets))
    assert predicted["all_reward_groups"] == pytest.approx(subsets.count(size) / len(subsets))
    assert not predicted["extrapolated"]
    assert predicted["zero_gradient_groups_stderr"] > 0


def test_prediction_at_the_drawn_size_is_the_count() -> None:
    counts = [0, 3, 8, 0, 5]
    predicted = predict(counts, 8, 8)
    assert {name: predicted[name] for name in sparsity(counts, 8)} == pytest.approx(
        sparsity(counts, 8)
    )


def draw(rng: random.Random, rates: list[float], samples: int) -> list[int]:
    return [sum(rng.random() < rate for _ in range(samples)) for rate in rates]


@pytest.mark.parametrize("size", [4, 32])
def test_predictions_come_true(size: int) -> None:
    """From 8 samples of each question: groups of 4 without a model, groups of 32 by extrapolation."""
    rng = random.Random(0)
    rates = [rng.betavariate(0.5, 1.0) for _ in range(4000)]
    predicted = predict(draw(rng, rates, 8), 8, size)
    actual = sparsity(draw(rng, rates, size), size)
    for name, value in actual.items():
        assert predicted[name] == pytest.approx(value, abs=0.03)
    assert predicted["extrapolated"] == (size > 8)


@pytest.mark.parametrize(
    ("counts", "zero", "full"),
    [
        ([0, 0, 0], 1.0, 0.0),
        ([4, 4], 0.0, 1.0),
        ([0, 4, 0, 4], 0.5, 0.5),
        ([2, 2, 2], 0.5**64, 0.5**64),
    ],
)
def test_extrapolation_at_its_ends(counts: list[int], zero: float, full: float) -> None:
    predicted = predict(counts, 4, 64)
    assert (predicted["zero_reward_groups"], predicted["all_reward_groups"]) == pytest.approx(
        (zero, full)
    )


def report(counts: list[int], group_size: int = 8) -> dict[str, Any]:
    return sparsity_report(
        counts, [1] * len(counts), 16, samples_per_second=100.0, group_size=group_size
    )


def test_report() -> None:
    counts = [0, 1, 4, 16]
    result = sparsity_report(counts, [3, 2, 2, 1], 16, samples_per_second=100.0, group_size=8)
    assert result["pass_at_1"] == pytest.approx(21 / 64)
    assert result["pass_at_16"] == 0.75
    row = result["by_group_size"]["8"]
    assert row["gradient_groups_per_hour"] == pytest.approx(
        (1 - row["zero_gradient_groups"]) * 360_000 / 8
    )
    assert list(result["by_steps"]) == ["1", "2", "3"]
    assert result["by_steps"]["1"]["all_reward_groups"] == 1.0
    assert result["by_steps"]["2"]["groups"] == 2
    with pytest.raises(ValueError, match="at least one question"):
        sparsity_report([], [], 16, samples_per_second=1.0, group_size=8)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([0] * 20, "nothing to reinforce"),
        ([0] * 15 + [1] * 5, "out of reach"),
        ([16] * 15 + [8] * 5, "Mostly solved"),
        ([0] * 6 + [16] * 6 + [8] * 8, "both ends"),
        ([8] * 20, "Go ahead"),
    ],
)
def test_recommendation(counts: list[int], words: str) -> None:
    assert words in report(counts)["recommendation"]


def test_a_larger_group_is_recommended_only_where_it_pays() -> None:
    assert "rl.samples_per_question: " in report([0] * 4 + [1] * 16, group_size=4)["recommendation"]
    assert "rl.samples_per_question" not in report([8] * 20)["recommendation"]


def test_answers_that_were_cut_off_are_what_to_change_first() -> None:
    found = sparsity_report(
        [0] * 20,
        [1] * 20,
        16,
        samples_per_second=1.0,
        group_size=8,
        cut_off=0.93,
        max_new_tokens=10,
    )
    assert found["cut_off"] == 0.93
    assert "93% of the answers were cut off at rl.max_new_tokens (10)" in found["recommendation"]
    assert "Train longer" not in found["recommendation"]
