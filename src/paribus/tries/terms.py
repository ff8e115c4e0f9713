"""`experiments/try.yaml`: what `paribus try` compares with, and how it decides; strict, as params.yaml is.

baseline: main              # a branch, tag or commit
stack: true                 # the newest kept change takes the baseline's place
stage: pretrain             # of dvc.yaml; what it depends on runs too
metric: val_bpb             # as in an ablation's file
direction: lower            # needed for keys of files only
smallest_effect: 0.01       # in the metric's unit
seeds: {from: 3, to: 16}    # a look after each of them
budget: 200ktokens          # or 5min, 3e12flops; null: as many tokens as the baseline's parameters say
profile: null               # of experiments/profiles, for both sides
set: {}                     # overrides for both sides
false_keeps: 0.1            # of everything that is kept, the share that may be noise
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paribus.config import read_yaml
from paribus.errors import UserError
from paribus.study import fields
from paribus.study.experiment import FOLDER, Metric
from paribus.study.fields import hint, shown
from paribus.study.noise_floor import MIN_SEEDS
from paribus.study.reading import read_baseline, read_metric, read_stages
from paribus.study.targets import NO_TARGET

FILE = FOLDER / "try.yaml"
MOST_SEEDS = 100  # of one try; a question that needs more is a study

Measure = Literal["tokens", "seconds", "flops"]

DEFAULTS: dict[str, Any] = {
    "baseline": "main",
    "stack": True,
    "stage": "pretrain",
    "metric": "val_bpb",
    "direction": None,
    "smallest_effect": 0.01,
    "seeds": {"from": 3, "to": 16},
    "budget": None,
    "profile": None,
    "set": {},
    "false_keeps": 0.1,
}


@dataclass(frozen=True)
class Budget:
    """How long each run trains.

    Attributes:
        text: as it was written.
        amount: in `measure`.
        measure: tokens, seconds on the baseline's machine, or FLOPs.
    """

    text: str
    amount: float
    measure: Measure


@dataclass(frozen=True)
class Terms:
    """What a try compares with, and how it decides.

    Attributes:
        baseline: a git revision.
        stack: whether the newest kept change takes the baseline's place.
        targets: the stages of dvc.yaml that are asked for.
        stages: these and what they depend on, in order.
        metric: that decides.
        direction: "lower" or "higher" is better.
        smallest_effect: that matters, in the metric's unit.
        seeds: of the first look and of the last.
        budget: of each run; None: as many tokens as the baseline trains on.
        overrides: dotted key -> value, for both sides.
        false_keeps: the share of noise among everything that is kept.
    """

    baseline: str
    stack: bool
    targets: tuple[str, ...]
    stages: tuple[str, ...]
    metric: Metric
    direction: str
    smallest_effect: float
    seeds: tuple[int, int]
    budget: Budget | None
    overrides: dict[str, object]
    false_keeps: float


def read_terms(given: Mapping[str, object] | None = None) -> Terms:
    """The terms in experiments/try.yaml, or the default ones without such a file.

    Args:
        given: values of the command line, which replace the file's; None is no value.

    Raises:
        UserError: with every problem at once.
    """
    written = read_yaml(FILE) if FILE.is_file() else {}
    named = {key: value for key, value in (given or {}).items() if value is not None}
    problems = [
        f"{shown(key)}: unknown key; {hint(key, list(DEFAULTS))}"
        for key in written
        if key not in DEFAULTS
    ]
    terms, found = _parse(DEFAULTS | dict(written) | named)
    problems += found
    if problems:
        raise UserError(f"{FILE}: {problem}" for problem in problems)
    return terms


def _parse(raw: Mapping[str, object]) -> tuple[Terms, list[str]]:
    """The terms and their problems; the terms are usable only without problems."""
    problems: list[str] = []
    both_sides: dict[str, object] = {"set": raw["set"]}
    if raw["profile"] is not None:
        both_sides["profile"] = raw["profile"]
    _, overrides = read_baseline(both_sides, problems)
    targets, stages = read_stages([raw["stage"]], problems)
    metric, direction = read_metric(raw["metric"], raw["direction"], stages, problems)
    if metric.target is not None:
        problems.append(f"metric: {NO_TARGET}: {metric.name}")
    if "seed" in overrides:
        problems.append("set: seed is not for both sides to have: each run has its own")
    terms = Terms(
        baseline=fields.text(raw, "baseline", problems),
        stack=_yes_or_no(raw, "stack", problems),
        targets=tuple(targets),
        stages=tuple(stages),
        metric=metric,
        direction=direction,
        smallest_effect=fields.number(raw, "smallest_effect", 0, None, problems),
        seeds=_seeds(raw["seeds"], problems),
        budget=_budget(raw["budget"], stages, problems),
        overrides=overrides,
        false_keeps=fields.number(raw, "false_keeps", 0, 0.5, problems),
    )
    return terms, problems


def _yes_or_no(raw: Mapping[str, object], key: str, problems: list[str]) -> bool:
    value = raw[key]
    if not isinstance(value, bool):
        problems.append(f"{key}: {shown(value)} is not allowed; expected true or false")
    return value is True


def _seeds(value: object, problems: list[str]) -> tuple[int, int]:
    """(seeds of the first look, of the last); "3..8" as on the command line is allowed too."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,4})\.\.(\d{1,4})", value.strip())
        if match is None:
            problems.append(f"seeds: {shown(value)} is not allowed; expected FROM..TO, as 3..8")
            return MIN_SEEDS, MIN_SEEDS
        value = {"from": int(match[1]), "to": int(match[2])}
    schedule = fields.seeds(value, problems)
    first, last = schedule.first, schedule.last
    if last is None:
        problems.append("seeds: a try has a last seed, as in {from: 3, to: 16}")
        return MIN_SEEDS, MIN_SEEDS
    if first < MIN_SEEDS or last > MOST_SEEDS:
        problems.append(
            f"seeds: {first} to {last} are not allowed; expected from at least {MIN_SEEDS}, as fewer show no spread, "
            f"to at most {MOST_SEEDS}"
        )
    return first, last


# ---------------------------------------------------------------- the budget

_UNITS: dict[str, tuple[Measure, float]] = {
    "s": ("seconds", 1.0),
    "sec": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "tokens": ("tokens", 1.0),
    "ktokens": ("tokens", 1e3),
    "mtokens": ("tokens", 1e6),
    "btokens": ("tokens", 1e9),
    "flops": ("flops", 1.0),
}
_BUDGET = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)")
_EXPECTED = "expected a number and a unit, as 5min, 90s, 200ktokens, 2Mtokens or 3e12flops"


def parse_budget(text: object) -> Budget:
    """A budget as people write it: `5min`, `200ktokens`, `3e12flops`. Raises UserError with what is allowed."""
    written = text.strip() if isinstance(text, str) else ""
    match = _BUDGET.fullmatch(written)
    if match is None:
        raise UserError(f"budget: {shown(text)} is not allowed; {_EXPECTED}")
    unit = match[2].lower()
    if unit not in _UNITS:
        near = hint(unit, list(_UNITS))
        raise UserError(f"budget: {shown(text)}: no unit {shown(match[2])}; {near}")
    measure, size = _UNITS[unit]
    try:
        amount = float(match[1]) * size
    except ValueError:
        raise UserError(f"budget: {shown(text)} is not allowed; {_EXPECTED}") from None
    most = fields.MOST_HELD[measure]
    if not (math.isfinite(amount) and 0 < amount <= most):
        raise UserError(f"budget: {shown(text)} is not allowed; expected above 0, at most {most:g}")
    return Budget(written, amount, measure)


def _budget(value: object, stages: list[str], problems: list[str]) -> Budget | None:
    if value is None:
        return None
    try:
        budget = parse_budget(value)
    except UserError as error:
        problems += error.problems
        return None
    if stages and "pretrain" not in stages:
        problems.append(
            f"budget: {budget.text}: it is kept by the steps of pretrain, which {stages[-1]} does not need; leave it out"
        )
    return budget
