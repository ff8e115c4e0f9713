"""Commands that begin at once: each is forked from a process that has loaded what commands import.

A command of paribus spends two to four seconds of processor time on loading scipy, torch and Optuna before it does
anything. A forked one is a process of its own all the same, with its own folder, environment, output and exit status; it
takes signals, and dies of them, as one that was started from a shell.

    python -m support.warm SOCKET OWNER MODULE …    loads the modules, then serves while the process OWNER lives

A request is a JSON line {"arguments", "cwd", "environment"} with two files for its output; the answers are its pid, and
what `waitpid` says when it has ended.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

import paribus
from paribus import graph
from paribus.journal import locked
from paribus.machine import interrupt
from support import forked
from support.forked import WarmProcess, begin

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "paribus.cli.commands",
    "paribus.cli.ablation",
    "paribus.pages.verdict",
    "paribus.audit.compare",
    "paribus.tune.search",
    "paribus.plan.estimate",
    "paribus.data.tokenizer",
    "paribus.stages.training",
    "torch",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "rich.console",
    "rich.table",
    "ruamel.yaml",
    "networkx",
    "dvc.cli.parser",
    "dvc.cachemgr",
    "dvc.data_cloud",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.open_repo",
    "dvc.repo.plots",
    "dvc.repo.experiments.show",
    "dvc.repo.reproduce",
    "dvc.stage.run",
    "pygit2",
)
MLFLOW = (
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "alembic.command",
    "paribus.tracking.sender",
    "paribus.tracking.store",
)
OWNER = "PARIBUS_WARM_OWNER"  # environment variable: the pid of the process whose end it waits for
LOOK_SECONDS = 1.0  # how often it looks whether its owner lives
# Every run waits at its end until MLflow has all of it: for up to half a second, at a user's pace.
SENDER = """
import sys
from pathlib import Path
from paribus.tracking import sender
sender.POLL_SECONDS, sender.RETRY_SECONDS, sender.RETRY_AT_MOST = 0.1, 0.2, 1.0
sender.main(Path(sys.argv[1]))
"""


# ---------------------------------------------------------------- the side of the tests


class Warm:
    """The process that commands are forked from; the workers of one pytest-xdist, and what they start, share it.

    name: of its folder. modules: what it loads.
    """

    def __init__(self, name: str, modules: tuple[str, ...]) -> None:
        worker = "PYTEST_XDIST_WORKER" in os.environ
        mine = os.getppid() if worker else os.getpid()
        owner = int(os.environ.setdefault(OWNER, str(mine)))
        folder = Path(tempfile.gettempdir()) / f"paribus-warm-{owner}-{name}"
        folder.mkdir(exist_ok=True)
        self._address = str(folder / "socket")
        self.programs = folder / "bin"
        with locked(folder / "lock"):
            if not self._answers():
                self._write_programs()
                self._start(owner, modules)

    def _answers(self) -> bool:
        """Whether another worker has started it."""
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(self._address) == 0

    def _start(self, owner: int, modules: tuple[str, ...]) -> None:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tools")])
        # It outlives whoever starts it, and so must hold none of its files: a pipe would stay open.
        with Path(self._address).with_name("log").open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "support.warm", self._address, str(owner), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": paths},
            )
        assert server.stdout
        with server.stdout:
            assert server.stdout.readline() == b"ready\n"

    def begin(
        self,
        arguments: list[str],
        cwd: Path,
        environment: dict[str, str],
        output: int,
        errors: int,
    ) -> WarmProcess:
        """Start `python ARGUMENTS`: -m MODULE … or -c PROGRAM …; output, errors: open files."""
        return begin(self._address, arguments, str(cwd), environment, output, errors)

    def run(
        self, arguments: list[str], cwd: Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`."""
        known = dict(os.environ) if environment is None else environment
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = self.begin(arguments, cwd, known, output.fileno(), errors.fileno())
            status = process.wait()
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(arguments, status, output.read(), errors.read())

    def _write_programs(self) -> None:
        """A folder for PATH: stages that DVC runs there begin at once as well."""
        self.programs.mkdir(exist_ok=True)
        program = self.programs / "paribus"
        command = shlex.join(
            [sys.executable, "-I", "-S", forked.__file__, self._address, "paribus"]
        )
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)


@functools.cache
def warm() -> Warm:
    """The one for commands; it ends with pytest."""
    return Warm("commands", COMMANDS)


@functools.cache
def _with_mlflow() -> Warm:
    return Warm("mlflow", MLFLOW)


def feed_mlflow(state_root: Path, environment: dict[str, str]) -> None:
    """Start the process that feeds MLflow, where none runs, before a stage of the project does.

    It is the same process but for what loading MLflow takes, 4 to 6 s of processor time once a project, and it looks
    more often whether there is something to send.
    """
    state_root.mkdir(parents=True, exist_ok=True)
    with locked(state_root / "sender.lock", wait=False) as free:
        if not free:
            return
    arguments = ["-c", SENDER, str(state_root)]
    with (state_root / "sender.log").open("ab") as log:
        _with_mlflow().begin(arguments, state_root.parent, environment, log.fileno(), log.fileno())


# ---------------------------------------------------------------- the process itself


class Server:
    """Forks commands and tells how they ended. owner: the process it serves."""

    def __init__(self, address: str, owner: int) -> None:
        self._owner = owner
        Path(address).unlink(missing_ok=True)  # of a server that was killed
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._under_way: dict[int, socket.socket] = {}
        self._ended, self._wake = socket.socketpair()
        self._ended.setblocking(False)
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> dict[str, Any] | None:
        """While its owner lives; in a forked process, what it is to run."""
        looked_at = selectors.DefaultSelector()
        for file in (self._listener, self._ended):
            looked_at.register(file, selectors.EVENT_READ)
        while psutil.pid_exists(self._owner):
            for key, _ in looked_at.select(LOOK_SECONDS):
                if key.fileobj is self._ended:
                    self._ended.recv(4096)
                    self._tell_of_ended()
                    continue
                request = self._fork()
                if request is not None:
                    looked_at.close()
                    return request
        return None

    def _fork(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        text, files, _, _ = socket.recv_fds(connection, 65536, 2)
        if not text:  # somebody looked whether it is there
            connection.close()
            return None
        while not text.endswith(b"\n"):
            text += connection.recv(65536)
        request: dict[str, Any] = json.loads(text)
        pid = os.fork()
        if pid:
            for file in files:
                os.close(file)
            self._under_way[pid] = connection
            connection.sendall(f"{pid}\n".encode())
            return None
        self._forget(connection)
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(file, number)
            os.close(file)
        return request

    def _forget(self, connection: socket.socket) -> None:
        """In a forked process: nothing of its parent's stays open."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for one in (connection, self._listener, self._ended, self._wake):
            one.close()
        for one in self._under_way.values():
            one.close()

    def _tell_of_ended(self) -> None:
        while self._under_way:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._under_way.pop(pid)
            with contextlib.suppress(OSError):  # whoever asked is gone
                connection.sendall(str(status).encode())
            connection.close()


def become(request: dict[str, Any]) -> None:
    """Run what was asked for in this process, as Python does that is started with these arguments."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["cwd"]
    interrupt.note_launchers()
    own = Path(request["cwd"]) / "src/paribus"
    if same_code(own):  # else `paribus` there starts again, from the code of the checkout
        paribus.__file__ = str(own / "__init__.py")
    kind, what, *rest = request["arguments"]
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        exec(what, {"__name__": "__main__"})


def same_code(folder: Path) -> bool:
    """Whether a checkout's package is, to the byte, what this process has loaded."""
    theirs, ours = (_sources(place) for place in (folder, ROOT / "src/paribus"))
    if theirs.keys() != ours.keys():
        return False
    return all(filecmp.cmp(theirs[name], ours[name], shallow=False) for name in ours)


def _sources(folder: Path) -> dict[Path, Path]:
    """Path below the folder -> file."""
    files = [*folder.rglob("*.py"), *folder.rglob("*.yaml"), *folder.rglob("*.j2")]
    return {path.relative_to(folder): path for path in files}


def main(address: str, owner: int, modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread would be lost in every forked process"
    if set(COMMANDS) <= set(
        modules
    ):  # whose fingerprints parse the code; it is kept by its contents
        graph.generated_deps(graph.working_sources(ROOT))
    gc.collect()
    gc.freeze()
    server = Server(address, owner)
    print("ready", flush=True)
    request = server.serve()
    if request is None:
        shutil.rmtree(Path(address).parent)
    else:
        become(request)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
