"""One process per state: the lock file of a state folder, and who holds it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from paribus.errors import MachineError, StateInUse


class StateLock:
    """`with StateLock(folder):` one process at a time. The kernel releases it however the holder dies."""

    def __init__(self, folder: Path, patience: float = 2.0) -> None:
        """`patience`, seconds: a killed holder with much memory takes a moment to be gone."""
        self.folder = Path(folder)
        self._lock = FileLock(self.folder / "lock", timeout=patience, fallback_to_soft=False)

    def __enter__(self) -> StateLock:
        """Raises StateInUse that names the holder, MachineError on a disk without file locks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise StateInUse(
                f"{self.folder}: in use by {_describe_holder(self.folder)}; "
                "wait for it, or stop it with `paribus pause`"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise self._without_locks(error) from None
        me = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "command": shlex.join(sys.argv),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        # On a full disk the lock holds all the same; only who holds it stays unknown.
        with contextlib.suppress(OSError):
            (self.folder / "lock").write_text(json.dumps(me))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.truncate(self.folder / "lock", 0)
        self._lock.release()

    def _without_locks(self, error: OSError | NotImplementedError) -> Exception:
        """What to raise where the disk has no file locks; any other error of it as it is."""
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            return error
        return MachineError(
            f"{self.folder}: this disk has no file locks ({error}), which keep two trainers from one state; "
            "move the checkout to a disk that has them, or mount this one with locks"
        )


# What flock says on a network disk that is mounted without its lock daemon.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def lock_holder(folder: Path) -> dict[str, str | int] | None:
    """The process that holds the state in `folder`: {pid, host, command, since}; None if it is free."""
    path = Path(folder) / "lock"
    if not path.exists():
        return None
    try:
        with FileLock(path, timeout=0, fallback_to_soft=False):
            return None
    except Timeout:
        return _holder(path.read_text())


def _describe_holder(folder: Path) -> str:
    holder = _holder((folder / "lock").read_text())
    if not holder:
        return "another process"
    return "process {pid} on {host} since {since} ({command})".format(**holder)


def _holder(text: str) -> dict[str, str | int]:
    """Who a lock file says its holder is; empty between its taking the lock and its writing that, or on a full disk."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    known = isinstance(holder, dict) and {"pid", "host", "since", "command"} <= holder.keys()
    return holder if known else {}
