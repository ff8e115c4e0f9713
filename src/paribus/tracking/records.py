"""The files that tracking keeps: what each says, and the shape it must have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from paribus.files import NUMBER, Optional, Shape, Values, read_json
from paribus.journal import write_json
from paribus.tracking.address import public_uri

_TEXTS = Values(str)
_NULLABLE_TEXT = (str, type(None))

RUN: Shape = {
    "id": str,
    "created": NUMBER,
    "execution": _NULLABLE_TEXT,
    "artifacts": _TEXTS,
    "stage": str,
    "name": Optional(str),
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
    "parent": Optional(_NULLABLE_TEXT),
    "name": str,
    "params": _TEXTS,
    "tags": _TEXTS,
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What MLflow's run is made from: one of a stage, or the execution above it."""

    id: str  # ours; MLflow gives another
    created: float  # seconds since the epoch
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file of these facts."""
        write_json(path, _values(self))


@dataclass(frozen=True, kw_only=True)
class RunRecord(Recorded):
    """run.json of a stage's run."""

    execution: str | None
    stage: str
    experiment: str  # MLflow's
    uri: str  # of the store, without its password
    status: str
    session: str  # one start of the stage
    flush_seconds: float
    name: str = ""  # in MLflow; "": that of the stage
    artifacts: Mapping[str, str] = field(default_factory=dict)  # name -> digest
    datasets: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # -> (path, digest)
    summary: Mapping[str, object] = field(default_factory=dict)  # dotted key -> value
    ended: float | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """mlflow.json: what MLflow has of a run."""

    uri: str
    run: str  # our id
    run_id: str | None = None  # MLflow's
    parent: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)
    status: str = ""
    session: str | None = None  # that ended so

    def write(self, path: Path) -> None:
        """Write the file of these facts."""
        write_json(path, _values(self))


@dataclass(frozen=True, kw_only=True)
class Execution(Recorded):
    """A run above others: what one start of the pipeline made, one experiment of DVC's, or a whole study."""

    name: str
    closed: bool = False
    parent: str | None = None  # the id of the study's


_Record = TypeVar("_Record", RunRecord, Known, Execution)


def _values(record: Recorded | Known) -> dict[str, object]:
    """What the file holds; a moment that has not come is left out."""
    values = dataclasses.asdict(record)
    if values.get("ended", 0) is None:
        del values["ended"]
    return values


def _record(kind: type[_Record], values: Mapping[str, object] | None) -> _Record | None:
    """The facts in a file; None without one."""
    if values is None:
        return None
    names = {each.name for each in dataclasses.fields(kind)}
    own = {name: value for name, value in values.items() if name in names}
    if "uri" in own:  # older versions wrote its password
        own["uri"] = public_uri(str(own["uri"]))
    return kind(**own)  # type: ignore[arg-type]  # `read_json` has looked at the shape


def run_files(root: Path) -> list[Path]:
    """run.json of every run, those put away first."""
    return [*root.glob("unsent/*/run.json"), *root.glob("runs/*/run.json")]


def family_of(root: Path, execution: str) -> list[RunRecord]:
    """The runs that are filed under an execution, those that were started over included."""
    runs = [read_run(path.parent, move=False) for path in run_files(root)]
    return [run for run in runs if run is not None and run.execution == execution]


def read_run(folder: Path, *, move: bool = True) -> RunRecord | None:
    """run.json of a run's folder.

    move: False leaves a damaged one to be put aside by the next stage, whose words a person reads.
    """
    return _record(RunRecord, read_json(folder / "run.json", RUN, move=move))


def read_known(folder: Path) -> Known | None:
    """mlflow.json of a run's folder."""
    return _record(Known, read_json(folder / "mlflow.json", KNOWN))


def read_execution(path: Path) -> Execution | None:
    """A file of `.paribus/executions`."""
    return _record(Execution, read_json(path, EXECUTION))


def read_parents(path: Path) -> dict[str, str]:
    """{store: MLflow's id of an execution's run} of a file of `.paribus/executions/mlflow`."""
    known = read_json(path, _TEXTS) or {}
    return {public_uri(uri): run_id for uri, run_id in known.items()}
