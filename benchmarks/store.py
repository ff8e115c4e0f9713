"""What the commands that read many runs take: `python benchmarks/store.py --runs 500 5000 --out store.json`.

A store of SQLite is filled through MLflow's own tables: one execution and its stage are logged by MLflow's client, with
every key of params.yaml and a curve of 10 points of 30 metrics, and their rows are copied. Then, in processor seconds:

    grade      paribus plan --grade --json
    compare    paribus compare of two runs, by their names in MLflow
    ledger     paribus ledger --json
    report     paribus ablate report of a study, beside that store, of `--study` runs which a trainer of a few lines computed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from small import ROOT
from steps import machine
from support.studied import LightProject

from paribus.config import flatten, load_config

POINTS = 10  # of a curve
METRICS = 30
TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")
LOGGED = """
import json, sys
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
facts = json.load(open(sys.argv[1]))
client = MlflowClient("sqlite:///mlflow.db")
experiment = client.create_experiment("paribus", artifact_location="mlartifacts")
parent = ""
for name in ("execution", "stage"):
    tags = {"stage": "pretrain", "hardware": "a card", "paribus.run": name}
    if parent:
        tags["mlflow.parentRunId"] = parent
    run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    params = [Param(key, value[:500]) for key, value in facts["params"].items()]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start:start + 100])
    points = [Metric(key, value, 0, step) for key, step, value in facts["metrics"]]
    for start in range(0, len(points), 1000):
        client.log_batch(run, metrics=points[start:start + 1000])
    client.set_terminated(run)
    parent = run
"""


def curve() -> list[tuple[str, int, float]]:
    """(metric, step, value) of a run that has a prediction, its measurement and a curve."""
    points = [
        (f"train/m{number}", step, 1.0) for number in range(METRICS) for step in range(POINTS)
    ]
    last = {"predicted/memory_bytes": 9e8, "predicted/seconds": 90.0}
    last |= {"train/peak_memory_bytes": 1e9, "seconds": 100.0, "val_bpb": 1.0}
    return points + [(key, POINTS, value) for key, value in last.items()]


def first_runs(project: LightProject) -> None:
    """An execution and its stage, logged by MLflow."""
    config = load_config(project.root / "params.yaml")
    params = {key: str(value) for key, value in flatten(config).items()}
    facts = project.root / ".paribus" / "facts.json"
    facts.parent.mkdir(exist_ok=True)
    facts.write_text(json.dumps({"params": params, "metrics": curve()}))
    project.run(sys.executable, "-c", LOGGED, str(facts))


def fill(store: Path, runs: int) -> None:
    """Copy the rows of the two first runs until the store has so many."""
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        named = "select name, run_uuid from runs where name in ('execution', 'stage')"
        first = dict(connection.execute(named))
        [held] = connection.execute("select count(*) from runs").fetchone()
        connection.execute("create temp table copies (original, name, run_uuid)")
        for number in range(held // 2, runs // 2):
            for name, original in first.items():
                row = (original, f"{name}-{number}", new_id(name, number))
                connection.execute("insert into copies values (?, ?, ?)", row)
        for table in TABLES:
            copy_rows(connection, table)
        renamed = "(select name from copies where copies.run_uuid = tags.run_uuid)"
        new = "run_uuid in (select run_uuid from copies)"
        connection.execute(
            f"update tags set value = {renamed} where key = 'mlflow.runName' and {new}"
        )
        parent = "'e' || substr(run_uuid, 2)"  # the execution's id, by that of its stage
        connection.execute(
            f"update tags set value = {parent} where key = 'mlflow.parentRunId' and {new}"
        )


def new_id(name: str, number: int) -> str:
    """The run id of a copy."""
    return f"{'e' if name == 'execution' else 'a'}{number:031x}"


def copy_rows(connection: sqlite3.Connection, table: str) -> None:
    """One table's rows of the originals, once for each copy, under its id."""
    columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
    renamed = {"run_uuid", "name"} if table == "runs" else {"run_uuid"}
    chosen = [f"copies.{name}" if name in renamed else f"{table}.{name}" for name in columns]
    connection.execute(
        f"insert into {table} ({', '.join(columns)}) select {', '.join(chosen)} "
        f"from {table} join copies on {table}.run_uuid = copies.original"
    )


def processor_seconds(project: LightProject, *arguments: str) -> float:
    """Of one command, which may answer no."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = project.run(sys.executable, "-m", "paribus", *arguments, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        sys.exit(f"paribus {' '.join(arguments)}: {done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(project: LightProject) -> dict[str, float]:
    """Processor seconds of the commands that read the store."""
    return {
        "grade": processor_seconds(project, "plan", "--grade", "--json"),
        "compare": processor_seconds(project, "compare", "execution-1", "execution-2"),
        "ledger": processor_seconds(project, "ledger", "--json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--study", type=int, default=100, help="runs of the study; 0: none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "processor_seconds": {}}
    with tempfile.TemporaryDirectory(prefix="paribus-store-") as name:
        project = LightProject(Path(name) / "project", ROOT).start()
        first_runs(project)
        for runs in sorted(options.runs):
            fill(project.root / "mlflow.db", runs)
            found["processor_seconds"][str(runs)] = commands(project)
            print(runs, json.dumps(found["processor_seconds"][str(runs)]), flush=True)
        if options.study:
            seeds = options.study // 2
            project.study("many", seeds=seeds)
            project.execute("many", workers=2)
            seconds = processor_seconds(project, "ablate", "report", "many")
            found["report"] = {"runs": 2 * seeds, "processor_seconds": seconds}
            print("report", json.dumps(found["report"]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
