"""Small files that survive a kill: a JSONL journal, JSON replaced whole, locks. `files.py` reads them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paribus.errors import MachineError
from paribus.files import (
    NUMBER,
    Extent,
    Shape,
    beginning,
    read_json,
    read_lines,
    read_rows,
    set_lines_aside,
    write_atomic,
)

__all__ = [
    "ROW",
    "Journal",
    "Row",
    "as_floats",
    "keep_rows",
    "locked",
    "logged_steps",
    "plain",
    "read_json",
    "read_rows",
    "write_json",
]

Row = dict[str, Any]

ROW: Shape = {"step": NUMBER, "time": NUMBER}  # of metrics.jsonl and system.jsonl

NOT_FINITE = ("inf", "-inf", "nan")
_BLOCK = 1 << 20  # bytes read at once

_encode = json.JSONEncoder(allow_nan=False).encode


class Journal:
    """Append-only JSONL. A row is with the kernel when `append` returns: only a power cut loses it, before `sync`.

    Strict JSON: what is not finite is written "inf", "-inf" or "nan"; `as_floats` turns it back.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self._warn = path, warn
        self._lock = threading.Lock()
        self._unwritten = b""
        self._file = self._open()

    def _open(self) -> int:
        """Open the file, and take note of what it holds."""
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._size = 0
        self._digest = hashlib.sha256()
        if stat.S_ISREG(os.fstat(file).st_mode):
            while block := os.read(file, _BLOCK):
                self._note(block)
        return file

    def _note(self, written: bytes) -> None:
        self._size += len(written)
        self._digest.update(written)

    def append(self, row: Row) -> None:
        """Microseconds. On a full disk the row is kept and tried again with the next one."""
        try:
            line = _encode(row)
        except (ValueError, TypeError):  # not finite, or a number of numpy's or torch's
            line = _encode({key: plain(value) for key, value in row.items()})
        with self._lock:
            self._unwritten += line.encode() + b"\n"
            try:
                self._flush()
            except OSError as error:
                self._warn(f"{self.path}: {error.strerror}; the log waits in memory")

    def _flush(self) -> None:
        """Hand what is unwritten to the kernel. Raises OSError where the disk does not take it."""
        while self._unwritten:
            written = os.write(self._file, self._unwritten)
            self._note(self._unwritten[:written])
            self._unwritten = self._unwritten[written:]

    def sync(self) -> Extent:
        """Bring every row to the disk; returns what was written so far, earlier sessions included.

        Raises OSError, and keeps the rows, where the disk does not take them.
        """
        with self._lock:
            self._flush()
            written = Extent(self._size, self._digest.hexdigest())
        os.fsync(self._file)
        return written

    def refuse_lost_rows(self) -> None:
        """Raises MachineError if the file no longer holds every row that was written to it."""
        written = self.sync()
        if beginning(self.path, written) is None:
            raise MachineError(
                f"{self.path}: rows of the log were lost or altered while the run was under way, and its curve would "
                "have a hole; start again: the run goes on from its newest state whose log is whole"
            )

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drop the other rows. Raises MachineError where rows still wait for room on the disk."""
        with self._lock:
            self._refuse_to_lose()
            keep_rows(self.path, wanted)
            os.close(self._file)  # of the file that was replaced
            self._file = self._open()

    def close(self) -> None:
        """Raises MachineError where the disk does not take the last rows."""
        with self._lock:
            try:
                self._refuse_to_lose()
            finally:
                os.close(self._file)

    def _refuse_to_lose(self) -> None:
        try:
            self._flush()
        except OSError as error:
            waiting = self._unwritten.count(b"\n")
            raise MachineError(
                f"{self.path}: {error.strerror}; the last {waiting} lines of the log are not on the disk: free some "
                "space, then start again"
            ) from error


def keep_rows(
    path: Path, wanted: Callable[[Row], bool] = lambda row: True, shape: Shape | None = None
) -> None:
    """Rewrite a JSONL file with the wanted rows. No file: nothing to do.

    A last line torn by a crash goes without a word; lines damaged in another way are named, and the file is kept aside.

    Args:
        path: of the file.
        wanted: says of a row whether it stays.
        shape: what a whole row has to look like; None: any object.
    """
    if not path.exists():
        return
    rows, problems = read_lines(path, shape)
    if problems:
        set_lines_aside(path, problems)
    kept = [line.decode() for line, row in rows if wanted(row)]
    write_atomic(path, "".join(kept))


def logged_steps(folder: Path) -> list[dict[str, float]]:
    """Every logged step of the run in `folder`, restarts included: {"step", "time", metric: value}."""
    rows = read_rows(folder / "metrics.jsonl", ROW)
    return [as_floats(row) for row in rows if "event" not in row]


def plain(value: Any) -> Any:
    """A value as strict JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)


def as_floats(row: Row) -> dict[str, float]:
    """A row with its "inf" and "nan" as numbers again; other values (damage that JSON cannot see) are left out."""
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, int | float):
            numbers[key] = value
        elif value in NOT_FINITE:
            numbers[key] = float(value)
    return numbers


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace the file by `value`, whole or not at all.

    Args:
        path: of the file.
        value: to write.
    """
    write_atomic(path, json.dumps(value, indent=1))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; without `wait`, yields False where someone else does.

    Args:
        path: of the lock file, which is made where there is none.
        wait: until whoever holds it lets go.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        except OSError as error:  # a network disk without locks; `errors.explained` words it
            error.filename = str(path)
            raise
        else:
            yield True
