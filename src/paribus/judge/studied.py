"""The runs of an ablation of this project as a table: one row a point of a run's curve, with its compute so far.

It is for questions that a study's own metric does not ask: `paribus judge study:NAME --arm arm --baseline baseline --pair-by
seed --step tokens --curve val_bpb --metric tokens_to:1.2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from paribus.errors import UserError
from paribus.study.budget import training_flops
from paribus.study.experiment import Experiment
from paribus.study.reading import read_experiment
from paribus.study.results import Result, collect

OF_RUN = ("arm", "seed", "machine", "code")


class Studied:
    """Points of the curves of finished runs. `value` is the study's own metric, the same in all rows of a run."""

    unit = "row"

    def __init__(self, experiment: Experiment, results: Sequence[Result]) -> None:
        self.name = f"study:{experiment.name}"
        counted = [result for result in results if not result.altered and not result.superseded]
        self._rows = [row for result in counted for row in _points(experiment, result)]
        if not self._rows:
            raise UserError(f"{self.name}: no finished run; `paribus ablate run {experiment.name}`")
        names: dict[str, None] = {}
        for row in self._rows:
            names |= dict.fromkeys(row)
        self.header = tuple(names)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        """Every point: (number from 1, its values of these columns)."""
        for number, row in enumerate(self._rows, 1):
            yield number, [row.get(column) for column in columns]


def study_table(name: str) -> Studied:
    """The finished runs of an ablation.

    Args:
        name: of its file, experiments/NAME.yaml.

    Raises:
        UserError: where there is no such ablation, or nothing is done.
    """
    experiment = read_experiment(name)
    return Studied(experiment, collect(experiment))


def _points(experiment: Experiment, result: Result) -> list[dict[str, Any]]:
    """The rows of a run; one without a curve has one row, of its end."""
    of_run = {name: getattr(result, name) for name in OF_RUN} | {"value": result.value}
    config = experiment.config(result.arm)
    rows = []
    for point in result.curve or [{}]:
        steps, tokens = point.get("step"), point.get("tokens")
        row = of_run | dict(point)
        if steps and tokens:
            row["flops"] = training_flops(config, steps, tokens / steps)
        rows.append(row)
    return rows
