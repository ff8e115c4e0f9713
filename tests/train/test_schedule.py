"""The learning rate over a run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from support.checkout import ROOT

from paribus.config import Config, Shape, changes, load_config
from paribus.errors import UserError
from paribus.train.schedule import common_factor, height, lr_factor, own_factors

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


def test_a_power_falls_from_the_warm_up_to_the_warm_down_and_has_no_jump() -> None:
    rates = [lr_factor(step, 100, 0.1, 0.2, 0.0, power=0.5) for step in range(100)]
    assert rates[9] == 1.0
    assert rates[39] == pytest.approx(0.5)  # four times the steps of the warm-up
    assert rates[79] == pytest.approx(8**-0.5)
    assert rates[-1] == 0.0
    assert rates[9:] == sorted(rates[9:], reverse=True)


# ---------------------------------------------------------------- groups, and the decay


def config_of(**pretrain: Any) -> Config:
    given = {"steps": 20, "warmup_fraction": 0.0, "warmdown_fraction": 0.5} | pretrain
    return load_config(
        ROOT / "params.yaml", {f"pretrain.{name}": value for name, value in given.items()}
    )


def test_a_group_has_the_course_of_its_own_and_the_rest_of_the_common_one() -> None:
    schedule = config_of(group_warmdown_fraction={"embedding": 1.0}, lr_scale=2.0).pretrain
    alone = config_of(warmdown_fraction=1.0, lr_scale=2.0).pretrain
    for step in range(20):
        rates = own_factors(schedule, "rate", step, 20).rates
        assert rates == {"embedding": common_factor(alone, step, 20)}


@pytest.mark.parametrize(
    ("decay_schedule", "first", "last"),
    [
        ("rate", 1.0, 1.0),
        ("constant", 0.5, 0.5),
        ("linear", 0.5, 0.025),
        ("rate_linear", 1.0, 0.05),
    ],
)
def test_the_decay_has_a_course_of_its_own(decay_schedule: str, first: float, last: float) -> None:
    schedule = config_of(lr_scale=0.5).pretrain
    decays = [own_factors(schedule, decay_schedule, step, 20).decay for step in (0, 19)]
    assert decays == pytest.approx([first, last])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"group_power": {"embeddings": 1.0}}, "did you mean embedding?"),
        ({"group_warmup_fraction": {"matrix": 0.6}}, "of the group matrix are over 1"),
        ({"group_warmdown_fraction": {"head": 0.0}, "group_warmdown_shape": {"head": "sqrt"}}, "the group has no warm-down"),
        ({"warmdown_fraction": 1.0, "group_power": {"head": 1.0}}, "no steps between warm-up and warm-down"),
        ({"group_warmdown_shape": {"head": "steep"}}, "one of linear, cosine, sqrt, square"),
    ],
    ids=str,
)  # fmt: skip
def test_a_course_that_no_group_can_take_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**values)
    assert said in "\n".join(caught.value.problems)


def test_a_group_that_the_model_lacks_is_refused() -> None:
    without = {
        "model.value_embeddings": "none",
        "model.x0_scalars": False,
        "model.residual_scalars": False,
        "pretrain.group_power": {"scalar": 1.0},
    }
    with pytest.raises(UserError, match="a bias, gain, gate or factor of the model"):
        load_config(ROOT / "params.yaml", without)


def test_a_group_with_the_common_values_computes_the_same() -> None:
    same = config_of(group_warmdown_fraction={"head": 0.51}, group_power={"matrix": 0.0})
    assert changes(config_of(), same) == []
    other = dataclasses.replace(same.pretrain, group_power={"matrix": 0.5})
    assert changes(config_of(), dataclasses.replace(same, pretrain=other)) == [
        "pretrain.group_power.matrix"
    ]
