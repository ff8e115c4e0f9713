"""The Python API: `paribus.judge` and `paribus.load`.

    import paribus

    run = paribus.load("HEAD")
    print(run.numbers["gsm8k.rl.accuracy"], run.fingerprints)

    judgement = paribus.judge("results.csv", arm="recipe", metric="val_loss", baseline="adamw")
    for one in judgement.comparisons:
        print(one.arm, one.verdict, one.difference, one.low, one.high, one.p_adjusted)

`import paribus` loads neither until one of them is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from paribus.audit.lookup import find
from paribus.errors import UserError, shown
from paribus.judge import Comparison, Judgement, judge
from paribus.study.finished import CHECKPOINTS, PIPELINE, FinishedRun, Kind

__all__ = ["Comparison", "Judgement", "Run", "judge", "load"]

Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Run:
    """A finished run, as it was recorded at the time.

    Attributes:
        name: by which it was found.
        kind: where it is kept: "checkpoint", "workspace", "experiment", "revision" or "MLflow run".
        scope: the stage that it is of, or "pipeline".
        commit: of its code; None where no record says.
        params: dotted key -> value.
        metrics: stage -> the values of `metrics/<stage>.json`, nested as in the file.
        numbers: `<stage>.<dotted key>` -> value, of the metrics that are numbers.
        fingerprints: training stage -> the fingerprint of its code, parameters, data and hardware class.
        curves: training stage -> column -> its values, one for each row; NaN where a row has none.
        machines: training stage -> what it ran on: device, device_name, dtype, threads, torch_version, …
    """

    name: str
    kind: Kind
    scope: str
    commit: str | None
    params: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, object]]
    numbers: Mapping[str, float]
    fingerprints: Mapping[str, str]
    curves: Mapping[str, Curve]
    machines: Mapping[str, Mapping[str, object]]


def load(name: str) -> Run:
    """A finished run of the project in the current folder.

    Args:
        name: a DVC experiment, a git revision, an MLflow run's id or name, "workspace", or a checkpoint (its folder, or
            base, mid, sft, rl).

    Returns:
        What is kept of it. Fingerprints and machines are read beside the weights: they are empty where those are not on this
        disk, as in a fresh clone before `dvc pull`.

    Raises:
        paribus.errors.UserError: where there is no such run (with the nearest names), or a file of it is damaged.
    """
    found = find(name)
    written = {stage: found.provenance(stage) for stage in found.stages}
    known = {stage: one for stage, one in written.items() if one is not None}
    return Run(
        name=found.name,
        kind=found.kind,
        scope=found.scope,
        commit=found.commit,
        params=found.params,
        metrics=found.metrics,
        numbers=found.numbers,
        fingerprints={stage: one.fingerprint for stage, one in known.items()},
        curves=_curves(found),
        machines={stage: one.hardware for stage, one in known.items()},
    )


def _curves(run: FinishedRun) -> dict[str, Curve]:
    curves = {}
    for stage in CHECKPOINTS:
        rows = run.curve(stage) if run.scope in (stage, PIPELINE) else []
        if rows:
            where = f"plots/{stage}.csv of {run.name}"
            curves[stage] = {name: [_number(row[name], where) for row in rows] for name in rows[0]}
    return curves


def _number(cell: str | None, where: str) -> float:
    if not cell:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{where}: damaged; {shown(cell)} is no number") from None
