"""Small files that survive a kill: a JSONL journal, JSON replaced whole, locks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paribus.runtime import write_atomic

Row = dict[str, Any]

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
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

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
            self._unwritten = self._unwritten[written:]

    def sync(self) -> None:
        """Bring every row to the disk. Raises OSError, and keeps the rows, where the disk does not take them."""
        with self._lock:
            self._flush()
        os.fsync(self._file)

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drop the other rows."""
        with self._lock:
            os.close(self._file)
            keep_rows(self.path, wanted)
            self._file = self._open()

    def close(self) -> None:
        os.close(self._file)


def keep_rows(path: Path, wanted: Callable[[Row], bool] = lambda row: True) -> None:
    """Rewrite a JSONL file with the wanted rows; a line torn by a crash goes. No file: nothing to do."""
    if not path.exists():
        return
    kept = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                if line.endswith("\n") and wanted(json.loads(line)):
                    kept.append(line)
    write_atomic(path, "".join(kept))


def read_rows(path: Path) -> list[Row]:
    """Every row of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def plain(value: Any) -> Any:
    """A value as strict JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)


def as_floats(row: Row) -> dict[str, float]:
    """A row with its "inf" and "nan" as numbers again."""
    return {key: float(value) if isinstance(value, str) else value for key, value in row.items()}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace the file by `value`, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=1))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; without `wait`, yields False where someone else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
