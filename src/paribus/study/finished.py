"""A finished run, wherever it is kept: a commit, the working folder, a checkpoint's folder, or a run in MLflow. Read only.

    at_commit          git's files, and DVC's by the commit's dvc.lock
    in_workspace       the working folder
    in_checkpoint      the folder of a checkpoint; its metrics and curve too where it is the working folder's own
    in_mlflow          the run of a stage, or of an execution with those of its stages

`audit` finds runs by name and compares them; a study's results are runs at the commits of its experiments.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from paribus import graph
from paribus.config import flatten, read_yaml
from paribus.curriculum import CHECKPOINT_OF
from paribus.errors import UserError
from paribus.git import try_git
from paribus.study.committed import CommittedFiles
from paribus.tracking.lookup import SUMMARY, Runs
from paribus.tracking.parts import StoredRun

Kind = Literal["checkpoint", "workspace", "experiment", "revision", "MLflow run"]
PIPELINE = "pipeline"  # the scope of a run of several stages
CHECKPOINTS = {stage: f"checkpoints/{name}" for stage, name in CHECKPOINT_OF.items()}
MEASURED = ("tokenizer", *CHECKPOINTS, "core", "gsm8k")  # have a metrics/<stage>.json


# ---------------------------------------------------------------- what is kept of a run


class Files(Protocol):
    """The files of a run; paths are the project's."""

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where it is not kept."""

    def place(self, path: str) -> Path | None:
        """Where a file lies on this disk; None where it does not."""


@dataclass(frozen=True)
class Provenance:
    """What a training stage wrote down of itself, beside its weights. What an earlier paribus did not write is empty.

    Attributes:
        stage, fingerprint: of the run.
        params: dotted key -> value, of the params that the stage declares.
        deps: data dep -> digest of its contents.
        code: source file -> digest of what the stage reaches of it.
        data: output that it read from -> DVC's name for it.
        git: commit, branch, dirty, diff (a hash of what was not committed).
        hardware: fields of `machine.hardware.Hardware`.
        versions: package -> version.
        requirements_lock: digest of that file.
        paribus: version.
    """

    stage: str = ""
    fingerprint: str = ""
    params: Mapping[str, object] = field(default_factory=dict)
    deps: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    requirements_lock: str | None = None
    paribus: str | None = None

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Provenance:
        """The provenance in the object of a provenance.json."""
        known = {name: written[name] for name in cls.__dataclass_fields__ if name in written}
        return cls(**{name: value for name, value in known.items() if value is not None})

    @property
    def lacking(self) -> list[str]:
        """Names of the fields that a rebuild needs and that are missing."""
        return [name for name in NEEDED if not getattr(self, name)]


# What a rebuild needs.
NEEDED = (
    "stage",
    "fingerprint",
    "params",
    "deps",
    "code",
    "data",
    "git",
    "hardware",
    "versions",
)


@dataclass(frozen=True)
class FinishedRun:
    """A run as it was recorded at the time.

    Attributes:
        name: by which it was found.
        kind: where it is kept.
        scope: the stage that it is of, or "pipeline".
        commit: of the code, as the name or the provenance says.
        params: dotted key -> value.
        metrics: stage -> the values of metrics/<stage>.json; of a run in MLflow the numbers that it was sent.
        data: output -> DVC's name for it.
        files: where its files are read.
        lock: the dvc.lock that covers it; {} if none does.
        logged: what MLflow has of it, where it was found there.
        problems: files that were damaged, each in a sentence. Their values are left out.
    """

    name: str
    kind: Kind
    scope: str
    commit: str | None
    params: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, object]]
    data: Mapping[str, str]
    files: Files
    lock: dict[str, Any] = field(default_factory=dict)
    logged: StoredRun | None = None
    problems: tuple[str, ...] = ()

    @property
    def stages(self) -> list[str]:
        """The training stages it has a provenance of, in the order of the curriculum."""
        asked = [stage for stage in CHECKPOINTS if self.scope in (stage, PIPELINE)]
        return [stage for stage in asked if self.provenance(stage)]

    @property
    def in_place(self) -> bool:
        """Whether it is of the working folder: its files, params.yaml and dvc.lock are those that lie there."""
        return self.kind == "workspace" or (self.kind == "checkpoint" and bool(self.lock))

    @functools.cached_property
    def numbers(self) -> dict[str, float]:
        """`<stage>.<dotted key>` -> value, of the metrics that are numbers."""
        numbers = {}
        for key, value in flatten(dict(self.metrics)).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[key] = float(value)
        return numbers

    def provenance(self, stage: str) -> Provenance | None:
        """The provenance of a training stage; None where none is kept. Raises UserError where it is damaged."""
        path = of_checkpoint(stage, "provenance.json")
        content = self.files.content(path)
        return Provenance.of(json_object(content, f"{path} of {self.name}")) if content else None

    def measured(self, stage: str) -> dict[str, object]:
        """Dotted key -> value, of metrics/<stage>.json; {} where none are kept."""
        return flatten(dict(self.metrics.get(stage, {})))

    def asked(self, stage: str) -> Mapping[str, object]:
        """Dotted values of the params.yaml kept with it, of all stages; {} without one."""
        if self.kind == "checkpoint":
            return flatten(read_yaml("params.yaml")) if self.in_place else {}
        return {} if self.kind == "MLflow run" else self.params

    def weights(self, stage: str) -> str | None:
        """sha256 of a training stage's final weights; None where no record is kept."""
        place = self.files.place(of_checkpoint(stage, "model.safetensors"))
        if place:
            return graph.file_digest(place)
        if self.logged is None:
            return None
        tags = self.logged.tags
        return tags.get("weights_sha256") or tags.get(f"{stage}.weights_sha256")

    def curve(self, stage: str) -> list[dict[str, str]]:
        """The rows of plots/<stage>.csv; [] where it is not kept."""
        content = self.files.content(f"plots/{stage}.csv")
        return read_curve(content.decode()) if content else []


def of_checkpoint(stage: str, name: str) -> str:
    """The path of a file of a training stage's checkpoint.

    Args:
        stage: which makes the checkpoint.
        name: of the file.
    """
    return f"{CHECKPOINTS[stage]}/{name}"


def read_curve(text: str) -> list[dict[str, str]]:
    """The rows of a curve, values as they were written: a float's shortest form names its bits."""
    return list(csv.DictReader(io.StringIO(text)))


def json_object(content: bytes, where: str) -> dict[str, object]:
    """The JSON object in a file.

    Args:
        content: of the file.
        where: what the file is called in errors.

    Raises:
        UserError: where it is damaged.
    """
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where}: damaged, not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: damaged; expected an object, not {type(value).__name__}")
    return value


def _metrics(files: Files, stages: Iterable[str]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """(stage -> the values of its metrics file, what is wrong with such a file)."""
    metrics = {}
    problems = []
    for stage in stages:
        path = f"metrics/{stage}.json"
        content = files.content(path)
        if not content:
            continue
        try:
            metrics[stage] = json_object(content, path)
        except UserError as error:
            problems += error.problems
    return metrics, problems


# ---------------------------------------------------------------- a commit


def at_commit(
    name: str, kind: Kind, files: CommittedFiles, stages: Iterable[str] = MEASURED
) -> FinishedRun:
    """A run that a commit holds.

    Args:
        name: of the run.
        kind: "experiment" or "revision".
        files: of the commit.
        stages: those whose metrics are read.
    """
    metrics, problems = _metrics(files, stages)
    texts: dict[str, dict[str, object]] = {}
    for path in ("params.yaml", "dvc.lock"):
        try:
            texts[path] = files.mapping(path)
        except UserError as error:
            problems += error.problems
            texts[path] = {}
    return FinishedRun(
        name=name,
        kind=kind,
        scope=PIPELINE,
        commit=files.commit,
        params=flatten(texts["params.yaml"]),
        metrics=metrics,
        data=files.outs,
        files=files,
        lock=texts["dvc.lock"],
        problems=tuple(problems),
    )


# ---------------------------------------------------------------- a folder


@dataclass(frozen=True)
class WorkingFiles:
    """The files of the working folder."""

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where there is none."""
        place = self.place(path)
        return place.read_bytes() if place else None

    def place(self, path: str) -> Path | None:
        """The path itself; None where no file lies there."""
        return Path(path) if Path(path).is_file() else None


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint's folder, called as the stage that made it calls them.

    Attributes:
        folder: where they lie.
        stage: which made them.
        others: where all other files are read; None: there are none.
    """

    folder: Path
    stage: str
    others: Files | None

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where it is not kept."""
        place = self.place(path)
        return place.read_bytes() if place else None

    def place(self, path: str) -> Path | None:
        """Where a file lies; None where it does not."""
        prefix = of_checkpoint(self.stage, "")
        if not path.startswith(prefix):
            return self.others.place(path) if self.others else None
        place = self.folder / path.removeprefix(prefix)
        return place if place.is_file() else None


def in_workspace() -> FinishedRun:
    """What the stages left in the working folder. Raises UserError where params.yaml or dvc.lock cannot be read."""
    files = WorkingFiles()
    lock = _working_lock()
    metrics, problems = _metrics(files, MEASURED)
    return FinishedRun(
        name="workspace",
        kind="workspace",
        scope=PIPELINE,
        commit=try_git("rev-parse", "HEAD"),
        params=flatten(read_yaml("params.yaml")),
        metrics=metrics,
        data=graph.locked_outs(lock),
        files=files,
        lock=lock,
        problems=tuple(problems),
    )


def in_checkpoint(folder: Path) -> FinishedRun:
    """The run that made the checkpoint in a folder. Raises UserError where its provenance does not say."""
    place = folder / "provenance.json"
    written = Provenance.of(_readable_object(place))
    if written.stage not in CHECKPOINTS:
        raise UserError(f"{place}: {_why_no_stage(written)}")
    own_place = Path(CHECKPOINTS[written.stage])
    ours = folder.resolve() == own_place.resolve() and Path("dvc.lock").exists()
    files = CheckpointFiles(folder, written.stage, WorkingFiles() if ours else None)
    metrics, problems = _metrics(files, [written.stage])
    return FinishedRun(
        name=str(folder),
        kind="checkpoint",
        scope=written.stage,
        commit=written.git.get("commit"),
        params=written.params,
        metrics=metrics,
        data=written.data,
        files=files,
        lock=_working_lock() if ours else {},
        problems=tuple(problems),
    )


def _why_no_stage(written: Provenance) -> str:
    if written == Provenance():
        return "absent or damaged; without it nothing is known of how this was made"
    return f"stage {written.stage!r} is none of {', '.join(CHECKPOINTS)}"


def _working_lock() -> dict[str, object]:
    return read_yaml("dvc.lock") if Path("dvc.lock").exists() else {}


def _readable_object(place: Path | None) -> dict[str, object]:
    """The object in a file; {} if it is absent or damaged."""
    if place is None:
        return {}
    try:
        return json_object(place.read_bytes(), str(place))
    except (OSError, UserError):
        return {}


# ---------------------------------------------------------------- MLflow


class StoredFiles:
    """The files that MLflow keeps of the stages of a run."""

    def __init__(self, stages: list[StoredRun], runs: Runs) -> None:
        """stages: the runs of the stages. runs: where MLflow is asked for their files."""
        self._stages = stages
        self._runs = runs
        self._places: dict[str, Path | None] = {}  # MLflow is asked once

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where MLflow has none."""
        place = self.place(path)
        return place.read_bytes() if place and place.is_file() else None

    def place(self, path: str) -> Path | None:
        """A local copy of a file, or MLflow's own; None where it has none."""
        if path not in self._places:
            self._places[path] = self._find(path)
        return self._places[path]

    def _find(self, path: str) -> Path | None:
        for stage, artifact in _artifacts(path):
            for run in self._stages:
                if run.stage == stage:
                    return self._runs.artifact(run, artifact)
        return None


def _artifacts(path: str) -> Iterator[tuple[str, str]]:
    """(stage, artifact) under which a project's file is kept in MLflow."""
    for stage in CHECKPOINTS:
        if path == of_checkpoint(stage, "provenance.json"):
            yield stage, "provenance.json"
        elif path == f"plots/{stage}.csv":
            yield stage, path
    if path == "evals/core/items.parquet":
        yield "core", "items/items.parquet"
    gsm8k = re.fullmatch(r"evals/gsm8k/(\w+)/items\.parquet", path)
    if gsm8k:
        yield f"gsm8k_stage@{gsm8k[1]}", "items/items.parquet"


def in_mlflow(name: str, run: StoredRun, runs: Runs) -> FinishedRun:
    """A stage's run, or an execution with those of its stages.

    Args:
        name: by which it was found.
        run: what MLflow has of it.
        runs: where MLflow is asked for the rest.
    """
    family = [run] if run.stage else runs.children(run.id)
    files = StoredFiles(family, runs)
    scope = run.stage or PIPELINE
    written = Provenance()
    if scope in CHECKPOINTS:
        place = files.place(of_checkpoint(scope, "provenance.json"))
        written = Provenance.of(_readable_object(place))
    return FinishedRun(
        name=name,
        kind="MLflow run",
        scope=scope,
        commit=run.tags.get("git.commit"),
        params=written.params or {key: _value(text) for key, text in run.params.items()},
        metrics=_metrics_in_mlflow(run, family, runs),
        data=written.data or _data_in_mlflow(family),
        files=files,
        logged=run,
    )


def _metrics_in_mlflow(
    run: StoredRun, family: list[StoredRun], runs: Runs
) -> dict[str, dict[str, object]]:
    """Stage -> dotted key -> value, of the figures at the end: all of them are in an artifact of each stage's run.

    MLflow has all among its metrics only of runs that an earlier paribus logged.
    """
    whole: dict[str, object] = {}
    for stage in reversed(family):
        values = _readable_object(runs.artifact(stage, SUMMARY))
        whole |= {f"{stage.stage}.{key}": value for key, value in values.items()}
    return _by_stage(whole or _logged_figures(run))


def _logged_figures(run: StoredRun) -> dict[str, object]:
    """`STAGE.KEY` -> value, of the figures among a run's metrics; those along the way have a / in their name."""
    figures = {key: value for key, value in run.metrics.items() if "/" not in key}
    return {f"{run.stage}.{key}" if run.stage else key: value for key, value in figures.items()}


def _by_stage(figures: Mapping[str, object]) -> dict[str, dict[str, object]]:
    metrics: dict[str, dict[str, object]] = {}
    for whole, value in figures.items():
        # As metrics files have it: MLflow's gsm8k_stage.base.accuracy is gsm8k.base.accuracy.
        stage, _, rest = re.sub(r"^gsm8k_stage[.@]", "gsm8k.", whole).partition(".")
        metrics.setdefault(stage, {})[rest] = value
    return metrics


def _data_in_mlflow(family: list[StoredRun]) -> dict[str, str]:
    """Output -> DVC's name for it, of all stages; of two, the one of the run that is first in `family`."""
    data: dict[str, str] = {}
    for run in reversed(family):
        data |= run.datasets
    return data


def _value(text: str) -> object:
    """An MLflow parameter as params.yaml has it."""
    try:
        return json.loads(text)
    except ValueError:
        return text
