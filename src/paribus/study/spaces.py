"""Spaces to tune in: dotted key -> a range {low, high} (log or step at will), or {choices: [...]}."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paribus.config import describe
from paribus.study.fields import hint, is_number, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = ("low", "high", "log", "step", "choices")
MOST_STEPS = 1_000_000  # of a range; Optuna counts them in decimals of 28 digits
LARGEST_WHOLE = 2**53  # up to which Optuna's storages keep a whole number exactly


def is_whole(key: str) -> bool:
    """Whether a key takes whole numbers."""
    kind = _kinds().get(key)
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return int in options


@functools.cache
def _kinds() -> dict[str, object]:
    """Key -> its type."""
    return {path: kind for path, kind, _ in describe()}


def inside(value: object, spread: dict[str, Any]) -> bool:
    """Whether a range or its choices hold a value.

    Args:
        value: of a key.
        spread: its range or choices.
    """
    if "choices" in spread:
        return value in spread["choices"]
    return isinstance(value, (int, float)) and spread["low"] <= value <= spread["high"]


def ends_of(spread: dict[str, Any]) -> list[object]:
    """The choices of a key, or both ends of its range."""
    return list(spread.get("choices") or [spread["low"], spread["high"]])


def spread_problems(key: str, spread: object) -> list[str]:
    """What is wrong with a range, or with choices.

    Args:
        key: dotted, of params.yaml.
        spread: as the file has it.
    """
    wanted = "expected {low, high} with low < high (log or step at will), or {choices: [...]}"
    if not isinstance(spread, dict):
        return [f"{key}: {shown(spread)}; {wanted}"]
    unknown = [name for name in spread if name not in RANGE]
    if unknown:
        return [f"{key}.{name}: unknown key; {hint(name, RANGE)}" for name in unknown]
    if "choices" in spread:
        return _choice_problems(key, spread)
    if "low" in spread and "high" in spread:
        return _range_problems(key, spread)
    return [f"{key}: {shown(spread)}; {wanted}"]


def _choice_problems(key: str, spread: Mapping[str, object]) -> list[str]:
    choices = spread["choices"]
    if len(spread) > 1:
        others = ", ".join(name for name in spread if name != "choices")
        return [f"{key}: choices stand alone; leave out {others}"]
    if not isinstance(choices, list) or len(choices) < 2:
        return [f"{key}.choices: {shown(choices)}; expected a list of at least two values"]
    problems = []
    for place, choice in enumerate(choices):
        if choice is not None and not isinstance(choice, str | bool | int | float):
            return [f"{key}.choices: {shown(choice)} is not a single value"]
        if _is_among(choice, choices[:place]):
            problems.append(f"{key}.choices: {shown(choice)} is there twice")
    return problems


def _is_among(value: object, others: Sequence[object]) -> bool:
    """1 and 1.0 are the same choice, 1 and true are not."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in others
    )


def _range_problems(key: str, spread: dict[str, Any]) -> list[str]:
    problems = _kind_problems(key, spread)
    if problems:
        return problems
    low, high, log = spread["low"], spread["high"], spread.get("log", False)
    if low >= high:
        problems.append(f"{key}: low {low} and high {high}; expected low < high")
    if log and low <= 0:
        problems.append(f"{key}: log: true needs low above 0, as {low} has no logarithm")
    if log and "step" in spread:
        problems.append(f"{key}: log and step do not go together; leave out one of them")
    if "step" in spread and not problems:
        problems += _step_problems(key, spread["step"], high - low)
    return problems


def _kind_problems(key: str, spread: dict[str, Any]) -> list[str]:
    """Values of a range that are not of the key's kind."""
    kind = "a whole number" if is_whole(key) else "a number"
    problems = []
    for end in ("low", "high"):
        if not _fits(key, spread[end]):
            problems.append(f"{key}.{end}: {shown(spread[end])} is not allowed; expected {kind}")
    log = spread.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"{key}.log: {shown(log)} is not allowed; expected true or false")
    step = spread.get("step", 1)
    if not _fits(key, step) or step <= 0:
        problems.append(f"{key}.step: {shown(step)} is not allowed; expected {kind} above 0")
    return problems


def _fits(key: str, value: object) -> bool:
    """Whether a number is of a key's kind."""
    if not is_number(value):
        return False
    return not is_whole(key) or (isinstance(value, int) and _is_exact(value))


def _step_problems(key: str, step: float, width: float) -> list[str]:
    if step > width:
        return [f"{key}.step: {step} is more than high - low, so that low alone is left"]
    if width / step > MOST_STEPS:
        return [f"{key}.step: {step} makes more than {MOST_STEPS:,} values of the range"]
    return []


def _is_exact(value: int) -> bool:
    return abs(value) <= LARGEST_WHOLE


def distribution(key: str, spread: dict[str, Any]) -> BaseDistribution:
    """A range, or choices, of the space as Optuna has it; the key's type says whether values are whole.

    Args:
        key: dotted.
        spread: its range or choices, as the study's file has them.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if "choices" in spread:
        return CategoricalDistribution(spread["choices"])
    low, high, log = spread["low"], spread["high"], spread.get("log", False)
    if is_whole(key):
        return IntDistribution(low, high, log=log, step=spread.get("step", 1))
    return FloatDistribution(float(low), float(high), log=log, step=spread.get("step"))
