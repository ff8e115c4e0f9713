"""The keys `ladder` and `horizons` of an ablation's file: sizes at which the arms are compared, and lengths of the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeGuard

from paribus.errors import UserError
from paribus.execute.run import LONGEST_NAME
from paribus.recipe import Recipe
from paribus.study import fields
from paribus.study.arm_checks import arm_problems
from paribus.study.budget import training_flops
from paribus.study.experiment import Experiment
from paribus.study.fields import shown
from paribus.study.groups import Horizons, Ladder, Rung, number_in_name
from paribus.study.identity import settings
from paribus.study.saved import SAME_HORIZON
from paribus.study.trend import FEWEST_RUNGS

PREDICT = "predict"
MOST_RUNGS = 12
MOST_HORIZONS = 8
SHORTEST, LONGEST = 0.1, 10.0  # of the baseline's steps
# `horizons: auto`: the two next to 1 first; those further out where the arm's result lies beyond them.
GRID = (0.33, 0.41, 0.51, 0.64, 0.8, 1.25, 1.56, 1.95, 2.44, 3.05)


# ---------------------------------------------------------------- horizons


def read_horizons(value: object, problems: list[str]) -> Horizons | None:
    """The lengths at which the baseline is trained too.

    Args:
        value: of the key `horizons`: auto, or shares of the baseline's steps, as [0.8, 1.0, 1.25].
        problems: the list that receives the messages.
    """
    if value == "auto":
        return Horizons(GRID, auto=True)
    lengths = value if isinstance(value, list) else []
    are_lengths = all(_is_size(one) and SHORTEST <= one <= LONGEST for one in lengths)
    if not (1 <= len(lengths) <= MOST_HORIZONS and are_lengths):
        problems.append(
            f"horizons: {shown(value)} is not allowed; expected auto, or at most {MOST_HORIZONS} lengths from "
            f"{SHORTEST:g} to {LONGEST:g} in units of the baseline's, as [0.8, 1.0, 1.25]"
        )
        return None
    scales = sorted({float(one) for one in lengths} | {1.0})
    close = [f"{a:g} and {b:g}" for a, b in pairwise(scales) if b <= a * SAME_HORIZON]
    if close or len(scales) < 2:
        what = f"{', '.join(close)} are one length" if close else "the baseline has 1 already"
        problems.append(
            f"horizons: {shown(value)}: {what}; a slope takes lengths more than {SAME_HORIZON - 1:.0%} apart"
        )
        return None
    return Horizons(tuple(scale for scale in scales if scale != 1.0))


def horizon_problems(experiment: Experiment) -> list[str]:
    """Why a study cannot train its baseline at other lengths.

    Args:
        experiment: the study, read but for its horizons.
    """
    if "pretrain" not in experiment.stages:
        return ["horizons: they are lengths of pretraining, and pretrain is not among the stages"]
    if experiment.metric.target is not None:
        return [
            f"horizons: {experiment.metric.name} is an amount of compute already; leave them out"
        ]
    if experiment.equal == "seconds":
        return [
            "horizons: with equal: seconds the lengths follow from the clock; say equal: tokens, flops or none: the page "
            "shows the seconds saved too"
        ]
    if experiment.equal == "bytes":
        return [
            "horizons: what is saved is counted in tokens, and with equal: bytes those of the arms differ; say equal: flops "
            "or none"
        ]
    return []


# ---------------------------------------------------------------- the ladder


def read_ladder(value: object, experiment: Experiment, problems: list[str]) -> Ladder | None:
    """The sizes of a ladder with the length of each, and the size for which it predicts.

    Args:
        value: of the key `ladder`: {dotted.key: [sizes], predict: size}.
        experiment: the study, read but for its ladder.
        problems: the list that receives the messages.
    """
    expected = f"expected {{model.depth: [2, 3, 4, 6]}}, {FEWEST_RUNGS} sizes or more, and predict: 9, if one is asked for"
    before = len(problems)
    flat = fields.overrides(value, "ladder", problems)
    if len(problems) > before:
        return None
    beyond = flat.pop(PREDICT, None)
    if len(flat) != 1:
        problems.append(f"ladder: {shown(value)}; {expected}")
        return None
    [(key, sizes)] = flat.items()
    if not isinstance(sizes, list) or not all(_is_size(size) for size in sizes):
        problems.append(f"ladder.{key}: {shown(sizes)}; {expected}")
        return None
    distinct = sorted(set(sizes))
    problem = _size_problem(key, distinct, beyond)
    if problem:
        problems.append(problem)
        return None
    target: Any = _next_size(distinct) if beyond is None else beyond
    rungs = _rungs(experiment, key, [*distinct, target], problems)
    if rungs is None:
        return None
    trained, not_trained = rungs[:-1], rungs[-1]
    rising = sorted(trained, key=lambda rung: rung.flops)
    if any(b.flops <= a.flops * SAME_HORIZON for a, b in pairwise(rising)):
        problems.append(
            f"ladder.{key}: {', '.join(map(str, distinct))} do not differ in compute, so that there is no trend over it"
        )
        return None
    tokens = settings(experiment.base).pretrain.tokens_per_parameter
    return Ladder(key, tuple(rising), not_trained, tokens)


def _size_problem(key: str, distinct: Sequence[float], beyond: object) -> str | None:
    """Why a ladder cannot have these sizes, or cannot predict the one beyond them."""
    if not FEWEST_RUNGS <= len(distinct) <= MOST_RUNGS:
        return (
            f"ladder.{key}: {len(distinct)} different sizes; a line takes three and one is kept out as a check, so that there "
            f"are {FEWEST_RUNGS} to {MOST_RUNGS}"
        )
    if beyond is not None and (not _is_size(beyond) or beyond in distinct):
        trained = ", ".join(map(str, distinct))
        return f"ladder.{PREDICT}: {shown(beyond)}; expected a size that is not trained, other than {trained}"
    return None


def _next_size(sizes: Sequence[float]) -> float:
    """One step beyond the largest, at the mean ratio of the steps; a whole number where the sizes are."""
    ratio = (sizes[-1] / sizes[0]) ** (1 / (len(sizes) - 1)) if sizes[0] > 0 else 1.5
    following = sizes[-1] * ratio
    if all(isinstance(size, int) for size in sizes):
        return max(round(following), int(sizes[-1]) + 1)
    return round(following, 4)


def _rungs(
    experiment: Experiment, key: str, sizes: Sequence[float], problems: list[str]
) -> list[Rung] | None:
    """A rung for each size; None where params.yaml refuses one."""
    rungs = []
    for size in sizes:
        try:
            rungs.append(rung_of(experiment, key, size))
        except UserError as error:
            problems += [f"ladder.{key}: {size}: {problem}" for problem in error.problems]
    return rungs if len(rungs) == len(sizes) else None


def rung_of(experiment: Experiment, key: str, size: float) -> Rung:
    """A size with its compute-optimal length: tokens_per_parameter for each parameter of the baseline (20: arXiv:2203.15556).

    Args:
        experiment: the study.
        key: that the ladder turns.
        size: its value.

    Raises:
        UserError: where params.yaml refuses the size.
    """
    config = settings(experiment.base | {key: size, "pretrain.steps": None})
    recipe = Recipe.of(config)
    steps, batch_tokens = recipe.steps("pretrain"), recipe.batch_tokens("pretrain")
    overrides = {key: size, "pretrain.steps": steps}
    if config.pretrain.batch_tokens is None:
        overrides["pretrain.batch_tokens"] = batch_tokens
    name = f"{key.rpartition('.')[2].replace('_', '-')}-{number_in_name(size)}"
    flops = training_flops(config, steps, batch_tokens)
    total = recipe.parameters["total"]
    return Rung(name, size, overrides, total, steps * batch_tokens, flops)


def ladder_problems(experiment: Experiment) -> list[str]:
    """Why a study cannot climb its ladder.

    Args:
        experiment: the study with its ladder.
    """
    ladder = experiment.ladder
    if ladder is None:
        return []
    problems = []
    if "pretrain" not in experiment.stages:
        problems.append("ladder: its rungs are pretrained, and pretrain is not among the stages")
    if experiment.metric.target is not None:
        problems.append(
            f"ladder: {experiment.metric.name} is another amount at every size; take the metric that it is about"
        )
    if experiment.equal == "seconds" or experiment.amount is not None:
        problems.append(
            "ladder: every rung has its own length, which equal holds for its arms; say equal: tokens, bytes, flops or none"
        )
    if experiment.equal == "bytes" and ladder.key.startswith(("corpus.", "tokenizer.")):
        problems.append(
            f"ladder: {ladder.key} changes the bytes of a token on every rung, and equal: bytes counts them once an arm; "
            "say equal: tokens or flops"
        )
    if experiment.horizons is not None:
        problems.append("horizons: every rung of a ladder has its own; leave out one of both")
    problems += _set_by_arms(experiment, ladder.key)
    longest = max(experiment.groups, key=len)
    if len(longest) > LONGEST_NAME:
        problems.append(
            f"ladder: {longest} names runs of an arm on a rung, and has more than {LONGEST_NAME} letters; shorten the arm's name"
        )
    if problems:
        return problems
    for rung in ladder.rungs:
        for problem in arm_problems(experiment.at(rung)):
            problems.append(f"ladder.{ladder.key}: {rung.value:g}: {problem}")
    return problems


def _set_by_arms(experiment: Experiment, key: str) -> list[str]:
    """Arms that set what the ladder sets."""
    problems = []
    for arm, definition in experiment.arms.items():
        taken = sorted({key, "pretrain.steps"} & definition.overrides.keys())
        if taken:
            problems.append(f"arms.{arm}: sets {', '.join(taken)}, which the ladder sets")
    return problems


def with_designs(
    experiment: Experiment, ladder: object, horizons: object, problems: list[str]
) -> Experiment:
    """The study with its ladder and horizons.

    Args:
        experiment: read but for these.
        ladder: the value of the key; None: it is absent.
        horizons: likewise.
        problems: the list that receives the messages.
    """
    if horizons is not None:
        experiment = replace(experiment, horizons=read_horizons(horizons, problems))
        if ladder is None:
            problems += horizon_problems(experiment)
    if ladder is not None:
        climbed = read_ladder(ladder, experiment, problems)
        experiment = replace(experiment, ladder=climbed)
        problems += ladder_problems(experiment)
    return experiment


def _is_size(value: object) -> TypeGuard[int | float]:
    return fields.is_number(value) and value > 0
