"""What is kept of a run, found by whatever a person calls it: a checkpoint folder, a DVC experiment, a git revision, the
workspace, or an MLflow run. Read only.

A name is looked for in this order: folder of a checkpoint (or its name below `checkpoints/`), `workspace`, DVC experiment,
git revision, MLflow run by id, MLflow run by name. Experiments come before the MLflow runs of the same name: they hold
more. In a pattern (`adamw-s*`) every experiment that fits is meant, else every MLflow run that does.
"""

from __future__ import annotations

import csv
import difflib
import fnmatch
import functools
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus import graph
from paribus.config import flatten, load_config, parse_yaml, read_yaml
from paribus.curriculum import CHECKPOINT_OF
from paribus.errors import UserError
from paribus.git import GitError, committed_bytes, git, refusal, try_git
from paribus.tracking.lookup import Runs, StoredRun

CHECKPOINTS = {stage: f"checkpoints/{name}" for stage, name in CHECKPOINT_OF.items()}
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
)  # to rebuild a run
_EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)")


@dataclass(frozen=True)
class Record:
    """What is kept of a run. Everything is as it was written down then; `locate` and `read` find its files.

    commit: of the code, as the name or the provenance says. scope: the stage that this is about, or "pipeline".
    params: dotted keys. lock: the dvc.lock that speaks of it, {} if none does. data: output -> DVC's name for it.
    metrics: `<stage>.<key>`. run: what MLflow has of it, where it was found there.
    """

    name: str
    kind: str
    scope: str
    commit: str | None
    params: dict[str, Any]
    metrics: dict[str, float]
    lock: dict[str, Any]
    data: dict[str, str]
    locate: Callable[[str], Path | None]
    read: Callable[[str], bytes | None]
    run: StoredRun | None = None

    @property
    def stages(self) -> list[str]:
        """The training stages it has a provenance of, in the order of the curriculum."""
        return [
            stage
            for stage in CHECKPOINTS
            if self.scope in (stage, "pipeline") and self.provenance(stage)
        ]

    @property
    def in_place(self) -> bool:
        """Whether it is of the working folder: its files, params.yaml and dvc.lock are those that lie there."""
        return self.kind == "workspace" or (self.kind == "checkpoint" and bool(self.lock))

    def provenance(self, stage: str) -> dict[str, Any]:
        """What a training stage wrote down; {} where nothing is kept of it. Raises UserError where it is damaged."""
        path = f"{CHECKPOINTS[stage]}/provenance.json"
        text = self.read(path)
        return _object(text, f"{path} of {self.name}") if text else {}

    def measured(self, stage: str) -> dict[str, Any]:
        """Dotted values of metrics/<stage>.json; of an MLflow run the numbers it was sent; {} where none are kept."""
        path = f"metrics/{stage}.json"
        text = self.read(path)
        if text:
            return flatten(_object(text, f"{path} of {self.name}"))
        prefix = f"{stage}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.metrics.items()
            if key.startswith(prefix)
        }

    def asked(self, stage: str) -> dict[str, Any]:
        """Dotted values of the params.yaml that lies with it, of all stages; {} where none does."""
        if self.kind == "checkpoint":
            return flatten(read_yaml("params.yaml")) if self.in_place else {}
        return self.params if self.kind in ("workspace", "experiment", "revision") else {}

    def weights(self, stage: str) -> str | None:
        """sha256 of the weights a training stage came to."""
        path = self.locate(f"{CHECKPOINTS[stage]}/model.safetensors")
        if path:
            return graph.file_digest(path)
        return (
            self.run.tags.get("weights_sha256") or self.run.tags.get(f"{stage}.weights_sha256")
            if self.run
            else None
        )

    def curve(self, stage: str) -> list[dict[str, str]]:
        """The rows of plots/<stage>.csv; [] where it is not kept."""
        text = self.read(f"plots/{stage}.csv")
        return read_curve(text.decode()) if text else []


def _object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: damaged, not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: damaged; expected an object, not {type(found).__name__}")
    return found


def read_curve(text: str) -> list[dict[str, str]]:
    """The rows of a curve, values as they were written: a float's shortest form names its bits."""
    return list(csv.DictReader(io.StringIO(text)))


# ---------------------------------------------------------------- finding


def find(name: str) -> Record:
    """The record of that name. Raises UserError with the nearest names there are."""
    check_git()
    for look in (_checkpoint, _workspace, find_experiment, _revision, _mlflow):
        record = look(name)
        if record:
            return record
    known = sorted(_names() - {name})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UserError(
        f"no checkpoint folder, DVC experiment, git revision or MLflow run is called {name!r}; "
        + (
            f"did you mean {', '.join(near)}?"
            if near
            else f"there are: {', '.join(known[:20]) or 'none yet'}"
        )
    )


def find_all(name: str) -> list[Record]:
    """The records that a name or a pattern (with * ? [) means. Raises UserError for none."""
    check_git()
    if not re.search(r"[*?[]", name):
        return [find(name)]
    for names, look in ((list(experiments()), find_experiment), (_runs().names(), _mlflow)):
        found = [record for one in fnmatch.filter(names, name) if (record := look(one))]
        if found:
            return found
    raise UserError(
        f"no DVC experiment or MLflow run fits {name!r}; there are: {', '.join(sorted(_names())[:20]) or 'none yet'}"
    )


def experiments() -> dict[str, str]:
    """DVC experiments: name -> commit."""
    lines = (
        try_git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    ).splitlines()
    pairs = (
        (line.split(" ", 1)[0], _EXPERIMENT.fullmatch(line.split(" ", 1)[1])) for line in lines
    )
    return {match[1]: commit for commit, match in pairs if match}


def check_git() -> None:
    """Raises UserError with the cure where git is absent, or refuses this checkout."""
    try:
        git("--version")
    except GitError as absent:
        raise UserError(f"{absent.problems[0]}; records of runs are found with it") from None
    problem = refusal()
    if problem:
        raise UserError(f"git refuses this checkout: {problem}")


def _names() -> set[str]:
    """Everything that `find` would find by name."""
    branches = (
        try_git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or ""
    ).split()
    checkpoints = {str(path.parent) for path in Path("checkpoints").glob("*/provenance.json")}
    return {*experiments(), *branches, *_runs().names(), *checkpoints, "workspace", "HEAD"}


def _runs() -> Runs:
    return Runs(load_config().tracking.experiment)


# ---------------------------------------------------------------- a checkpoint, the workspace


def _checkpoint(name: str) -> Record | None:
    folder = next(
        (
            one
            for one in (Path(name), Path("checkpoints") / name)
            if (one / "config.json").is_file()
        ),
        None,
    )
    if folder is None:
        return None
    provenance = _json(folder / "provenance.json")
    stage = provenance.get("stage")
    if stage not in CHECKPOINTS:
        raise UserError(
            f"{folder}/provenance.json: "
            + (
                f"stage {stage!r} is none of {', '.join(CHECKPOINTS)}"
                if provenance
                else "absent or damaged; without it nothing is known of how this was made"
            )
        )
    ours = folder.resolve() == Path(CHECKPOINTS[stage]).resolve() and Path("dvc.lock").exists()

    def locate(path: str) -> Path | None:
        if path.startswith(CHECKPOINTS[stage] + "/"):
            return _file(folder / path.removeprefix(CHECKPOINTS[stage] + "/"))
        return _file(Path(path)) if ours else None

    return Record(
        str(folder),
        "checkpoint",
        stage,
        provenance.get("git", {}).get("commit"),
        provenance.get("params", {}),
        _metrics(locate, [stage]),
        read_yaml("dvc.lock") if ours else {},
        provenance.get("data", {}),
        locate,
        lambda path: _bytes(locate(path)),
    )


def _workspace(name: str) -> Record | None:
    if name != "workspace":
        return None
    lock = read_yaml("dvc.lock") if Path("dvc.lock").exists() else {}
    return Record(
        name,
        "workspace",
        "pipeline",
        try_git("rev-parse", "HEAD"),
        flatten(read_yaml("params.yaml")),
        _metrics(lambda path: _file(Path(path))),
        lock,
        graph.locked_outs(lock),
        lambda path: _file(Path(path)),
        lambda path: _bytes(_file(Path(path))),
    )


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if it is absent or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


# ---------------------------------------------------------------- git and DVC


def find_experiment(name: str) -> Record | None:
    """The DVC experiment of that name; None where there is none."""
    commit = experiments().get(name)
    return _of_commit(name, "experiment", commit) if commit else None


def _revision(name: str) -> Record | None:
    commit = (
        None
        if name.startswith("-")
        else try_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    )
    return _of_commit(name, "revision", commit) if commit else None


def _of_commit(name: str, kind: str, commit: str) -> Record:
    """Outputs that DVC caches are found by the commit's dvc.lock, all else in git."""

    def show(path: str) -> bytes | None:
        return committed_bytes(commit, path)

    def text(path: str) -> dict[str, Any]:
        found = show(path)
        return parse_yaml(found.decode(), f"{path} at {name}") if found else {}

    lock = text("dvc.lock")
    outs, cache = graph.locked_outs(lock), graph.cache_folder(Path.cwd())

    def locate(path: str) -> Path | None:
        out = next((one for one in outs if path == one or path.startswith(one + "/")), None)
        if out is None:
            return None
        files = _cached(outs[out], cache) or {}
        place = files.get(path.removeprefix(out).lstrip("/"))
        return _file(place) if place else None

    def read(path: str) -> bytes | None:
        """What git has comes first: DVC's cache may still hold what a metrics file was before it was edited."""
        content = show(path)
        return _bytes(locate(path)) if content is None else content

    return Record(
        name,
        kind,
        "pipeline",
        commit,
        flatten(text("params.yaml")),
        _metrics(read),
        lock,
        outs,
        locate,
        read,
    )


@functools.lru_cache(maxsize=64)
def _cached(md5: str, cache: Path) -> dict[str, Path] | None:
    return graph.cached_files(md5, cache)


# ---------------------------------------------------------------- MLflow


def _mlflow(name: str) -> Record | None:
    runs = _runs()
    found = runs.by_id(name) if re.fullmatch("[0-9a-f]{32}", name) else None
    if found is None:
        quoted = name.replace("'", "")
        named = runs.search(f"attributes.run_name = '{quoted}'")
        parents = [run for run in named if not run.parent]
        if len(parents or named) > 1:
            raise UserError(
                f"{len(parents or named)} MLflow runs are called {name!r}; name one by its id: "
                + ", ".join(run.id for run in (parents or named)[:8])
            )
        found = next(iter(parents or named), None)
    return of_run(name, found, runs) if found else None


def of_run(name: str, run: StoredRun, runs: Runs) -> Record:
    """A stage's run, or an execution with those of its stages."""
    family = [run] if run.stage else runs.children(run.id)

    @functools.cache
    def locate(path: str) -> Path | None:
        for stage, artifact in _artifacts(path):
            for one in family:
                if one.stage == stage:
                    return runs.artifact(one.id, artifact)
        return None

    scope = run.stage or "pipeline"
    prefix = f"{run.stage}." if run.stage else ""
    metrics = {
        _plain_name(prefix + key): value for key, value in run.metrics.items() if "/" not in key
    }
    written = (
        _json(locate(f"{CHECKPOINTS[scope]}/provenance.json") or Path("/"))
        if scope in CHECKPOINTS
        else {}
    )
    params = written.get("params") or {key: _value(text) for key, text in run.params.items()}
    data = written.get("data") or {
        key: value for one in reversed(family) for key, value in one.datasets.items()
    }
    return Record(
        name,
        "MLflow run",
        scope,
        run.tags.get("git.commit"),
        params,
        metrics,
        {},
        data,
        locate,
        lambda path: _bytes(locate(path)),
        run,
    )


def _artifacts(path: str) -> Iterable[tuple[str, str]]:
    """(stage, artifact) under which a project's file is kept in MLflow."""
    for stage, checkpoint in CHECKPOINTS.items():
        if path == f"{checkpoint}/provenance.json":
            yield stage, "provenance.json"
        elif path == f"plots/{stage}.csv":
            yield stage, path
    if path == "evals/core/items.parquet":
        yield "core", "items/items.parquet"
    elif match := re.fullmatch(r"evals/gsm8k/(\w+)/items\.parquet", path):
        yield f"gsm8k_stage@{match[1]}", "items/items.parquet"


def _plain_name(key: str) -> str:
    """As metrics files have it: MLflow's gsm8k_stage.base.accuracy is gsm8k.base.accuracy."""
    return re.sub(r"^gsm8k_stage[.@]", "gsm8k.", key)


def _value(text: str) -> Any:
    """A parameter of MLflow's as params.yaml has it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


MEASURED = ("tokenizer", *CHECKPOINTS, "core", "gsm8k")


def _metrics(read: Callable[[str], Any], stages: Iterable[str] = MEASURED) -> dict[str, float]:
    """`<stage>.<key>` of the numbers in metrics/*.json."""
    found: dict[str, float] = {}
    for stage in stages:
        content = read(f"metrics/{stage}.json")
        if content:
            text = content if isinstance(content, bytes) else content.read_bytes()
            values = _object(text, f"metrics/{stage}.json")
            found |= {
                f"{stage}.{key}": float(value)
                for key, value in flatten(values).items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
    return found
