"""Bringing MLflow level with a run's folder.

A step is never sent twice: MLflow itself is asked for the last step of every key, at each start and after each failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from paribus.curriculum import CHECKPOINT_NAMES
from paribus.files import parse
from paribus.journal import ROW, as_floats, read_json, write_json
from paribus.tracking.address import with_secrets
from paribus.tracking.labels import GROUP
from paribus.tracking.lookup import SUMMARY
from paribus.tracking.models import keep_model
from paribus.tracking.records import (
    Execution,
    Known,
    RunRecord,
    family_of,
    read_execution,
    read_known,
    read_parents,
    read_run,
    run_files,
)
from paribus.tracking.shown import (
    EXPECTED,
    MOST_ABOVE,
    headline,
    is_shown,
    note_above,
    number,
    shown_figures,
)
from paribus.tracking.store import Store, connect, store_key

if TYPE_CHECKING:
    from mlflow.entities import Metric

_BATCH = 1000  # MLflow's own limit of metrics per call
# How a run ended -> MLflow's word for it. A paused run waits to go on: its page shows a clock and no red cross.
_STATUS = {"PAUSED": "SCHEDULED"}
PAUSED = "paused"  # the tag that says where a run stands
NOTE = "mlflow.note.content"
LOGGED_TABLES = "mlflow.loggedArtifacts"
REPORT = "report"  # the tag of a study's report, which the run above it shows
WEIGHTS = "weights_sha256"
ANSWERS = "tables/gsm8k.json"  # all answers of a stage, and above them those of all stages


class Mirror:
    """MLflow's copy of one run; each `sync` sends what it lacks."""

    def __init__(
        self, folder: Path, root: Path, progress: Callable[[], None] = lambda: None
    ) -> None:
        """progress: called whenever MLflow took something."""
        self.folder, self.root, self._progress = folder, root, progress
        self._files = {name: _Follower(folder / name) for name in ("metrics.jsonl", "system.jsonl")}
        self._counts: dict[str, int] = {}  # of events, by name
        self._last: dict[str, int] = {}  # key -> last step that MLflow has
        self._store: Store | None = None
        self._known = Known(uri="", run="")

    def sync(self, died: bool = False) -> None:
        """Send everything. died: the run's process is gone, so a run that is still RUNNING was killed."""
        run = read_run(self.folder, move=False)
        if run is None:  # moved away this instant
            return
        status = "KILLED" if died and run.status == "RUNNING" else run.status
        try:
            if self._store is None or self._known.run != run.id:
                self._store = self._begin(run)
            if status == "RUNNING" and self._known.status != "RUNNING":
                self._go_on(self._store)
            for name in self._files:
                self._send_rows(self._store, name)
            self._send_artifacts(self._store, run)
            if status != "RUNNING" and not _has_end(self._known, run, status):
                self._end(self._store, run, status)
        except BaseException:
            self._store = None  # begin again: only MLflow knows what arrived
            raise

    def _begin(self, run: RunRecord) -> Store:
        """Find or make the run, then learn the last step of each key from MLflow."""
        store = connect(with_secrets(run.uri), run.experiment, self.root)
        self._known = known_of(self.folder, run) or Known(uri=run.uri, run=run.id)
        parent = self._parent(store, run)
        name = run.name or run.stage
        run_id, new = store.run_of(run, self._known.run_id, name, parent)
        if new:
            store.log_params(run_id, run.params)
            _log_inputs(store, run_id, run)
            self._note(run_id=run_id, parent=parent, artifacts={}, status="RUNNING")
        # `data.metrics` has the values only; these entities, the latest of each key, have the steps.
        self._last = {
            metric.key: metric.step for metric in store.client.get_run(run_id).data._metric_objs
        }
        for follower in self._files.values():
            follower.rewind()
        return store

    def _go_on(self, store: Store) -> None:
        """Mark a run that had ended as running again."""
        for run_id in (self._run_id, self._known.parent or ""):
            store.client.update_run(run_id, status="RUNNING")
        if self._known.status == "PAUSED":
            store.client.delete_tag(self._run_id, PAUSED)
        self._note(status="RUNNING")

    @property
    def _run_id(self) -> str:
        """MLflow's id of the run, which `_begin` has found or made."""
        assert self._known.run_id is not None
        return self._known.run_id

    def _note(self, **facts: Any) -> None:
        self._known = dataclasses.replace(self._known, **facts)
        self._progress()
        self._known.write(self.folder / "mlflow.json")

    def _parent(self, store: Store, run: RunRecord) -> str:
        """The id of the run above, which is created if MLflow lacks it."""
        execution = _read_execution(self.root, run.execution) or _bare_execution(run)
        return self._above(store, execution, run.uri)

    def _above(self, store: Store, execution: Execution, uri: str) -> str:
        """The id of an execution's run; it is created below its study's if MLflow lacks it."""
        path = self.root / "executions" / "mlflow" / f"{execution.id}.json"
        known = read_parents(path)
        study = _read_execution(self.root, execution.parent)
        parent = self._above(store, study, uri) if study else ""
        run_id, new = store.run_of(execution, known.get(uri), execution.name, parent)
        if new:
            store.log_params(run_id, execution.params)
            if parent:  # which may have ended before
                store.client.update_run(parent, status="RUNNING")
            path.parent.mkdir(exist_ok=True)
            write_json(path, known | {uri: run_id})
        return run_id

    def _send_rows(self, store: Store, name: str) -> None:
        while lines := self._files[name].read():
            if self._files[name].from_start and name == "metrics.jsonl":
                self._counts = {}
            metrics: list[Metric] = []
            tags: dict[str, str] = {}
            for line in lines:
                row, problem = parse(line, ROW)
                if problem is None:  # else the stage names the line when it starts again
                    self._take(row, metrics, tags)
            for start in range(0, len(metrics), _BATCH):
                store.client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])
                self._progress()
            for key, text in tags.items():
                store.client.set_tag(self._run_id, store_key(key), text)

    def _take(self, row: dict[str, Any], metrics: list[Metric], tags: dict[str, str]) -> None:
        """Add to `metrics` and `tags` what MLflow lacks of a row of the log."""
        from mlflow.entities import Metric

        step, milliseconds = int(row.pop("step")), int(row.pop("time") * 1000)
        if "event" in row:
            event = str(row["event"])
            count = self._counts[event] = self._counts.get(event, 0) + 1
            text = f"{count} in all, the last at step {step}: {row.get('detail', '')}"
            tags[f"event.{event}"] = text[:5000]
            row = {f"events/{event}": count}
        for name, value in as_floats(row).items():
            key = store_key(name)
            if name.startswith(EXPECTED):
                tags[key.replace("/", ".")] = str(value)
            elif step > self._last.get(key, -1) and is_shown(key, self._last):
                metrics.append(Metric(key, value, milliseconds, step))
                self._last[key] = step

    def _send_artifacts(self, store: Store, run: RunRecord) -> None:
        for name, digest in run.artifacts.items():
            copy = self.folder / "artifacts" / name
            if self._known.artifacts.get(name) == digest or not copy.is_file():
                continue
            place = str(Path(name).parent) if "/" in name else None
            store.client.log_artifact(self._run_id, str(copy), place)
            self._note(artifacts=dict(self._known.artifacts) | {name: digest})
            if place == "tables":
                self._list_tables(store)

    def _list_tables(self, store: Store) -> None:
        """Tell MLflow's page which artifacts are tables."""
        tables = []
        for name in self._known.artifacts:
            if name.startswith("tables/"):
                tables.append({"path": name, "type": "table"})
        store.client.set_tag(self._run_id, LOGGED_TABLES, json.dumps(tables))

    def _end(self, store: Store, run: RunRecord, status: str) -> None:
        """Final figures, for the run and the one above, and how it ended."""
        texts = {key: value for key, value in run.summary.items() if number(value) is None}
        for key, text in texts.items():
            store.client.set_tag(self._run_id, store_key(key), str(text)[:5000])
        steps = [step for key, step in self._last.items() if not key.startswith("system/")]
        last = max(steps, default=0)
        figures = _figures(run)
        _log_final(store, self._run_id, shown_figures(figures, self._last), last)
        if status == "PAUSED":
            store.client.set_tag(self._run_id, PAUSED, f"at step {last}; the next start goes on")
        else:
            self._keep_all(store, run)
        execution = _read_execution(self.root, run.execution)
        group = execution is not None and GROUP in execution.tags
        if status == "FINISHED" and not group and not (execution and execution.parent):
            keep_model(store, self._run_id, run, self.folder / "artifacts")
        ended = int((time.time() if run.ended is None else run.ended) * 1000)
        parent = self._known.parent or ""
        if not group:
            self._end_above(store, run, execution)
        elif run.tags.get(REPORT):
            _log_final(store, parent, dict(list(figures.items())[:MOST_ABOVE]), 0)
            store.client.set_tag(parent, NOTE, run.tags.get(NOTE, ""))
        store.end(self._run_id, _STATUS.get(status, status), ended)
        if not group or run.tags.get(REPORT):  # one trial of many ends no search
            store.end(parent, _STATUS.get(status, status), ended)
        self._note(status=status, session=run.session)

    def _keep_all(self, store: Store, run: RunRecord) -> None:
        """The whole summary and log as artifacts: MLflow's metrics are a choice of them."""
        if run.summary:
            store.client.log_dict(self._run_id, dict(run.summary), SUMMARY)
        if (self.folder / "metrics.jsonl").is_file():
            store.client.log_artifact(self._run_id, str(self.folder / "metrics.jsonl"), "log")

    def _end_above(self, store: Store, run: RunRecord, execution: Execution | None) -> None:
        """The headline, the note and the answers of all stages, for the run above."""
        parent = self._known.parent or ""
        family = family_of(self.root, run.execution or "")
        _log_final(store, parent, headline(family), 0)
        if isinstance(run.summary.get(WEIGHTS), str):
            name = store_key(f"{run.stage}.{WEIGHTS}")
            store.client.set_tag(parent, name, str(run.summary[WEIGHTS]))
        if execution is not None:
            note = note_above(execution.name, execution.tags, family)
            store.client.set_tag(parent, NOTE, note)
        if ANSWERS in run.artifacts:
            table = _answers_of_all(self.root, run.execution or "")
            store.client.log_dict(parent, table, ANSWERS)
            tables = json.dumps([{"path": ANSWERS, "type": "table"}])
            store.client.set_tag(parent, LOGGED_TABLES, tables)


def _figures(run: RunRecord) -> dict[str, float]:
    """The numbers of a run's summary, by the names that MLflow takes."""
    figures = {}
    for key, value in run.summary.items():
        figure = number(value)
        if figure is not None:
            figures[store_key(key)] = figure
    return figures


def _answers_of_all(root: Path, execution: str) -> dict[str, object]:
    """The rows of every stage's table of answers, with the stage as first column."""
    columns: list[str] = []
    rows: list[list[object]] = []
    for path in run_files(root):
        run = read_run(path.parent, move=False)
        table = read_json(path.parent / "artifacts" / ANSWERS)
        if run is None or run.execution != execution or table is None:
            continue
        columns = ["stage", *table["columns"]]
        rows += [[run.stage.partition("@")[2], *row] for row in table["data"]]
    rows.sort(key=lambda row: CHECKPOINT_NAMES.index(str(row[0])))
    return {"columns": columns, "data": rows}


def _read_execution(root: Path, execution: str | None) -> Execution | None:
    return read_execution(root / "executions" / f"{execution}.json") if execution else None


class _Follower:
    """Reads a JSONL file as it grows, and again from its start once it was replaced by another.

    It is kept open, so that the kernel gives its number to no other file meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.from_start = True  # whether the lines last read are the file's first
        self._file: BinaryIO | None = None

    def rewind(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def read(self) -> list[bytes]:
        """The next whole lines, about a hundred kilobytes; none if the file is missing."""
        with contextlib.suppress(FileNotFoundError):
            if self._file and os.fstat(self._file.fileno()).st_ino != self.path.stat().st_ino:
                self.rewind()
            self._file = self._file or self.path.open("rb")
            self.from_start = self._file.tell() == 0
            lines = self._file.readlines(100_000)
            if lines and not lines[-1].endswith(b"\n"):
                self._file.seek(-len(lines.pop()), os.SEEK_CUR)
            return lines
        return []


def known_of(folder: Path, run: RunRecord) -> Known | None:
    """The note that MLflow has this run; None if the note is about another run or another store."""
    known = read_known(folder)
    return known if known and (known.uri, known.run) == (run.uri, run.id) else None


def all_sent(folder: Path) -> bool:
    """Whether MLflow has the final status of a run whose process is gone; the status is sent last."""
    run = read_run(folder, move=False)
    known = known_of(folder, run) if run else None
    if run is None or known is None:
        return False
    return _has_end(known, run, "KILLED" if run.status == "RUNNING" else run.status)


def _has_end(known: Known, run: RunRecord, status: str) -> bool:
    """Whether MLflow has this end of the run, which may have ended so once before and then gone on."""
    return (known.status, known.session) == (status, run.session)


def _bare_execution(run: RunRecord) -> Execution:
    """The known facts about an execution whose own file is lost: MLflow has the rest if it was sent before."""
    name = run.execution or f"of {run.id}"
    return Execution(id=name, created=run.created, name=f"execution {name}")


def _log_final(store: Store, run_id: str, metrics: dict[str, float], step: int) -> None:
    """Log the metrics whose latest value has changed, so that ending a run again repeats nothing."""
    from mlflow.entities import Metric

    there = store.client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    changed = [
        Metric(key, value, now, step) for key, value in metrics.items() if there.get(key) != value
    ]
    for start in range(0, len(changed), _BATCH):
        store.client.log_batch(run_id, metrics=changed[start : start + _BATCH])


def _log_inputs(store: Store, run_id: str, run: RunRecord) -> None:
    """Lineage. MLflow cuts digests at 36 characters."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    context = [InputTag("mlflow.data.context", run.stage)]
    inputs = [
        DatasetInput(Dataset(name, digest[:36], "local", json.dumps({"uri": str(path)})), context)
        for name, (path, digest) in run.datasets.items()
    ]
    if inputs:
        store.client.log_inputs(run_id, inputs)
