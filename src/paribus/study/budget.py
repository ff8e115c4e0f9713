"""What "all else equal" holds equal: tokens, bytes of text, FLOPs or seconds of training, by each arm's steps of pretraining.

Tokens and FLOPs are counted (`step_flops` in model/accounting.py) over every training stage that runs. Bytes of a token
and seconds of a step are measured, once an arm, before the first run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paribus.config import Config, is_foreign
from paribus.curriculum import SUPERVISED_STAGES, TRAINING_STAGES
from paribus.places import main_checkout
from paribus.recipe import Recipe

if TYPE_CHECKING:
    from paribus.study.experiment import Experiment

# Measured before the first run, for pretraining alone; where study.json keeps it.
MEASURED = {"bytes": "token_bytes", "seconds": "step_seconds"}
TOLERANCE = 0.02  # of the budget: by how much rounding to whole steps may miss it


def stage_tokens(config: Config, stage: str) -> int:
    """Tokens that a supervised stage trains on; for `rl` sampled answers, as their lengths are unknown beforehand.

    Args:
        config: of an arm.
        stage: its name.
    """
    if stage == "rl":
        return config.rl.steps * config.rl.questions_per_step * config.rl.samples_per_question
    return Recipe.of(config).tokens(stage)


def pretrain_steps(config: Config) -> tuple[int, int]:
    """(steps, tokens of each), derived values filled in."""
    recipe = Recipe.of(config)
    return recipe.steps("pretrain"), recipe.batch_tokens("pretrain")


def training_flops(config: Config, steps: float, batch_tokens: float) -> float:
    """FLOPs of `steps` optimiser steps: forward and backward of their tokens, and Muon's products of each step.

    config: of an arm. batch_tokens: of a step.
    """
    return steps * Recipe.of(config).step_flops(round(batch_tokens))


def stage_cost(experiment: Experiment, config: Config, stage: str) -> float:
    """The amount that is held equal, for one supervised stage: its tokens or its FLOPs.

    experiment: says what is held equal. config: of an arm.
    """
    recipe = Recipe.of(config)
    if experiment.equal != "flops":
        return recipe.tokens(stage)
    return recipe.steps(stage) * recipe.step_flops(recipe.batch_tokens(stage), stage)


def cost(experiment: Experiment, config: Config) -> float:
    """The amount that is held equal, for one arm: tokens or FLOPs of all supervised stages that run.

    Args:
        experiment: says what is held equal.
        config: of the arm.
    """
    stages = [stage for stage in SUPERVISED_STAGES if stage in experiment.stages]
    return sum(stage_cost(experiment, config, stage) for stage in stages)


def steps_for(
    experiment: Experiment, arm: str, measured: Mapping[str, float] | None = None
) -> int | None:
    """Pretraining steps that give an arm its equal budget; None where there is nothing to derive.

    Args:
        experiment: the study.
        arm: its name.
        measured: arm -> bytes of a token or seconds of a step, where these are held equal.

    experiment: says what is held equal. arm: its name.
    """
    if experiment.equal == "none" or "pretrain" not in experiment.stages:
        return None
    config = experiment.config(arm)
    steps, batch = pretrain_steps(config)
    if experiment.equal in MEASURED:
        if measured is None:
            return None
        of_step, of_base = measured[arm], measured["baseline"]
        base, base_batch = pretrain_steps(experiment.config())
        if experiment.equal == "bytes":
            of_step, of_base = batch * of_step, base_batch * of_base
        return max(round((experiment.amount or base * of_base) / of_step), 1)
    step = training_flops(config, 1, batch) if experiment.equal == "flops" else batch
    others = cost(experiment, config) - steps * step
    return max(round((target(experiment) - others) / step), 1)


def target(experiment: Experiment) -> float:
    """The budget of every arm."""
    return experiment.amount or cost(experiment, experiment.config())


def budget_problems(experiment: Experiment, arm: str) -> list[str]:
    """Why an arm cannot have the budget that is held equal; nothing where it can.

    Args:
        experiment: says what is held equal.
        arm: its name.
    """
    if experiment.equal == "none":
        return []
    base, own = experiment.config(), experiment.config(arm)
    trained = [stage for stage in TRAINING_STAGES if stage in experiment.stages]
    if not trained:
        return [f"equal: {experiment.equal}: none of the stages trains; say equal: none"]
    if experiment.equal in MEASURED:
        if trained != ["pretrain"]:
            return [
                f"equal: {experiment.equal} can be held for pretrain alone, and {', '.join(trained)} train"
            ]
        return _set_by_hand(experiment, arm)
    if "rl" in trained:
        problem = _problem_of_rl(experiment, base, own)
        if problem:
            return [problem]
    if found := _uncounted(experiment, base, own) or _set_by_hand(experiment, arm):
        return found
    steps = steps_for(experiment, arm) if "pretrain" in trained else None
    held = cost(experiment, experiment.config(arm, {"pretrain.steps": steps} if steps else {}))
    if abs(held / target(experiment) - 1) > TOLERANCE:
        return [
            f"equal: {experiment.equal}: cannot be held: {held:,.4g} against {target(experiment):,.4g}, more than "
            f"{TOLERANCE:.0%} apart" + (f" at {steps} steps of pretraining" if steps else "")
        ]
    return []


def text_problems(experiment: Experiment, bytes_of_token: Mapping[str, float]) -> list[str]:
    """Arms whose whole steps miss the bytes of text that are held equal by more than the tolerance.

    Args:
        experiment: the study.
        bytes_of_token: arm -> bytes of a token.
    """
    steps, batch = pretrain_steps(experiment.config())
    wanted = experiment.amount or steps * batch * bytes_of_token["baseline"]
    problems = []
    for arm in experiment.names:
        steps, batch = pretrain_steps(experiment.config(arm))
        steps = steps_for(experiment, arm, bytes_of_token) or steps
        held = steps * batch * bytes_of_token[arm]
        if abs(held / wanted - 1) > TOLERANCE:
            problems.append(
                f"{arm}: equal: bytes: cannot be held: {steps} whole steps read {held:,.4g} bytes against {wanted:,.4g}, more "
                f"than {TOLERANCE:.0%} apart; take more steps, or a smaller pretrain.batch_tokens"
            )
    return problems


def _problem_of_rl(experiment: Experiment, base: Config, own: Config) -> str | None:
    """Why RL's part of a budget cannot be held equal; None where it can. base, own: of the baseline and of the arm."""
    answers, wanted = stage_tokens(own, "rl"), stage_tokens(base, "rl")
    if answers != wanted:
        return (
            f"equal: {experiment.equal}: rl samples {answers:,} answers, the baseline {wanted:,}; "
            "say equal: none, or let rl.steps make up for it"
        )
    same_flops = training_flops(own, 1, 1) == training_flops(base, 1, 1)
    if experiment.equal == "flops" and not same_flops:
        return (
            "equal: flops: those of rl are not known before its answers' lengths are, and those of a step differ; "
            "leave rl out of stages, or say equal: none"
        )
    return None


def _uncounted(experiment: Experiment, base: Config, own: Config) -> list[str]:
    """FLOPs that nobody knows: those of a library's optimiser."""
    kinds = {base.optimizer.kind, own.optimizer.kind}
    foreign = sorted(kind for kind in kinds if is_foreign(kind))
    if experiment.equal != "flops" or not foreign:
        return []
    return [
        f"equal: flops: those of {', '.join(foreign)} are unknown; say equal: tokens, and the report shows the arms at "
        "equal time too"
    ]


def _set_by_hand(experiment: Experiment, arm: str) -> list[str]:
    """The length of pretraining keeps the budget, so an arm cannot set it too."""
    keys = sorted(
        {"pretrain.steps", "pretrain.tokens_per_parameter"} & set(experiment.arms[arm].overrides)
    )
    if keys and "pretrain" in experiment.stages:
        return [
            f"equal: {experiment.equal} is held by the steps of pretraining, which the arm sets ({', '.join(keys)}); "
            "leave them to it, or say equal: none"
        ]
    return []


def measure_token(config: Config) -> float:
    """Bytes of a token: a corpus and a tokenizer are made as the stages make them, and its text is counted.

    Args:
        config: of an arm.
    """
    from paribus.data.compression import bytes_per_token, trained_on
    from paribus.data.corpus import build_corpus

    with tempfile.TemporaryDirectory(prefix="paribus-bytes-") as folder:
        corpus = Path(folder) / "corpus"
        build_corpus(config.corpus, corpus, main_checkout())
        return bytes_per_token(trained_on(corpus, config.tokenizer), corpus)


def measure_step(config: Config, seconds: float = 8.0) -> float:
    """Seconds of a step of pretraining on this machine, as `paribus plan --probe` measures them.

    Args:
        config: of an arm.
        seconds: for which steps are measured.
    """
    from paribus.plan.probe import here, run_probe

    recipe = Recipe.of(config)
    device, dtype = here(recipe)
    return run_probe(recipe, device, dtype, seconds).seconds_per_step
