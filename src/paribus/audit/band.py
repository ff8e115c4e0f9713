"""The measured noise band of a run: how far apart its twins lie, which differ from it in the seed alone.

Another machine rounds differently, and training amplifies rounding until the two runs are as far apart as two
seeds would be, and no further. Therefore the band of a rebuilt run is the 95 % prediction interval of the difference of two
runs of the recipe: t (n - 1) times the standard deviation over n seeds, times the root of 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paribus.config import load_config
from paribus.study.finished import FinishedRun, Provenance, in_mlflow
from paribus.tracking.lookup import Runs
from paribus.tune.outcome import interval

FEWEST = 3  # seeds that make a spread
LAST = 20  # the figure is the mean over the last twentieth of the compared steps, as train_loss is
COLUMN = {"rl": "reward"}  # of the curve; of the other stages train_loss
MOST = 50  # runs that are examined


@dataclass(frozen=True)
class Band:
    """The difference of the two runs' figures, and the half-width of the band from `seeds` runs.

    within: this figure and every differing value of the metrics file are within their bands. outside: the values of the
    metrics file that are not, or whose band is not measured.
    """

    column: str
    difference: float
    half_width: float
    seeds: int
    within: bool
    text: str
    outside: tuple[str, ...] = ()


def measured_band(
    record: FinishedRun,
    stage: str,
    ours: Sequence[Mapping[str, str]],
    theirs: Sequence[Mapping[str, str]],
    metrics: Mapping[str, tuple[object, object]] | None = None,
) -> Band | None:
    """The rebuilt run's place in the noise of seeds, at the last steps that both have; None where too few seeds ran.

    Args:
        record: of the run.
        stage: a training stage.
        ours: its recorded curve.
        theirs: the rebuilt curve.
        metrics: key -> (recorded, rebuilt), of the values of metrics/<stage>.json that differ.

    Raises:
        UserError: where MLflow, which has the other seeds, cannot be read.
    """
    column = COLUMN.get(stage, "train_loss")
    steps = _last_steps(ours, theirs)
    if not steps:
        return None
    twins = list(_twins(record, stage).values())
    recorded, rebuilt = figure(ours, steps, column), figure(theirs, steps, column)
    seen = [recorded, *(figure(twin.curve(stage), steps, column) for twin in twins)]
    values = [value for value in seen if value is not None]
    if recorded is None or rebuilt is None or len(values) < FEWEST:
        return None
    difference = rebuilt - recorded
    half = _half_width(values)
    near = abs(difference) <= half
    outside = _outside(twins, stage, metrics or {})
    text = (
        f"At steps {steps[0]} to {steps[-1]} the mean {column} is {difference:+.6g} from the recorded one; two of its "
        f"{len(values)} seeds differ by up to {half:.6g} (95 %), so it is {'within' if near else 'outside'} the noise."
    )
    if outside:
        text += f" Of metrics/{stage}.json {', '.join(outside)} differ by more than two seeds do."
    within = near and not outside
    return Band(column, difference, half, len(values), within, text, outside)


def _outside(
    twins: Sequence[FinishedRun], stage: str, metrics: Mapping[str, tuple[object, object]]
) -> tuple[str, ...]:
    """The metrics that differ by more than two seeds do."""
    of_twins = [twin.measured(stage) for twin in twins]
    return tuple(key for key, pair in metrics.items() if not _within_seeds(key, *pair, of_twins))


def _last_steps(
    ours: Sequence[Mapping[str, str]], theirs: Sequence[Mapping[str, str]]
) -> list[str]:
    """The last twentieth of the steps that both curves have."""
    rebuilt = {row["step"] for row in theirs}
    shared = [row["step"] for row in ours if row["step"] in rebuilt]
    return shared[-math.ceil(len(shared) / LAST) :] if shared else []


def _half_width(values: Sequence[float]) -> float:
    """Half the 95 % prediction interval of the difference of two runs."""
    mean, _, high = interval(list(values))
    return (high - mean) * math.sqrt(2 * len(values))


def _within_seeds(
    key: str, recorded: Any, rebuilt: Any, twins: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a value of the metrics file differs by no more than two seeds do; False where no band can be measured."""
    seen = [recorded, *(twin.get(key) for twin in twins)]
    numbers = [float(value) for value in seen if _is_number(value)]
    if len(numbers) < FEWEST or not _is_number(recorded) or not _is_number(rebuilt):
        return False
    return bool(abs(rebuilt - recorded) <= _half_width(numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(curve: Sequence[Mapping[str, str]], steps: Sequence[str], column: str) -> float | None:
    """The mean of a column over some steps; None where a step is missing.

    Args:
        curve: its rows.
        steps: over which.
        column: of the curve.
    """
    by_step = {row["step"]: row.get(column) for row in curve}
    values = [by_step.get(step) for step in steps]
    known = [float(value) for value in values if value]
    return sum(known) / len(known) if len(known) == len(values) else None


def _twins(record: FinishedRun, stage: str) -> dict[object, FinishedRun]:
    """Seed -> a finished run in MLflow that differs from this one in the seed alone."""
    own = record.provenance(stage)
    assert own is not None, "a certificate is made of a run that has one"
    runs = Runs(load_config().tracking.experiment)
    twins: dict[object, FinishedRun] = {}
    for run in runs.search({"stage": stage}, finished=True, most=MOST):
        twin = in_mlflow(run.id, run, runs)
        written = twin.provenance(stage)
        if written is None or _recipe(written) != _recipe(own):
            continue
        seed = written.params["seed"]
        if seed != own.params["seed"] and seed not in twins:
            twins[seed] = twin
    return twins


def _recipe(written: Provenance) -> tuple[Mapping[str, object], ...]:
    """The params, code and inputs that determine a run, apart from the seed and the machine."""
    params = {key: value for key, value in written.params.items() if key != "seed"}
    return params, written.code, written.deps
