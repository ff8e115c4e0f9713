"""What a running stage says of itself: the step it is at, and the time that is left; here or on another machine.

.paribus/execute/STUDY/ARM-sSEED/elsewhere.json    of a run on another machine: what it says of itself
.paribus/execute/STUDY/ARM-sSEED/elsewhere.lock    held as long as the engine waits for that run

The second says whether the first still counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.errors import MachineError
from paribus.execute.run import folder_of_run
from paribus.journal import locked, read_json, write_json
from paribus.run_id import RunId

TAIL = 65_536  # bytes of a log that its rate is taken from


@dataclass(frozen=True)
class Live:
    """What a running stage says of itself. machine: the one it is on; "" for this one."""

    stage: str
    step: int
    steps: int | None
    seconds_left: float | None
    machine: str = ""


def live(run: RunId, state_root: Path) -> Live | None:
    """The stage that a run is in; None before the first.

    Args:
        run: its name.
        state_root: `.paribus` of the main checkout.
    """
    return live_elsewhere(run, state_root) or live_here(run, state_root)


# ---------------------------------------------------------------- elsewhere


class Elsewhere:
    """A run on another machine, as this one knows it: `Elsewhere(folder)` until `end()`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._note = folder / "elsewhere.json"
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(folder / "elsewhere.lock", wait=False))

    def note(self, what: Live) -> None:
        """Keep what the run says of itself, for `paribus ablate status`."""
        with contextlib.suppress(OSError, MachineError):  # a full disk: only the table knows less
            write_json(self._note, dataclasses.asdict(what))

    def end(self) -> None:
        """The run has ended, or is lost."""
        self._note.unlink(missing_ok=True)
        self._held.close()


def is_elsewhere(folder: Path) -> bool:
    """Whether an engine waits for the run of this folder on another machine."""
    if not (folder / "elsewhere.lock").exists():
        return False
    with locked(folder / "elsewhere.lock", wait=False) as free:
        return not free


def live_elsewhere(run: RunId, state_root: Path) -> Live | None:
    """What a run on another machine said last; None for a run of this machine."""
    folder = folder_of_run(state_root, run)
    if not is_elsewhere(folder):
        return None
    try:
        raw = read_json(folder / "elsewhere.json")
        return None if raw is None else Live(**raw)
    except (ValueError, TypeError):
        return None


# ---------------------------------------------------------------- here


def live_here(run: RunId, state_root: Path) -> Live | None:
    """The stage that a run is in on this machine, from its log; None before the first."""
    newest = _newest_run(run.experiment_name(), state_root)
    if newest is None:
        return None
    folder, about = newest
    steps = about["params"].get(f"{about['stage']}.steps")
    total = int(steps) if steps and steps.isdigit() else None
    rows = _last_rows(folder / "metrics.jsonl")
    if not rows:
        return Live(about["stage"], 0, total, None)
    first, last = rows[0], rows[-1]
    steps_seen = last["step"] - first["step"]
    seconds_left = None
    if steps_seen > 0 and total:
        seconds_per_step = (last["time"] - first["time"]) / steps_seen
        seconds_left = seconds_per_step * (total - last["step"])
    return Live(about["stage"], last["step"], total, seconds_left)


def _newest_run(name: str, state_root: Path) -> tuple[Path, dict[str, Any]] | None:
    """(folder, run.json) of the stage of an experiment that was written to last and still runs."""
    newest: tuple[Path, dict[str, Any]] | None = None
    newest_time = -1.0
    for path in (state_root / "runs").glob("*/run.json"):
        try:
            changed = path.stat().st_mtime
            if changed <= newest_time:
                continue
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["tags"].get("dvc.experiment") == name and run["status"] == "RUNNING":
                newest, newest_time = (path.parent, run), changed
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged, or of another version: it is not this one
    return newest


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The steps at the end of a log."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        lines = file.read().split(b"\n")[1 if path.stat().st_size > TAIL else 0 : -1]
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if "event" not in row and row.get("step", 0) > 0][-20:]
