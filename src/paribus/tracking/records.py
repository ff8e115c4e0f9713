"""The files that tracking keeps, each with the shape it must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paribus.files import NUMBER, Optional, Shape, Values, read_json
from paribus.tracking.address import public_uri

_TEXTS = Values(str)
_NULLABLE_TEXT = (str, type(None))

RUN: Shape = {
    "id": str,
    "created": NUMBER,
    "execution": _NULLABLE_TEXT,
    "artifacts": _TEXTS,
    "stage": str,
    "experiment": str,
    "uri": str,
    "status": str,
    "params": _TEXTS,
    "tags": _TEXTS,
    "datasets": Values(list),
    "summary": {},
    "session": str,
    "flush_seconds": NUMBER,
    "ended": Optional(NUMBER),
}
KNOWN: Shape = {  # mlflow.json
    "uri": str,
    "run": str,
    "run_id": _NULLABLE_TEXT,
    "parent": _NULLABLE_TEXT,
    "artifacts": _TEXTS,
    "status": str,
    "session": Optional(_NULLABLE_TEXT),
}
EXECUTION: Shape = {
    "id": str,
    "created": NUMBER,
    "closed": bool,
    "name": str,
    "params": _TEXTS,
    "tags": _TEXTS,
}


def read_run(folder: Path, *, move: bool = True) -> dict[str, Any] | None:
    """run.json of a run's folder; its store's address without a password, which older versions wrote.

    move: False leaves a damaged one to be put aside by the next stage, whose words a person reads.
    """
    run = read_json(folder / "run.json", RUN, move=move)
    if run is not None:
        run["uri"] = public_uri(run["uri"])
    return run


def read_known(folder: Path) -> dict[str, Any] | None:
    """mlflow.json of a run's folder."""
    known = read_json(folder / "mlflow.json", KNOWN)
    if known is not None:
        known["uri"] = public_uri(known["uri"])
    return known


def read_execution(path: Path) -> dict[str, Any] | None:
    """A file of `.paribus/executions`."""
    return read_json(path, EXECUTION)


def read_parents(path: Path) -> dict[str, str]:
    """{store: MLflow's id of an execution's run} of a file of `.paribus/executions/mlflow`."""
    known = read_json(path, _TEXTS) or {}
    return {public_uri(uri): run_id for uri, run_id in known.items()}
