"""The runs of an MLflow experiment as a table: one row a run, a column for each param, tag and metric."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from paribus.errors import UserError, did_you_mean, shown
from paribus.tracking.address import public_uri, sqlite_file, tracking_uri, with_secrets
from paribus.tracking.store import answers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000  # runs of one answer


class Tracked:
    """Rows of runs: columns `params.KEY`, `tags.KEY`, `metrics.KEY` (the last value), and KEY where one alone has it."""

    unit = "run"

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name = name
        self._rows = [_row(run) for run in runs]
        names: dict[str, None] = {}
        for row in self._rows:
            names |= dict.fromkeys(row)
        counts = Counter(_short(column) for column in names)
        self._long = {column: column for column in names}
        for column in names:
            if counts[_short(column)] == 1:
                self._long.setdefault(_short(column), column)
        self.header = tuple(self._long)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        """Every run, the oldest first: (number from 1, its values of these columns)."""
        long = [self._long[column] for column in columns]
        for number, row in enumerate(self._rows, 1):
            yield number, [row.get(column) for column in long]


def _short(column: str) -> str:
    head, _, tail = column.partition(".")
    return tail if head in ("params", "tags", "metrics") and tail else column


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "status": run.info.status,
        "start_time": run.info.start_time,
    }
    for kind in ("params", "tags", "metrics"):
        values = getattr(run.data, kind)
        row |= {f"{kind}.{key}": value for key, value in values.items()}
    return row


def tracked_table(experiment: str) -> Tracked:
    """The runs of an experiment in the project's store, or in that of MLFLOW_TRACKING_URI.

    Args:
        experiment: its name.

    Raises:
        UserError: where the store or the experiment is missing, or it has no runs.
    """
    client = _client()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = [one.name for one in client.search_experiments()]
        near = did_you_mean(experiment, names) or f"there are: {', '.join(names[:12])}"
        raise UserError(f"mlflow: no experiment {shown(experiment)}; {near}")
    runs = list(_runs(client, found.experiment_id))
    if not runs:
        raise UserError(f"mlflow: the experiment {shown(experiment)} has no runs")
    runs.sort(key=lambda run: (run.info.start_time or 0, run.info.run_id))
    return Tracked(f"mlflow:{experiment}", runs)


def _client() -> MlflowClient:
    uri = tracking_uri()
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"mlflow: no store at {file}; MLFLOW_TRACKING_URI names another, or begin in the project's folder"
        )
    if not answers(uri):
        raise UserError(f"mlflow: the store {public_uri(uri)} does not answer")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=with_secrets(uri))


def _runs(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
