"""Results of an evaluation on disk as they come, so that one that was stopped or killed goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paribus.data import say
from paribus.data.disk import writing
from paribus.files import write_atomic
from paribus.machine.interrupt import STOPPING, Interrupt, raises

SYNC_SECONDS = 5.0  # between two requests to the disk: what a power cut may cost
Row = dict[str, Any]


class Stopped(BaseException):
    """The evaluation was asked to stop; its results are kept. Like KeyboardInterrupt it is not an Exception."""


def stop_if(requested: Callable[[], bool]) -> None:
    """Raises Stopped if a stop is requested."""
    if requested():
        raise Stopped


@contextlib.contextmanager
def signals_stop(interrupt: Interrupt) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Stopped at once, wherever it is.

    For work that cannot be asked in between, as another library's loading of data; what is kept is whole either way.
    """

    def stopped(number: int) -> Stopped:
        interrupt.reason = interrupt.reason or signal.Signals(number).name
        return Stopped()

    handler = raises(stopped)
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def never() -> bool:
    """No stop is requested, whatever happens."""
    return False


class Kept:
    """An append-only file of JSON lines, each with a checksum over its content and over what the results depend on.

    A line that a kill cut off is dropped; a damaged one is reported and dropped, so that its part is computed again.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        """path: the file, None to keep nothing. key: names all that the results are a function of."""
        self.path, self._key = path, key
        self.rows: list[Row] = []
        self._file = -1
        self._synced = 0.0
        if path is not None:
            with writing(path):
                self._open(path)

    def add(self, row: Row) -> None:
        """Keep a row: it is with the system when this returns. Raises UserError where the disk refuses it."""
        self.rows.append(row)
        if self.path is None:
            return
        line = self._line(row)
        with writing(self.path, "what is there is kept, and the next start goes on from it"):
            while line:
                line = line[os.write(self._file, line) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Bring what was added to the disk."""
        if self._file >= 0:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Bring it to the disk; nothing can be added any more."""
        if self._file >= 0:
            with writing(self.path or Path()):
                self.sync()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        good = self._take(whole, path)
        if good is not None:
            write_atomic(path, self._header() + b"".join(good))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if good is None and len(whole) < len(data):
            os.ftruncate(self._file, len(whole))  # the line that a kill cut off
        if not whole:
            os.write(self._file, self._header())

    def _take(self, whole: bytes, path: Path) -> list[bytes] | None:
        """Take the rows of this key; the lines to keep where there are others, None where all may stay."""
        good: list[bytes] = []
        damaged: list[str] = []
        others = 0  # of another key: another model, other questions
        for number, line in enumerate(whole.splitlines(keepends=True), 1):
            row, state = self._read(line)
            if row is not None:
                self.rows.append(row)
                good.append(line)
            elif state == "other":
                others += 1
            elif state == "damaged":
                damaged.append(str(number))
        if damaged:
            lines = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
            say(f"{path}: damaged in line {lines}; what was kept there is computed again")
        return good if damaged or others else None

    def _read(self, line: bytes) -> tuple[Row | None, str]:
        """The row of a line; without one whether it is the header, belongs to another key or is damaged."""
        if line == self._header():
            return None, "header"
        try:
            kept = json.loads(line)
            if isinstance(kept, dict) and kept.keys() == {"key"}:
                return None, "other"
            row, key, checksum = kept["row"], kept["key"], kept["checksum"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, "damaged"
        if not isinstance(row, dict) or checksum != _checksum(str(key), row):
            return None, "damaged"
        if key != self._key:
            return None, "other"
        return row, ""

    def _header(self) -> bytes:
        return json.dumps({"key": self._key}).encode() + b"\n"

    def _line(self, row: Row) -> bytes:
        kept = {"row": row, "key": self._key, "checksum": _checksum(self._key, row)}
        return json.dumps(kept).encode() + b"\n"


def _checksum(key: str, row: Row) -> str:
    text = f"{key}\n{json.dumps(row)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
