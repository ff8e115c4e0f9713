"""One process per state: the lock file of a state folder, and who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from paribus.errors import MachineError, StateInUse


class StateLock:
    """`with StateLock(folder):` one process at a time. The kernel releases it however the holder dies."""

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
    """The process that holds the state in `folder`: {pid, host, command, since}; None if it is free."""
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
