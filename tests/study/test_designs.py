"""Ladders, horizons and targets in an ablation's file: what they expand to, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.ablation_file import parse
from support.tiny import TINY

from paribus.errors import UserError
from paribus.study.settled import Study, derived_steps

pytestmark = pytest.mark.usefixtures("in_checkout")

LADDER: dict[str, Any] = {"model.depth": [2, 3, 4, 5]}


def test_a_rung_is_trained_for_the_tokens_that_its_parameters_ask_for() -> None:
    ladder = parse(ladder=LADDER).ladder
    assert ladder is not None
    for rung in ladder.rungs:
        step = TINY["pretrain.batch_tokens"]
        assert 0 <= rung.tokens - 20 * rung.parameters < step
        assert rung.overrides["pretrain.steps"] * step == rung.tokens
    assert "20 tokens for each parameter" in ladder.rule()


@pytest.mark.parametrize("given, beyond", [({}, 7), ({"predict": 9}, 9)])
def test_the_size_not_trained_is_the_files_or_a_step_further(
    given: dict[str, Any], beyond: int
) -> None:
    ladder = parse(ladder=LADDER | given).ladder
    assert ladder is not None
    assert ladder.beyond.value == beyond
    assert ladder.beyond.flops > ladder.rungs[-1].flops


def test_every_arm_runs_on_every_rung_with_its_tokens() -> None:
    experiment = parse(ladder=LADDER, arms={"wide": {"pretrain.batch_tokens": 512}})
    study = Study(experiment, {"threads": None, "steps": derived_steps(experiment, {})})
    runs = study.wanted([])
    assert len(runs) == 4 * 2 * 2
    tokens: dict[int, list[int]] = {}
    for run in runs:
        config = experiment.config_of(run)
        steps, batch = config.pretrain.steps, config.pretrain.batch_tokens
        assert steps is not None
        assert batch is not None
        tokens.setdefault(config.model.depth, []).append(steps * batch)
    assert sorted(tokens) == [2, 3, 4, 5]
    assert all(max(found) <= 1.02 * min(found) for found in tokens.values())


def test_the_baseline_is_trained_at_every_horizon() -> None:
    experiment = parse(horizons=[0.5, 1.0, 1.5])
    study = Study(experiment, {"threads": None, "steps": derived_steps(experiment, {})})
    steps = {run.arm: experiment.config_of(run).pretrain.steps for run in study.wanted([])}
    assert steps == {"baseline": 6, "adamw": 6, "baseline-0p5x": 3, "baseline-1p5x": 9}


def test_automatic_horizons_begin_with_the_two_next_to_the_baselines() -> None:
    experiment = parse(horizons="auto")
    study = Study(experiment, {"threads": None, "steps": derived_steps(experiment, {})})
    arms = {run.arm for run in study.wanted([])}
    assert arms == {"baseline", "adamw", "baseline-0p8x", "baseline-1p25x"}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ladder": 3}, "expected {dotted.key: value}"),
        ({"ladder": {"model.depth": [2, 3, 4]}}, "there are 4 to 12"),
        ({"ladder": {"model.depth": [2, 3, 3, 2, 4]}}, "3 different sizes"),
        ({"ladder": {"model.dept": [2, 3, 4, 5]}}, "did you mean model.depth?"),
        ({"ladder": {"model.depth": [2, 3, 4, "x"]}}, "expected {model.depth: [2, 3, 4, 6]}"),
        ({"ladder": {"model.depth": [2, 3, 4, 5], "model.width": [3]}}, "expected {model.depth"),
        ({"ladder": LADDER | {"predict": 4}}, "a size that is not trained"),
        ({"ladder": {"optimizer.matrix_lr": [0.1, 0.2, 0.3, 0.4]}}, "do not differ in compute"),
        ({"ladder": LADDER, "arms": {"a": {"model.depth": 3}}}, "which the ladder sets"),
        ({"ladder": LADDER, "equal": "seconds"}, "say equal: tokens, bytes, flops or none"),
        ({"ladder": LADDER, "equal": {"tokens": 2000}}, "say equal: tokens, bytes, flops or none"),
        ({"ladder": LADDER, "horizons": [0.8, 1.25]}, "leave out one of both"),
        ({"ladder": LADDER, "stages": ["tokens"], "metric": "val_bpb"}, "ladder: its rungs are"),
        ({"horizons": "some"}, "expected auto"),
        ({"horizons": [1.0]}, "the baseline has 1 already"),
        ({"horizons": [0.98, 1.25]}, "0.98 and 1 are one length"),
        ({"horizons": [0.8, 40]}, "from 0.1 to 10"),
        ({"horizons": [0.8, 1.2], "equal": "seconds"}, "lengths follow from the clock"),
        ({"horizons": [0.8, 1.2], "metric": "steps_to:3"}, "an amount of compute already"),
        ({"metric": "steps_to"}, "expected a target"),
        ({"metric": "tokens_to:low"}, "as tokens_to:3.28"),
        ({"metric": "seconds_to:-1"}, "expected a target"),
        ({"metric": "steps_to:3", "direction": "higher"}, "lower is better"),
        ({"secondary": ["steps_to:3"]}, "a target is a metric of ablations alone"),
        ({"ladder": LADDER, "contrasts": "all"}, "not with ladder"),
        (
            {"metric": "steps_to:3", "baseline": {"set": TINY | {"pretrain.eval_every": 0}}},
            "set pretrain.eval_every",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems
