"""Some tags and metrics of many runs, read from the tables of MLflow's database.

MLflow's search makes an object of every parameter, metric and tag of every run, some 200 a run, where a page about all
runs needs five. The tables are as MLflow's migrations leave them; a server, which has none to read, is asked in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paribus.places import state_root
from paribus.tracking.address import sqlite_file, tracking_uri
from paribus.tracking.labels import GROUP
from paribus.tracking.store import opened, unreadable

if TYPE_CHECKING:
    from sqlalchemy import Connection

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # that MLflow keeps its tables in
FINISHED = "FINISHED"


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """A run, with some of its tags and metrics."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]  # the last value of each

    @property
    def stage(self) -> str | None:
        """The stage that the run stands for; None for a run of another kind."""
        return self.tags.get("stage")

    @property
    def is_execution(self) -> bool:
        """Whether it stands above the runs of stages: it is no stage's, and no study's, which stands above many."""
        return self.stage is None and GROUP not in self.tags

    @property
    def names(self) -> list[str]:
        """By which it is found: its own, and that of its DVC experiment."""
        experiment = self.tags.get("dvc.experiment")
        return [self.name, experiment] if experiment else [self.name]


NAMING_TAGS = ("stage", GROUP, "dvc.experiment")  # that the properties of a run read


def read_parts(
    experiment: str, *, tags: Sequence[str], metrics: Sequence[str] = (), finished: bool = False
) -> list[RunPart]:
    """The runs of an experiment, the newest first. A store that does not exist yet has none, and is not created.

    Args:
        experiment: MLflow's, by name.
        tags: the only ones to read.
        metrics: the only ones to read.
        finished: leave out runs that failed or go on.

    Raises:
        UserError: where the store cannot be read.
    """
    uri = tracking_uri()
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return []
    dialect = uri.partition("://")[0].partition("+")[0]
    if dialect not in DATABASES:
        return list(_asked(uri, experiment, finished))
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_engine(uri).connect() as connection:
            return list(_read(connection, experiment, tags, metrics, finished))
    except (SQLAlchemyError, ImportError) as error:  # damage, another schema, no driver
        raise unreadable(uri, error) from None


def _asked(uri: str, experiment: str, finished: bool) -> Iterator[RunPart]:
    """As `read_parts`, through MLflow's client, which has all tags and metrics."""
    question = f"attributes.status = '{FINISHED}'" if finished else ""
    for run in opened(uri, experiment, state_root()).search(question):
        yield RunPart(
            id=run.info.run_id,
            name=run.info.run_name,
            status=run.info.status,
            tags=dict(run.data.tags),
            metrics=dict(run.data.metrics),
        )


def _read(
    connection: Connection,
    experiment: str,
    tags: Sequence[str],
    metrics: Sequence[str],
    finished: bool,
) -> Iterator[RunPart]:
    """As `read_parts`, from the tables."""
    from sqlalchemy import Boolean, Float, Integer, String, column, select, table

    experiments = table("experiments", column("experiment_id"), column("name"))
    runs = table(
        "runs", *map(column, ("run_uuid", "name", "status", "experiment_id", "lifecycle_stage"))
    )
    started = column("start_time", Integer)
    wanted = (
        select(runs.c.run_uuid, runs.c.name, runs.c.status)
        .join(experiments, experiments.c.experiment_id == runs.c.experiment_id)
        .where(experiments.c.name == experiment, runs.c.lifecycle_stage == "active")
        .order_by(started.desc(), runs.c.run_uuid)
    )
    if finished:
        wanted = wanted.where(runs.c.status == FINISHED)
    found: dict[str, RunPart] = {}
    for identity, name, status in connection.execute(wanted):
        found[identity] = RunPart(id=identity, name=name or "", status=status, tags={}, metrics={})
    run, key, is_nan = column("run_uuid", String), column("key", String), column("is_nan", Boolean)
    text, number = column("value", String), column("value", Float)
    # The tables are indexed by key first: the rows of few keys are read alone, those of other experiments with them.
    noted = select(run, key, text).select_from(table("tags")).where(key.in_(tags))
    for identity, name, tag in connection.execute(noted):
        if identity in found:
            found[identity].tags[name] = tag
    last = select(run, key, number, is_nan).select_from(table("latest_metrics"))
    for identity, name, metric, missing in connection.execute(last.where(key.in_(metrics))):
        if identity in found:
            found[identity].metrics[name] = math.nan if missing else metric
    yield from found.values()
