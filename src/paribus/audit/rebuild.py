"""Rebuild a run from its record alone: a clean clone at its commit, its data by DVC's names, its params; then the stage.

The original stays untouched: the clone is a temporary folder with its own `.paribus` and, where objects have to be
pulled, its own DVC cache; MLflow hears nothing of it. Data in the original's cache is linked, not copied. The stage is started
without DVC, so no run-cache can answer in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paribus import graph, launched
from paribus.config import describe, dump_yaml, flatten, merge, read_yaml
from paribus.errors import UserError
from paribus.git import GitError, fill_submodules, git, try_git
from paribus.journal import read_rows
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.study.finished import CHECKPOINTS, FinishedRun, Provenance, read_curve
from paribus.summary import write_curve
from paribus.tracking import sender

POLL_SECONDS = 0.1
LONGEST_LINE = 50_000  # bytes, of a log
# params.yaml's key -> the field of the recorded hardware that it resolved to
TRAIN = {
    "device": "device",
    "dtype": "dtype",
    "tf32": "tf32",
    "fp8": "fp8",
    "decode_graphs": "decode_graphs",
    "threads": "process_threads",
    "processes": "processes",
    "compile": "compile",
    "deterministic": "deterministic",
    "activation_checkpointing": "activation_checkpointing",
}


def locked_stage(record: FinishedRun, stage: str) -> dict[str, Any]:
    """The entry of a stage in dvc.lock; {} if no dvc.lock covers this run.

    Args:
        record: of the run.
        stage: a training stage.
    """
    return dict(record.lock.get("stages", {}).get(stage, {}))


def locked_params(record: FinishedRun, stage: str) -> dict[str, Any]:
    """Dotted params of a stage as dvc.lock has them.

    Args:
        record: of the run.
        stage: a training stage.
    """
    return flatten(locked_stage(record, stage).get("params", {}).get("params.yaml", {}))


def written_provenance(record: FinishedRun, stage: str) -> Provenance:
    """The provenance that a stage recorded. Raises UserError where it is not kept.

    Args:
        record: of the run.
        stage: a training stage.
    """
    written = record.provenance(stage)
    if written is None:
        raise UserError(f"{record.name}: no provenance of {stage} is kept here")
    return written


def asked_params(record: FinishedRun, stage: str) -> dict[str, object]:
    """Dotted params to run the stage with: dvc.lock's where one covers the run, else the record's.

    A value that was left to the machine (`train.threads: null`) is the one it resolved to then.

    Args:
        record: of the run.
        stage: a training stage.
    """
    written = written_provenance(record, stage)
    locked = locked_params(record, stage)
    resolved = {}
    for key, name in TRAIN.items():
        if name in written.hardware:
            resolved[f"train.{key}"] = written.hardware[name]
    if not locked:
        return resolved | dict(written.params)
    explicit = {}
    for key, value in locked.items():
        left_to_machine = key in resolved and value in (None, "auto")
        if not left_to_machine:
            explicit[key] = value
    return resolved | explicit


# ---------------------------------------------------------------- the clone


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="paribus-verify-", ignore_cleanup_errors=True) as name:
        try:
            yield Path(name)
        finally:
            # The code of an earlier commit feeds an MLflow store of the clone; that process ends when this is gone.
            for state in Path(name).rglob(".paribus"):
                state.rename(state.with_name("gone"))


def clone(commit: str | None, folder: Path) -> Path:
    """A clean clone at `commit`; returns the project's folder in it. Raises UserError."""
    top, prefix = try_git("rev-parse", "--show-toplevel"), try_git("rev-parse", "--show-prefix")
    if commit is None or top is None:
        raise UserError(
            "the run was not made in a git repository, or this is none: there is no code to rebuild it from"
        )
    try:
        git("clone", "-q", "--local", "--no-checkout", top, str(folder))
        git("-c", "advice.detachedHead=false", "checkout", "-q", "--detach", commit, at=folder)
        fill_submodules(folder, Path(top))
    except GitError as error:
        raise UserError(
            f"commit {commit[:10]} cannot be checked out here: {error.problems[0]}; `git fetch` it first"
        ) from None
    return folder / (prefix or "")


def write_params(root: Path, values: Mapping[str, object]) -> None:
    """Write values over the clone's params.yaml; a mapping (a mixture) is replaced as a whole.

    Args:
        root: the project in the clone.
        values: dotted key -> value.
    """
    tree = read_yaml(root / "params.yaml")
    for path, hint, _ in describe():
        *parents, last = path.split(".")
        if typing.get_origin(hint) is dict and any(key.startswith(path + ".") for key in values):
            node = tree
            for parent in parents:
                node = node.get(parent, {})
            node[last] = {}
    merged = merge(
        tree, dict(values) | {"tracking.system_metrics": False, "train.session_minutes": None}
    )
    (root / "params.yaml").write_text(dump_yaml(merged), encoding="utf-8")


def bring_data(root: Path, versions: Mapping[str, str]) -> list[str]:
    """Put outputs in the clone, from the cache here or else a remote.

    Args:
        root: the project in the clone.
        versions: output -> DVC's name for it.

    Returns:
        The outputs that were found nowhere.
    """
    cache, elsewhere = graph.cache_folder(Path.cwd()), {}
    for out, md5 in versions.items():
        files = graph.cached_files(md5, cache)
        if files is None or not all(path.is_file() for path in files.values()):
            elsewhere[out] = md5
            continue
        for name, path in files.items():
            place = root / out / name if name else root / out
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return _pull(root, elsewhere) if elsewhere and graph.has_remote(Path.cwd()) else list(elsewhere)


def _pull(root: Path, versions: Mapping[str, str]) -> list[str]:
    """Pull outputs into the clone's own cache; returns those that no remote has."""
    stages = read_yaml(root / "dvc.yaml")["stages"]
    makers: dict[str, str] = {}
    for name, stage in graph.stage_definitions(root / "dvc.yaml").items():
        makers |= dict.fromkeys(stage.outs, name)
    locked: dict[str, Any] = {}
    for out, md5 in versions.items():
        if out in makers:
            entry = locked.setdefault(makers[out], {"cmd": stages[makers[out]]["cmd"], "outs": []})
            entry["outs"].append({"path": out, "hash": "md5", "md5": md5})
    (root / "dvc.lock").write_text(dump_yaml({"schema": "2.0", "stages": locked}), encoding="utf-8")
    if Path(".dvc/config.local").is_file():
        # Where keys and the addresses of remotes are kept.
        shutil.copyfile(".dvc/config.local", root / ".dvc/config.local")
    own = [sys.executable, "-m", "dvc", "cache", "dir", "--local", ".dvc/cache"]
    for command in (own, [sys.executable, "-m", "dvc", "pull", "-q", *versions]):
        subprocess.run(command, cwd=root, env=_environment(root, None), capture_output=True)
    return [out for out in versions if not (root / out).exists()]


# ---------------------------------------------------------------- the run


def _environment(root: Path, stage: str | None) -> dict[str, str]:
    """The environment that DVC would give a stage in the clone.

    With it the stage ends with this process, and keeps its state and its log in the clone, without MLflow.
    """
    foreign = ("DVC_", "MLFLOW_", "TORCHELASTIC_")
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(foreign) and key not in launched.VARIABLES
    }
    own = {
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(root / "src"),
        sender.FILES_ONLY: "1",
    }
    return clean | own | ({"DVC_ROOT": str(root), "DVC_STAGE": stage} if stage else {})


@contextmanager
def _process(root: Path, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "paribus", stage], cwd=root, env=_environment(root, stage)
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def run_stage(root: Path, stage: str, steps: int | None) -> int:
    """Run the stage in the clone, or pause it once some steps are logged.

    Args:
        root: the project in the clone.
        stage: a training stage.
        steps: after which it is paused; None: it runs to its end.

    Returns:
        Its exit status, 0 for a requested pause.
    """
    with _process(root, stage) as process:
        asked = False
        while process.poll() is None:
            if steps is not None and not asked and _logged(root) >= steps:
                process.terminate()  # the loop ends its step, saves, and exits
                asked = True
            time.sleep(POLL_SECONDS)
    return 0 if asked and process.returncode == EXIT_PAUSED else process.returncode


def _logged(root: Path) -> int:
    """The last step in the log so far."""
    last = 0
    for path in root.glob(".paribus/runs/*/metrics.jsonl"):
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LONGEST_LINE, 0))
            whole = file.read().rpartition(b"\n")[0].splitlines()
        last = int(json.loads(whole[-1])["step"]) if whole else 0
    return last


def rebuilt_curve(root: Path, stage: str) -> list[dict[str, str]]:
    """The curve of what ran in the clone, to its end or not.

    Args:
        root: the project in the clone.
        stage: a training stage.
    """
    rows = []
    for path in root.glob(".paribus/runs/*/metrics.jsonl"):
        rows += [row for row in read_rows(path) if "event" not in row]
    place = root / "rebuilt.csv"
    write_curve(place, stage, rows)
    return read_curve(place.read_text(encoding="utf-8"))


def rebuilt_weights(root: Path, stage: str) -> str | None:
    """sha256 of the weights in the clone; None if the stage did not finish.

    Args:
        root: the project in the clone.
        stage: a training stage.
    """
    path = root / CHECKPOINTS[stage] / "model.safetensors"
    return graph.file_digest(path) if path.is_file() else None


def rebuilt_metrics(root: Path, stage: str) -> dict[str, object]:
    """Dotted values of the metrics file in the clone; {} if the stage did not finish.

    Args:
        root: the project in the clone.
        stage: a training stage.
    """
    path = root / f"metrics/{stage}.json"
    if not path.is_file():
        return {}
    return flatten(json.loads(path.read_text(encoding="utf-8")))
