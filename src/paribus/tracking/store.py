"""The MLflow store: where it is, made ready once, and runs in it found or created."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import runtime
from paribus.journal import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000  # runs of one answer


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else `mlflow.db` in the main checkout; a relative sqlite file starts there too."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return f"sqlite:///{runtime.main_checkout() / file}" if file != uri else uri


@dataclass(frozen=True)
class Store:
    """An MLflow store and the experiment in it."""

    client: MlflowClient
    experiment: str  # its id

    def existing(self, run_id: str | None) -> Run | None:
        """The run, brought back if someone deleted it; None if the store has no such run."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage == "deleted":
            self.client.restore_run(run_id)
        return run

    def search(self, question: str) -> Iterator[Run]:
        """All runs of the experiment that meet a filter of MLflow's, the newest first, page by page."""
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                question,
                max_results=PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def run_of(
        self, own: dict[str, Any], known: str | None, name: str, parent: str = ""
    ) -> tuple[str, bool]:
        """(MLflow's run id, whether it is new to us) of a run or execution, made if need be."""
        if known and self.existing(known):
            return known, False
        # One made just before a crash, and not noted, bears our id.
        found = self.client.search_runs(
            [self.experiment], f"tags.`paribus.run` = '{own['id']}'", max_results=1
        )
        if found:
            return found[0].info.run_id, True
        tags = own["tags"] | {
            "paribus.run": own["id"],
            "mlflow.source.name": "paribus",
            "mlflow.source.type": "LOCAL",
        }
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment, int(own["created"] * 1000), tags, name)
        return run.info.run_id, True

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(store_key(key), value[:6000]) for key, value in params.items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start : start + 100])


@functools.cache
def connect(uri: str, experiment: str, root: Path) -> Store:
    """The store, made ready under a lock: processes that first touch a new database at once crash in its migration."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # The feeder tries again by itself: a call that hangs for minutes would only keep the stage from ending.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with locked(root / "mlflow.lock"):
        _create(uri)
        client = MlflowClient(tracking_uri=uri)
        if found := client.get_experiment_by_name(experiment):
            return Store(client, found.experiment_id)
        # A server knows where its artifacts go; a plain database would take a path relative to whoever asks.
        location = None if uri.startswith("http") else (root.parent / "mlartifacts").as_uri()
        return Store(client, client.create_experiment(experiment, artifact_location=location))


def _create(uri: str) -> None:
    """Make a new sqlite database aside, then move it into place: MLflow's migrations cannot go on when killed half-way."""
    from mlflow import MlflowClient

    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or file.exists():
        return
    aside = file.with_name(f"{file.name}.new")
    for left_over in file.parent.glob(f"{aside.name}*"):
        left_over.unlink()
    MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
    aside.rename(file)


def store_key(name: str) -> str:
    """A metric or parameter name that MLflow takes: `gsm8k@mid` becomes gsm8k.mid."""
    return re.sub(r"[^\w\-./ :]", ".", name)


def graded_runs(experiment: str) -> list[dict[str, Any]]:
    """Finished training runs that logged a prediction: memory (bytes) and time (seconds), measured, predicted, error."""
    store = connect(tracking_uri(), experiment, runtime.state_root())
    rows = []
    for run in store.search("metrics.`predicted/memory_bytes` > 0"):
        metrics = run.data.metrics
        taken = {
            "memory": metrics.get("train/peak_memory_bytes"),
            "seconds": metrics.get("seconds", metrics.get("train/seconds")),
        }
        if run.info.status == "FINISHED" and all(taken.values()):
            row: dict[str, Any] = {
                "run": run.info.run_id,
                "stage": run.data.tags.get("stage", ""),
                "hardware": run.data.tags.get("hardware", ""),
                **taken,
            }
            for name, key in (("memory", "memory_bytes"), ("seconds", "seconds")):
                predicted = metrics[f"predicted/{key}"]
                row |= {f"{name}_predicted": predicted, f"{name}_error": predicted / row[name] - 1}
            rows.append(row)
    return rows
