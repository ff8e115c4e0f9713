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
from paribus.study.outcome import interval
from paribus.study.record import Record, of_run
from paribus.tracking.lookup import Runs

FEWEST = 3  # seeds that make a spread
LAST = 20  # the figure is the mean over the last twentieth of the compared steps, as train_loss is
COLUMN = {"rl": "reward"}  # of the curve; of the other stages train_loss
MOST = 50  # runs that are looked into


@dataclass(frozen=True)
class Band:
    """The difference of the two runs' figures, and the half-width of the band from `seeds` runs."""

    column: str
    difference: float
    half_width: float
    seeds: int
    within: bool
    text: str


def measured_band(
    record: Record,
    stage: str,
    ours: Sequence[Mapping[str, str]],
    theirs: Sequence[Mapping[str, str]],
) -> Band | None:
    """Where the rebuilt run lies against the noise of seeds, at the last step that both have; None where too few seeds ran."""
    column = COLUMN.get(stage, "train_loss")
    steps = [row["step"] for row in ours if row["step"] in {other["step"] for other in theirs}]
    if not steps:
        return None
    last = steps[-math.ceil(len(steps) / LAST) :]
    by_seed = {record.provenance(stage)["params"]["seed"]: figure(ours, last, column)}
    by_seed |= {
        seed: value
        for seed, value in _twins(record, stage, last, column).items()
        if seed not in by_seed
    }
    values = [value for value in by_seed.values() if value is not None]
    now, then = figure(theirs, last, column), figure(ours, last, column)
    if len(values) < FEWEST or now is None or then is None:
        return None
    mean, _, high = interval(values)
    half = (high - mean) * math.sqrt(2 * len(values))
    within = abs(now - then) <= half
    text = (
        f"At steps {last[0]} to {last[-1]} the mean {column} is {now - then:+.6g} from the recorded one; two of its "
        f"{len(values)} seeds differ by up to {half:.6g} (95 %), so it is {'within' if within else 'outside'} the noise."
    )
    return Band(column, now - then, half, len(values), within, text)


def figure(curve: Sequence[Mapping[str, str]], steps: Sequence[str], column: str) -> float | None:
    """The mean of a column over these steps; None where one of them is not there."""
    by_step = {row["step"]: row.get(column) for row in curve}
    values = [by_step.get(step) for step in steps]
    return sum(float(value) for value in values if value) / len(values) if all(values) else None


def _twins(
    record: Record, stage: str, steps: Sequence[str], column: str
) -> dict[Any, float | None]:
    """Seed -> figure, of the finished runs in MLflow that differ from this one in the seed alone."""
    mine = _recipe(record.provenance(stage))
    runs = Runs(load_config().tracking.experiment)
    found = {}
    for run in runs.search(f"tags.stage = '{stage}' and attributes.status = 'FINISHED'")[:MOST]:
        twin = of_run(run.id, run, runs)
        written = twin.provenance(stage)
        if written and _recipe(written) == mine:
            found[written["params"]["seed"]] = figure(twin.curve(stage), steps, column)
    return found


def _recipe(written: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is a function of, but for the seed and the machine."""
    params = {key: value for key, value in written.get("params", {}).items() if key != "seed"}
    return {"params": params, "code": written.get("code"), "deps": written.get("deps")}
