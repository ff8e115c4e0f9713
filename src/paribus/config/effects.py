"""Which keys have an effect under a configuration, and which are read by nothing.

A key that is accepted and changes nothing makes an ablation's arm a second run of the baseline, and its verdict
"equivalent" a lie. The conditions stand beside the keys in `schema.py`; here they are put to a configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from paribus.config.courses import Course, course_of, groups_apart
from paribus.config.derived import embedding_std, mlp_hidden, resolve_model
from paribus.config.schema import Config, flatten
from paribus.config.training_schema import Conversations, Pretrain
from paribus.curriculum import SUPERVISED_STAGES, TRAINING_STAGES


def inert(config: Config) -> dict[str, str]:
    """Dotted key -> the condition for an effect, of every key without one under `config`."""
    found: dict[str, str] = {}
    _collect(config, "", config, found)
    return found


def _collect(section: Any, prefix: str, config: Config, found: dict[str, str]) -> None:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        dotted = prefix + field.name
        if dataclasses.is_dataclass(value):
            _collect(value, f"{dotted}.", config, found)
            continue
        condition = field.metadata["acts_when"]
        if condition is not None and not condition.holds(section, config):
            found[dotted] = condition.words.replace("{here}", prefix.rstrip("."))


def inert_problems(config: Config, keys: Iterable[str], *others: Config) -> list[str]:
    """A line for each of `keys` (dotted) that is without an effect under `config` and under all of `others`.

    config: what an arm, or a point of a space, runs with. others: more points of the space, as a key may act at one
    choice of another key and not at the next.
    """
    without = inert(config)
    for other in others:
        still = inert(other)
        without = {key: words for key, words in without.items() if key in still}
    return [f"{key} is read only with {without[key]}" for key in keys if key in without]


def effective(config: Config) -> dict[str, Any]:
    """Dotted key -> value of what decides a result.

    Derived values are filled in, and keys without an effect are left out. Other spellings of one thing are made the same:
    weights of a mixture, a pattern of windows, fractions that round to one number. Two configurations with the same effective
    values compute the same.
    """
    model = resolve_model(config.model)
    values = flatten(config) | flatten(model, "model.")
    for key in (*inert(config), "model.aspect_ratio"):  # which the width stands for
        values.pop(key, None)
        for below in [name for name in values if name.startswith(f"{key}.")]:
            values.pop(below)
    optimizer = config.optimizer
    values.pop("optimizer.lr_reference_width", None)
    values["optimizer.lr_width_exponent"] = (
        model.width / optimizer.lr_reference_width
    ) ** optimizer.lr_width_exponent
    values["model.window_pattern"] = _windows(config)
    if "S" not in values["model.window_pattern"]:
        values.pop("model.window", None)
    values["model.mlp_ratio"] = mlp_hidden(model)
    values["model.embedding_std"] = embedding_std(model)
    if model.depth == 1 and model.value_embeddings == "alternate":
        values["model.value_embeddings"] = "all"
    for stage in TRAINING_STAGES:
        steps = _steps(stage, getattr(config, stage))
        values |= {key: count for key, count in steps.items() if key in values}
    for stage in SUPERVISED_STAGES:
        _courses(stage, getattr(config, stage), values)
        mixture = getattr(config, stage).mixture
        values |= {f"{stage}.mixture.{name}": share for name, share in shares(mixture).items()}
    return values


def _steps(stage: str, schedule: Any) -> dict[str, int]:
    """Fractions of the steps as the numbers of steps that they amount to."""
    if schedule.steps is None:
        return {}
    return {
        f"{stage}.{name}": round(getattr(schedule, name) * schedule.steps)
        for name in ("warmup_fraction", "warmdown_fraction", "short_fraction", "growth_fraction")
        if hasattr(schedule, name)
    }


def _courses(stage: str, schedule: Pretrain | Conversations, values: dict[str, Any]) -> None:
    """Leave in `values`, of what groups of parameters have of their own, what differs from the common course."""
    common = _in_steps(course_of(schedule), schedule.steps)
    for group in groups_apart(schedule):
        for name, value in _in_steps(course_of(schedule, group), schedule.steps).items():
            key = f"{stage}.group_{name}.{group}"
            values.pop(key, None)
            if value != common[name]:
                values[key] = value


def _in_steps(course: Course, steps: int | None) -> dict[str, Any]:
    """The fields of a course, its shares of the steps as numbers of them where `steps` is known."""
    fields = dataclasses.asdict(course)
    if steps is not None:
        for name in ("warmup_fraction", "warmdown_fraction"):
            fields[name] = round(fields[name] * steps)
    return fields


def shares(mixture: dict[str, float]) -> dict[str, float]:
    """Weights as shares of their sum, to 12 digits; a mixture without weights as it is."""
    total = sum(mixture.values())
    if total <= 0:
        return dict(mixture)
    return {name: round(weight / total, 12) for name, weight in mixture.items()}


def _windows(config: Config) -> str:
    """S or L of each block: the pattern repeats, the last block sees everything, and so does a window of seq_len."""
    model = config.model
    if model.window is not None and model.window >= model.seq_len:
        return "L" * model.depth
    repeated = model.window_pattern * (model.depth // len(model.window_pattern) + 1)
    return repeated[: model.depth - 1] + "L"


def changes(before: Config, after: Config) -> list[str]:
    """The keys whose effective values differ; none: the two configurations compute the same.

    Args:
        before: one configuration.
        after: the other.
    """
    old, new = effective(before), effective(after)
    missing = object()
    return [
        key for key in dict.fromkeys([*old, *new]) if old.get(key, missing) != new.get(key, missing)
    ]


def merge_problems(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Mixtures that were written whole and were merged instead, each with the command that replaces.

    `dvc exp run -S 'midtrain.mixture={facts: 0.5, problems_worked: 0.5}'` keeps the other sources at their weights. What
    was written is a whole mixture where the weights that changed add up to 1 by themselves, and all of them do not. One new
    source at weight 1 does not count as one: it is mixed in with the others.

    Args:
        before: dotted values of params.yaml as committed, or of an ablation's baseline.
        after: those a run is asked for.
    """
    problems: list[str] = []
    for stage in SUPERVISED_STAGES:
        old, new = _weights(before, stage), _weights(after, stage)
        changed = {name: weight for name, weight in new.items() if old.get(name) != weight}
        kept = {name: weight for name, weight in new.items() if name not in changed and weight > 0}
        total = sum(new.values())
        one_more = len(changed) == 1 and not changed.keys() & old.keys()
        is_whole = _is_one(sum(changed.values())) and not _is_one(total)
        if one_more or not kept or not is_whole:
            continue
        written = ", ".join(f"{name}: {weight:g}" for name, weight in changed.items())
        names = ", ".join(f"{name} {weight:g}" for name, weight in kept.items())
        problems.append(
            f"{stage}.mixture: {{{written}}} adds up to 1, and so is a mixture by itself, but it was merged with the "
            f"weights there are ({names}), which makes {total:g}. To replace them: "
            f"dvc exp run -S '~{stage}.mixture' -S '+{stage}.mixture={{{written}}}' (in an experiment's file, give the "
            "others 0); to keep them, give weights that do not add up to 1 by themselves"
        )
    return problems


def merge_notes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """The shares that follow where a mixture was changed and its weights no longer add up to 1.

    Args:
        before: dotted key -> value of the commit.
        after: dotted key -> value of params.yaml.
    """
    notes: list[str] = []
    for stage in SUPERVISED_STAGES:
        old, new = _weights(before, stage), _weights(after, stage)
        total = sum(new.values())
        if new == old or total <= 0 or _is_one(total):
            continue
        parts = [f"{name} {share:.3g}" for name, share in shares(new).items() if share > 0]
        notes.append(
            f"{stage}.mixture: the weights add up to {total:g}, so the shares are {', '.join(parts)}; "
            "-S merges a mapping with the one in params.yaml"
        )
    return notes


def _weights(values: Mapping[str, object], stage: str) -> dict[str, float]:
    """Source -> weight in the mixture of a stage; `parse_config` reports values that are not numbers."""
    prefix = f"{stage}.mixture."
    return {
        key.removeprefix(prefix): float(value)
        for key, value in values.items()
        if key.startswith(prefix) and isinstance(value, (int, float))
    }


def _is_one(total: float) -> bool:
    return abs(total - 1) < 0.005
