"""A batch that grows: rows of each step, what counts in tokens, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.checkout import ROOT

from paribus.config import Batches, load_config
from paribus.errors import UserError
from paribus.recipe import Recipe


def recipe_of(**pretrain: Any) -> Recipe:
    given = {"first_batch_tokens": 1_024, "batch_tokens": 4_096, "steps": 40} | pretrain
    return Recipe.of(
        load_config(
            ROOT / "params.yaml", {f"pretrain.{name}": value for name, value in given.items()}
        )
    )


@pytest.mark.parametrize(
    ("doubling", "rows"),
    [(False, [2, 3, 4, 5, 6, 7, 8, 8]), (True, [2, 2, 2, 4, 4, 4, 8, 8])],
)
def test_a_batch_grows_and_stays(doubling: bool, rows: list[int]) -> None:
    batches = Batches(8, 8, 2, 6, doubling)
    assert [batches.of(step) for step in range(8)] == rows


def test_rows_count_on_from_step_to_step() -> None:
    batches = Batches(50, 37, 3, 30)
    before = [batches.before(step) for step in range(51)]
    assert [after - first for first, after in itertools.pairwise(before)] == [
        batches.of(step) for step in range(50)
    ]
    assert batches.total == before[-1]


def test_the_schedule_of_a_growing_batch_ends_with_its_last_step() -> None:
    batches = Batches(50, 37, 3, 30)
    places = [batches.even(step) for step in range(50)]
    assert places[-1] == 49
    assert places == sorted(places)
    assert -1 < places[0] < 0


def test_the_tokens_of_a_stage_are_those_of_its_steps() -> None:
    recipe = recipe_of()
    batches, seq_len = recipe.batches("pretrain"), recipe.architecture.seq_len
    assert recipe.tokens("pretrain") == seq_len * sum(batches.of(step) for step in range(40))
    assert recipe.batch_tokens("pretrain") == round(recipe.tokens("pretrain") / 40)
    assert recipe.rows("pretrain") == 16


def test_a_horizon_in_tokens_is_kept_by_more_steps() -> None:
    horizon = {"steps": None, "tokens_per_parameter": 0.2}
    even, growing = recipe_of(first_batch_tokens=None, **horizon), recipe_of(**horizon)
    assert growing.steps("pretrain") > even.steps("pretrain")
    assert growing.tokens("pretrain") == pytest.approx(even.tokens("pretrain"), abs=2 * 4_096)


def test_all_that_is_wrong_with_a_growth_is_told() -> None:
    with pytest.raises(UserError) as caught:
        recipe_of(first_batch_tokens=5_000)
    said = "\n".join(caught.value.problems)
    assert "5000 is not a multiple of model.seq_len (256)" in said
    assert "5000 is not below pretrain.batch_tokens (4096)" in said


def test_a_batch_that_follows_from_the_horizon_does_not_grow() -> None:
    with pytest.raises(UserError, match=r"needs a pretrain\.batch_tokens to grow to"):
        recipe_of(batch_tokens=None)
