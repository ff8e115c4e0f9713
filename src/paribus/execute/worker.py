"""A process that computes runs, one after another: `python -m paribus.execute.worker ROOT`.

It loads DVC once (2 to 4 s of processor time), so that each run costs its own stages only. A line of JSON on standard
input is a request, a line on standard output reports an event:

    {"run": FOLDER}            compute the run whose specification is FOLDER/run.json
    {"cancel": NAME}           make that run save its state and end
    (end of the input)         the launcher is gone: the same for every run, then end

    {"event": "started" | "stage" | "computed" | "ended", "run": NAME, "stage": STAGE, "outcome": {…}}

A guardian, forked before anything is loaded, ends the stages of a worker that is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.config import flatten, parse_yaml
from paribus.errors import MachineError, UserError
from paribus.execute import processes
from paribus.execute.endings import StageFailed, of_error, of_failed_stage, words_of
from paribus.execute.repository import clone, save_experiment
from paribus.execute.run import ASKED_FOR, ASKED_TO_SAY, RAN_ON, Outcome, RunSpec
from paribus.execute.states import RemoteStates, copied
from paribus.files import write_atomic
from paribus.git import GitError
from paribus.graph import stage_definitions
from paribus.journal import locked

if TYPE_CHECKING:
    from dvc.repo import Repo

Tell = Callable[..., None]  # tell(event, stage=…)

LOCK_SECONDS = 1.0


class Stopped(Exception):
    """The run was asked to stop, and no stage of it runs."""


# ---------------------------------------------------------------- one run


def execute(root: Path, folder: Path, tell: Tell, stopping: threading.Event) -> Outcome:
    """Compute the run in `folder`, and keep it as a DVC experiment of the checkout `root`.

    Every way to end is an outcome, which FOLDER/outcome.json holds too. The clone is removed in any case.
    """
    try:
        return _execute(root, folder, tell, stopping)
    except (OSError, MachineError) as error:  # of the files in `folder`: nothing has run yet
        return of_error(error, root, "", folder / "log.txt")


def _execute(root: Path, folder: Path, tell: Tell, stopping: threading.Event) -> Outcome:
    with _taken(folder) as mine:
        if not mine:
            return Outcome("busy", problems=["another process computes this run"])
        spec = RunSpec.read(folder / "run.json")
        with _printed_to(folder / "log.txt"), _environment(root, folder, spec):
            outcome = _outcome_of(root, folder, spec, tell, stopping)
        (folder / "stage.txt").unlink(missing_ok=True)
        shutil.rmtree(folder / "clone", ignore_errors=True)
        shutil.rmtree(folder / "site", ignore_errors=True)
        # On a full disk the outcome is reported and not written.
        with contextlib.suppress(OSError, MachineError):
            outcome.write(folder / "outcome.json")
        return outcome


def _outcome_of(
    root: Path, folder: Path, spec: RunSpec, tell: Tell, stopping: threading.Event
) -> Outcome:
    stage = ""

    def begin(name: str) -> None:
        nonlocal stage
        if stopping.is_set():
            raise Stopped
        stage = name
        (folder / "said.json").unlink(missing_ok=True)
        write_atomic(folder / "stage.txt", name)
        tell("stage", stage=name)

    try:
        commit = _compute(root, folder, spec, begin, lambda: tell("computed", stage=stage))
        return Outcome("done", stage, experiment=commit)
    except Stopped:
        return Outcome("paused", stage)
    except StageFailed as failure:
        return of_failed_stage(failure, root, folder, stopping.is_set())
    except Exception as error:  # of the values, DVC, git, the disk
        if isinstance(error, UserError) and not isinstance(error, (GitError, MachineError)):
            return Outcome("refused", stage, error.problems)
        if stopping.is_set():  # git is asked to end as well
            return Outcome("paused", stage)
        outcome = of_error(error, root, stage, folder / "log.txt")
        with contextlib.suppress(OSError):  # a full disk
            traceback.print_exc()  # into the run's log
        return outcome


def _compute(
    root: Path,
    folder: Path,
    spec: RunSpec,
    begin: Callable[[str], None],
    computed: Callable[[], None],
) -> str | None:
    """Clone, write the overrides, reproduce stage by stage, keep the result; its commit."""
    from dvc.repo import Repo

    _refuse_to_wait_for_room()
    made = clone(root, spec.commit, folder / "clone")
    settings = dvc_settings(root, folder / "site")
    os.environ["PYTHONPATH"] = _python_path(made.project)
    write_overrides(made.project / "params.yaml", spec.overrides)
    definitions = stage_definitions(made.project / "dvc.yaml")
    shared = bool(spec.origin)
    with (
        _working_in(made.project, root),
        Repo(str(made.project), config=settings) as repo,
        _states_elsewhere(repo, root, spec),
    ):
        _check_out_data(repo, pull=shared)
        for stage in spec.stages:
            begin(stage)
            _reproduce(repo, stage, pull=shared)
            if shared:
                with _between_machines("its outputs were not pushed to the DVC remote"):
                    repo.push(targets=[stage], run_cache=True)
                    _push_what_git_has(repo, stage)
            computed()
    if not spec.kept:
        return None
    left = [out for stage in spec.stages for out in definitions[stage].outs]
    notes = {ASKED_FOR: spec.key, RAN_ON: socket.gethostname()} | spec.notes
    lines = [f"{name}: {value}" for name, value in notes.items()]
    message = "\n".join([f"{spec.id}: {', '.join(spec.stages)}", "", *lines])
    paths = ["params.yaml", "dvc.lock", *left]
    name = spec.id.experiment_name()
    if not shared:
        return save_experiment(made, name, message, paths, spec.commit)
    with _between_machines(f"its results were not pushed to {spec.origin}"):
        return save_experiment(made, name, message, paths, spec.commit, spec.origin)


def _refuse_to_wait_for_room() -> None:
    """Let a full disk end a run: DVC's notes of what it hashed are a diskcache, whose assignment tries again for ever."""
    import diskcache

    def assign(cache: diskcache.Cache, key: object, value: object) -> None:
        cache.set(key, value, retry=False)

    diskcache.Cache.__setitem__ = assign


def _push_what_git_has(repo: Repo, stage: str) -> None:
    """Push metrics and plots that git keeps: without them, which DVC leaves out, its run-cache is of no use elsewhere."""
    from dvc.exceptions import UploadError

    outs = repo.stage.load_one(name=stage).outs
    figures = [out.hash_info for out in outs if out.hash_info and not out.use_cache]
    failed = repo.cloud.push(figures).failed
    if failed:
        raise UploadError(len(failed))


@contextlib.contextmanager
def _between_machines(failed: str) -> Iterator[None]:
    """What fails within is no fault of the run: it succeeds on another machine, or once the remote is back."""
    try:
        yield
    except Exception as error:  # of DVC, git, the remote's library
        raise MachineError(f"{failed}: {words_of(error)}") from error


def _states_elsewhere(
    repo: Repo, root: Path, spec: RunSpec
) -> contextlib.AbstractContextManager[None]:
    """Keep the training state in the DVC remote too, where several machines share it."""
    if not spec.origin:
        return contextlib.nullcontext()
    with _between_machines("its training states were not brought from the DVC remote"):
        states = RemoteStates.of(repo, root / ".paribus", spec.id)
        states.bring()
    return copied(states, spec.state_minutes)


def _reproduce(repo: Repo, stage: str, pull: bool) -> None:
    """Reproduce one stage, from DVC's run-cache where it has it, or the remote's (pull). Raises StageFailed."""
    from dvc.exceptions import ReproductionError
    from dvc.stage.exceptions import StageCmdFailedError

    try:
        repo.reproduce(stage, single_item=True, pull=pull)
    except ReproductionError as error:
        cause = error.__cause__
        if not isinstance(cause, StageCmdFailedError):
            raise
        # DVC gives the status only at the end of this sentence.
        status = str(cause).rpartition("exited with ")[2]
        number = int(status) if status.lstrip("-").isdigit() else None
        raise StageFailed(stage, number, str(cause)) from error


def _check_out_data(repo: Repo, pull: bool) -> None:
    """Bring what `dvc add` tracks into the clone, from the remote where the cache lacks it (pull)."""
    tracked = [stage.addressing for stage in repo.index.stages if stage.is_data_source]
    if tracked and pull:
        with _between_machines("its data were not brought from the DVC remote"):
            repo.fetch(tracked)
    if tracked:
        repo.checkout(tracked, force=True)


def dvc_settings(root: Path, site: Path) -> dict[str, Any]:
    """Settings that let a clone's DVC work on the cache of `root`, and keep its own notes in `site`.

    Data are linked rather than copied where the file system allows it: a run reads its inputs and replaces its outputs.
    They are passed as values, not written into the clone, because DVC writes such files in ASCII only.
    """
    from dvc.config import Config

    known = Config(str(root / ".dvc"))
    cache = dict(known.get("cache", {}))
    cache["dir"] = str(cache.get("dir") or root / ".dvc" / "cache")
    cache["type"] = cache.get("type") or ["reflink", "hardlink", "copy"]
    core = {"site_cache_dir": str(site), "autostage": False, "analytics": False}
    own = known.load_one("local")  # of this checkout alone: keys of a remote, a folder's place here
    remote = own.get("remote", {})
    if "remote" in own.get("core", {}):
        core["remote"] = own["core"]["remote"]
    return {"cache": cache, "core": core, "remote": remote}


def write_overrides(path: Path, overrides: Mapping[str, object]) -> None:
    """Write dotted overrides into a params.yaml, comments kept; read back to be sure. Raises UserError."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(path)) as values:
        for dotted, value in overrides.items():
            node = values
            *parents, last = dotted.split(".")
            for name in parents:
                node = node.setdefault(name, {})
            node[last] = value
    written = flatten(parse_yaml(path.read_text(encoding="utf-8"), str(path)))
    wanted = flatten(dict(overrides))
    wrong = [key for key, value in wanted.items() if key not in written or written[key] != value]
    if wrong:
        raise UserError(
            f"{key}: {wanted[key]!r} was written into params.yaml and reads as {written.get(key)!r}"
            for key in wrong
        )


def _python_path(project: Path) -> str:
    """Make stages run the code of the clone."""
    rest = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(project / "src"), *filter(None, rest)])


# ---------------------------------------------------------------- surroundings of a run


@contextlib.contextmanager
def _taken(folder: Path) -> Iterator[bool]:
    """Hold the run in a folder; yields False where another worker does. A process that only checks releases it at once."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with locked(folder / "lock", wait=False) as mine:
            if mine or time.monotonic() > deadline:
                yield mine
                return
        time.sleep(0.05)


@contextlib.contextmanager
def _printed_to(log: Path) -> Iterator[None]:
    """Redirect the output of this process and its stages to a file."""
    before = os.dup(1), os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        os.close(file)


@contextlib.contextmanager
def _environment(root: Path, folder: Path, spec: RunSpec) -> Iterator[None]:
    """The environment that stages read, as DVC's own experiments set it."""
    before = dict(os.environ)
    os.environ |= {
        "DVC_ROOT": str(root),
        "DVC_EXP_NAME": spec.id.experiment_name(),
        "DVC_EXP_BASELINE_REV": spec.commit,
        ASKED_TO_SAY: str(folder / "said.json"),
    }
    if spec.cards is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(spec.cards)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _working_in(folder: Path, afterwards: Path) -> Iterator[None]:
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(afterwards)


# ---------------------------------------------------------------- the process


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A requested run, and the event that asks it to stop."""

    name: str
    folder: Path
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)
    ended: threading.Event = dataclasses.field(default_factory=threading.Event)


class Worker:
    """Reads requests, computes the runs, reports events."""

    def __init__(self, root: Path, asked: int, told: int, guardian: int) -> None:
        self.root, self.guardian = root, guardian
        self._input = os.fdopen(asked, "r", encoding="utf-8")
        self._output = told
        self._runs: queue.Queue[_Asked | None] = queue.Queue()
        self._asked: list[_Asked] = []

    def work(self) -> None:
        """Compute one run after the other and report each start and end, until there are no more requests."""
        threading.Thread(target=self._listen, daemon=True).start()
        import dvc.repo  # noqa: F401  # while the first run is on its way

        while (asked := self._runs.get()) is not None:

            def tell(event: str, run: str = asked.name, **facts: Any) -> None:
                self._tell({"event": event, "run": run, **facts})

            tell("started")
            outcome = execute(self.root, asked.folder, tell, asked.stopping)
            asked.ended.set()
            tell("ended", outcome=dataclasses.asdict(outcome))

    def _listen(self) -> None:
        for line in self._input:
            message = json.loads(line)
            if "run" in message:
                folder = Path(message["run"])
                asked = _Asked(RunSpec.read(folder / "run.json").id.experiment_name(), folder)
                self._asked.append(asked)
                self._runs.put(asked)
            else:
                self._stop([one for one in self._asked if one.name == message["cancel"]])
        self._runs.put(None)
        self._stop(self._asked)

    def _stop(self, runs: Sequence[_Asked]) -> None:
        """Make runs save and end without beginning another stage; kill what takes too long."""
        for one in runs:
            if not one.ended.is_set() and not one.stopping.is_set():
                one.stopping.set()
                threading.Thread(target=self._press, args=(one.ended,), daemon=True).start()

    def _press(self, ended: threading.Event) -> None:
        deadline = time.monotonic() + processes.SAVE_SECONDS
        asked: set[int] = set()
        while not ended.is_set():
            running = processes.of_session(os.getsid(0)) - {self.guardian}
            if time.monotonic() > deadline:
                processes.kill(running)
            processes.ask_to_end(running - asked)
            asked |= running
            time.sleep(processes.LOOK_SECONDS)

    def _tell(self, event: Mapping[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the launcher is gone; the run still ends well
            os.write(self._output, json.dumps(event).encode() + b"\n")


def start_guardian() -> int:
    """Fork a process that ends the stages of this one when this one is gone; its pid."""
    ours, theirs = os.pipe()
    guardian = os.fork()
    if guardian:
        os.close(ours)
        return guardian
    os.close(theirs)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.read(ours, 1)  # returns when the last process that could write is gone
    processes.end_session(os.getsid(0))
    os._exit(0)


def main() -> None:
    """Run a worker for the repository in the first command-line argument.

    Requests come by standard input and reports go out by standard output. Whatever else prints goes to standard error, so
    that it cannot mix with the reports. An interrupt from the keyboard is left to the launcher.
    """
    guardian = start_guardian()
    asked, told = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(Path(sys.argv[1]), asked, told, guardian).work()


if __name__ == "__main__":
    main()
