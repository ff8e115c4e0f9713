"""The MLflow store: where it is, made ready once, and runs in it found or created."""

from __future__ import annotations

import contextlib
import functools
import getpass
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paribus.errors import UserError
from paribus.files import put_in_place
from paribus.journal import locked
from paribus.tracking import views
from paribus.tracking.address import (
    is_server,
    public_uri,
    redacted,
    sqlite_file,
    with_secrets,
)
from paribus.tracking.records import Recorded

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


PAGE = 1000  # runs of one answer
ARTIFACTS = "mlartifacts"  # beside the database
# Table -> its column with the address of artifacts.
_ADDRESSES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
}


@dataclass(frozen=True)
class Store:
    """An MLflow store and the experiment in it."""

    client: MlflowClient
    experiment: str  # its id

    def find(self, run_id: str) -> Run | None:
        """The run, deleted or not; None if the store has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def is_there(self, run_id: str) -> bool:
        """Whether the store has the run, which is restored if someone deleted it."""
        run = self.find(run_id)
        if run is not None and run.info.lifecycle_stage == "deleted":
            self.client.restore_run(run_id)
        return run is not None

    def run_of(
        self, own: Recorded, known: str | None, name: str, parent: str = ""
    ) -> tuple[str, bool]:
        """(MLflow's run id, whether it is new to us) of a run or execution, made if need be."""
        if known and self.is_there(known):
            return known, False
        # One made just before a crash, and not noted, bears our id.
        found = self.client.search_runs(
            [self.experiment], f"tags.`paribus.run` = '{own.id}'", max_results=1
        )
        if found:
            return found[0].info.run_id, True
        tags = dict(own.tags) | {
            "paribus.run": own.id,
            "mlflow.source.name": "paribus",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment, int(own.created * 1000), tags, name)
        return run.info.run_id, True

    def end(self, run_id: str, status: str, ended: int) -> None:
        """Say how a run ended, and when, in milliseconds since the epoch; one that is SCHEDULED has not ended."""
        if status == "SCHEDULED":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time=ended)

    def search(self, question: str, page_size: int | None = None) -> Iterator[Run]:
        """All runs that meet an MLflow filter, the newest first; MLflow returns them in pages.

        Each comes with all that it logged, which takes its time: `tables.Tables.parts` reads a few keys of many runs.

        page_size: runs that MLflow reads at once; None, or more than its limit: PAGE.
        """
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                question,
                max_results=min(page_size or PAGE, PAGE),
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters that a run lacks, at most 100 a request, as MLflow takes no more.

        A study's run has those of the first run below it; a run of another machine has others, and MLflow refuses a change.

        Args:
            run_id: the run's MLflow id.
            params: key -> value; a value is cut after 6,000 characters, MLflow's limit.
        """
        from mlflow.entities import Param

        there = self.client.get_run(run_id).data.params
        entries = []
        for key, value in params.items():
            if store_key(key) not in there:
                entries.append(Param(store_key(key), value[:6000]))
        for start in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start : start + 100])


def _user() -> str:
    """The name of the person who runs this; in a container without names, `unknown` as MLflow has it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _settle() -> None:
    """MLflow's settings for a client in the background."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with its password
    # The feeder tries again by itself: a call that hangs for minutes would only keep the stage from ending.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@functools.cache
def connect(uri: str, experiment: str, root: Path) -> Store:
    """The store, made ready under a lock: processes that first touch a new database at once crash in its migration.

    uri: the address to connect to, with its password.
    """
    _settle()
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with locked(root / "mlflow.lock"):
        _create(uri)
        client = MlflowClient(tracking_uri=uri)
        # A server knows where its artifacts go; a plain database would take a path relative to the client.
        location = None if is_server(uri) else (root.parent / ARTIFACTS).as_uri()
        found = client.get_experiment_by_name(experiment)
        if found is None:
            identity = client.create_experiment(experiment, artifact_location=location)
        else:
            identity = found.experiment_id
            follow_project(uri, found.artifact_location, root)
        views.save_view(client, identity)
        return Store(client, identity)


def opened(uri: str, experiment: str, root: Path) -> Store:
    """As `connect`, for a command that needs the store. Raises UserError with the problem and the cure."""
    try:
        store = connect(uri, experiment, root)
        store.client.search_runs([store.experiment], max_results=1)
    except OSError:  # of this machine, such as a full disk: `errors.explained` words it
        raise
    except Exception as error:  # whatever the database, the server or mlflow raises
        raise unreadable(uri, error) from None
    return store


def unreadable(uri: str, error: Exception) -> UserError:
    """The problem of a store that cannot be read, and the cure.

    uri: its address, with its password, which is not shown. error: whatever the database, the server or mlflow raised.
    """
    lines = [line for line in redacted(str(error)).splitlines() if line.strip()]
    reason = lines[0][:200] if lines else type(error).__name__
    return UserError(
        f"the MLflow store {public_uri(uri)} cannot be read ({reason}); `paribus doctor` says what is wrong with "
        "it and how to cure it"
    )


def answers(uri: str) -> bool:
    """Whether a store answers requests. uri: as stored, without a password."""
    _settle()
    from mlflow import MlflowClient

    full = with_secrets(uri)
    file = sqlite_file(full)
    if file is not None and not file.exists():
        return False
    try:
        MlflowClient(tracking_uri=full).search_experiments(max_results=1)
    except Exception:  # whatever the server, the network or mlflow raises
        return False
    return True


def follow_project(uri: str, location: str, root: Path) -> None:
    """Correct the addresses of artifacts in a sqlite store whose project was moved.

    Args:
        uri: of the store.
        location: of the experiment's artifacts, as the store has it.
        root: the project's `.paribus`, as it lies now.
    """
    file = sqlite_file(uri)
    artifacts = root.parent / ARTIFACTS
    if file is not None and location != artifacts.as_uri():
        follow(file, artifacts)


def follow(file: Path, artifacts: Path) -> None:
    """Correct the addresses of artifacts in a database that was moved or copied with its project.

    MLflow writes absolute addresses. New artifacts go beside the database from now on; those of old runs are looked for
    there if they were moved too.

    Args:
        file: the sqlite database.
        artifacts: the folder beside it.
    """
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        rows = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        for (location,) in rows:
            old = str(location)
            if not old.startswith("file://") or Path(old).name != ARTIFACTS:
                continue  # a place that somebody chose
            new = artifacts.as_uri()
            tables = _ADDRESSES if artifacts.is_dir() else {"experiments": "artifact_location"}
            for table, column in tables.items():
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, old, len(old) + 1, f"{old}/"],
                )


def _create(uri: str) -> None:
    """Make a new sqlite database aside, then move it into place: MLflow's migrations cannot go on when killed half-way."""
    from mlflow import MlflowClient

    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    aside = file.with_name(f"{file.name}.new")
    for left_over in file.parent.glob(f"{aside.name}*"):
        left_over.unlink()
    MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
    put_in_place(aside, file)


def store_key(name: str) -> str:
    """A metric or parameter name that MLflow takes: `gsm8k@mid` becomes gsm8k.mid."""
    return re.sub(r"[^\w\-./ :]", ".", name)
