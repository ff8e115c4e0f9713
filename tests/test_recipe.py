"""A recipe has every derived value, the same wherever it is asked for, and without torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from paribus.config import Config, resolve_model
from paribus.plan.memory import max_device_batch, stage_memory
from paribus.recipe import Recipe


def without_a_batch(config: Config, **changes: Any) -> Config:
    pretrain = dataclasses.replace(config.pretrain, batch_tokens=None, **changes)
    return dataclasses.replace(config, pretrain=pretrain)


def test_what_is_null_in_the_configuration_is_a_number_in_the_recipe(tiny_config: Config) -> None:
    recipe = Recipe.of(without_a_batch(tiny_config, steps=None))
    assert recipe.steps("pretrain") == recipe.pretrain.steps
    assert recipe.steps("pretrain") > 0
    assert recipe.batch_tokens("pretrain") % recipe.architecture.seq_len == 0
    rows = recipe.rows("pretrain")
    assert rows * recipe.architecture.seq_len == recipe.batch_tokens("pretrain")
    assert recipe.tokens("pretrain") == recipe.steps("pretrain") * recipe.batch_tokens("pretrain")


def test_a_horizon_in_tokens_per_parameter_follows_the_trained_tokenizer(
    tiny_config: Config,
) -> None:
    pretrain = dataclasses.replace(tiny_config.pretrain, steps=None, tokens_per_parameter=20.0)
    config = dataclasses.replace(tiny_config, pretrain=pretrain)
    asked, trained = Recipe.of(config), Recipe.of(config, vocab_size=300)
    assert asked.vocab_size == config.tokenizer.vocab_size > trained.vocab_size == 300
    assert trained.parameters["total"] < asked.parameters["total"]
    assert trained.steps("pretrain") < asked.steps("pretrain")


def test_the_shape_of_a_checkpoint_takes_the_place_of_the_configurations(
    tiny_config: Config,
) -> None:
    longer = dataclasses.replace(resolve_model(tiny_config.model), seq_len=128)
    recipe = Recipe.of(tiny_config, architecture=longer)
    assert recipe.architecture == longer
    assert tiny_config.sft.batch_tokens
    assert recipe.rows("sft") == tiny_config.sft.batch_tokens // 128


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_memory_is_planned_of_the_batch_that_null_stands_for(
    tiny_config: Config, device: str
) -> None:
    null = Recipe.of(without_a_batch(tiny_config, steps=None))
    same = dataclasses.replace(tiny_config, pretrain=null.pretrain)
    for rows in (1, null.rows("pretrain"), 4096):
        found = [
            stage_memory(recipe, "pretrain", device=device, dtype="float32", rows=rows).total
            for recipe in (null, Recipe.of(same))
        ]
        assert found[0] == found[1]
    most = max_device_batch(null, "pretrain", 2**50, device=device, dtype="float32")
    assert most == null.rows("pretrain"), "no larger device batch is of use"


def test_a_recipe_needs_no_torch() -> None:
    code = "import sys, paribus.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
