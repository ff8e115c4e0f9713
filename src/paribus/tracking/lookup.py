"""Finding runs in MLflow by id, name or fingerprint, and attaching later findings to them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.places import state_root
from paribus.tracking.address import sqlite_file, tracking_uri
from paribus.tracking.labels import GROUP
from paribus.tracking.store import Store, opened

if TYPE_CHECKING:
    from mlflow.entities import Run

SUMMARY = "summary.json"  # the artifact with every figure of a stage's end


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow has it; `parent`: the id of the execution's run, "" for one that is a parent itself."""

    id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    datasets: dict[str, str]  # name -> digest, as DVC has it
    parent: str

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


class Runs:
    """The runs of one experiment. A store that does not exist yet has none, and is not created."""

    def __init__(self, experiment: str) -> None:
        uri = tracking_uri()
        file = sqlite_file(uri)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self._store: Store | None = None
        if file is None or file.exists():
            self._store = opened(uri, experiment, state_root())

    def search(self, question: str) -> list[StoredRun]:
        """All runs that meet an MLflow filter, the newest first."""
        if self._store is None:
            return []
        return [_stored(run) for run in self._store.search(question)]

    def by_id(self, run_id: str) -> StoredRun | None:
        """The run with an id, of whichever experiment."""
        run = self._store.existing(run_id) if self._store else None
        return _stored(run) if run else None

    def names(self) -> list[str]:
        """Names of the executions, each once."""
        executions = [run for run in self.search("") if run.is_execution]
        return sorted({name for run in executions for name in run.names})

    def children(self, parent: str) -> list[StoredRun]:
        """The stages' runs of one execution, the newest first."""
        return self.search(f"tags.`mlflow.parentRunId` = '{parent}'")

    def artifact(self, run_id: str, name: str) -> Path | None:
        """A local copy, or the file itself, of a run's artifact; None if it has no artifact of that name."""
        assert self._store is not None, "a run was found, so there is a store"
        folder = str(Path(name).parent) if "/" in name else None
        if name not in {item.path for item in self._store.client.list_artifacts(run_id, folder)}:
            return None
        return Path(self._store.client.download_artifacts(run_id, name))

    def attach(self, run_id: str, files: list[Path], folder: str, tags: dict[str, str]) -> None:
        """Add files, under a folder of the run's artifacts, and tags."""
        assert self._store is not None, "a run was found, so there is a store"
        for path in files:
            self._store.client.log_artifact(run_id, str(path), folder)
        for key, value in tags.items():
            self._store.client.set_tag(run_id, key, value[:5000])


def _stored(run: Run) -> StoredRun:
    tags: dict[str, Any] = dict(run.data.tags)
    datasets = (
        {one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs}
        if run.inputs
        else {}
    )
    return StoredRun(
        run.info.run_id,
        run.info.run_name,
        run.info.status,
        dict(run.data.params),
        dict(run.data.metrics),
        tags,
        datasets,
        tags.get("mlflow.parentRunId", ""),
    )
