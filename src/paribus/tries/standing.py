"""What the ledger amounts to: the running best, the error budget, and the studies beside the tries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.git import try_git
from paribus.study.committed import CommittedFiles
from paribus.study.finished import MEASURED, at_commit
from paribus.study.published import RESULTS
from paribus.tries.ledger import Entry
from paribus.tries.runs import training_seconds


@dataclass(frozen=True)
class Point:
    """A try in the picture of the running best, in the metric's unit from the first baseline.

    Attributes:
        number: of the try.
        verdict: keep, discard, undecided; "" while it is under way.
        at, low, high: the change; None where it has no effect.
        best: of everything kept so far, this try included.
        best_low, best_high: its interval, in which the errors of the parts add up as independent ones.
    """

    number: int
    verdict: str
    at: float | None
    low: float | None
    high: float | None
    best: float
    best_low: float
    best_high: float


def running_best(entries: Sequence[Entry]) -> list[Point]:
    """The tries of one metric, each where its baseline was plus what it changed.

    Args:
        entries: of one metric and direction.
    """
    kept: dict[
        str, tuple[float, float]
    ] = {}  # a kept change -> (where it is, half of its interval)
    best, half = 0.0, 0.0
    points = []
    for entry in entries:
        ended = entry.ended
        start, start_half = kept.get(entry.begun.baseline_side, (0.0, 0.0))
        at = low = high = None
        if ended and ended.mean is not None:
            at = start + ended.mean
            low, high = _shifted(ended.low, start), _shifted(ended.high, start)
        if entry.kept and at is not None:
            own_half = (high - low) / 2 if low is not None and high is not None else 0.0
            best, half = at, math.hypot(start_half, own_half)
            kept[entry.begun.change_side] = (best, half)
        verdict = ended.verdict if ended else ""
        points.append(Point(entry.number, verdict, at, low, high, best, best - half, best + half))
    return points


def _shifted(value: float | None, by: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value + by


# ---------------------------------------------------------------- studies


@dataclass(frozen=True)
class StudyRow:
    """An arm of a study that has a report.

    Attributes:
        study, arm, metric: names.
        mean, low, high: of the differences from its baseline; None without a matched pair.
        seeds: matched.
        verdict: of the study.
        runs: of the arm.
        seconds: of training, of these runs; None where git does not have them.
    """

    study: str
    arm: str
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    verdict: str | None
    runs: int
    seconds: float | None


def studies(folder: Path = RESULTS) -> list[StudyRow]:
    """Every arm of the studies whose report has its data beside it.

    Args:
        folder: of the reports.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(data, dict) and "study" in data and "arms" in data:
                rows += [_row(data, arm) for arm in data["arms"]]
        except (OSError, ValueError, KeyError, TypeError):  # of something else, or damaged
            continue
    return rows


def _row(data: Mapping[str, Any], arm: str) -> StudyRow:
    own = data["arms"][arm]
    low, high = own.get("interval") or (None, None)
    seconds = [_seconds(run["commit"]) for run in data["runs"] if run["arm"] == arm]
    known = [one for one in seconds if one is not None]
    return StudyRow(
        study=data["study"],
        arm=arm,
        metric=data["metric"],
        mean=own["mean_difference"],
        low=low,
        high=high,
        seeds=own["matched_seeds"],
        verdict=own["verdict"],
        runs=len(seconds),
        seconds=sum(known) if known and len(known) == len(seconds) else None,
    )


def _seconds(commit: str) -> float | None:
    """Seconds of training of a finished run; None where git does not have it."""
    own = try_git("diff", "--name-only", "--relative", f"{commit}^", commit, "--", "metrics")
    if own is None:
        return None
    stages = [Path(name).stem for name in own.splitlines()]
    run = at_commit(commit[:10], "experiment", CommittedFiles(commit), MEASURED)
    return training_seconds(run, stages)
