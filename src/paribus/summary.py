"""From the log of a stage to its metrics and curves: the public face of a run (names and keys are a contract)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.curriculum import HEADLINE, HEADLINES, METRICS, OPTIONAL_COLUMNS, curve_columns
from paribus.errors import UserError
from paribus.files import write_atomic

if TYPE_CHECKING:
    from paribus.train.loop import Position

Row = dict[str, float]  # of a log: step and metrics


def supervised_metrics(position: Position) -> dict[str, Any]:
    """The figures every supervised stage reports.

    position: where training ended. Its figures are of all steps, whichever were logged.
    """
    losses = position.last_losses
    return {
        "train_loss": sum(losses) / len(losses) if losses else math.nan,
        "train_tokens": position.tokens,
        "tokens_per_second": position.tokens / position.train_seconds,
        "seconds": position.seconds,
        "steps": position.step,
        "nonfinite_steps": position.nonfinite,
        "rollbacks": position.rollbacks,
        "peak_memory_bytes": position.peak_memory_bytes,
    }


def rl_metrics(log: list[Row], position: Position) -> dict[str, Any]:
    """The sparsity of the reward over the whole run, and what it bought.

    Args:
        log: rows of the whole run.
        position: where it ended.
    """
    rows = [row for row in log if "rl/mean_reward" in row]
    fifth = max(len(rows) // 5, 1)
    groups = _sum(rows, "rl/groups")
    samples = _sum(rows, "rl/samples_drawn")
    sampled = _sum(rows, "rl/sampled_tokens")
    wasted = _weighted(rows, "rl/wasted_token_fraction", "rl/sampled_tokens")
    idle = sum(row["rl/zero_gradient_groups"] == 1 for row in rows)
    return {
        "steps": position.step,
        "mean_reward_first": _mean_reward(rows[:fifth]),
        "mean_reward_last": _mean_reward(rows[-fifth:]),
        "groups": int(groups),
        "zero_reward_groups": _weighted(rows, "rl/zero_reward_groups", "rl/groups") / groups,
        "all_reward_groups": _weighted(rows, "rl/all_reward_groups", "rl/groups") / groups,
        "zero_gradient_groups": _weighted(rows, "rl/zero_gradient_groups", "rl/groups") / groups,
        "steps_without_gradient": idle / len(rows),
        "samples": int(samples),
        "cut_off": _cut_off(rows),
        "redrawn_samples": int(_sum(rows, "rl/redrawn_samples")),
        "effective_samples_per_second": _sum(rows, "rl/gradient_samples") / position.train_seconds,
        "wasted_token_fraction": wasted / max(sampled, 1),
        **_before_and_after([row for row in log if "watch/pass_at_1" in row]),
        "by_steps": by_steps(rows),
        "seconds": position.seconds,
        "nonfinite_steps": position.nonfinite,
    }


def _sum(rows: list[Row], key: str) -> float:
    return float(sum(row[key] for row in rows))


def _weighted(rows: list[Row], key: str, weight: str) -> float:
    """The sum of a figure, each row's times what it is a share of."""
    return float(sum(row[key] * row[weight] for row in rows))


def _mean_reward(rows: list[Row]) -> float:
    return _sum(rows, "rl/mean_reward") / len(rows)


def _before_and_after(looks: list[Row]) -> dict[str, float | None]:
    """pass@1 and pass@8 of the watched questions at the first and the last look at them."""
    found = {}
    for k in (1, 8):
        for when, look in (("before", looks[0]), ("after", looks[-1])):
            found[f"pass_at_{k}_{when}"] = look.get(f"watch/pass_at_{k}")
    return found


def _cut_off(rows: list[Row]) -> float:
    """Share of all answers drawn that ended at rl.max_new_tokens or with the context, not by themselves."""
    cut_off = sum(row.get("rl/cut_off", 0.0) * row["rl/samples_drawn"] for row in rows)
    return float(cut_off / max(_sum(rows, "rl/samples_drawn"), 1))


def by_steps(rows: list[Row]) -> dict[str, dict[str, float]]:
    """The groups of a whole run by difficulty, the number of solution steps: how many, and the shares that taught nothing."""
    parts: dict[int, list[Row]] = {}
    for row in rows:
        for steps, part in _parts_by_steps(row).items():
            parts.setdefault(steps, []).append(part)
    return {str(steps): _of_difficulty(parts[steps]) for steps in sorted(parts)}


_SHARES = ("accuracy", "zero_reward_groups", "all_reward_groups", "zero_gradient_groups")


def _parts_by_steps(row: Row) -> dict[int, Row]:
    """Solution steps -> the figures of a row's groups that take so many (logged as rl/by_steps.STEPS.FIGURE)."""
    parts: dict[int, Row] = {}
    for key, value in row.items():
        if key.startswith("rl/by_steps."):
            _, steps, figure = key.split(".")
            parts.setdefault(int(steps), {})[figure] = value
    return parts


def _of_difficulty(parts: list[Row]) -> dict[str, float]:
    """The number of groups of equal difficulty, and their shares over the run."""
    groups = _sum(parts, "groups")
    shares = {key: _weighted(parts, key, "groups") / groups for key in _SHARES}
    return {"groups": int(groups), **shares}


def write_curve(path: Path, stage: str, log: list[Row]) -> None:
    """The curve of a training stage, a line a step; what was not measured at a step is left empty.

    path: of the CSV file. log: rows of the whole run.
    """
    columns = dict(curve_columns(stage))
    for column, key in OPTIONAL_COLUMNS.items():
        if any(key in row for row in log):
            columns[column] = key
    write_csv(
        path,
        tuple(columns),
        [[row.get(key, "") for key in columns.values()] for row in log if row["step"] > 0],
    )


def refuse_divergence(stage: str, metrics: Mapping[str, object]) -> None:
    """Raises UserError for a run whose figures are not finite: it diverged, and nothing may be built on it.

    metrics: of a training stage that went through its `steps`.
    """
    spoilt = not_finite(metrics)
    if spoilt:
        raise UserError(
            f"{stage}: diverged by step {metrics['steps']}: {', '.join(spoilt)}; "
            "lower the learning rate (lr_scale, optimizer.*) or the weight decay"
        )


def not_finite(values: object, name: str = "") -> list[str]:
    """`key is value` for each number among nested values that is infinite or not a number.

    name: of the values, before the dotted keys.
    """
    if isinstance(values, float) and not math.isfinite(values):
        return [f"{name or 'the value'} is {values}"]
    parts: list[tuple[Any, Any]] = []
    if isinstance(values, dict):
        parts = list(values.items())
    elif isinstance(values, list | tuple):
        parts = list(enumerate(values))
    found = []
    for key, value in parts:
        found += not_finite(value, f"{name}.{key}" if name else str(key))
    return found


def write_json(path: Path, values: object) -> None:
    """Write a metrics file whole. Raises UserError for numbers that JSON cannot hold.

    Args:
        path: of the file.
        values: by metric.
    """
    spoilt = not_finite(values)
    if spoilt:
        raise UserError(f"{path}: not written: {', '.join(spoilt)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def headline_of(name: str, metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline of a metrics file: short name -> value, None where it could not be measured.

    Args:
        name: of the file, without `.json`. Some have no headline: their result shows in what comes after.
        metrics: all that the file holds.
    """
    headline: dict[str, float | None] = {}
    for figure in HEADLINE:
        if figure.metrics != name:
            continue
        part = metrics if figure.checkpoint is None else metrics[figure.checkpoint]
        value = part[figure.key]
        headline[figure.name] = None if value is None else round(value / figure.unit, 4)
    return headline


def write_metrics(name: str, metrics: Mapping[str, object]) -> None:
    """Write metrics/<name>.json, and before it headline/<name>.json for what has a headline.

    The metrics file comes last: it proves that its stage is done.

    Args:
        name: of the files, without `.json`.
        metrics: by key.

    Raises:
        UserError: for numbers that JSON cannot hold.
    """
    headline = headline_of(name, metrics)
    if headline:
        write_json(HEADLINES / f"{name}.json", headline)
    write_json(METRICS / f"{name}.json", metrics)


def write_csv(path: Path, header: tuple[str, ...], rows: Iterable[Any]) -> None:
    """Write a curve whole.

    Args:
        path: of the file.
        header: names of the columns.
        rows: their values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
