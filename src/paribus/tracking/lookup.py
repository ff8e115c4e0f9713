"""Finding runs in MLflow by id, name or fingerprint, and attaching later findings to them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.places import state_root
from paribus.tracking.address import sqlite_file, tracking_uri
from paribus.tracking.parts import NAMING_TAGS, RunPart, read_parts
from paribus.tracking.store import Store, opened

if TYPE_CHECKING:
    from mlflow.entities import Run

SUMMARY = "summary.json"  # the artifact with every figure of a stage's end


@dataclass(frozen=True, kw_only=True)
class StoredRun(RunPart):
    """A run as MLflow has it; `parent`: the id of the execution's run, "" for one that is a parent itself."""

    params: dict[str, str]
    datasets: dict[str, str]  # name -> digest, as DVC has it
    parent: str


class Runs:
    """The runs of one experiment. A store that does not exist yet has none, and is not created."""

    def __init__(self, experiment: str) -> None:
        uri = tracking_uri()
        file = sqlite_file(uri)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self._experiment = experiment
        self._store: Store | None = None
        if file is None or file.exists():
            self._store = opened(uri, experiment, state_root())

    def search(self, question: str, most: int | None = None) -> list[StoredRun]:
        """The runs that meet an MLflow filter, the newest first. most: how many at most; None: all."""
        if self._store is None:
            return []
        return [_stored(run) for run in islice(self._store.search(question, most), most)]

    def by_id(self, run_id: str) -> StoredRun | None:
        """The run with an id, of whichever experiment."""
        run = self._store.existing(run_id) if self._store else None
        return _stored(run) if run else None

    def names(self) -> list[str]:
        """Names of the executions, each once."""
        runs = read_parts(self._experiment, tags=NAMING_TAGS)
        executions = [run for run in runs if run.is_execution]
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
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=tags,
        datasets=datasets,
        parent=tags.get("mlflow.parentRunId", ""),
    )
