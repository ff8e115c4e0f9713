"""A stage's session: one process per state, and being asked to stop (signals, time, `paribus pause`, DVC's death).

A stop may be asked for at any moment of a stage's life:

| moment | who answers | how |
| --- | --- | --- |
| before the session: imports, reading inputs | `stopping_before_the_start`, `LauncherWatch` | the process ends at once |
| in the session | `Interrupt.requested`, asked between steps | the stage saves its state |

Both end with `EXIT_PAUSED`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paribus.errors import MachineError, StateInUse

# EX_TEMPFAIL: DVC takes the stage as not done, so the next `dvc repro` goes on with it.
EXIT_PAUSED = 75

# ---------------------------------------------------------------- one trainer per state


class StateLock:
    """`with StateLock(folder):` one process at a time. The kernel lets go of it however the holder dies."""

    def __init__(self, folder: Path, patience: float = 2.0) -> None:
        """`patience`, seconds: a killed holder with much memory takes a moment to be gone."""
        self.folder, self.patience = Path(folder), patience
        self._file = -1

    def __enter__(self) -> StateLock:
        """Raises StateInUse that names the holder, MachineError on a disk without file locks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self.patience
        while not self._try():
            if time.monotonic() > deadline:
                os.close(self._file)
                raise StateInUse(
                    f"{self.folder}: in use by {_describe_holder(self.folder)}; "
                    "wait for it, or stop it with `paribus pause`"
                )
            time.sleep(0.05)
        me = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "command": shlex.join(sys.argv),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        # On a full disk the lock holds all the same; only who holds it stays unknown.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(me).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _try(self) -> bool:
        try:
            return _try_lock(self._file)
        except OSError as error:
            os.close(self._file)
            if error.errno not in NO_LOCKS:
                raise
            raise MachineError(
                f"{self.folder}: this disk has no file locks ({error.strerror}), which keep two trainers from one state; "
                "move the checkout to a disk that has them, or mount this one with locks"
            ) from None


# What flock says on a network disk that is mounted without its lock daemon.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock_holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the state in `folder`: {pid, host, command, since}; None if nobody does."""
    path = Path(folder) / "lock"
    if not path.exists():
        return None
    with path.open("r+") as file:
        if _try_lock(file.fileno()):
            return None
        text = file.read()
    return _holder(text)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _describe_holder(folder: Path) -> str:
    holder = _holder((folder / "lock").read_text())
    if not holder:
        return "another process"
    return "process {pid} on {host} since {since} ({command})".format(**holder)


def _holder(text: str) -> dict[str, Any]:
    """Who a lock file says its holder is; empty between its taking the lock and its writing that, or on a full disk."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    known = isinstance(holder, dict) and {"pid", "host", "since", "command"} <= holder.keys()
    return holder if known else {}


# ---------------------------------------------------------------- what killed processes leave behind

_TEMPORARY = re.compile(r"\..+\.(\d+)")  # .NAME.PID: written aside, to be renamed to NAME


def remove_leftovers(folder: Path, recursive: bool = False) -> None:
    """Remove the files in `folder` that a process was writing aside when it was killed; those of living ones stay."""
    paths = folder.rglob(".*") if recursive else folder.glob(".*")
    for path in list(paths):
        named = _TEMPORARY.fullmatch(path.name)
        if named and path.is_file() and not _alive(int(named[1])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


# ---------------------------------------------------------------- being asked to stop


class Interrupt:
    """`with Interrupt(folder, session_minutes) as interrupt:` and, between steps, `if interrupt.requested(): save`.

    A stop is asked for by SIGINT or SIGTERM, by the end of the session, by the death of the DVC or torchrun
    that started this stage, or by a file `pause` in the state folder. `reason` says which. Only the main thread may enter.
    """

    def __init__(self, folder: Path | None = None, session_minutes: float | None = None) -> None:
        self.reason: str | None = None
        self._pause = str(folder / "pause") if folder else None
        self._deadline = time.monotonic() + session_minutes * 60 if session_minutes else math.inf
        self._session_minutes = session_minutes
        self._next_look = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # A background job of a shell inherits SIGINT ignored: install the handler all the same.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, _: types.FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def requested(self) -> bool:
        """Whether to save and stop now. Once true, it stays so. About a microsecond."""
        now = time.monotonic()
        if self.reason is None and now >= self._deadline:
            self.reason = f"the session's {self._session_minutes:g} minutes are over"
        if self.reason is None and now >= self._next_look:
            self._next_look = now + 0.2
            self._look()
        return self.reason is not None

    def _look(self) -> None:
        if self._pause and os.path.exists(self._pause):
            with contextlib.suppress(
                OSError
            ):  # another user's: this run stops, the next start stops too
                os.unlink(self._pause)
            self.reason = "paribus pause"
        elif launcher_gone():
            self.reason = "the process that started this stage (DVC, torchrun) is gone"


def _process(pid: int) -> tuple[str, int, str] | None:
    """(state, parent, start time in clock ticks) of a process, from /proc; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), fields[19]


def _launchers() -> list[tuple[int, str]]:
    """(pid, start time) from the parent up to the DVC process, or to torchrun without DVC; empty without /proc.

    DVC sets DVC_STAGE for what it starts and not for itself: a shell or torchrun in between has it, DVC has not.
    """
    chain: list[tuple[int, str]] = []
    pid = os.getppid() if _launched() else 0
    while pid and (process := _process(pid)):
        chain.append((pid, process[2]))
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # another user's: not one of ours
            break
        if not any(entry.startswith(b"DVC_STAGE=") for entry in environment):
            break
        pid = process[1]
    return chain


def _launched() -> bool:
    """Whether DVC or torchrun started this process, which then must not outlive them."""
    return "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def launcher_gone() -> bool:
    """Whether DVC, torchrun, or a shell between them and us, has died since we started; false where neither started us."""
    if not _launched():
        return False
    if os.getppid() != _PARENT:
        return True
    processes = ((_process(pid), start) for pid, start in _LAUNCHERS)
    return any(
        process is None or process[0] == "Z" or process[2] != start for process, start in processes
    )


# ---------------------------------------------------------------- before the session

LAUNCHER = "PARIBUS_LAUNCHER"  # the launcher's process id, in the environment of what it starts
WATCH_SECONDS = 0.5
# A stage whose launcher has died saves and stops by itself. One that is still there after so long waits for something
# that will not come (a process that has died, a long evaluation): it is ended, and its last state stays.
GRACE_SECONDS = 120.0


@contextlib.contextmanager
def stopping_before_the_start(stage: str) -> Iterator[None]:
    """Until a session takes over, SIGINT and SIGTERM end the process at once: nothing has begun, nothing is lost."""

    def leave(number: int, _: types.FrameType | None) -> None:
        words = f"paribus {stage}: {signal.Signals(number).name}: stopped before it began\n"
        os.write(2, words.encode())
        os._exit(EXIT_PAUSED)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LauncherWatch(threading.Thread):
    """Ends this process when the launcher that started it has died, whatever the main thread is waiting for.

    Before `joined` at once, as nothing has begun; afterwards the stage itself notices (`Interrupt`) and gets
    `GRACE_SECONDS` to save.
    """

    def __init__(self) -> None:
        super().__init__(name="launcher-watch", daemon=True)
        self._joined = threading.Event()

    def joined(self) -> None:
        """All processes are together, and the session answers from here on."""
        self._joined.set()

    def run(self) -> None:
        while not launcher_gone():
            time.sleep(WATCH_SECONDS)
        if self._joined.is_set():
            time.sleep(GRACE_SECONDS)
        os._exit(EXIT_PAUSED)


def _own_parent() -> int:
    """The process that started this one; it may have died before we could look, so the launcher writes down who it is."""
    named = os.environ.pop(LAUNCHER, "")
    return int(named) if named else os.getppid()


# Taken on import, before torch is loaded, so that a launcher that dies in those seconds is noticed too.
_PARENT = _own_parent()
_LAUNCHERS = _launchers()
