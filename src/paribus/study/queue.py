"""DVC's experiment queue as a study needs it: put, watch, start workers, and clear its dead ends. The only import of dvc.

What can happen to the queue when machines or processes die, and what is done about it:

    a task says "Running" for ever       its worker is gone: it is marked as failed and removed (`bury`)
    a run without a worker               would never be collected: it is paused, then its task is buried
    folders left in .dvc/tmp/exps        removed when nobody works in them (`clean`)
    .dvc/tmp/exps/rwlock torn            removed when nobody holds it
    HEAD detached, params.yaml changed   a kill while DVC set an experiment aside: a note says how it was (`put`, `mend`)

A worker here is DVC's own command, in a session of its own: it outlives who started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from paribus import runtime
from paribus.errors import UserError
from paribus.journal import read_json, write_json
from paribus.session import lock_holder

Result = TypeVar("Result")

LOCK_SECONDS = 120.0  # to wait for another dvc command
PAUSE_SECONDS = 120.0  # for a stage to save its state
TRIES = 5  # of a worker that does not answer DVC's question in its one second


@dataclass(frozen=True)
class Task:
    """One experiment in the queue. `log` is what it printed; `pid` its process, while it is there."""

    name: str
    state: Literal["queued", "running", "failed", "done"]
    rev: str
    log: Path
    pid: int | None

    def text(self) -> str:
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def stage(self) -> str:
        """The stage begun last."""
        begun = re.findall(r"^Running stage '(.+)':$", self.text(), re.MULTILINE)
        return begun[-1] if begun else ""


class Queue:
    """The queue of the checkout `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".dvc/tmp/exps"
        self._note = runtime.state_root() / "queueing.json"
        self._workers: list[subprocess.Popen[bytes]] = []

    @cached_property
    def _celery(self) -> Any:
        """DVC's queue object, which reads its files anew at each question."""
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        from dvc.repo import Repo

        return Repo(str(self.root)).experiments.celery_queue

    # ------------------------------------------------------------ looking

    def tasks(self) -> list[Task]:
        """Every task there is, of other people's too."""
        found: dict[
            str, Task
        ] = {}  # by revision: one that moves on while we look is seen twice, the second time right
        for entry in self._celery.iter_queued():
            found[entry.stash_rev] = self._task(entry, "queued")
        for entry in self._celery.iter_active():
            found[entry.stash_rev] = self._task(entry, "running")
        for done in self._celery.iter_done():
            ended: Literal["done", "failed"] = (
                "done" if done.result and done.result.ref_info else "failed"
            )
            found[done.entry.stash_rev] = self._task(done.entry, ended)
        return list(found.values())

    def _task(self, entry: Any, state: Literal["queued", "running", "failed", "done"]) -> Task:
        folder = self.folder / "run" / entry.stash_rev
        process = (
            _process(read_json(folder / f"{entry.stash_rev}.json"), entry.stash_rev)
            if state == "running"
            else None
        )
        return Task(
            entry.name or entry.stash_rev[:7],
            state,
            entry.stash_rev,
            folder / f"{entry.stash_rev}.out",
            process.pid if process else None,
        )

    def workers(self) -> dict[int, psutil.Process]:
        """The workers alive, by number."""
        for one in self._workers:
            one.poll()  # so that an ended one is no zombie
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if match := re.search(rf" queue-worker {self._node}(\d+)@", words):
                found[int(match[1])] = process
        return found

    @property
    def _node(self) -> str:
        """How DVC names its workers."""
        return f"dvc-exp-{hashlib.sha256(str(self.folder / 'celery').encode()).hexdigest()[:6]}-"

    def up_to_date(self, stages: Sequence[str]) -> bool:
        """Whether `dvc status` finds nothing to do for these stages in the workspace."""
        from dvc.repo import Repo

        def look() -> bool:
            with Repo(str(self.root)) as repo:
                return not repo.status(targets=list(stages))

        return _patiently(look)

    # ------------------------------------------------------------ putting and working

    def put(self, name: str, assignments: Sequence[str], targets: Sequence[str]) -> None:
        """Queue an experiment: `dvc exp run --queue -n NAME -S … TARGETS`, in this process, which has DVC loaded already.

        While DVC sets the experiment aside, HEAD is detached and params.yaml changed: a note beside tells `mend`.
        """
        from dvc.repo import Repo
        from dvc.repo.experiments.run import run
        from dvc.ui import ui

        write_json(
            self._note,
            {
                "branch": self._git("symbolic-ref", "--quiet", "HEAD"),
                "commit": self._git("rev-parse", "HEAD"),
                "stash": self._git("rev-parse", "--quiet", "--verify", "refs/stash"),
            },
        )

        def queue_it() -> None:
            with Repo(str(self.root)) as repo, contextlib.redirect_stdout(sys.stderr):
                run(repo, targets=list(targets), params=list(assignments), queue=True, name=name)

        before, ui.write = ui.write, lambda *_, **__: None
        try:
            _patiently(queue_it)
        finally:
            ui.write = before
        self._note.unlink()

    def start(self, count: int, gpus: Sequence[str] = ()) -> int:
        """See to it that workers 1 to `count` are there; returns how many were started.

        gpus: one to each worker, in turn, as CUDA_VISIBLE_DEVICES.
        """
        there = self.workers()
        missing = [number for number in range(1, count + 1) if number not in there]
        for number in missing:
            environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[(number - 1) % len(gpus)]
            command = [
                sys.executable,
                "-m",
                "dvc",
                "exp",
                "queue-worker",
                f"{self._node}{number}@localhost",
            ]
            (self.folder / "celery").mkdir(parents=True, exist_ok=True)
            with (self.folder / f"celery/dvc-exp-worker-{number}.out").open("ab") as output:
                self._workers.append(
                    subprocess.Popen(
                        command + (["--clean"] if number == 1 else []),
                        cwd=self.root,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                        env=environment,
                    )
                )
        return len(missing)

    def remove(self, names: Sequence[str]) -> None:
        """Take queued or ended tasks out of the queue; what they computed stays."""

        def remove_them() -> None:
            from dvc.repo.experiments.exceptions import UnresolvedExpNamesError

            for name in names:
                with contextlib.suppress(UnresolvedExpNamesError):  # a worker has just taken it
                    self._celery.remove([name])

        if names:
            _patiently(remove_them)

    # ------------------------------------------------------------ dead ends

    def bury(self, tasks: Sequence[Task]) -> list[str]:
        """Mark as failed the running tasks that nobody runs; their names. Runs that lost their worker are paused first."""
        workers = {process.pid for process in self.workers().values()}
        running = [task for task in tasks if task.state == "running"]
        orphans = [
            task
            for task in running
            if (parent := _parent(task.pid)) is not None and parent not in workers
        ]
        for task in orphans:
            self.halt(task)
        lost = [task for task in running if task.pid is None] + orphans
        dead = [task for task in lost if not workers or not self._held(task, len(workers))]
        return _patiently(lambda: self._fail(dead)) if dead else []

    def _held(self, task: Task, workers: int) -> bool:
        """Whether a living worker has the task: setting it up, or collecting it. Only an answer of all of them says no."""
        for _ in range(TRIES):
            ids = {
                message.headers["id"]
                for message, entry in self._celery._iter_processed()
                if entry.stash_rev == task.rev
            }
            answers = self._celery.worker_status()
            if any(one["id"] in ids for taken in answers.values() for one in taken):
                return True
            if len(answers) >= workers:
                return False
        return True

    def _fail(self, dead: Sequence[Task]) -> list[str]:
        """What `dvc queue kill` does, without its signal to a process that may be someone else's by now; the names of those
        that have not ended meanwhile."""
        from celery.result import AsyncResult

        revs, failed = {task.rev for task in dead}, []
        for message, entry in self._celery._iter_processed():
            if entry.stash_rev in revs and not AsyncResult(message.headers["id"]).ready():
                self._celery.celery.backend.mark_as_failure(message.headers["id"], None)
                failed.append(entry.name)
        return failed

    def halt(self, task: Task) -> None:
        """Have the task's stage save and exit 75, and wait for its end; one that takes too long is killed."""
        deadline = time.monotonic() + PAUSE_SECONDS
        asked: set[Path] = set()
        while (process := _living(task.pid)) is not None and time.monotonic() < deadline:
            below = {child.pid for child in _children(process)}
            for folder in set((runtime.state_root() / "runs").glob("*/")) - asked:
                if (holder := lock_holder(folder)) and holder.get("pid") in below:
                    (folder / "pause").touch()
                    asked.add(folder)
            time.sleep(0.2)
        for folder in asked:  # one that ended by itself has not taken it; the next start would
            (folder / "pause").unlink(missing_ok=True)
        if process is not None:
            for one in [*_children(process), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()

    def clean(self) -> list[str]:
        """Remove what killed runs left behind; what was found. Nothing while a worker, or a dvc command here, is alive."""
        if self.workers() or any(task.pid for task in self.tasks() if task.state == "running"):
            return []
        found = []
        for path in (self.folder / "rwlock", self.root / ".dvc/tmp/rwlock"):
            if path.exists() and not _is_json(path):
                path.unlink()
                found.append(str(path.relative_to(self.root)))
        used = _working_folders()
        for folder in self.folder.glob("tmp*"):
            if not any(path == folder or folder in path.parents for path in used):
                shutil.rmtree(folder, ignore_errors=True)
                found.append(str(folder.relative_to(self.root)))
        return found

    def mend(self) -> bool:
        """Undo what a `put` that was killed left: HEAD detached, params.yaml changed, the user's own changes in git's stash.

        What is there now is kept as refs/paribus/before-mending.
        """
        note = read_json(self._note)
        if note is None:
            return False
        for lock in ("index.lock", "HEAD.lock"):
            (self.root / ".git" / lock).unlink(missing_ok=True)
        if (
            self._git("symbolic-ref", "--quiet", "HEAD") != note["branch"]
            and self._git("rev-parse", "HEAD") == note["commit"]
        ):
            if kept := self._git("stash", "create"):
                self._git("update-ref", "refs/paribus/before-mending", kept)
            self._git("symbolic-ref", "HEAD", note["branch"])
            self._git("reset", "--hard", "--quiet")
        if self._git("rev-parse", "--quiet", "--verify", "refs/stash") not in (note["stash"], None):
            self._git("stash", "pop", "--index", "--quiet")
        self._note.unlink()
        return True

    def _git(self, *arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(self.root), *arguments], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None


# ---------------------------------------------------------------- processes


def _patiently(action: Callable[[], Result]) -> Result:
    """Do it as soon as no other dvc command is in the way. Raises UserError with DVC's words."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return action()
        except LockError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"DVC's lock is held by another command: {' '.join(str(error).split())}"
                ) from None
            time.sleep(0.5)
        except DvcException as error:
            raise UserError(f"dvc: {' '.join(str(error).split())}") from None


def _process(info: dict[str, Any] | None, rev: str) -> psutil.Process | None:
    """The process that runs a task, if it is still that one."""
    process = _living(info["pid"]) if info and info["returncode"] is None else None
    with contextlib.suppress(psutil.Error):
        if process is not None and any(rev in word for word in process.cmdline()):
            return process
    return None


def _living(pid: int | None) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid) if pid else None
        if process is not None and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _parent(pid: int | None) -> int | None:
    """The process above; None for one that has just ended."""
    process = _living(pid)
    with contextlib.suppress(psutil.Error):
        return process.ppid() if process else None
    return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _working_folders() -> list[Path]:
    """The working folder of every process we may look at."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            found.append(Path(process.cwd()))
    return found


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- what experiments left


def read_output(root: Path, rev: str, path: str) -> bytes | None:
    """A file of an experiment, whether git or DVC has it; None if it has none, or DVC's cache lost it."""
    from dvc.api import DVCFileSystem

    try:
        with DVCFileSystem(str(root), rev=rev).open(path, "rb") as file:
            return bytes(file.read())
    except OSError:
        return None
