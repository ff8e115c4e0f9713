"""Runs read from the tables of MLflow's database, without MLflow.

MLflow takes seconds to load, and its search makes an object of every parameter, metric and tag of every run, some 200 a
run, where a page about all runs needs five. The tables are as MLflow's migrations leave them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    String,
    and_,
    column,
    create_engine,
    select,
    table,
)
from sqlalchemy.exc import SQLAlchemyError

from paribus.places import state_root
from paribus.tracking.parts import FINISHED, NAME, Question, RunPart, StoredRun
from paribus.tracking.store import follow_project, unreadable

AT_ONCE = 500  # runs of one query: databases limit its variables

_EXPERIMENTS = table("experiments", *map(column, ("experiment_id", "name", "artifact_location")))
_COLUMNS = ("run_uuid", "name", "status", "artifact_uri")
_RUNS = table("runs", *map(column, (*_COLUMNS, "experiment_id", "lifecycle_stage", "start_time")))
_SHOWN = select(*(_RUNS.c[name] for name in _COLUMNS))
# Of tags, params and metrics: the run, its key, its value.
_RUN, _KEY = column("run_uuid", String), column("key", String)
_TEXT, _NUMBER, _IS_NAN = column("value", String), column("value", Float), column("is_nan", Boolean)
_TAGS = select(_RUN, _KEY, _TEXT).select_from(table("tags"))
_PARAMS = select(_RUN, _KEY, _TEXT).select_from(table("params"))
_METRICS = select(_RUN, _KEY, _NUMBER, _IS_NAN).select_from(table("latest_metrics"))
_ENDS = ("source_type", "source_id", "destination_type", "destination_id")
_INPUTS = table("inputs", *map(column, _ENDS))
_DATASETS = table("datasets", *map(column, ("dataset_uuid", "name", "digest")))
_READ = (
    select(_INPUTS.c.destination_id, _DATASETS.c.name, _DATASETS.c.digest)
    .join(_DATASETS, _DATASETS.c.dataset_uuid == _INPUTS.c.source_id)
    .where(_INPUTS.c.source_type == "DATASET", _INPUTS.c.destination_type == "RUN")
)

_Value = TypeVar("_Value")


class Tables:
    """The runs of one experiment in a database. Raises UserError with the cure where it cannot be read."""

    def __init__(self, uri: str, experiment: str) -> None:
        """uri: with its password. experiment: its name; one that is not there has no runs."""
        self._uri = uri
        self._experiment = None
        wanted = select(_EXPERIMENTS).where(_EXPERIMENTS.c.name == experiment)
        with self._reading() as connection:
            found = connection.execute(wanted).first()
        if found is not None:
            self._experiment = found.experiment_id
            follow_project(uri, found.artifact_location, state_root())

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with create_engine(self._uri).connect() as connection:
                yield connection
        except (SQLAlchemyError, ImportError) as error:  # damage, another schema, no driver
            raise unreadable(self._uri, error) from None

    def search(self, question: Question, most: int | None = None) -> list[StoredRun]:
        """The runs asked for, the newest first. most: how many at most; None: all."""
        with self._reading() as connection:
            return _whole(connection, connection.execute(self._asked(question).limit(most)).all())

    def by_id(self, run_id: str) -> StoredRun | None:
        """The run with an id, of whichever experiment, deleted ones too."""
        with self._reading() as connection:
            rows = connection.execute(_SHOWN.where(_RUNS.c.run_uuid == run_id)).all()
            runs = _whole(connection, rows)
        return runs[0] if runs else None

    def parts(
        self, question: Question, tags: Sequence[str], metrics: Sequence[str]
    ) -> list[RunPart]:
        """The runs asked for, the newest first, with these tags and metrics alone."""
        with self._reading() as connection:
            rows = connection.execute(self._asked(question)).all()
            # The tables are indexed by key first: the rows of few keys are read alone, those of other runs with them.
            tagged = _by_run(connection.execute(_TAGS.where(_KEY.in_(tags))))
            measured = _metrics(connection, _KEY.in_(metrics))
        parts = []
        for row in rows:
            identity = row.run_uuid
            of_run, last = tagged.get(identity, {}), measured.get(identity, {})
            name = row.name or ""
            part = RunPart(id=identity, name=name, status=row.status, tags=of_run, metrics=last)
            parts.append(part)
        return parts

    def _asked(self, question: Question) -> Select[tuple[str, ...]]:
        """The query of the runs asked for, deleted ones left out."""
        wanted = _SHOWN.where(_RUNS.c.experiment_id == self._experiment)
        wanted = wanted.where(_RUNS.c.lifecycle_stage == "active")
        if question.finished:
            wanted = wanted.where(_RUNS.c.status == FINISHED)
        for key, value in question.tags.items():
            same = and_(_KEY.in_([key]), _TEXT.in_([value]))
            tagged = select(_RUN).select_from(table("tags")).where(same)
            wanted = wanted.where(_RUNS.c.run_uuid.in_(tagged))
        return wanted.order_by(_RUNS.c.start_time.desc(), _RUNS.c.run_uuid)


def _whole(connection: Connection, rows: Sequence[Row[tuple[str, ...]]]) -> list[StoredRun]:
    """The runs of these rows, with all their values."""
    runs = []
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        ids = [row.run_uuid for row in some]
        tags = _by_run(connection.execute(_TAGS.where(_RUN.in_(ids))))
        params = _by_run(connection.execute(_PARAMS.where(_RUN.in_(ids))))
        datasets = _by_run(connection.execute(_READ.where(_INPUTS.c.destination_id.in_(ids))))
        metrics = _metrics(connection, _RUN.in_(ids))
        for row in some:
            of_run = tags.get(row.run_uuid, {})
            run = StoredRun(
                id=row.run_uuid,
                name=row.name or of_run.get(NAME, ""),
                status=row.status,
                tags=of_run,
                params=params.get(row.run_uuid, {}),
                metrics=metrics.get(row.run_uuid, {}),
                datasets=datasets.get(row.run_uuid, {}),
                artifacts=row.artifact_uri,
            )
            runs.append(run)
    return runs


def _by_run(rows: Iterable[tuple[str, str, _Value]]) -> dict[str, dict[str, _Value]]:
    """Run -> key -> value."""
    found: dict[str, dict[str, _Value]] = {}
    for run, key, value in rows:
        found.setdefault(run, {})[key] = value
    return found


def _metrics(connection: Connection, which: ColumnElement[bool]) -> dict[str, dict[str, float]]:
    """Run -> metric -> its last value."""
    rows = []
    for run, key, value, is_nan in connection.execute(_METRICS.where(which)):
        rows.append((run, key, math.nan if is_nan else value))
    return _by_run(rows)
