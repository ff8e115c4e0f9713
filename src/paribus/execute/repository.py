"""Git for runs: DVC's experiments as references, and clones of a commit.

    refs/exps/ab/cdef…/NAME    an experiment that started from the commit abcdef…, as DVC keeps them

Experiments are made as `dvc exp save` and `dvc exp push` make them, with git alone: one commit on top of the one the run
started from, and one reference.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paribus.git import fill_submodules, git, is_in_repository, try_git
from paribus.run_id import RunId, parse_experiment_name

_REFERENCE = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38,62})/([^/]+)")


# ---------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Reference:
    """An experiment of a run, as git refers to it."""

    name: str
    run: RunId
    superseded: bool
    commit: str
    started_from: str


def experiments_of(study: str, root: Path | None = None) -> list[Reference]:
    """Every experiment of a study, superseded ones too.

    Args:
        study: its name.
        root: a folder of the repository; the working folder by default.
    """
    found = []
    for name, commit, started_from in _experiments(root):
        parsed = parse_experiment_name(name)
        if parsed and parsed[0].study == study:
            run, superseded = parsed
            found.append(Reference(name, run, superseded, commit, started_from))
    return found


def all_experiments() -> dict[str, str]:
    """DVC's experiments, of studies or not: name -> commit."""
    return {name: commit for name, commit, _ in _experiments(None)}


def _experiments(root: Path | None) -> Iterator[tuple[str, str, str]]:
    """(name, commit, the commit it started from) of each of DVC's experiments; none outside a repository."""
    if not is_in_repository(root or Path()):
        return
    listed = git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/", at=root)
    for line in listed.splitlines():
        reference, commit = line.split(" ")
        match = _REFERENCE.fullmatch(reference)
        if match:
            yield match[3], commit, match[1] + match[2]


def reference_of(started_from: str, name: str) -> str:
    """How git refers to the experiment of that name."""
    return f"refs/exps/{started_from[:2]}/{started_from[2:]}/{name}"


def supersede(run: RunId, root: Path | None = None) -> None:
    """Rename the experiments under a run's name to NAME-was-COMMIT, so that the name is free."""
    for one in experiments_of(run.study, root):
        if one.run == run and not one.superseded:
            old = reference_of(one.started_from, one.name)
            git("update-ref", f"{old}-was-{one.commit[:7]}", one.commit, at=root)
            git("update-ref", "-d", old, one.commit, at=root)


# ---------------------------------------------------------------- clones


@dataclass(frozen=True)
class Clone:
    """A clone of the repository at a commit.

    Attributes:
        top: the folder of the clone.
        project: the folder of the project in it; the project may be a folder of its repository.
    """

    top: Path
    project: Path


def clone(root: Path, commit: str, top: Path) -> Clone:
    """A new clone at `commit` in `top`, which shares git's objects with the repository that the project `root` is in.

    Submodules that the repository has checked out are checked out in the clone too.

    Raises:
        GitError: the commit, or that of a submodule, is not there, or the disk is full.
    """
    if top.exists():
        shutil.rmtree(top)
    top.parent.mkdir(parents=True, exist_ok=True)
    source = git("rev-parse", "--show-toplevel", at=root)
    prefix = git("rev-parse", "--show-prefix", at=root)
    # The user's hooks may assume the user's checkout.
    options = ["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0"]
    git("clone", "--quiet", "--shared", "--no-checkout", *options, "--", source, str(top))
    git("checkout", "--quiet", "--detach", commit, at=top)
    fill_submodules(top, Path(source))
    return Clone(top, top / prefix if prefix else top)


def save_experiment(
    made: Clone, name: str, message: str, paths: Sequence[str], commit: str, origin: str = ""
) -> str:
    """Keep the results of a run as an experiment of the repository that the clone comes from.

    Args:
        made: the clone that the run worked in.
        name: of the experiment.
        message: of its commit.
        paths: files of the project that differ from `commit`; DVC keeps those that git ignores.
        commit: that the run started from.
        origin: the repository that receives the experiment; "": the one that the clone comes from. Another machine's
            experiment takes the place of one that has its name there.

    Returns:
        The experiment's commit.
    """
    there = [path for path in paths if (made.project / path).exists()]
    ignored = set((try_git("check-ignore", "--", *there, at=made.project) or "").splitlines())
    kept = [path for path in there if path not in ignored]
    git("add", "--all", "--", *kept, at=made.project)
    tree = git("write-tree", at=made.top)
    saved = git(*_identity(made.top), "commit-tree", tree, "-p", commit, "-m", message, at=made.top)
    what = f"{saved}:{reference_of(commit, name)}"
    if origin:
        git("push", "--quiet", "--force", "--", origin, what, at=made.top)
    else:
        git("push", "--quiet", "origin", what, at=made.top)
    return saved


def _identity(top: Path) -> list[str]:
    """Git's options for the committer, where the user has configured none."""
    if try_git("var", "GIT_COMMITTER_IDENT", at=top) and try_git("var", "GIT_AUTHOR_IDENT", at=top):
        return []
    return ["-c", "user.name=paribus", "-c", "user.email=paribus@localhost"]
