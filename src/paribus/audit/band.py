"""The measured noise band of a run: how far its twins, which differ from it in the seed alone, lie from each other.

Another machine rounds otherwise, and training blows rounding up until the two runs are as far from each other as two
seeds would be, and no further. So the band of a rebuilt run is the 95 % prediction interval of the difference of two
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
MOST = 50  # runs that are looked into


@dataclass(frozen=True)
class Band:
    """The difference of the two runs' figures, and the half-width of the band from `seeds` runs.

    within: this figure and every differing value of the metrics file are within their bands. outside: the values of the
    metrics file that are not, or whose band nobody measured.
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
    metrics: Mapping[str, tuple[Any, Any]] | None = None,
) -> Band | None:
    """Where the rebuilt run lies against the noise of seeds, at the last step that both have; None where too few seeds ran.

    metrics: key -> (recorded, rebuilt) of the values of metrics/<stage>.json that differ.
    """
    column = COLUMN.get(stage, "train_loss")
    steps = [row["step"] for row in ours if row["step"] in {other["step"] for other in theirs}]
    if not steps:
        return None
    last = steps[-math.ceil(len(steps) / LAST) :]
    twins = _twins(record, stage)
    own = figure(ours, last, column)
    others = [figure(twin.curve(stage), last, column) for twin in twins.values()]
    values = [value for value in [own, *others] if value is not None]
    now = figure(theirs, last, column)
    if len(values) < FEWEST or now is None or own is None:
        return None
    half = _half_width(values)
    outside = []
    for key, (recorded, rebuilt) in (metrics or {}).items():
        if not _within_seeds(
            key, recorded, rebuilt, [twin.measured(stage) for twin in twins.values()]
        ):
            outside.append(key)
    near = abs(now - own) <= half
    text = (
        f"At steps {last[0]} to {last[-1]} the mean {column} is {now - own:+.6g} from the recorded one; two of its "
        f"{len(values)} seeds differ by up to {half:.6g} (95 %), so it is {'within' if near else 'outside'} the noise."
    )
    if outside:
        text += f" Of metrics/{stage}.json {', '.join(outside)} differ by more than two seeds do."
    return Band(column, now - own, half, len(values), near and not outside, text, tuple(outside))


def _half_width(values: Sequence[float]) -> float:
    """The 95 % prediction interval of the difference of two runs, half of it."""
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
    return abs(rebuilt - recorded) <= _half_width(numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(curve: Sequence[Mapping[str, str]], steps: Sequence[str], column: str) -> float | None:
    """The mean of a column over these steps; None where one of them is not there."""
    by_step = {row["step"]: row.get(column) for row in curve}
    values = [by_step.get(step) for step in steps]
    return sum(float(value) for value in values if value) / len(values) if all(values) else None


def _twins(record: FinishedRun, stage: str) -> dict[Any, FinishedRun]:
    """Seed -> a finished run in MLflow that differs from this one in the seed alone."""
    own = record.provenance(stage)
    assert own is not None, "a certificate is made of a run that has one"
    runs = Runs(load_config().tracking.experiment)
    found: dict[Any, FinishedRun] = {}
    for run in runs.search(f"tags.stage = '{stage}' and attributes.status = 'FINISHED'")[:MOST]:
        twin = in_mlflow(run.id, run, runs)
        written = twin.provenance(stage)
        if written is None or _recipe(written) != _recipe(own):
            continue
        seed = written.params["seed"]
        if seed != own.params["seed"] and seed not in found:
            found[seed] = twin
    return found


def _recipe(written: Provenance) -> tuple[Mapping[str, Any], ...]:
    """What a run is a function of, but for the seed and the machine: params, code, inputs."""
    params = {key: value for key, value in written.params.items() if key != "seed"}
    return params, written.code, written.deps
