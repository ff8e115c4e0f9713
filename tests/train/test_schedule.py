"""The learning rate over a run."""

from __future__ import annotations

import math

import pytest

from paribus.train.schedule import Shape, height, lr_factor

SHAPES: tuple[Shape, ...] = ("linear", "cosine", "sqrt", "square")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_falls_from_one_to_the_final_rate(shape: Shape) -> None:
    rates = [lr_factor(step, 20, 0.1, 0.5, 0.2, shape) for step in range(20)]
    assert rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    falling = rates[9:]
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == len(falling)


@pytest.mark.parametrize(
    ("shape", "half"),
    [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("square", 0.25)],
)
def test_half_way_down(shape: Shape, half: float) -> None:
    assert height(0.5, shape) == pytest.approx(half)


def test_a_cosine_is_flat_at_both_ends() -> None:
    assert height(0.99, "cosine") > 0.999
    assert height(0.01, "cosine") < 0.001
