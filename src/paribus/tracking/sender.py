"""The process that feeds MLflow: `python -m paribus.tracking.sender .paribus`, one per project.

Runs, in other processes, only write files; a run that finds no sender starts one, and it ends when there is nothing to
send for a while. So MLflow's import (4 s of processor time and 250 MB, measured) is paid once a pipeline instead of
once a stage, and no training step ever waits for Python because of it. It may be killed at any time.

    .paribus/sender.lock   held by the sender; its time of change: when MLflow last took something
    .paribus/sender.json   {store or folder: {"error", "time"}} of stores that do not answer, and of runs that one refuses
    .paribus/sender.leave  asks the sender to end, so that the next one has another environment: `renew`
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from paribus.files import NUMBER, Shape, Values, read_json
from paribus.journal import locked, write_json
from paribus.tracking.address import redacted
from paribus.tracking.mirror import Mirror, all_sent
from paribus.tracking.records import read_run, run_files
from paribus.tracking.store import answers

POLL_SECONDS = 0.5
IDLE_SECONDS = 20.0  # longer than the next stage takes to begin, on a busy machine too
RETRY_SECONDS = 2.0  # after a failure; doubles up to RETRY_AT_MOST
RETRY_AT_MOST = 8.0
# The environment variable of processes whose runs are written to files alone, as those of a temporary clone: MLflow's
# store there would be gone before anyone opened it.
FILES_ONLY = "PARIBUS_FILES_ONLY"

_ERRORS: Shape = Values({"error": str, "time": NUMBER})


_started: subprocess.Popen[bytes] | None = (
    None  # by this process; it takes a second to take its lock
)


def ensure(root: Path) -> None:
    """Start a sender if none runs, and one is wanted. root: `places.state_root()`."""
    global _started
    if not wanted():
        return
    if _started is not None and _started.poll() is None:
        return
    with locked(root / "sender.lock", wait=False) as free:
        if not free:
            return
    with (root / "sender.log").open("ab") as log:
        # A session of its own: what ends a stage, or DVC with its stages, leaves the sender to send the rest.
        _started = subprocess.Popen(
            [sys.executable, "-m", __name__, str(root)],
            cwd=root.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def wanted() -> bool:
    """Whether MLflow is to have the runs of this process."""
    return FILES_ONLY not in os.environ


def renew(root: Path) -> None:
    """Ask the sender to end: the next one connects with the passwords of this process's environment."""
    (root / "sender.leave").touch()


def error_of(root: Path, subject: str) -> dict[str, Any] | None:
    """{"error", "time"} if the sender's last try at a store, or at a run (`subject_of`), failed."""
    return (read_json(root / "sender.json", _ERRORS) or {}).get(subject)


def subject_of(folder: Path) -> str:
    """What sender.json calls a run: its folder below `.paribus`."""
    return f"{folder.parent.name}/{folder.name}"


def last_progress(root: Path) -> float:
    """When MLflow last took something, in seconds since the epoch."""
    return (root / "sender.lock").stat().st_mtime


class Sender:
    """Sends what MLflow lacks of every run of a project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mirrors: dict[Path, Mirror] = {}
        self._seen: dict[
            Path, tuple[int, float]
        ] = {}  # folder -> when its run.json was written, when we last sent
        self._done: dict[
            Path, int
        ] = {}  # folders with nothing to send -> when their run.json was written
        self._failures: dict[str, int] = {}  # by store or run, in a row
        self._again: dict[str, float] = {}  # store or run -> when to try it again
        self._leave = root / "sender.leave"
        self._leave.unlink(missing_ok=True)
        write_json(root / "sender.json", {})

    def serve(self) -> None:
        """Send until there was nothing to send for IDLE_SECONDS, or a request to leave arrives."""
        last = time.monotonic()
        while time.monotonic() - last < IDLE_SECONDS and self.root.is_dir():
            if self._leave.exists():
                return
            if self.round():
                last = time.monotonic()
            time.sleep(POLL_SECONDS)

    def round(self) -> int:
        """Send what is pending; returns the runs that are in progress or not sent completely."""
        active = 0
        for path in run_files(self.root):
            try:
                active += self._look(path)
            except FileNotFoundError:  # moved away this instant
                active += 1
            except Exception as error:  # whatever is wrong with one run, the others go on
                self._fail(subject_of(path.parent), error)
        return active

    def _look(self, path: Path) -> bool:
        folder, written = path.parent, path.stat().st_mtime_ns
        # The lock first: once it is free, run.json is final.
        with locked(folder / "writer.lock", wait=False) as died:
            pass
        if died and (self._done.get(folder) == written or all_sent(folder)):
            self._done[folder] = written
            self._mirrors.pop(folder, None)
            return False
        run = read_run(folder, move=False)
        if run is None:  # damaged, or moved away this instant
            return not path.exists()
        uri = run.uri
        before, sent = self._seen.get(folder, (0, 0.0))
        now = time.monotonic()
        retry = max(self._again.get(uri, 0.0), self._again.get(subject_of(folder), 0.0))
        due = (died or now >= sent + run.flush_seconds) and now >= retry
        if due or written != before:  # a run that begins or ends is waiting for us
            self._try(folder, uri, died)
            self._seen[folder] = written, time.monotonic()
        failing = uri in self._failures or subject_of(folder) in self._failures
        return not died or not failing

    def _try(self, folder: Path, uri: str, died: bool) -> None:
        mirror = self._mirrors.setdefault(folder, Mirror(folder, self.root, self._progress))
        try:
            mirror.sync(died)
        except Exception as error:  # whatever the server, the network or mlflow does, others go on
            # A store that answers refuses this run alone: no other run is to hear that it is away.
            self._fail(subject_of(folder) if answers(uri) else uri, error)
            return
        for subject in (uri, subject_of(folder)):
            if self._failures.pop(subject, 0):
                self._tell(subject, None)
        if folder.parent.name == "unsent" and all_sent(folder):
            shutil.rmtree(folder)

    def _fail(self, subject: str, error: Exception) -> None:
        failures = self._failures[subject] = self._failures.get(subject, 0) + 1
        wait = min(RETRY_SECONDS * 2 ** (failures - 1), RETRY_AT_MOST)
        self._again[subject] = time.monotonic() + wait
        self._tell(subject, {"error": _brief(error), "time": time.time()})

    def _tell(self, subject: str, error: Mapping[str, object] | None) -> None:
        errors = (read_json(self.root / "sender.json", _ERRORS) or {}) | {subject: error}
        write_json(self.root / "sender.json", {key: one for key, one in errors.items() if one})

    def _progress(self) -> None:
        os.utime(self.root / "sender.lock")


def _brief(error: Exception) -> str:
    """The innermost cause, on one line, without passwords."""
    lines = [line for line in redacted(str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class Redacting(io.TextIOBase):
    """A stream that removes passwords from all output, as MLflow and its libraries print full addresses."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` without its passwords; returns the length of the original, as callers compare it."""
        self._stream.write(redacted(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind this one."""
        self._stream.flush()


def main(root: Path) -> None:
    """Serve, unless another sender does."""
    with locked(root / "sender.lock", wait=False) as free:
        if not free:
            return
        sys.stdout = sys.stderr = Redacting(sys.stderr)  # both are sender.log
        Sender(root).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
