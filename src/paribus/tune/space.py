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

Every problem of a file is found when it is read, all at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.config import (
    Config,
    dotted,
    flatten,
    inert_problems,
    load_config,
    merge,
    named_file,
    parse_config,
    read_yaml,
)
from paribus.errors import UserError
from paribus.graph import stage_definition
from paribus.plan.memory import parse_bytes
from paribus.study.fields import is_number
from paribus.study.identity import is_declared
from paribus.study.spaces import ends_of, spread_problems

STUDIES = Path("experiments/tune")
KEYS = ("trials", "budget", "memory", "overrides", "space", "retest", "warm_start")
REQUIRED = ("trials", "budget", "memory", "space")
BUDGETS = ("tokens", "flops", "seconds")
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
RETEST = {"top": 3, "seeds": 3}
MOST_TRIALS, MOST_RETESTS = 100_000, 1_000  # beyond them a number is a slip of the keyboard
LONGEST_SECONDS = 30 * 24 * 3600.0  # of one trial
LEAST_MEMORY = 2**20  # bytes; less is a number without its unit
OWN = {
    "pretrain.steps": "the budget says how many",
    "pretrain.tokens_per_parameter": "the budget says how many",
    "pretrain.eval_every": "trials are evaluated after each eighth of their budget",
    "seed": "re-tests take fresh ones",
}
# Declared by the stage, and of no effect on a trial: it estimates no CORE.
NOT_READ = ("pretrain.core_every", "pretrain.core_max_per_task")
# Not declared by the stage, as they change no result; a trial reads them all the same.
ALSO_READ = ("train.activation_checkpointing", "train.save_seconds")


@dataclass(frozen=True)
class Study:
    """A study, read from its file and checked."""

    name: str
    trials: int
    budget: str  # tokens, flops or seconds
    amount: float
    memory: int
    overrides: dict[str, object]
    space: dict[str, dict[str, object]]
    top: int
    seeds: int
    warm_start: list[str]

    def config(self, values: dict[str, Any] | None = None) -> Config:
        """params.yaml with the study's overrides and a trial's values."""
        return load_config(overrides=self.overrides | (values or {}))


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Rules:
    """The reference for checking a file: the values of params.yaml, and the keys that pretraining reads by dvc.yaml."""

    params: dict[str, object]
    declared: Sequence[str]

    def refusals(self, overrides: Mapping[str, object]) -> list[str]:
        """The problems that params.yaml's checks find in values."""
        try:
            parse_config(merge(self.params, overrides))
        except UserError as error:
            return list(error.problems)
        return []

    def unread(self, key: str) -> list[str]:
        """Why a key is of no use in a study; nothing where a trial reads it."""
        if read_by_trials(key, self.declared):
            return []
        return [
            f"{key}: no trial reads it: a trial is pretraining on the data there is, in one process"
        ]


def read_study(name: str) -> Study:
    """The study NAME. Raises UserError with every problem at once."""
    path = named_file(STUDIES, name, "study")
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"{path}: the name {name[:100]!r} is not allowed; expected letters, digits, _ . and -, at most 100"
        )
    return parse_study(name, read_yaml(path))


def parse_study(name: str, raw: Mapping[str, object]) -> Study:
    """A study's file as a Study.

    Args:
        name: of the study.
        raw: the values in its file.

    Raises:
        UserError: with every problem at once, each with the file's name.
    """
    problems = [f"{key}: unknown key; {_hint(str(key), KEYS)}" for key in raw if key not in KEYS]
    problems += [f"{key}: missing" for key in REQUIRED if key not in raw]
    rules = _Rules(read_yaml("params.yaml"), stage_definition("pretrain").params)
    overrides = _overrides(raw.get("overrides"), rules, problems)
    kind, amount = _budget(raw.get("budget"), problems) if "budget" in raw else ("tokens", 1.0)
    retest = _retest(raw.get("retest"), problems)
    study = Study(
        name,
        _whole("trials", raw["trials"], MOST_TRIALS, problems) if "trials" in raw else 1,
        kind,
        amount,
        _memory(raw["memory"], problems) if "memory" in raw else 0,
        overrides,
        _space(raw["space"], overrides, rules, problems) if "space" in raw else {},
        retest["top"],
        retest["seeds"],
        _warm_start(name, raw.get("warm_start"), problems),
    )
    if not problems:
        problems += _budget_problems(study) + _inert_problems(study)
    if problems:
        raise UserError(f"{STUDIES / name}.yaml: {problem}" for problem in problems)
    return study


def memory_budget(text: str, name: str) -> int:
    """Bytes of a memory budget.

    Args:
        text: as 24GiB.
        name: of the option or key, for errors.

    Raises:
        UserError: that names the option, also for a number without its unit.
    """
    size = parse_bytes(text, name)
    if size < LEAST_MEMORY:
        number = text.strip()
        meant = f"; did you mean {number}GiB?" if number.isdigit() else ""
        raise UserError(f"{name}: {number!r} is {size:,} bytes, and no model fits that{meant}")
    return size


# ---------------------------------------------------------------- the plain keys


def _whole(key: str, value: Any, most: int, problems: list[str]) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 1 <= value <= most:
        problems.append(
            f"{key}: {_short(value)} is not allowed; expected a whole number from 1 to {most:,}"
        )
        return 1
    return int(value)


def _budget(value: object, problems: list[str]) -> tuple[str, float]:
    """(tokens, flops or seconds; how many) of each trial."""
    wanted = f"expected one of {', '.join(BUDGETS)} and a number above 0, as {{tokens: 200000}}"
    if not isinstance(value, dict) or len(value) != 1:
        problems.append(f"budget: {_short(value)} is not allowed; {wanted}")
        return "tokens", 1.0
    [(kind, amount)] = value.items()
    if kind not in BUDGETS or not is_number(amount) or amount <= 0:
        problems.append(f"budget: {_short(value)} is not allowed; {wanted}")
        return "tokens", 1.0
    if kind == "seconds" and amount > LONGEST_SECONDS:
        problems.append(
            f"budget: seconds: {amount:g} is more than {LONGEST_SECONDS / 86400:.0f} days for each trial"
        )
    return kind, float(amount)


def _memory(value: object, problems: list[str]) -> int:
    try:
        return memory_budget(value if isinstance(value, str) else _short(value), "memory")
    except UserError as error:
        problems += error.problems
        return LEAST_MEMORY


def _retest(value: object, problems: list[str]) -> dict[str, int]:
    """How many of the best are trained again, on how many fresh seeds."""
    if value is None:
        return RETEST
    if not isinstance(value, dict) or set(value) != set(RETEST):
        problems.append(f"retest: {_short(value)} is not allowed; expected {{top: 3, seeds: 3}}")
        return RETEST
    return {key: _whole(f"retest.{key}", value[key], MOST_RETESTS, problems) for key in RETEST}


def _warm_start(own: str, value: object, problems: list[str]) -> list[str]:
    """Names of earlier studies."""
    if value is None:
        return []
    if not isinstance(value, list):
        problems.append(f"warm_start: {_short(value)} is not allowed; expected a list of studies")
        return []
    names: list[str] = []
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            problems.append(f"warm_start: {_short(name)} is not the name of a study")
        elif name == own:
            problems.append(f"warm_start: {name} is this study itself")
        elif name in names:
            problems.append(f"warm_start: {name} is named twice")
        else:
            names.append(name)
    return names


def _overrides(value: object, rules: _Rules, problems: list[str]) -> dict[str, object]:
    """Dotted values that every trial has; those that would have no effect are problems."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not _all_text(value):
        problems.append(
            f"overrides: {_short(value)} is not allowed; expected keys of params.yaml and their values"
        )
        return {}
    overrides = dotted(value)
    refused = rules.refusals(overrides)
    for key in overrides:
        if key in OWN:
            refused.append(f"{key}: not of a study's choosing; {OWN[key]}")
        elif not refused and not key.startswith(
            "tracking."
        ):  # which decides where trials are logged
            refused += rules.unread(key)
    problems += [f"overrides.{problem}" for problem in refused]
    return {} if refused else overrides


def _budget_problems(study: Study) -> list[str]:
    """A budget of less than one step would be overdrawn by the first."""
    batch = study.config().pretrain.batch_tokens
    if study.budget != "tokens" or batch is None or study.amount >= batch:
        return []
    return [f"budget: {study.amount:,.0f} tokens are less than one step of {batch:,} tokens"]


def _inert_problems(study: Study) -> list[str]:
    """Keys of the space that no trial reads, whichever choice of another key it takes."""
    points = []
    for key, spread in study.space.items():
        for end in ends_of(spread):
            points.append(study.config({key: end}))
    return [f"space.{problem}" for problem in inert_problems(study.config(), study.space, *points)]


# ---------------------------------------------------------------- the space


def read_by_trials(key: str, declared: Sequence[str] | None = None) -> bool:
    """Whether a trial, which runs pretraining and scores it, reads a key.

    declared: what the stage declares in dvc.yaml, where the caller has read it.
    """
    names = [*(declared or stage_definition("pretrain").params), *ALSO_READ]
    return key not in NOT_READ and is_declared(key, names)


def least_memory(study: Study, memory: Callable[[Config], int]) -> float:
    """Bytes of the smallest point of the space, found key by key; infinite if the ends of the ranges never go together.

    Args:
        study: the study's file.
        memory: bytes that a configuration takes.
    """
    ends = {key: ends_of(spread) for key, spread in study.space.items()}

    def cost(values: dict[str, Any]) -> float:
        try:
            return memory(study.config(values))
        except UserError:
            return math.inf

    corner = {key: options[0] for key, options in ends.items()}
    for key, options in ends.items():
        corner[key] = min(options, key=lambda value: cost(corner | {key: value}))
    return cost(corner)


def _space(
    value: object, overrides: dict[str, Any], rules: _Rules, problems: list[str]
) -> dict[str, dict[str, object]]:
    """Key -> range or choices; unknown and unread keys, malformed ranges, and values that params.yaml refuses."""
    if not isinstance(value, dict) or not value:
        problems.append(
            f"space: {_short(value)} is empty; name at least one dotted key with {{low, high}} or {{choices}}"
        )
        return {}
    known = list(flatten(parse_config(rules.params)))
    for key, spread in value.items():
        of_key = _key_problems(key, known, overrides)
        of_key = of_key or rules.unread(key) or spread_problems(key, spread)
        if not of_key:
            for end in ends_of(spread):
                of_key += rules.refusals(overrides | {key: end})
        problems += [f"space.{problem}" for problem in dict.fromkeys(of_key)]
    return value


def _key_problems(key: object, known: Sequence[str], overrides: Mapping[str, object]) -> list[str]:
    """Why a key cannot be in a space. known: the keys of params.yaml."""
    if key in OWN:
        return [f"{key}: not of a study's choosing; {OWN[key]}"]
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return [f"{key}: unknown key{meant}"]
    if key in overrides:
        return [f"{key}: is in overrides too; one of them decides"]
    return []


# ---------------------------------------------------------------- small things


def _all_text(values: Mapping[object, object]) -> bool:
    """Whether every key is text, those of sections too."""
    return all(
        isinstance(key, str) and (not isinstance(value, dict) or _all_text(value))
        for key, value in values.items()
    )


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:100], known, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"


def _short(value: object) -> str:
    """A value as an error shows it: not a page of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
