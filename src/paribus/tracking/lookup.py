"""Finding runs in MLflow by id, name or fingerprint, and attaching later findings to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from paribus.places import state_root
from paribus.tracking.address import local_path, sqlite_file, tracking_uri
from paribus.tracking.parts import NAMING_TAGS, PARENT, Question, RunPart, StoredRun
from paribus.tracking.store import opened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # that MLflow keeps its tables in
SUMMARY = "summary.json"  # the artifact with every figure of a stage's end


class Reader(Protocol):
    """What answers questions about the runs of one experiment, the newest first."""

    def search(self, question: Question, most: int | None = None) -> list[StoredRun]:
        """The runs asked for. most: how many at most; None: all."""

    def by_id(self, run_id: str) -> StoredRun | None:
        """The run with an id, of whichever experiment, deleted ones too."""

    def parts(
        self, question: Question, tags: Sequence[str], metrics: Sequence[str]
    ) -> Sequence[RunPart]:
        """The runs asked for, with these tags and metrics at least."""


class Client:
    """A reader that asks MLflow's client, as of a server, which has no tables to read."""

    def __init__(self, uri: str, experiment: str) -> None:
        """uri: with its password. experiment: its name."""
        self._store = opened(uri, experiment, state_root())

    def search(self, question: Question, most: int | None = None) -> list[StoredRun]:
        """As `Reader` says."""
        return [_stored(run) for run in islice(self._store.search(question.as_filter()), most)]

    def by_id(self, run_id: str) -> StoredRun | None:
        """As `Reader` says."""
        run = self._store.find(run_id)
        return _stored(run) if run else None

    def parts(
        self, question: Question, tags: Sequence[str], metrics: Sequence[str]
    ) -> Sequence[RunPart]:
        """All tags and metrics: MLflow answers in full."""
        return self.search(question)


class Runs:
    """The runs of one experiment. A store that does not exist yet has none, and is not created."""

    def __init__(self, experiment: str) -> None:
        self._uri = tracking_uri()
        self._experiment = experiment
        self._reader = self._open()

    def _open(self) -> Reader | None:
        file = sqlite_file(self._uri)
        if file is not None and not file.exists():
            return None
        dialect = self._uri.partition("://")[0].partition("+")[0]
        if dialect not in DATABASES:
            return Client(self._uri, self._experiment)
        from paribus.tracking.tables import Tables

        return Tables(self._uri, self._experiment)

    def search(
        self, tags: dict[str, str], *, finished: bool = False, most: int | None = None
    ) -> list[StoredRun]:
        """The runs that have these tags, the newest first.

        Args:
            tags: each with its value.
            finished: leave out runs that failed or go on.
            most: how many at most; None: all.
        """
        question = Question(tags=tags, finished=finished)
        return self._reader.search(question, most) if self._reader else []

    def by_id(self, run_id: str) -> StoredRun | None:
        """The run with an id, of whichever experiment."""
        return self._reader.by_id(run_id) if self._reader else None

    def parts(
        self, *, tags: Sequence[str], metrics: Sequence[str] = (), finished: bool = False
    ) -> Sequence[RunPart]:
        """All runs, the newest first.

        Args:
            tags: the only ones that are needed.
            metrics: the only ones that are needed.
            finished: leave out runs that failed or go on.
        """
        question = Question(finished=finished)
        return self._reader.parts(question, tags, metrics) if self._reader else []

    def names(self) -> list[str]:
        """Names of the executions, each once."""
        executions = [run for run in self.parts(tags=NAMING_TAGS) if run.is_execution]
        return sorted({name for run in executions for name in run.names})

    def children(self, parent: str) -> list[StoredRun]:
        """The stages' runs of one execution, the newest first."""
        return self.search({PARENT: parent})

    def artifact(self, run: StoredRun, name: str) -> Path | None:
        """A local copy, or the file itself, of a run's artifact; None if it has no artifact of that name."""
        folder = local_path(run.artifacts)
        if folder is not None:
            place = folder / name
            return place if place.is_file() else None
        above = str(Path(name).parent) if "/" in name else None
        client = self._client()
        if name not in {item.path for item in client.list_artifacts(run.id, above)}:
            return None
        return Path(client.download_artifacts(run.id, name))

    def attach(self, run_id: str, files: list[Path], folder: str, tags: dict[str, str]) -> None:
        """Add files, under a folder of the run's artifacts, and tags."""
        client = self._client()
        for path in files:
            client.log_artifact(run_id, str(path), folder)
        for key, value in tags.items():
            client.set_tag(run_id, key, value[:5000])

    def _client(self) -> MlflowClient:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        return opened(self._uri, self._experiment, state_root()).client


def _stored(run: Run) -> StoredRun:
    read = run.inputs.dataset_inputs if run.inputs else []
    return StoredRun(
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        datasets={one.dataset.name: one.dataset.digest for one in read},
        artifacts=run.info.artifact_uri,
    )
