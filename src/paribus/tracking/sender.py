"""The process that feeds MLflow: `python -m paribus.tracking.sender .paribus`, one per project.

Runs, in other processes, only write files; a run that finds no sender starts one, and it ends when there is nothing to
send for a while. So MLflow's import (4 s of processor time and 250 MB, measured) is paid once a pipeline instead of
once a stage, and no training step ever waits for Python because of it. It may be killed at any time.

    .paribus/sender.lock   held by the sender; its time of change: when MLflow last took something
    .paribus/sender.json   {store: {"error", "time"}} of stores that are not to be had
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paribus.journal import locked, read_json, write_json
from paribus.tracking.mirror import Mirror, all_sent

POLL_SECONDS = 0.5
IDLE_SECONDS = 20.0  # longer than the next stage takes to begin, on a busy machine too
RETRY_SECONDS = 2.0  # after a failure; doubles up to RETRY_AT_MOST
RETRY_AT_MOST = 8.0

_log = logging.getLogger(__name__)


def ensure(root: Path) -> None:
    """Start a sender if there is none. root: `runtime.state_root()`."""
    with locked(root / "sender.lock", wait=False) as free:
        if not free:
            return
    with (root / "sender.log").open("ab") as log:
        # A session of its own: what ends a stage, or DVC with its stages, leaves the sender to send the rest.
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(root)],
            cwd=root.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def error_of(root: Path, uri: str) -> dict[str, Any] | None:
    """{"error", "time"} if the sender's last try at this store failed."""
    return (read_json(root / "sender.json") or {}).get(uri)


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
        self._failures: dict[str, int] = {}  # by store, in a row
        self._again: dict[str, float] = {}  # store -> when to try it again
        write_json(root / "sender.json", {})

    def serve(self) -> None:
        """Until there was nothing to send for IDLE_SECONDS."""
        last = time.monotonic()
        while time.monotonic() - last < IDLE_SECONDS and self.root.is_dir():
            if self.round():
                last = time.monotonic()
            time.sleep(POLL_SECONDS)

    def round(self) -> int:
        """Send what there is -> runs under way, or of which something remained to be sent."""
        return sum(
            self._look(path)
            for path in [*self.root.glob("unsent/*/run.json"), *self.root.glob("runs/*/run.json")]
        )

    def _look(self, path: Path) -> bool:
        folder, written = path.parent, path.stat().st_mtime_ns
        # The lock first: once it is free, run.json has its last word.
        with locked(folder / "writer.lock", wait=False) as died:
            pass
        if died and (self._done.get(folder) == written or all_sent(folder)):
            self._done[folder] = written
            self._mirrors.pop(folder, None)
            return False
        run = read_json(path)
        if run is None:  # moved away this instant
            return True
        before, sent = self._seen.get(folder, (0, 0.0))
        now = time.monotonic()
        due = (died or now >= sent + run["flush_seconds"]) and now >= self._again.get(
            run["uri"], 0.0
        )
        if due or written != before:  # a run that begins or ends is waiting for us
            self._try(folder, run["uri"], died)
            self._seen[folder] = written, time.monotonic()
        return not died or run["uri"] not in self._failures

    def _try(self, folder: Path, uri: str, died: bool) -> None:
        mirror = self._mirrors.setdefault(folder, Mirror(folder, self.root, self._progress))
        try:
            mirror.sync(died)
        except (
            Exception
        ) as error:  # whatever the server, the network or mlflow does, other runs go on
            failures = self._failures[uri] = self._failures.get(uri, 0) + 1
            self._again[uri] = time.monotonic() + min(
                RETRY_SECONDS * 2 ** (failures - 1), RETRY_AT_MOST
            )
            self._tell(uri, {"error": _brief(error), "time": time.time()})
            return
        if self._failures.pop(uri, 0):
            self._tell(uri, None)
        if folder.parent.name == "unsent" and all_sent(folder):
            shutil.rmtree(folder)

    def _tell(self, uri: str, error: dict[str, Any] | None) -> None:
        errors = (read_json(self.root / "sender.json") or {}) | {uri: error}
        write_json(self.root / "sender.json", {store: one for store, one in errors.items() if one})

    def _progress(self) -> None:
        os.utime(self.root / "sender.lock")


def _brief(error: Exception) -> str:
    """The innermost cause, on one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def main(root: Path) -> None:
    """Serve, unless another sender does."""
    with locked(root / "sender.lock", wait=False) as free:
        if free:
            Sender(root).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
