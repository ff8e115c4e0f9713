"""Whether the MLflow store accepts runs, for `paribus doctor`."""

from __future__ import annotations

import http.client
import json
import os
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from paribus.tracking.address import (
    basic_authorization,
    is_server,
    public_uri,
    redacted,
    sqlite_file,
    tracking_uri,
)

SECONDS = 5  # to wait for a server
MOST_SKEW = 60  # seconds between two clocks


@dataclass(frozen=True)
class Health:
    """broken: no run arrives there as it is."""

    state: Literal["ok", "broken"]
    text: str


def store_health(experiment: str) -> Health:
    """Ask the store of this project whether it is there, and whether the experiment takes runs."""
    uri = tracking_uri()
    file = sqlite_file(uri)
    if file is not None:
        return _file_health(file, experiment)
    if is_server(uri):
        return _server_health(uri, experiment)
    return Health("ok", f"{public_uri(uri)} (asked at the first run)")


# ---------------------------------------------------------------- a server


def _server_health(uri: str, experiment: str) -> Health:
    shown = public_uri(uri)
    problem = _address_problem(uri)
    if problem:
        return Health("broken", f"{shown}: {problem}")
    try:
        with _ask(uri, "health") as answer:
            skew = abs(_date(answer.headers.get("Date")) - time.time())
    except urllib.error.HTTPError as error:
        return _refusal(shown, error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return Health(
            "broken",
            f"{shown} does not answer ({redacted(str(reason))}): start the server, or unset MLFLOW_TRACKING_URI; "
            "runs go on without it and are sent later",
        )
    if skew > MOST_SKEW:
        return Health(
            "broken", f"{shown}: its clock and this one are {skew:,.0f} s apart: synchronise them"
        )
    return _server_experiment(uri, experiment)


def _server_experiment(uri: str, experiment: str) -> Health:
    shown = public_uri(uri)
    query = urllib.parse.urlencode({"experiment_name": experiment}, errors="replace")
    try:
        with _ask(uri, f"api/2.0/mlflow/experiments/get-by-name?{query}") as answer:
            stage = json.load(answer)["experiment"]["lifecycle_stage"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            return _refusal(shown, error)
        stage = "absent"
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return Health(
            "broken",
            f"{shown} answers, but not as an MLflow server does: is another one listening at this address?",
        )
    if stage == "deleted":
        return Health("broken", f"{shown}: {_deleted(experiment)}")
    return Health("ok", f"{shown} answers")


def _ask(uri: str, path: str) -> http.client.HTTPResponse:
    address = f"{public_uri(uri).rstrip('/')}/{path}"
    request = urllib.request.Request(address, headers=basic_authorization(uri))
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SECONDS)
    return answer


def _address_problem(uri: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(public_uri(uri))
        port = parts.port
    except ValueError as error:
        return f"MLFLOW_TRACKING_URI is no address ({error})"
    if not parts.hostname:
        return "MLFLOW_TRACKING_URI names no host"
    return f"MLFLOW_TRACKING_URI: no server has port {port}" if port == 0 else None


def _refusal(shown: str, error: urllib.error.HTTPError) -> Health:
    if error.code in (401, 403):
        cure = "set user and password in MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return Health(
            "broken", f"{shown} asks who is there and refuses this name (HTTP {error.code}): {cure}"
        )
    return Health(
        "broken",
        f"{shown} answers with an error (HTTP {error.code}); see the server's log; runs go on without it and are "
        "sent later",
    )


def _date(text: str | None) -> float:
    return parsedate_to_datetime(text).timestamp() if text else time.time()


def _deleted(experiment: str) -> str:
    return (
        f"experiment {experiment!r} was deleted there, so that it takes no run: `mlflow experiments restore "
        "--experiment-id ID` (`mlflow experiments search --view all` lists them), or choose another "
        "tracking.experiment; what is missed is sent later"
    )


# ---------------------------------------------------------------- a file


def _file_health(path: Path, experiment: str) -> Health:
    if not path.exists():
        if os.access(path.parent, os.W_OK):
            return Health("ok", f"{path}: made by the first run")
        return Health(
            "broken", f"{path.parent} cannot be written to: chown it, or set MLFLOW_TRACKING_URI"
        )
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=SECONDS)
        try:
            sound = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            deleted = _is_deleted(connection, experiment)
        finally:
            connection.close()
    except sqlite3.Error as error:
        sound, runs, deleted = str(error), 0, False
    if sound != "ok":
        return Health("broken", f"{path}: {sound}; {MOVE_AWAY}")
    if not os.access(path, os.W_OK):
        return Health(
            "broken", f"{path} cannot be written to: chown it, or set MLFLOW_TRACKING_URI"
        )
    if deleted:
        return Health("broken", f"{path}: {_deleted(experiment)}")
    return Health("ok", f"{path}: {runs:,} runs")


MOVE_AWAY = "move it away: the next run makes a new one, and `.paribus/` keeps what each run logged"


def _is_deleted(connection: sqlite3.Connection, experiment: str) -> bool:
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'")
    if tables.fetchone() is None:
        return False
    question = "SELECT lifecycle_stage FROM experiments WHERE name = ?"
    name = experiment.encode(errors="replace").decode()  # sqlite takes no lone surrogate
    row = connection.execute(question, [name]).fetchone()
    return row is not None and row[0] == "deleted"
