"""The noise floor of a profile: how much each metric varies from seed to seed, and how many seeds an effect needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paribus.errors import UserError
from paribus.files import write_atomic
from paribus.study.experiment import Experiment, Metric
from paribus.study.noise_floor import NoiseRow, farthest_twins, noise_table
from paribus.study.results import Result, value_of
from paribus.summary import write_json

RESULTS = Path("experiments/results")
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the spread: effects to plan for, rounded to one digit


def write_noise(
    experiment: Experiment, metrics: Sequence[Metric], results: Sequence[Result]
) -> Path:
    """Print the table, and write experiments/results/noise-PROFILE.md and .json; returns the page.

    Args:
        experiment: the noise floor's.
        metrics: what is measured.
        results: of its runs.

    Raises:
        UserError: for a metric that fewer than three runs have.
    """
    values = {metric.name: _values_of(metric, results) for metric in metrics}
    problems = [
        f"{name}: {len(numbers)} runs have it"
        for name, numbers in values.items()
        if len(numbers) < 3
    ]
    if problems:
        raise UserError(problems)
    rows = noise_table(values, {name: effects_of(numbers) for name, numbers in values.items()})
    page = markdown(experiment, rows, values)
    path = RESULTS / f"{experiment.name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    write_json(path.with_suffix(".json"), as_json(experiment, rows, values, results))
    print(page)
    return path


def _values_of(metric: Metric, results: Sequence[Result]) -> list[float]:
    values = [value_of(metric, result.experiment, result.metrics) for result in results]
    return [value for value in values if value is not None]


def effects_of(values: Sequence[float]) -> list[float]:
    """Effects around the spread, to one digit."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return sorted({float(f"{multiple * spread:.0e}") for multiple in MULTIPLES}) if spread else []


def markdown(experiment: Experiment, rows: Sequence[NoiseRow], seen: dict[str, list[float]]) -> str:
    """The page as Markdown.

    Args:
        experiment: the noise floor's.
        rows: of the table of seeds.
        seen: metric -> its values.
    """
    lines = [
        f"# Noise floor of the profile {experiment.profile}",
        "",
        f"Same code, parameters and data; {max(map(len, seen.values()))} seeds. In 19 of 20 cases two single runs that differ "
        "in the seed alone lie no farther apart than the last column says: a smaller difference between two single runs "
        "shows nothing.",
        "",
        "| metric | seeds | mean | spread (stdev) | 95 % interval of the spread | two runs differ by up to |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = {row.metric: row for row in reversed(rows)}
    for name, values in seen.items():
        row = first.get(name)
        spread = "0 | – | –"
        if row:
            apart = farthest_twins(row.stdev, row.seeds)
            spread = f"{row.stdev:.4g} | {row.stdev_low:.3g} to {row.stdev_high:.3g} | {apart:.2g}"
        lines.append(f"| {name} | {len(values)} | {sum(values) / len(values):.5g} | {spread} |")
    lines += [
        "",
        "Seeds that each arm needs, so that a true effect is found four times in five at p < 0.05, when the seeds of "
        "both arms are not matched. With matched seeds, as `paribus ablate` runs them, it is fewer: an ablation's report "
        "gives the spread of its differences, and how many seeds it still needs.",
        "",
        "| metric | effect | seeds an arm |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {row.metric} | {row.effect:g} | {row.unpaired or 'beyond 100,000'} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def as_json(
    experiment: Experiment,
    rows: Sequence[NoiseRow],
    seen: dict[str, list[float]],
    results: Sequence[Result],
) -> dict[str, Any]:
    """What noise-PROFILE.json holds.

    Args:
        experiment: the noise floor's.
        rows: of the table of seeds.
        seen: metric -> its values.
        results: of its runs.
    """
    runs = [
        {"seed": result.seed, "experiment": result.experiment, "fingerprints": result.fingerprints}
        for result in results
    ]
    return {
        "profile": experiment.profile,
        "values": seen,
        "rows": [dataclasses.asdict(row) for row in rows],
        "runs": runs,
        "hardware": results[0].provenance.hardware or None if results else None,
    }
