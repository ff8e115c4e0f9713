"""From the results of an ablation to its verdicts: matched differences, verdicts, costs, curves, items.

It reads no files other than results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paribus.config import Config
from paribus.curriculum import TRAINING_STAGES
from paribus.study.answers import answers_of
from paribus.study.budget import training_flops
from paribus.study.difference_curve import Curve, difference_curve
from paribus.study.differences import matched
from paribus.study.divergence import Survivors, survivors
from paribus.study.experiment import Experiment, changed_keys
from paribus.study.items import ItemEffect, item_effect
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.statistics import Effect, effects
from paribus.study.unchanged import changed_nothing

Points = list[tuple[float, float]]
GRID = 20  # points of a curve over seconds or bytes, which no two arms share
COSTS: dict[str, Callable[[Result], float | None]] = {
    "parameters": lambda result: result.number("pretrain", "parameters"),
    "tokens": lambda result: result.number("pretrain", "train_tokens"),
    "text_bytes": lambda result: _text_bytes(result, result.number("pretrain", "train_tokens")),
    "steps": lambda result: result.number("pretrain", "steps"),
    "tokens_per_second": lambda result: result.number("pretrain", "tokens_per_second"),
    "peak_memory_bytes": lambda result: max(_of_stages(result, "peak_memory_bytes"), default=None),
    "seconds": lambda result: sum(_of_stages(result, "seconds")) or None,
}


def _text_bytes(result: Result, tokens: float | None) -> float | None:
    """Bytes of text that so many of a run's tokens hold."""
    of_token = result.number("tokenizer", "bytes_per_token")
    return tokens * of_token if tokens and of_token else None


def _of_stages(result: Result, key: str) -> list[float]:
    """A number of every training stage that reports it."""
    numbers = [result.number(stage, key) for stage in TRAINING_STAGES]
    return [number for number in numbers if number]


@dataclass(frozen=True)
class ArmVerdict:
    """What is known of one arm. effect: None where no matched pair of runs is done."""

    name: str
    changed: dict[str, tuple[Any, Any]]  # key -> (baseline's value, the arm's)
    as_one: str | None
    seeds: list[int]
    baseline: list[float]
    values: list[float]
    effect: Effect | None
    items: ItemEffect | None
    over_training: Curve | None  # over tokens, or over bytes of text where these are held equal
    over_seconds: Curve | None
    at_equal_time: Effect | None
    cost: dict[str, float | None]
    survivors: Survivors
    changed_nothing: bool


def verdicts(
    experiment: Experiment, outcomes: Outcomes, effects_of: Mapping[str, Effect]
) -> list[ArmVerdict]:
    """What is known of each arm, in the order of the file.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        effects_of: arm -> its effect, as `judge` has it.
    """
    results, base = outcomes.results, experiment.values()
    verdicts = []
    for arm, definition in experiment.arms.items():
        pairs, own = matched(results, arm), experiment.values(arm)
        keys = sorted(changed_keys(experiment, arm))
        verdicts.append(
            ArmVerdict(
                name=arm,
                changed={key: (base.get(key), own.get(key)) for key in keys},
                as_one=definition.as_one,
                seeds=[base_run.seed for base_run, _ in pairs],
                baseline=[base_run.value or 0.0 for base_run, _ in pairs],
                values=[arm_run.value or 0.0 for _, arm_run in pairs],
                effect=effects_of.get(arm),
                items=_items(experiment, pairs),
                over_training=_curve(
                    experiment, pairs, "bytes" if experiment.equal == "bytes" else "tokens"
                ),
                over_seconds=_curve(experiment, pairs, "seconds"),
                at_equal_time=_at_equal_time(experiment, pairs),
                cost=costs(experiment, results, arm),
                survivors=survivors(results, outcomes.diverged, arm),
                changed_nothing=changed_nothing(experiment, arm, pairs),
            )
        )
    return verdicts


def costs(experiment: Experiment, results: Sequence[Result], arm: str) -> dict[str, float | None]:
    """Means over an arm's runs; what no run reports is None.

    Args:
        experiment: the study.
        results: of all runs that count.
        arm: its name.
    """
    own = [result for result in results if result.arm == arm]
    config = experiment.config(arm)
    means: dict[str, float | None] = {}
    for name in (*COSTS, "flops"):
        means[name] = _mean([cost_of(name, result, config) for result in own])
    return means


def cost_of(name: str, result: Result, config: Config) -> float | None:
    """What a run cost; None where it does not say.

    Args:
        name: of COSTS, or flops: as "equal FLOPs" counts them.
        result: of the run.
        config: of its arm.
    """
    return _flops(config, result) if name == "flops" else COSTS[name](result)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _flops(config: Config, result: Result) -> float | None:
    """FLOPs of a run's pretraining, counted as "equal FLOPs" counts them."""
    steps, tokens = result.number("pretrain", "steps"), result.number("pretrain", "train_tokens")
    if not steps or not tokens:
        return None
    return training_flops(config, steps, tokens / steps)


# ---------------------------------------------------------------- over training


def points(result: Result, axis: str) -> Points:
    """(tokens, bytes or seconds; bits per byte) of every look during pretraining, in order.

    Args:
        result: of the run.
        axis: "tokens", "bytes" of text, or "seconds".
    """
    looks = []
    for row in result.curve:
        value = row.get("val_bpb")
        if value is None or not math.isfinite(value):
            continue
        place = row["seconds"] if axis == "seconds" else row["tokens"]
        if axis == "bytes":
            place = _text_bytes(result, place)
        looks.append((float(place or 0.0), float(value)))
    return looks


def _at(curve: Points, places: Sequence[float]) -> NDArray[np.float64]:
    """The values of a curve at other places than its own, on the lines between its points."""
    values: NDArray[np.float64] = np.interp(
        np.asarray(places), [x for x, _ in curve], [y for _, y in curve]
    )
    return values


def _curve(
    experiment: Experiment, pairs: Sequence[tuple[Result, Result]], axis: str
) -> Curve | None:
    """The difference of bits per byte over training, at the same tokens, bytes or seconds of both arms.

    None for arms that share their pretraining.
    """
    of_base = [points(base, axis) for base, _ in pairs]
    of_arm = [points(own, axis) for _, own in pairs]
    curves = [*of_base, *of_arm]
    if len(pairs) < 2 or any(len(curve) < 2 for curve in curves):
        return None
    grid = _grid(curves, axis)
    if len(grid) < 2:
        return None
    base = np.array([_at(curve, grid) for curve in of_base])
    own = np.array([_at(curve, grid) for curve in of_arm])
    if np.array_equal(base, own):
        return None
    return difference_curve(grid, base, own, experiment.alpha)


def _grid(curves: Sequence[Points], axis: str) -> list[float]:
    """Places that all curves reach: the first one's tokens, or evenly spaced bytes or seconds."""
    first = max(curve[0][0] for curve in curves)
    last = min(curve[-1][0] for curve in curves)
    if last <= first:
        return []
    if axis != "tokens":
        return list(np.linspace(first, last, GRID))
    return [place for place, _ in curves[0] if first <= place <= last]


def _at_equal_time(experiment: Experiment, pairs: Sequence[tuple[Result, Result]]) -> Effect | None:
    """The difference of bits per byte when the slower of both has its last look, seed by seed."""
    differences = []
    for base, own in ((points(a, "seconds"), points(b, "seconds")) for a, b in pairs):
        if len(base) < 2 or len(own) < 2:
            return None
        at = min(base[-1][0], own[-1][0])
        differences.append(float(_at(own, [at])[0] - _at(base, [at])[0]))
    if not any(differences):
        return None
    return effects(
        {"time": differences},
        direction="lower",
        smallest_effect=experiment.smallest_effect,
        alpha=experiment.alpha,
    )["time"]


# ---------------------------------------------------------------- by item


def _items(experiment: Experiment, pairs: Sequence[tuple[Result, Result]]) -> ItemEffect | None:
    """The metric paired by item where it is a mean over items: what of the noise is of seeds, and what of items."""
    answers = answers_of(experiment.metric, pairs) if pairs else None
    if answers is None:
        return None
    return item_effect(
        answers.baseline,
        answers.arm,
        answers.tasks,
        alpha=experiment.alpha,
        equal_clusters=answers.equal_clusters,
    )
