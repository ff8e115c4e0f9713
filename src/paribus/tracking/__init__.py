"""Tracking: a run's log goes to files first, and another process (sender.py) feeds MLflow from them.

Only this package imports mlflow, and only the sender among the processes of a pipeline. Files in a run's folder, so
that whatever MLflow missed can be sent later, after any later start of paribus:

    metrics.jsonl  a line a logged step {"step", "time", "loss", ...} or event {"step", "time", "event", "detail"};
                   what is not finite is written "inf", "-inf" or "nan" (MLflow stores inf as 1.8e308)
    system.jsonl   the machine, every 10 s; its step is seconds since the run began
    run.json       the run's description; written by the stage
    mlflow.json    what MLflow has of it; written by the sender
    artifacts/     copies of the files logged
    writer.lock    held by the process that logs
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from paribus import config
from paribus.errors import naming
from paribus.files import Extent
from paribus.graph import file_digest
from paribus.journal import (
    ROW,
    Journal,
    keep_rows,
    locked,
    logged_steps,
    plain,
    read_rows,
    write_json,
)
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.machine.process import MachineUse
from paribus.machine.provenance import git_state
from paribus.places import dvc_experiment, state_root
from paribus.tracking import sender
from paribus.tracking.address import has_secrets, public_uri, tracking_uri
from paribus.tracking.labels import GROUP, Label, label_of, stage_words
from paribus.tracking.mirror import all_sent
from paribus.tracking.records import (
    Execution,
    RunRecord,
    read_execution,
    read_known,
    read_run,
    run_files,
)

Status = Literal["FINISHED", "PAUSED", "KILLED", "FAILED"]

FLUSH_SECONDS = 5.0  # a batch a flush: 1,000 metrics cost MLflow's sqlite 80 ms, one by one 5 s
SYSTEM_SECONDS = 10.0
FINISH_SECONDS = 120.0  # without progress: a first import and migration on a busy machine; a dead server fails in 25
STOPPED_SECONDS = (
    5.0  # of a run that was asked to stop: the sender goes on by itself when the stage has gone
)

# Tags of the run above that its stages have too: curves are grouped by them.
INHERITED = ("study", "arm", "seed", "profile", "changed")

_log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the log of one run


class RunLog:
    """One computing stage's run. `with RunLog.open(...) as run:` ends it by how the block ends.

    Nothing here waits for MLflow but `finish`; a tracking server that is down costs a warning.
    """

    def __init__(
        self, folder: Path, root: Path, run: RunRecord, system_metrics: bool, held: ExitStack
    ) -> None:
        """held: gives the run's lock back."""
        self.folder, self._root = folder, root
        self._run = run
        self._ended = False
        self._held = held
        self._background = _Background(folder, root, run.uri, run.created, system_metrics)
        self._journal = Journal(folder / "metrics.jsonl", self._background.warn)
        self._background.start()

    @classmethod
    def open(
        cls,
        stage: str,
        *,
        folder: Path,
        config: config.Config,
        params: Mapping[str, object],
        fingerprint: str,
        tags: dict[str, str] | None = None,
        datasets: dict[str, tuple[str, str]] | None = None,
        resume_step: int | None = None,
        group: str | None = None,
        name: str | None = None,
    ) -> RunLog:
        """Begin or go on with the run whose files are in `folder`.

        params: dotted key -> resolved value. datasets: name -> (path, digest as DVC has it).
        resume_step: the last step of the training state that was loaded; later lines of the log are dropped,
        as those steps come again. None: from the start; a run that had FINISHED is then followed by a new one.
        group: the name of a study or search that the run is filed under; None: under that of its DVC experiment, or of
        the workspace. name: in MLflow; None: the stage and what its parent is called.
        """
        root = state_root()
        for path in run_files(root):  # a damaged one is named here, where a person reads it
            read_run(path.parent)
        held = ExitStack()
        held.enter_context(locked(folder / "writer.lock"))
        run = read_run(folder)
        if run and run.status == "FINISHED" and resume_step is None:
            _put_away(folder, root, run)
            run = None
        keep_rows(
            folder / "metrics.jsonl",
            lambda row: resume_step is not None and row["step"] <= resume_step,
            ROW,
        )
        keep_rows(folder / "system.jsonl", shape=ROW)
        git = git_state()
        began = run or _new_run(folder, goes_on=resume_step is not None)
        above = read_execution(root / "executions" / f"{began.execution}.json")
        if above is None:
            above = _execution(root, config, git, group)
        known_tags = {"stage": stage, "fingerprint": fingerprint, **_git_tags(git, group)}
        known_tags |= {key: above.tags[key] for key in INHERITED if key in above.tags}
        run = dataclasses.replace(
            began,
            execution=above.id,
            stage=stage,
            name=name or f"{stage_words(stage)} {above.name}",
            experiment=config.tracking.experiment,
            uri=public_uri(tracking_uri()),
            status="RUNNING",
            params={key: _as_text(value) for key, value in params.items()},
            tags=known_tags | (tags or {}),
            datasets=datasets or {},
            summary={},
            session=uuid.uuid4().hex,
            flush_seconds=FLUSH_SECONDS,
            ended=None,
        )
        run.write(folder / "run.json")
        if has_secrets(tracking_uri()):
            sender.renew(root)
        return cls(folder, root, run, config.tracking.system_metrics, held)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of the log; back in microseconds."""
        self._journal.append({"step": step, "time": round(time.time(), 3), **metrics})

    def event(self, step: int, name: str, detail: str) -> None:
        """Something out of the ordinary (a spike, a rollback): in MLflow the count `events/<name>` and a tag."""
        self._journal.append(
            {"step": step, "time": round(time.time(), 3), "event": name, "detail": detail}
        )

    def sync(self) -> Extent:
        """Bring the log to the disk: call it before a training state counts as saved, or a power cut leaves a gap.

        Returns the extent of the log, for the state to name.
        """
        return self._journal.sync()

    def refuse_lost_rows(self) -> None:
        """Raises MachineError where the log on the disk lacks a row that was logged."""
        self._journal.refuse_lost_rows()

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, to which training has gone back; events stay, and so does what MLflow has."""
        self._journal.keep(lambda row: "event" in row or row["step"] <= step)

    def rows(self) -> list[dict[str, float]]:
        """Every logged step of the whole run, restarts included: {"step", "time", metric: value}."""
        return logged_steps(self.folder)

    def events(self) -> list[dict[str, object]]:
        """Every event: {"step", "time", "event", "detail"}."""
        return [row for row in read_rows(self._journal.path, ROW) if "event" in row]

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Log a file, under a folder of the run's artifacts; copied, as DVC may delete the original."""
        name = f"{folder}/{Path(path).name}" if folder else Path(path).name
        copy = self.folder / "artifacts" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        self._save(artifacts=dict(self._run.artifacts) | {name: file_digest(copy)})

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log rows, all with the same keys, as the MLflow table tables/<name>.json, which its page shows for several runs."""
        path = self.folder / "tables" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(rows[0])
        write_json(
            path,
            {"columns": columns, "data": [[row[column] for column in columns] for row in rows]},
        )
        self.artifact(path, "tables")

    def summary(self, metrics: Mapping[str, object]) -> None:
        """Final metrics, nested or dotted, for the run and, as `<stage>.<key>`, for its parent; text becomes tags."""
        values = {key: plain(value) for key, value in config.flatten(metrics).items()}
        self._save(summary=dict(self._run.summary) | values)

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run and wait until MLflow has all of it; not for a server that does not answer.

        A run that was stopped waits for a few seconds only: the machine is wanted for something else.
        """
        with naming(self._journal.path):
            self._journal.sync()
        self._save(status=status, ended=time.time())
        self._ended = True
        stopped = status in ("PAUSED", "KILLED")
        self._background.finish(STOPPED_SECONDS if stopped else FINISH_SECONDS)
        self._journal.close()
        self._held.close()

    def _save(self, **facts: Any) -> None:
        self._run = dataclasses.replace(self._run, **facts)
        self._run.write(self.folder / "run.json")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        paused = isinstance(error, SystemExit) and error.code == EXIT_PAUSED
        if not self._ended:
            self.finish(_status(kind, paused))


def _status(kind: type[BaseException] | None, paused: bool) -> Status:
    """How a run ended whose block ended with an exception of a kind, or with none."""
    if paused:
        return "PAUSED"
    if kind is None:
        return "FINISHED"
    return "KILLED" if kind is KeyboardInterrupt else "FAILED"


def _new_run(folder: Path, goes_on: bool) -> RunRecord:
    """A run that has no run.json; one that goes on although its own was damaged keeps the name MLflow knows it by."""
    known = read_known(folder) if goes_on else None
    return RunRecord(
        id=known.run if known else uuid.uuid4().hex,
        created=time.time(),
        execution=None,
        stage="",
        experiment="",
        uri="",
        status="RUNNING",
        session="",
        flush_seconds=FLUSH_SECONDS,
    )


def _put_away(folder: Path, root: Path, run: RunRecord) -> None:
    """Make room in `folder` for a new run; what MLflow still lacks of the old one goes to `.paribus/unsent`."""
    aside = root / "unsent" / run.id
    aside.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "system.jsonl", "artifacts", "mlflow.json", "run.json"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    if all_sent(aside):
        shutil.rmtree(aside)


def _as_text(value: object) -> str:
    """A parameter as params.yaml would have it: true, null, 0.5."""
    return value if isinstance(value, str) else json.dumps(value)


def _git_tags(git: Mapping[str, object], group: str | None) -> dict[str, str]:
    tags = {f"git.{name}": value for name, value in git.items()}
    tags |= {
        "mlflow.source.git.commit": git["commit"],
        "dvc.experiment": None if group else dvc_experiment(),
    }
    return {key: _as_text(value) for key, value in tags.items() if value is not None}


# ---------------------------------------------------------------- executions: the parent runs


def _execution(
    root: Path, settings: config.Config, git: Mapping[str, Any], group: str | None
) -> Execution:
    """The open execution of this experiment, params and commit, or the group; begun in `.paribus/executions` if need be."""
    with locked(root / "executions" / "lock"):
        if group is not None:
            return _group(root, settings, group, {})
        experiment = dvc_experiment()
        key, latest = _latest_execution(root, settings, git, experiment)
        if latest and not latest.closed:
            return latest
        names = [path.name.partition(".")[0] for path in (root / "executions").glob(f"{key}-*")]
        number = max(map(_number, names), default=0) + 1  # of damaged ones too
        label = label_of(settings, experiment)
        execution = Execution(
            id=f"{key}-{number}",
            created=time.time(),
            name=label.name,
            parent=_study(root, settings, label),
            params=_params(settings),
            tags={"fingerprint": key, **_git_tags(git, None), **label.tags},
        )
        execution.write(root / "executions" / f"{execution.id}.json")
        return execution


def _study(root: Path, settings: config.Config, label: Label) -> str | None:
    """The id of the group that a study's run is filed under; None for another's."""
    if label.study is None:
        return None
    return _group(root, settings, study_group(label.study), {"study": label.study}).id


def study_group(study: str) -> str:
    """The name of the group of a study's runs and of its verdict."""
    return f"study {study}"


def _group(root: Path, settings: config.Config, name: str, tags: Mapping[str, str]) -> Execution:
    """The run above all that belongs to a study or search, whichever its commits; begun if need be."""
    identity = re.sub(r"[^\w.-]+", "-", name)
    path = root / "executions" / f"{identity}.json"
    group = read_execution(path)
    if group is None:
        group = Execution(
            id=identity,
            created=time.time(),
            name=name,
            params=_params(settings),
            tags={GROUP: "true", **tags},
        )
        group.write(path)
    return group


def _params(settings: config.Config) -> dict[str, str]:
    return {key: _as_text(value) for key, value in config.flatten(settings).items()}


def _latest_execution(
    root: Path, settings: config.Config, git: Mapping[str, object], name: str | None
) -> tuple[str, Execution | None]:
    """(key, its latest execution)."""
    key = config.fingerprint(
        experiment=name or "workspace", commit=git["commit"], params=config.flatten(settings)
    )
    latest: Execution | None = None
    for path in (root / "executions").glob(f"{key}-*.json"):
        one = read_execution(path)
        if one is not None and (latest is None or _number(one.id) > _number(latest.id)):
            latest = one
    return key, latest


def _number(execution: str) -> int:
    """The last part of an execution's id."""
    text = execution.rpartition("-")[2]
    return int(text) if text.isdigit() else 0


def close_execution(settings: config.Config) -> None:
    """The pipeline is through: a stage that runs after this begins a new parent run."""
    root = state_root()
    with locked(root / "executions" / "lock"):
        _, execution = _latest_execution(root, settings, git_state(), dvc_experiment())
        if execution:
            closed = dataclasses.replace(execution, closed=True)
            closed.write(root / "executions" / f"{execution.id}.json")


# ---------------------------------------------------------------- in the background


class _Background(threading.Thread):
    """Samples the machine, and sees to it that a sender is there."""

    def __init__(
        self, folder: Path, root: Path, uri: str, created: float, system_metrics: bool
    ) -> None:
        """uri: without a password. created: when the run first began, seconds since the epoch."""
        super().__init__(name="tracking", daemon=True)
        self.folder, self.root, self._uri, self._created = folder, root, uri, created
        self._system_metrics = system_metrics
        self._finishing = threading.Event()
        self._warned: set[str] = set()
        self._began = time.time()

    def run(self) -> None:
        samples = self._samples() if self._system_metrics else None
        while not self._finishing.is_set():
            sender.ensure(self.root)
            self._trouble_since(self._began)
            if samples:
                next(samples)
            self._finishing.wait(FLUSH_SECONDS)

    def _samples(self) -> Iterator[None]:
        """Each `next` appends a sample of the machine to system.jsonl, when one is due."""
        began = self._created
        use, journal = MachineUse(), Journal(self.folder / "system.jsonl", self.warn)
        due = time.monotonic() + SYSTEM_SECONDS
        while True:
            yield
            if time.monotonic() >= due:
                due = time.monotonic() + SYSTEM_SECONDS
                now = time.time()
                sample = {f"system/{name}": value for name, value in use.sample().items()}
                journal.append({"step": int(now - began), "time": round(now, 3), **sample})

    def _trouble_since(self, moment: float) -> bool:
        """Whether a try after this moment failed, at the store or at this run alone; reports a failure."""
        error = sender.error_of(self.root, self._uri)
        if error is not None and error["time"] >= moment:
            self.warn(
                f"MLflow at {self._uri} is not available ({error['error']}); the run goes on, and what is missed is "
                "sent later",
                "MLflow",
            )
            return True
        error = sender.error_of(self.root, sender.subject_of(self.folder))
        if error is not None and error["time"] >= moment:
            self.warn(
                f"MLflow at {self._uri} answers but does not take this run ({error['error']}); the run goes on, its "
                f"log stays in {self.folder}, and it is sent later if MLflow takes it then",
                "MLflow",
            )
            return True
        return False

    def warn(self, text: str, subject: str = "disk") -> None:
        """Once per subject."""
        if subject not in self._warned:
            self._warned.add(subject)
            _log.warning(text)

    def finish(self, patience: float) -> None:
        """Wait until MLflow has the last line, while the store answers and for `patience` seconds without progress."""
        began = time.time()
        self._finishing.set()
        self.join()
        if not sender.wanted():
            return
        while not (all_sent(self.folder) or self._trouble_since(began)):
            sender.ensure(self.root)
            if time.time() - max(began, sender.last_progress(self.root)) > patience:
                if patience == FINISH_SECONDS:
                    self.warn(
                        "MLflow takes too long; what it lacks is sent by a later start", "finish"
                    )
                break
            time.sleep(0.1)
