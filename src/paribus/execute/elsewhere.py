"""What happens on a machine of a cluster: its checkout, what it lacks, and one run after another in a pool of its own.

The machine where the study was started, its home, computes in the user's checkout. Every other one has a clone, made when
it is first needed, in PARIBUS_CHECKOUT or below ~/.cache/paribus. Code comes from a git repository that all machines
reach, data and checkpoints from the DVC remote, and that is where results go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paribus.config import Train, fingerprint
from paribus.errors import MachineError, UserError
from paribus.execute.engine import Event
from paribus.execute.leftovers import remove_leftovers
from paribus.execute.live import Live, live_here
from paribus.execute.local import Pool
from paribus.execute.machine import NO_SPACE, full_folder
from paribus.execute.repository import reference_of
from paribus.execute.run import Outcome, RunSpec
from paribus.execute.states import PLACE
from paribus.files import write_atomic
from paribus.git import GitError, git, try_git
from paribus.journal import locked

CHECKOUT = "PARIBUS_CHECKOUT"  # the environment variable with the folder of a machine's clone
ANSWER_SECONDS = 10.0  # that the MLflow server may take to answer
LIVE_SECONDS = 5.0  # between two reports of a run's step


@dataclass(frozen=True)
class Home:
    """What other machines need to know of the one where the study was started.

    Attributes:
        root: the main checkout there.
        project: its folder in the repository, as git names it ("" for the repository's own).
        origin: the address of the git repository that all machines reach.
        mlflow: the address of the MLflow server, without its password; "" where the store is a file.
        state_minutes: between two copies of a training state in the DVC remote.
        submodules: paths of those that are checked out there.
    """

    root: str
    project: str
    origin: str
    mlflow: str
    state_minutes: float
    submodules: tuple[str, ...] = ()


# ---------------------------------------------------------------- the checkout of a machine


def checkout_of(home: Home, at_home: bool) -> Path:
    """The folder of the project on this machine; cloned where it is missing. Raises GitError."""
    if at_home:
        return Path(home.root)
    top = _folder(home.origin)
    top.parent.mkdir(parents=True, exist_ok=True)
    with locked(top.with_name(f"{top.name}.lock")):
        if not (top / ".git").exists():
            _clone(home.origin, top)
    return top / home.project


def _clone(origin: str, top: Path) -> None:
    """A clone that is whole or not there."""
    aside = top.with_name(f".{top.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # of a machine that died meanwhile
    try:
        git("clone", "--quiet", "--", origin, str(aside))
    except GitError as error:
        raise GitError(f"{origin} could not be cloned to {top}: {error}") from None
    aside.rename(top)


def _folder(origin: str) -> Path:
    named = os.environ.get(CHECKOUT)
    if named:
        return Path(named).expanduser().resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = origin.rstrip("/").rpartition("/")[2].removesuffix(".git") or "project"
    mark = hashlib.sha256(origin.encode()).hexdigest()[:8]
    return cache / "paribus" / f"{name}-{mark}"


def bring_commit(root: Path, origin: str, commit: str) -> None:
    """Make a commit of the shared repository known here.

    Raises:
        UserError: the repository does not have it.
        GitError: the repository cannot be reached.
    """
    if _has(root, commit):
        return
    with locked(root / ".paribus" / "fetch.lock"):
        git("fetch", "--quiet", "--", origin, "+refs/heads/*:refs/remotes/origin/*", at=root)
        if _has(root, commit):
            return
        fetched = try_git("fetch", "--quiet", "--", origin, commit, at=root)
        if fetched is None or not _has(root, commit):
            raise UserError(
                f"the commit {commit[:10]} is not in {origin}, where other machines get code from; `git push`, or for one "
                f"that no branch has `git push {origin} {commit[:10]}:refs/heads/NAME`"
            )


def _has(root: Path, commit: str) -> bool:
    return try_git("cat-file", "-e", f"{commit}^{{commit}}", at=root) is not None


# ---------------------------------------------------------------- what a machine lacks


@dataclass(frozen=True)
class Found:
    """What a machine is, and why it cannot compute.

    Attributes:
        name: as a person calls it.
        hardware: a hash of its class of hardware.
        device: what it trains on: cpu, cuda or mps.
        device_name: the model of that.
        problems: why it cannot compute, each in a sentence; empty where it can.
        warnings: what is worth knowing.
    """

    name: str
    hardware: str = ""
    device: str = ""
    device_name: str = ""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def examine(home: Home, train: Train, commits: Sequence[str], at_home: bool, shared: bool) -> Found:
    """Look whether this machine can compute runs.

    Args:
        home: of the study.
        train: the settings that the hardware is chosen by.
        commits: the code of its runs.
        at_home: whether this machine is where the study was started.
        shared: whether inputs and outputs go through the DVC remote.
    """
    from paribus.machine.hardware import detect_hardware

    name = socket.gethostname()
    problems: list[str] = []
    warnings: list[str] = []
    hardware = device = device_name = ""
    with _told(problems, name):
        found = detect_hardware(train)
        hardware = fingerprint(hardware=found.hardware_class())
        device, device_name = found.device, found.device_name
    with _told(problems, name):
        root = checkout_of(home, at_home)
        full = full_folder(root)
        if full is not None:
            raise UserError(f"{full}: {NO_SPACE}: free some, or name another disk with {CHECKOUT}")
        (root / ".paribus").mkdir(exist_ok=True)
        if not at_home:
            remove_leftovers(root / ".paribus")
            _try_git(root, home.origin, commits)
            _bring_submodules(root, home.submodules)
        if shared:
            _try_remote(root, name)
    if not at_home and not home.mlflow:
        warnings.append(
            f"{name}: curves stay in its own mlflow.db, as MLFLOW_TRACKING_URI names no server (docs/machines.md)"
        )
    elif home.mlflow and not _answers(home.mlflow):
        problems.append(f"{name}: the MLflow server {home.mlflow} does not answer from there")
    return Found(name, hardware, device, device_name, problems, warnings)


@contextlib.contextmanager
def _told(problems: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems += [f"{name}: {problem}" for problem in error.problems]
    except OSError as error:
        problems.append(f"{name}: {error.filename or ''}: {error.strerror or error}")


def _try_git(root: Path, origin: str, commits: Sequence[str]) -> None:
    """Fetch commits, and see that a result could be pushed. Raises UserError where either fails."""
    for commit in commits:
        bring_commit(root, origin, commit)
    # The clone may be older than the DVC remote that the commit names. Git refuses where it would lose somebody's changes.
    git("checkout", "--quiet", "--detach", commits[0], at=root)
    try:
        what = f"{commits[0]}:{reference_of(commits[0], 'try')}"
        git("push", "--dry-run", "--quiet", "--", origin, what, at=root)
    except GitError as error:
        raise UserError(
            f"results could not be pushed to {origin}: {error}; give this machine the right to write there "
            "(docs/machines.md)"
        ) from None


def _bring_submodules(root: Path, paths: Sequence[str]) -> None:
    """Check out submodules of a machine's clone, from which its runs get theirs. Raises UserError where one is not there."""
    top = Path(git("rev-parse", "--show-toplevel", at=root))
    for path in paths:
        try:
            git("submodule", "--quiet", "sync", "--", path, at=top)
            git("submodule", "--quiet", "update", "--init", "--recursive", "--", path, at=top)
        except GitError as error:
            raise UserError(
                f"the submodule {path} cannot be checked out: {error}; its address in .gitmodules must be one that all "
                "machines reach"
            ) from None


def _try_remote(root: Path, name: str) -> None:
    """Write to the DVC remote and remove that again. Raises UserError with the reason where it fails."""
    from dvc.repo import Repo

    note = root / ".paribus" / "try-remote"
    write_atomic(note, "paribus looks whether it can write here")
    try:
        with Repo(str(root)) as repo:
            remote = repo.cloud.get_remote()
            place = remote.fs.join(remote.path, PLACE, f"try-{name}")
            remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
            remote.fs.put_file(str(note), place)
            remote.fs.remove(place)
            note.unlink()
    except Exception as error:  # whatever DVC and the remote's library raise
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the DVC remote, by which machines share data, cannot be written to: {words[:300]}; see docs/machines.md"
        ) from None


def _answers(server: str) -> bool:
    try:
        urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:  # it asks for a password, say: it is there
        return True
    except (OSError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- one run


_pools: dict[Path, Pool] = {}  # of this process: DVC is loaded once for all the runs it gets


def compute(
    home: Home, spec: RunSpec, at_home: bool, tell: Callable[[Event | Live], None]
) -> Event:
    """Compute a run on this machine; returns its last event. A KeyboardInterrupt makes it save its state and end.

    Args:
        home: of its study.
        spec: the run.
        at_home: whether this machine is where the study was started.
        tell: receives the other events of the run, and how far it is, every few seconds.
    """
    name = socket.gethostname()
    if home.mlflow:
        os.environ.setdefault("MLFLOW_TRACKING_URI", home.mlflow)
    try:
        root = checkout_of(home, at_home)
        (root / ".paribus").mkdir(exist_ok=True)
        if not at_home:
            bring_commit(root, home.origin, spec.commit)
        return _followed(root, spec, name, tell)
    except KeyboardInterrupt:
        return Event(spec.id, "ended", outcome=Outcome("paused"), machine=name)
    except (GitError, MachineError, OSError) as error:
        outcome = Outcome("machine", "", [f"{name}: {error}"])
        return Event(spec.id, "ended", outcome=outcome, machine=name)
    except UserError as error:
        outcome = Outcome("refused", "", [f"{name}: {problem}" for problem in error.problems])
        return Event(spec.id, "ended", outcome=outcome, machine=name)


def _followed(root: Path, spec: RunSpec, name: str, tell: Callable[[Event | Live], None]) -> Event:
    """Hand the run to this process's pool, and pass on what that says of it, to its end."""
    if root not in _pools:
        _pools[root] = Pool(root, root / ".paribus", 1)
    pool = _pools[root]
    pool.submit(spec)
    while True:
        try:
            for event in pool.poll(LIVE_SECONDS):
                known = dataclasses.replace(event, machine=name)
                if event.kind in ("ended", "lost"):
                    return known
                tell(known)
            now = live_here(spec.id, root / ".paribus")
            if now is not None:
                tell(dataclasses.replace(now, machine=name))
        except KeyboardInterrupt:
            pool.cancel(spec.id)
