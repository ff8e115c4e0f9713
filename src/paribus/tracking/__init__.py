"""Tracking: a run's log goes to JSONL first, and a background thread feeds MLflow from it. The only import of mlflow.

Files in a run's folder, so that whatever MLflow missed can be sent later, by any later start of paribus:

    metrics.jsonl  a line a logged step {"step", "time", "loss", ...} or event {"step", "time", "event", "detail"};
                   what is not finite is written "inf", "-inf" or "nan" (MLflow stores inf as 1.8e308)
    system.jsonl   the machine, every 10 s; its step is seconds since the run began
    run.json       what the run is; written by the stage
    mlflow.json    what MLflow has of it; written by the feeder
    artifacts/     copies of the files logged

A step is never sent twice: MLflow itself is asked for the last step of every key, at each start and after each failure.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from paribus import config, runtime
from paribus.graph import file_digest
from paribus.journal import Journal, as_floats, keep_rows, locked, plain, read_json, read_lines, read_rows, write_json
from paribus.session import EXIT_PAUSED
from paribus.tracking.store import Store, connect, store_key, tracking_uri

Status = Literal["FINISHED", "KILLED", "FAILED"]

FLUSH_SECONDS = 5.0  # a batch a flush: 1,000 metrics cost MLflow's sqlite 80 ms, one by one 5 s
SYSTEM_SECONDS = 10.0
PENDING_SECONDS = 10.0  # a start spends on what earlier runs left
FINISH_SECONDS = 120.0  # without progress: a first import and migration on a busy machine; a dead server fails in 25
_BATCH = 1000  # MLflow's own limit of metrics per call

_log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the log of one run


class RunLog:
    """One computing stage's run. `with RunLog.open(...) as run:` ends it by how the block ends.

    Nothing here waits for MLflow but `finish`; a tracking server that is down costs a warning.
    """

    def __init__(self, folder: Path, root: Path, run: dict[str, Any], system_metrics: bool) -> None:
        self.folder = folder
        self._run = run
        self._ended = False
        self._feeder = _Feeder(folder, root, system_metrics)
        self._journal = Journal(folder / "metrics.jsonl", self._feeder.warn)
        self._feeder.start()

    @classmethod
    def open(cls, stage: str, *, folder: Path, config: config.Config, params: dict[str, Any], fingerprint: str,
             tags: dict[str, str] | None = None, datasets: dict[str, tuple[str, str]] | None = None,
             resume_step: int | None = None) -> RunLog:
        """Begin or go on with the run whose files are in `folder`.

        params: dotted key -> resolved value. datasets: name -> (path, digest as DVC has it).
        resume_step: the last step of the training state that was loaded; later lines of the log are dropped,
        as those steps come again. None: from the start; a run that had FINISHED is then followed by a new one.
        """
        root = runtime.state_root()
        folder.mkdir(parents=True, exist_ok=True)
        run = read_json(folder / "run.json")
        if run and run["status"] == "FINISHED" and resume_step is None:
            _put_away(folder, root, run)
            run = None
        keep_rows(folder / "metrics.jsonl", lambda row: resume_step is not None and row["step"] <= resume_step)
        keep_rows(folder / "system.jsonl")
        git = runtime.git_state()
        run = run or {"id": uuid.uuid4().hex, "created": time.time(), "execution": None, "artifacts": {}}
        if not (root / "executions" / f"{run['execution']}.json").exists():
            run["execution"] = _execution(root, config, git)["id"]
        run |= {
            "stage": stage, "experiment": config.tracking.experiment, "uri": tracking_uri(), "status": "RUNNING",
            "params": {key: _as_text(value) for key, value in params.items()},
            "tags": {"stage": stage, "fingerprint": fingerprint, **_git_tags(git), **(tags or {})},
            "datasets": datasets or {}, "summary": {},
        }
        write_json(folder / "run.json", run)
        return cls(folder, root, run, config.tracking.system_metrics)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of the log; back in microseconds."""
        self._journal.append({"step": step, "time": round(time.time(), 3), **metrics})

    def event(self, step: int, name: str, detail: str) -> None:
        """Something out of the ordinary (a spike, a rollback): in MLflow the count `events/<name>` and a tag."""
        self._journal.append({"step": step, "time": round(time.time(), 3), "event": name, "detail": detail})

    def sync(self) -> None:
        """Bring the log to the disk: call it before a training state counts as saved, or a power cut leaves a gap."""
        self._journal.sync()

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, to which training has gone back; events stay, and so does what MLflow has."""
        with self._feeder.mirror.reading:
            self._journal.keep(lambda row: "event" in row or row["step"] <= step)
            self._feeder.mirror.offsets.clear()

    def rows(self) -> list[dict[str, float]]:
        """Every logged step of the whole run, restarts included: {"step", "time", metric: value}."""
        return [as_floats(row) for row in read_rows(self._journal.path) if "event" not in row]

    def events(self) -> list[dict[str, Any]]:
        """Every event: {"step", "time", "event", "detail"}."""
        return [row for row in read_rows(self._journal.path) if "event" in row]

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Log a file, under a folder of the run's artifacts; copied, as DVC may delete the original."""
        name = f"{folder}/{Path(path).name}" if folder else Path(path).name
        copy = self.folder / "artifacts" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        self._run["artifacts"][name] = file_digest(copy)
        self._save()

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows, all with the same keys, as the MLflow table tables/<name>.json, which its page shows for several runs."""
        path = self.folder / "tables" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(rows[0])
        write_json(path, {"columns": columns, "data": [[row[column] for column in columns] for row in rows]})
        self.artifact(path, "tables")

    def summary(self, metrics: dict[str, Any]) -> None:
        """Final metrics, nested or dotted, for the run and, as `<stage>.<key>`, for its parent; text becomes tags."""
        self._run["summary"] |= {key: plain(value) for key, value in config.flatten(metrics).items()}
        self._save()

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run and wait until MLflow has all of it; not for a server that does not answer."""
        self._run |= {"status": status, "ended": time.time()}
        self._save()
        self._ended = True
        self._feeder.finish()
        self._journal.close()

    def _save(self) -> None:
        write_json(self.folder / "run.json", self._run)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        paused = isinstance(error, SystemExit) and error.code == EXIT_PAUSED
        if not self._ended:
            self.finish("KILLED" if paused or kind is KeyboardInterrupt else "FAILED" if kind else "FINISHED")


def _put_away(folder: Path, root: Path, run: dict[str, Any]) -> None:
    """Make room in `folder` for a new run; what MLflow still lacks of the old one goes to `.paribus/unsent`."""
    aside = root / "unsent" / run["id"]
    aside.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "system.jsonl", "artifacts", "mlflow.json", "run.json"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    if _all_sent(aside):
        shutil.rmtree(aside)


def _as_text(value: Any) -> str:
    """A parameter as params.yaml would have it: true, null, 0.5."""
    return value if isinstance(value, str) else json.dumps(value)


def _git_tags(git: dict[str, Any]) -> dict[str, str]:
    tags = {f"git.{name}": value for name, value in git.items()}
    tags |= {"mlflow.source.git.commit": git["commit"], "dvc.experiment": os.environ.get("DVC_EXP_NAME")}
    return {key: _as_text(value) for key, value in tags.items() if value is not None}


# ---------------------------------------------------------------- executions: the parent runs


def _execution(root: Path, settings: config.Config, git: dict[str, Any]) -> dict[str, Any]:
    """The open execution of this experiment, params and commit; begun, in `.paribus/executions`, if there is none."""
    with locked(root / "executions" / "lock"):
        key, latest = _latest_execution(root, settings, git)
        if latest and not latest["closed"]:
            return latest
        number = int(latest["id"].rpartition("-")[2]) + 1 if latest else 1
        execution = {
            "id": f"{key}-{number}", "created": time.time(), "closed": False,
            "name": os.environ.get("DVC_EXP_NAME") or f"workspace {(git['commit'] or '')[:8]}".strip(),
            "params": {name: _as_text(value) for name, value in config.flatten(settings).items()},
            "tags": {"fingerprint": key, **_git_tags(git)},
        }
        write_json(root / "executions" / f"{execution['id']}.json", execution)
        return execution


def _latest_execution(root: Path, settings: config.Config, git: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """(key, its latest execution)."""
    name = os.environ.get("DVC_EXP_NAME", "workspace")
    key = config.fingerprint(experiment=name, commit=git["commit"], params=config.flatten(settings))
    found = [read_json(path) for path in (root / "executions").glob(f"{key}-*.json")]
    return key, max((one for one in found if one), key=lambda one: int(one["id"].rpartition("-")[2]), default=None)


def close_execution(settings: config.Config) -> None:
    """The pipeline is through: a stage that runs after this begins a new parent run."""
    root = runtime.state_root()
    with locked(root / "executions" / "lock"):
        _, execution = _latest_execution(root, settings, runtime.git_state())
        if execution:
            execution["closed"] = True
            write_json(root / "executions" / f"{execution['id']}.json", execution)


# ---------------------------------------------------------------- bringing MLflow level


class _Mirror:
    """Brings MLflow level with one run's folder: each `sync` sends what it lacks."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.reading = threading.Lock()
        self.offsets: dict[str, int] = {}  # bytes of each JSONL file that were read
        self.progress = time.monotonic()
        self._counts: dict[str, int] = {}
        self._last: dict[str, int] = {}  # key -> last step that MLflow has
        self._store: Store | None = None
        self._known: dict[str, Any] = {}

    def sync(self, died: bool = False) -> None:
        """Send all there is. died: nobody writes the run any more, and one that still says RUNNING was killed."""
        run = read_json(self.folder / "run.json")
        assert run is not None, self.folder
        try:
            store = self._store or self._begin(run, died)
            for name in ("metrics.jsonl", "system.jsonl"):
                self._send_rows(store, name)
            self._send_artifacts(store, run)
            status = "KILLED" if died and run["status"] == "RUNNING" else run["status"]
            if status != self._known["status"]:
                self._end(store, run, status)
        except BaseException:
            self._store = None  # begin again: only MLflow knows what arrived
            raise

    def _begin(self, run: dict[str, Any], died: bool) -> Store:
        """Find or make the run, then learn the last step of each key from MLflow."""
        store = connect(run["uri"], run["experiment"], self.root)
        known = read_json(self.folder / "mlflow.json")
        self._known = known if known and known["uri"] == run["uri"] else {"uri": run["uri"], "run_id": None}
        parent = self._parent(store, run)
        run_id, new = store.run_of(run, self._known["run_id"], run["stage"], parent)
        if new:
            store.log_params(run_id, run["params"])
            _log_inputs(store, run_id, run)
            self._note(run_id=run_id, parent=parent, artifacts={}, status="RUNNING")
        elif self._known["status"] != "RUNNING" and not died:
            for one in (run_id, parent):
                store.client.update_run(one, status="RUNNING")
            self._note(status="RUNNING")
        # `data.metrics` has the values only; these entities, the latest of each key, have the steps.
        self._last = {metric.key: metric.step for metric in store.client.get_run(run_id).data._metric_objs}
        self.offsets.clear()
        self._store = store
        return store

    def _note(self, **facts: Any) -> None:
        self._known |= facts
        self.progress = time.monotonic()
        write_json(self.folder / "mlflow.json", self._known)

    def _parent(self, store: Store, run: dict[str, Any]) -> str:
        """The id of the execution's run, made if MLflow has none."""
        execution = read_json(self.root / "executions" / f"{run['execution']}.json")
        assert execution is not None, run["execution"]
        path = self.root / "executions" / "mlflow" / f"{execution['id']}.json"
        with locked(path.with_suffix(".lock")):
            known = read_json(path) or {}
            run_id, new = store.run_of(execution, known.get(run["uri"]), execution["name"])
            if new:
                store.log_params(run_id, execution["params"])
                write_json(path, known | {run["uri"]: run_id})
        return run_id

    def _send_rows(self, store: Store, name: str) -> None:
        from mlflow.entities import Metric

        while lines := self._read(name):
            metrics: list[Metric] = []
            tags: dict[str, str] = {}
            for row in map(json.loads, lines):
                step, milliseconds = row.pop("step"), int(row.pop("time") * 1000)
                if "event" in row:
                    count = self._counts[row["event"]] = self._counts.get(row["event"], 0) + 1
                    tags[f"event.{row['event']}"] = f"{count} in all, the last at step {step}: {row['detail']}"[:5000]
                    row = {f"events/{row['event']}": count}
                for key, value in as_floats(row).items():
                    if step > self._last.get(store_key(key), -1):
                        metrics.append(Metric(store_key(key), value, milliseconds, step))
                        self._last[store_key(key)] = step
            for start in range(0, len(metrics), _BATCH):
                store.client.log_batch(self._known["run_id"], metrics=metrics[start:start + _BATCH])
                self.progress = time.monotonic()
            for key, text in tags.items():
                store.client.set_tag(self._known["run_id"], store_key(key), text)

    def _read(self, name: str) -> list[bytes]:
        with self.reading:
            offset = self.offsets.get(name, 0)
            if offset == 0 and name == "metrics.jsonl":
                self._counts = {}
            lines = read_lines(self.folder / name, offset)
            self.offsets[name] = offset + sum(map(len, lines))
        return lines

    def _send_artifacts(self, store: Store, run: dict[str, Any]) -> None:
        sent = self._known["artifacts"]
        for name, digest in run["artifacts"].items():
            if sent.get(name) != digest:
                place = str(Path(name).parent) if "/" in name else None
                store.client.log_artifact(self._known["run_id"], str(self.folder / "artifacts" / name), place)
                self._note(artifacts=sent | {name: digest})
                sent = self._known["artifacts"]
                if place == "tables":
                    tables = [{"path": each, "type": "table"} for each in sent if each.startswith("tables/")]
                    store.client.set_tag(self._known["run_id"], "mlflow.loggedArtifacts", json.dumps(tables))

    def _end(self, store: Store, run: dict[str, Any], status: str) -> None:
        """Final metrics, for the run and its parent, and how it ended."""
        numbers = {key: float(value) for key, value in run["summary"].items() if _is_number(value)}
        texts = {key: value for key, value in run["summary"].items() if isinstance(value, str) and key not in numbers}
        last = max((step for key, step in self._last.items() if not key.startswith("system/")), default=0)
        for run_id, prefix, step in ((self._known["run_id"], "", last), (self._known["parent"], run["stage"] + ".", 0)):
            _log_final(store, run_id, {store_key(prefix + key): value for key, value in numbers.items()}, step)
            for key, text in texts.items():
                store.client.set_tag(run_id, store_key(prefix + key), text[:5000])
            ended = int(run.get("ended", time.time()) * 1000)
            store.client.set_terminated(run_id, status, end_time=ended)
        self._note(status=status)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or value in ("inf", "-inf", "nan")


def _log_final(store: Store, run_id: str, metrics: dict[str, float], step: int) -> None:
    """Log the metrics whose latest value is another, so that ending a run again repeats nothing."""
    from mlflow.entities import Metric

    there = store.client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    changed = [Metric(key, value, now, step) for key, value in metrics.items() if there.get(key) != value]
    for start in range(0, len(changed), _BATCH):
        store.client.log_batch(run_id, metrics=changed[start:start + _BATCH])


def _log_inputs(store: Store, run_id: str, run: dict[str, Any]) -> None:
    """Lineage. MLflow cuts digests at 36 characters."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    context = [InputTag("mlflow.data.context", run["stage"])]
    inputs = [DatasetInput(Dataset(name, digest[:36], "local", json.dumps({"uri": str(path)})), context)
              for name, (path, digest) in run["datasets"].items()]
    if inputs:
        store.client.log_inputs(run_id, inputs)


# ---------------------------------------------------------------- in the background


class _Feeder(threading.Thread):
    """Feeds MLflow from a run's folder, samples the machine, and sends what earlier runs could not."""

    def __init__(self, folder: Path, root: Path, system_metrics: bool) -> None:
        super().__init__(name="tracking", daemon=True)
        self.mirror = _Mirror(folder, root)
        self._system_metrics = system_metrics
        self._finishing = threading.Event()
        self._warned: set[str] = set()
        self._failures = 0

    def run(self) -> None:
        with locked(self.mirror.folder / "feeder.lock"):
            samples = self._samples() if self._system_metrics else None
            pending = True
            finishing = False
            while not finishing:
                finishing = self._finishing.is_set()  # looked at before the attempt, which then sends the last line
                if self._attempt() and pending:
                    pending = False
                    send_pending(self.mirror.root, PENDING_SECONDS)
                if samples:
                    next(samples)
                self._finishing.wait(FLUSH_SECONDS * 2 ** min(self._failures, 3))

    def _attempt(self) -> bool:
        try:
            self.mirror.sync()
            self._failures = 0
        except Exception as error:  # the run must go on whatever the server, the network or mlflow does
            self._failures += 1
            self.warn(f"MLflow at {tracking_uri()} is not to be had ({_brief(error)}); the run goes on, and what is "
                      "missed is sent later", "MLflow")
        return self._failures == 0

    def _samples(self) -> Iterator[None]:
        """Each `next` appends a sample of the machine to system.jsonl, when one is due."""
        folder = self.mirror.folder
        began = (read_json(folder / "run.json") or {})["created"]
        use, journal = runtime.MachineUse(), Journal(folder / "system.jsonl", self.warn)
        due = time.monotonic() + SYSTEM_SECONDS
        while True:
            yield
            if time.monotonic() >= due:
                due = time.monotonic() + SYSTEM_SECONDS
                now = time.time()
                sample = {f"system/{name}": value for name, value in use.sample().items()}
                journal.append({"step": int(now - began), "time": round(now, 3), **sample})

    def warn(self, text: str, subject: str = "disk") -> None:
        """Once per subject."""
        if subject not in self._warned:
            self._warned.add(subject)
            _log.warning(text)

    def finish(self) -> None:
        """Wait for the last line to arrive, as long as there is progress."""
        self.mirror.progress = time.monotonic()
        self._finishing.set()
        while self.is_alive():
            self.join(0.5)
            if time.monotonic() - self.mirror.progress > FINISH_SECONDS:
                self.warn("MLflow takes too long; what it lacks is sent by a later start", "finish")
                break


def _brief(error: Exception) -> str:
    """The innermost cause, on one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def send_pending(root: Path, seconds: float = math.inf) -> int:
    """Send what MLflow lacks of runs that nobody writes any more; how many. A server that is down ends it quietly.

    root: `runtime.state_root()`. No further run is begun after so many seconds.
    """
    sent, deadline = 0, time.monotonic() + seconds
    for path in [*root.glob("unsent/*/run.json"), *root.glob("runs/*/run.json")]:
        if time.monotonic() > deadline or _all_sent(path.parent):
            continue
        with locked(path.parent / "feeder.lock", wait=False) as free:
            if not free:
                continue
            try:
                _Mirror(path.parent, root).sync(died=True)
                sent += 1
            except Exception as error:
                _log.info("%s: not sent: %s", path.parent, _brief(error))
                break
        if path.is_relative_to(root / "unsent"):
            shutil.rmtree(path.parent)
    return sent


def _all_sent(folder: Path) -> bool:
    """Whether MLflow was told how the run ended, which is told last."""
    run, known = read_json(folder / "run.json"), read_json(folder / "mlflow.json")
    if not run or not known or known["uri"] != run["uri"]:
        return False
    return known["status"] == ("KILLED" if run["status"] == "RUNNING" else run["status"])
