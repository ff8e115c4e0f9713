"""Find a finished run by whatever name a person uses for it.

A name may be a checkpoint folder, a DVC experiment, a git revision, the workspace or an MLflow run. Nothing is written.

The order of the search: folder of a checkpoint (or its name below `checkpoints/`), `workspace`, DVC experiment, git
revision, MLflow run by id, MLflow run by name. Experiments come before the MLflow runs of the same name because they hold
more. A pattern (`adamw-s*`) stands for every experiment that matches, or else for every MLflow run that does.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from paribus.config import load_config
from paribus.errors import UserError
from paribus.execute.repository import all_experiments
from paribus.git import GitError, git, refusal, try_git
from paribus.study.committed import FilesAsTheyLie
from paribus.study.finished import (
    FinishedRun,
    Kind,
    at_commit,
    in_checkpoint,
    in_mlflow,
    in_workspace,
)
from paribus.tracking.lookup import Runs
from paribus.tracking.parts import NAME, StoredRun

SHOWN = 20  # names in an error


def find(name: str) -> FinishedRun:
    """The run of that name. Raises UserError with the nearest names, or with what is damaged."""
    check_git()
    for look in (_checkpoint, _workspace, find_experiment, _revision, _mlflow):
        run = look(name)
        if run:
            return run
    known = sorted(_names() - {name})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    others = f"did you mean {', '.join(near)}?" if near else f"there are: {_some(known)}"
    raise UserError(
        f"no checkpoint folder, DVC experiment, git revision or MLflow run is called {name!r}; {others}"
    )


def find_all(name: str) -> list[FinishedRun]:
    """The runs that a name or a pattern (with * ? [) stands for. Raises UserError where there are none."""
    check_git()
    if not re.search(r"[*?[]", name):
        return [find(name)]
    return (
        _fitting(name, all_experiments(), find_experiment)
        or _fitting(name, _runs().names(), _mlflow)
        or _refuse_pattern(name)
    )


def _fitting(
    pattern: str, names: Iterable[str], look: Callable[[str], FinishedRun | None]
) -> list[FinishedRun]:
    runs = [look(name) for name in fnmatch.filter(names, pattern)]
    return [run for run in runs if run]


def _refuse_pattern(pattern: str) -> list[FinishedRun]:
    names = _some(sorted(_names()))
    raise UserError(f"no DVC experiment or MLflow run fits {pattern!r}; there are: {names}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) or "none yet"


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
    """Every name that `find` accepts."""
    branches = try_git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or ""
    checkpoints = {str(path.parent) for path in Path("checkpoints").glob("*/provenance.json")}
    return {
        *all_experiments(),
        *branches.split(),
        *_runs().names(),
        *checkpoints,
        "workspace",
        "HEAD",
    }


def _runs() -> Runs:
    return Runs(load_config().tracking.experiment)


# ---------------------------------------------------------------- each kind of name


def _checkpoint(name: str) -> FinishedRun | None:
    for folder in (Path(name), Path("checkpoints") / name):
        if (folder / "config.json").is_file():
            return _whole(in_checkpoint(folder))
    return None


def _workspace(name: str) -> FinishedRun | None:
    return _whole(in_workspace()) if name == "workspace" else None


def find_experiment(name: str) -> FinishedRun | None:
    """The DVC experiment of that name; None without one. Raises UserError where it is damaged."""
    commit = all_experiments().get(name)
    return _at_commit(name, "experiment", commit) if commit else None


def _revision(name: str) -> FinishedRun | None:
    if name.startswith("-"):
        return None
    commit = try_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return _at_commit(name, "revision", commit) if commit else None


def _at_commit(name: str, kind: Kind, commit: str) -> FinishedRun:
    return _whole(at_commit(name, kind, FilesAsTheyLie(commit)))


def _whole(run: FinishedRun) -> FinishedRun:
    """Raises UserError where a file of the run is damaged."""
    if run.problems:
        raise UserError([f"{run.name}: {problem}" for problem in run.problems])
    return run


def _mlflow(name: str) -> FinishedRun | None:
    runs = _runs()
    stored = runs.by_id(name) if re.fullmatch("[0-9a-f]{32}", name) else None
    stored = stored or _only_one(name, runs)
    return in_mlflow(name, stored, runs) if stored else None


def _only_one(name: str, runs: Runs) -> StoredRun | None:
    """MLflow's run of that name, executions before stages. Raises UserError where several have it."""
    named = runs.search({NAME: name}) + runs.search({"dvc.experiment": name})
    by_id = {run.id: run for run in named}
    executions = [run for run in by_id.values() if run.is_execution]
    candidates = executions or list(by_id.values())
    if len(candidates) > 1:
        ids = ", ".join(run.id for run in candidates[:8])
        raise UserError(
            f"{len(candidates)} MLflow runs are called {name!r}; name one by its id: {ids}"
        )
    return candidates[0] if candidates else None
