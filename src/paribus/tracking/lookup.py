"""Asking MLflow about runs that are there: by id, name or fingerprint; and attaching what was found out about them later."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import runtime
from paribus.errors import UserError
from paribus.tracking.store import Store, connect, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


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
        return self.tags.get("stage")


class Runs:
    """The runs of one experiment. A store that is not there yet holds none, and is not made."""

    def __init__(self, experiment: str) -> None:
        uri = tracking_uri()
        absent = uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self._store: Store | None = None
        if not absent:
            with readable(uri):
                self._store = connect(uri, experiment, runtime.state_root())

    def search(self, question: str) -> list[StoredRun]:
        """Runs that meet a filter of MLflow's, all of them, the newest first."""
        if self._store is None:
            return []
        with readable(tracking_uri()):
            return [_stored(run) for run in self._store.search(question)]

    def by_id(self, run_id: str) -> StoredRun | None:
        """The run with an id, of whichever experiment."""
        if self._store is None:
            return None
        with readable(tracking_uri()):
            run = self._store.existing(run_id)
        return _stored(run) if run else None

    def names(self) -> list[str]:
        """Names of the parents, each once."""
        return sorted({run.name for run in self.search("") if not run.parent})

    def children(self, parent: str) -> list[StoredRun]:
        """The stages' runs of one execution, the newest first."""
        return self.search(f"tags.`mlflow.parentRunId` = '{parent}'")

    def artifact(self, run_id: str, name: str) -> Path | None:
        """A local copy, or the file itself, of a run's artifact; None if it has none of that name."""
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


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """A store that is damaged or down ends the command with a line and not a traceback."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        place = uri if uri.startswith("sqlite:") else uri.rpartition("@")[2]
        raise UserError(
            f"MLflow's store {place} cannot be read: {words[0][:200]}; a damaged mlflow.db can be put aside "
            "(`mv mlflow.db mlflow.db.damaged`): a new one is filled from .paribus/runs by the next start of a stage"
        ) from None


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
