"""A tuning study's file, `experiments/tune/NAME.yaml`: what is varied, the budget, the memory; strict, as params.yaml is.

trials: 30
budget: {tokens: 200000}          # or {flops: 1e12}, or {seconds: 60}
memory: 600MiB                    # peak of a trial: of the GPU, or of its process on a CPU
overrides: {pretrain.eval_tokens: 16384}
space:
  optimizer.matrix_lr: {low: 0.005, high: 0.08, log: true}
  model.depth: {low: 2, high: 6}
  pretrain.device_batch_size: {choices: [4, 8, 16, 32]}
retest: {top: 3, seeds: 3}
warm_start: []                    # names of earlier studies
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.config import Config, flatten, inert_problems, load_config, named_file, read_yaml
from paribus.errors import UserError
from paribus.plan.memory import parse_bytes

STUDIES = Path("experiments/tune")
KEYS = {"trials", "budget", "memory", "overrides", "space", "retest", "warm_start"}
OWN = {
    "pretrain.steps": "the budget says how many",
    "pretrain.tokens_per_parameter": "the budget says how many",
    "pretrain.eval_every": "trials are evaluated after each eighth of their budget",
    "seed": "re-tests take fresh ones",
}
RANGE = {"low", "high", "log", "step", "choices"}


@dataclass(frozen=True)
class Study:
    """A study as its file says it, checked."""

    name: str
    trials: int
    budget: str  # tokens, flops or seconds
    amount: float
    memory: int
    overrides: dict[str, Any]
    space: dict[str, dict[str, Any]]
    top: int
    seeds: int
    warm_start: list[str]

    def config(self, values: dict[str, Any] | None = None) -> Config:
        """params.yaml with the study's overrides and a trial's values."""
        return load_config(overrides=self.overrides | (values or {}))


def read_study(name: str) -> Study:
    """The study NAME. Raises UserError with every problem at once."""
    path = named_file(STUDIES, name, "study")
    raw, where = read_yaml(path), str(path)
    problems = [
        f"{where}: {key}: unknown key; {_hint(key, KEYS)}" for key in raw if key not in KEYS
    ]
    problems += [
        f"{where}: {key}: missing"
        for key in ("trials", "budget", "memory", "space")
        if key not in raw
    ]
    if problems:
        raise UserError(problems)
    budget = raw["budget"] if isinstance(raw["budget"], dict) else {}
    if (
        len(budget) != 1
        or next(iter(budget)) not in ("tokens", "flops", "seconds")
        or not _positive(next(iter(budget.values())))
    ):
        problems.append(
            f"{where}: budget: {raw['budget']!r}; expected one of tokens, flops, seconds and a number above 0"
        )
    retest = raw.get("retest") or {"top": 3, "seeds": 3}
    if not isinstance(raw["trials"], int) or raw["trials"] < 1:
        problems.append(
            f"{where}: trials: {raw['trials']!r} is not allowed; expected a whole number >= 1"
        )
    if set(retest) != {"top", "seeds"} or not all(
        isinstance(n, int) and n >= 1 for n in retest.values()
    ):
        problems.append(
            f"{where}: retest: {retest!r}; expected {{top: 3, seeds: 3}}, whole numbers >= 1"
        )
    overrides = flatten(raw.get("overrides") or {})
    problems += [
        f"{where}: overrides.{key}: not of a study's choosing; {why}"
        for key, why in OWN.items()
        if key in overrides
    ]
    problems += _space_problems(raw["space"], overrides, where)
    if problems:
        raise UserError(problems)
    kind, amount = next(iter(budget.items()))
    study = Study(
        name,
        raw["trials"],
        kind,
        float(amount),
        parse_bytes(str(raw["memory"]), f"{where}: memory"),
        overrides,
        raw["space"],
        retest["top"],
        retest["seeds"],
        list(raw.get("warm_start") or []),
    )
    study.config()
    return study


def inside(value: Any, spread: dict[str, Any]) -> bool:
    """Whether a range or its choices hold a value."""
    if "choices" in spread:
        return value in spread["choices"]
    return isinstance(value, (int, float)) and spread["low"] <= value <= spread["high"]


def least_memory(study: Study, memory: Callable[[Config], int]) -> float:
    """Bytes of the smallest point of the space, found key by key; infinite if the ends of the ranges never go together."""
    ends = {
        key: spread.get("choices") or [spread["low"], spread["high"]]
        for key, spread in study.space.items()
    }

    def cost(values: dict[str, Any]) -> float:
        try:
            return memory(study.config(values))
        except UserError:
            return math.inf

    corner = {key: options[0] for key, options in ends.items()}
    for key, options in ends.items():
        corner[key] = min(options, key=lambda value: cost(corner | {key: value}))  # noqa: B023 - used at once
    return cost(corner)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _hint(name: str, known: set[str] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(sorted(known))}"


def _space_problems(space: Any, overrides: dict[str, Any], where: str) -> list[str]:
    """Unknown keys, malformed ranges, and ends of ranges that params.yaml would refuse."""
    if not isinstance(space, dict) or not space:
        return [
            f"{where}: space: empty; name at least one dotted key with {{low, high}} or {{choices}}"
        ]
    known, problems = flatten(load_config()), []
    for key, spread in space.items():
        if key in OWN:
            problems.append(f"{where}: space.{key}: not of a study's choosing; {OWN[key]}")
        elif key not in known:
            problems.append(
                f"{where}: space.{key}: unknown key; {_hint(key, list(known))}"
                if len(known) < 30 or difflib.get_close_matches(key, list(known), n=1)
                else f"{where}: space.{key}: unknown key"
            )
        elif not isinstance(spread, dict) or not _well_formed(spread):
            problems.append(
                f"{where}: space.{key}: {spread!r}; expected {{low, high}} with low < high (log, step at will), "
                "or {choices: [...]}"
            )
        else:
            ends = spread.get("choices") or [spread["low"], spread["high"]]
            for end in ends:
                problems += _refusals(overrides | {key: end}, f"{where}: space.")
    return problems or _inert_keys(space, overrides, where)


def _inert_keys(space: dict[str, Any], overrides: dict[str, Any], where: str) -> list[str]:
    """Keys of the space that no trial reads, whichever choice of another key it takes."""
    points: list[Config] = [load_config(overrides=overrides)]
    for key, spread in space.items():
        for end in spread.get("choices") or [spread["low"], spread["high"]]:
            points.append(load_config(overrides=overrides | {key: end}))
    problems = inert_problems(points[0], space, *points[1:])
    return [f"{where}: space.{problem}" for problem in problems]


def _well_formed(spread: dict[str, Any]) -> bool:
    if set(spread) - RANGE:
        return False
    if "choices" in spread:
        return (
            set(spread) == {"choices"}
            and isinstance(spread["choices"], list)
            and len(spread["choices"]) > 1
        )
    ends: list[Any] = [spread.get("low"), spread.get("high")]
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    return numbers and ends[0] < ends[1] and (not spread.get("log") or ends[0] > 0)


def _refusals(overrides: dict[str, Any], prefix: str) -> list[str]:
    try:
        load_config(overrides=overrides)
    except UserError as error:
        return [prefix + problem for problem in error.problems]
    return []
