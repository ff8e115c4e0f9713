"""What the plan said of finished runs beside what they took: `paribus plan --grade`."""

from __future__ import annotations

from typing import Any

from paribus.tracking.lookup import Runs
from paribus.tracking.parts import RunPart

# Each figure's name -> its key in a prediction, which is a tag, or a metric of runs that an earlier paribus logged.
PREDICTED = {"memory": "memory_bytes", "seconds": "seconds"}
TAGS = ("stage", "hardware", *(f"predicted.{key}" for key in PREDICTED.values()))
PREDICTIONS = tuple(f"predicted/{key}" for key in PREDICTED.values())
MEASURED = ("train/peak_memory_bytes", "seconds", "train/seconds")


def graded_runs(experiment: str) -> list[dict[str, Any]]:
    """Finished training runs that logged a prediction: memory (bytes) and time (seconds), measured, predicted, error."""
    keys = (*MEASURED, *PREDICTIONS)
    runs = Runs(experiment).parts(tags=TAGS, metrics=keys, finished=True)
    rows = [_graded(run) for run in runs]
    return [row for row in rows if row is not None]


def _graded(run: RunPart) -> dict[str, Any] | None:
    """A run's figures; None where one is missing."""
    row: dict[str, Any] = {
        "run": run.id,
        "stage": run.tags.get("stage", ""),
        "hardware": run.tags.get("hardware", ""),
        "memory": run.metrics.get("train/peak_memory_bytes"),
        "seconds": run.metrics.get("seconds", run.metrics.get("train/seconds")),
    }
    for name, key in PREDICTED.items():
        predicted = _predicted(run, key)
        if not row[name] or predicted is None:
            return None
        row |= {f"{name}_predicted": predicted, f"{name}_error": predicted / row[name] - 1}
    return row


def _predicted(run: RunPart, key: str) -> float | None:
    said = run.tags.get(f"predicted.{key}")
    return float(said) if said else run.metrics.get(f"predicted/{key}")
