"""A study's space in Optuna's terms: distributions, drawing a point, and what may change while a study grows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import Trial

from paribus.errors import UserError
from paribus.study.spaces import distribution
from paribus.tune.space import Study

MOST_POINTS = 10_000  # of a space that is listed to find what was not tried


def suggest(trial: Trial, space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A value for every key of the space.

    Args:
        trial: that requests them.
        space: key -> range or choices.
    """
    values: dict[str, Any] = {}
    for key, spread in space.items():
        shape = distribution(key, spread)
        if isinstance(shape, CategoricalDistribution):
            values[key] = trial.suggest_categorical(key, shape.choices)
        elif isinstance(shape, IntDistribution):
            values[key] = trial.suggest_int(
                key, shape.low, shape.high, step=shape.step, log=shape.log
            )
        elif isinstance(shape, FloatDistribution):
            values[key] = trial.suggest_float(
                key, shape.low, shape.high, step=shape.step, log=shape.log
            )
    return values


def all_points(space: dict[str, dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Every point of a space; None where there are more than MOST_POINTS."""
    values: list[Sequence[Any]] = []
    for key, spread in space.items():
        shape = distribution(key, spread)
        if isinstance(shape, CategoricalDistribution):
            values.append(shape.choices)
        elif isinstance(shape, IntDistribution):
            values.append(range(shape.low, shape.high + 1, shape.step))
        else:
            return None
    if math.prod(len(options) for options in values) > MOST_POINTS:
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def check_space(study: Study, optuna_study: optuna.Study) -> None:
    """Refuse a space that cannot be searched together with the trials there are.

    Optuna keeps the choices and the kind of a key as they were; the ends of a range may move.

    Args:
        study: the study's file.
        optuna_study: where the trials are.

    Raises:
        UserError: with the keys that changed.
    """
    problems = []
    for key, spread in study.space.items():
        now = distribution(key, spread)
        for trial in optuna_study.get_trials(deepcopy=False):
            before = trial.distributions.get(key)
            if before is None:
                continue
            try:
                check_distribution_compatibility(before, now)
            except ValueError:
                problems.append(
                    f"study {study.name}: space.{key}: was {_words(before)} when the study began, and is {_words(now)} "
                    "now, which Optuna does not search together; give the file another name, and "
                    f"warm_start: [{study.name}] to begin with the best so far"
                )
                break
    if problems:
        raise UserError(problems)


def _words(shape: BaseDistribution) -> str:
    if isinstance(shape, CategoricalDistribution):
        return f"choices {list(shape.choices)}"
    kind = "whole numbers" if isinstance(shape, IntDistribution) else "numbers"
    log = ", log" if getattr(shape, "log", False) else ""
    return f"{kind} from {shape.low} to {shape.high}{log}"  # type: ignore[attr-defined]
