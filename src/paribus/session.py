"""A stage's session: one process per state, and being asked to stop (signals, time, `paribus pause`, DVC's death)."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shlex
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

from paribus.errors import UserError

EXIT_PAUSED = (
    75  # EX_TEMPFAIL: DVC takes the stage as not done, so the next `dvc repro` goes on with it
)

# ---------------------------------------------------------------- one trainer per state


class StateLock:
    """`with StateLock(folder):` one process at a time. The kernel lets go of it however the holder dies."""

    def __init__(self, folder: Path, patience: float = 2.0) -> None:
        """`patience`, seconds: a killed holder with much memory takes a moment to be gone."""
        self.folder, self.patience = Path(folder), patience
        self._file = -1

    def __enter__(self) -> StateLock:
        """Raises UserError that names the holder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self.patience
        while not _try_lock(self._file):
            if time.monotonic() > deadline:
                os.close(self._file)
                raise UserError(
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
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(me).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)


def lock_holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the state in `folder`: {pid, host, command, since}; None if nobody does."""
    path = Path(folder) / "lock"
    if not path.exists():
        return None
    with path.open("r+") as file:
        if _try_lock(file.fileno()):
            return None
        text = file.read()
    return json.loads(text) if text else {}


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _describe_holder(folder: Path) -> str:
    text = (folder / "lock").read_text()
    if not text:  # between its taking the lock and its writing who it is
        return "another process"
    return "process {pid} on {host} since {since} ({command})".format(**json.loads(text))


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


# Taken on import, before torch is loaded, so that a DVC that dies in those seconds is noticed too.
_PARENT = os.getppid()
_LAUNCHERS = _launchers()
