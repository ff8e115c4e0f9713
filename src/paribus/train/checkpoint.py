"""Training states: whole and checksummed, or not there.

A state is `step-N.safetensors` (tensors), `step-N.jsonl` (the run's log up to then) and `step-N.json` (size and sha256 of
both, plain values and theirs). All are written aside, synced and renamed; the JSON comes last and is what makes the state
exist. Nothing is ever unpickled.

A run goes on from a state only with the whole log that led to it, so that its curve has no hole: where the run's own log
lost rows meanwhile, the state's copy takes its place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.errors import MachineError, explained
from paribus.files import Extent, beginning, free_name, replacing, write_atomic

# Saves in a row that may fail before training stops: a full disk rarely empties itself.
MAX_FAILURES = 3
# Saves whose least cost is taken as that of the next: one that met a busy disk should not space out all that follow.
COSTS = 3
_STATE = re.compile(r"step-(\d+)\.json")


@dataclass(frozen=True)
class State:
    """A training state: tensors and plain values after `step` steps, and how far the run's log had come."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    logged: Extent | None = None


class StateStore:
    """The last `keep` whole states in a folder. `save` copies now and writes in the background.

    One process writes to a folder at a time (`session.StateLock`); others may read.
    """

    def __init__(self, folder: Path, keep: int, log: Path | None = None) -> None:
        """folder: of the states; keep: how many; log: the run's log, a file that only grows, None for none."""
        self.folder, self.keep, self.log = folder, keep, log
        self.failures = 0
        self._writer: threading.Thread | None = None
        self._damaged: set[int] = set()
        self._costs: deque[float] = deque(maxlen=COSTS)
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        values: Mapping[str, object],
        logged: Extent | None = None,
    ) -> None:
        """Save a state without stalling: tensors are copied before this returns, and written after.

        Args:
            step: that the state is after.
            tensors: name -> tensor.
            values: what else the state holds, as JSON.
            logged: how far the run's log has come; None: there is no log.

        Raises:
            MachineError: when several saves in a row have failed; the last whole state stays in place.
        """
        began = time.perf_counter()
        self.wait()
        self.refuse_if_hopeless()
        try:
            copies = _copies(tensors)
        except (MemoryError, RuntimeError) as error:
            if explained(error) is None:
                raise
            self.note_failure(step, error)
            return
        stalled = time.perf_counter() - began
        self._writer = threading.Thread(
            target=self._write, args=(step, copies, values, logged, stalled), name="state-writer"
        )
        self._writer.start()

    def wait(self) -> None:
        """Until the state being written is on disk."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    @property
    def writing(self) -> bool:
        """Whether a state is being written just now."""
        return self._writer is not None and self._writer.is_alive()

    @property
    def cost(self) -> float:
        """Seconds that a save takes, copying and writing together; 0 before the first one is through."""
        return min(self._costs, default=0.0)

    def steps(self) -> list[int]:
        """Steps of the states that exist, newest first."""
        names = [_STATE.fullmatch(path.name) for path in self.folder.glob("step-*.json")]
        return sorted((int(name[1]) for name in names if name), reverse=True)

    @property
    def newest_step(self) -> int | None:
        """Step of the newest state that is not known to be damaged; None if there is none."""
        whole = [step for step in self.steps() if step not in self._damaged]
        return whole[0] if whole else None

    def load(self) -> State | None:
        """The newest whole state; damaged ones are named, passed over, and removed with the next save.

        Raises OSError where the disk refuses to give a state that may well be whole.
        """
        steps = self.steps()
        for step in steps:
            state = self.read(step)
            if state is not None and self._has_its_log(state):
                return state
            self._damaged.add(step)
            problem = "is damaged"
            if state is not None:
                problem = f"cannot be used, as rows of the log that led to it are lost ({self.log})"
            then = "no other is left" if step == steps[-1] else "trying the one before"
            print(
                f"paribus: training state {self._path(step, 'json')} {problem}; {then}",
                file=sys.stderr,
            )
        return None

    def _has_its_log(self, state: State) -> bool:
        """Whether the run's log holds all that led to a state; put back from the state's own copy where it does not."""
        if self.log is None or state.logged is None:
            return True
        if beginning(self.log, state.logged) is not None:
            return True
        copy = beginning(self._path(state.step, "jsonl"), state.logged)
        if copy is None:
            return False
        kept = ""
        if self.log.exists():
            aside = free_name(self.log)
            self.log.rename(aside)
            kept = f"; the file as it was is {aside.name}"
        write_atomic(self.log, copy)
        print(
            f"paribus: {self.log}: rows up to step {state.step} were lost or altered; "
            f"put back from the training state of that step{kept}",
            file=sys.stderr,
        )
        return True

    def read(self, step: int) -> State | None:
        """The state after `step` steps; None if there is none or it is damaged.

        Raises OSError where the disk refuses to give it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(step, "safetensors")
        try:
            header = json.loads(self._path(step, "json").read_bytes())
            if header["step"] != step or header["values_sha256"] != _digest(header["values"]):
                return None
            if path.stat().st_size != header["size"] or _sha256(path) != header["sha256"]:
                return None
            extent = header.get("log")
            logged = Extent(**extent) if extent else None
            return State(step, load_file(path), header["values"], logged)
        except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def clear(self) -> None:
        """Remove every state: the stage is done and its checkpoint is a DVC output."""
        self.wait()
        for pattern in ("step-*", ".step-*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _path(self, step: int, suffix: str) -> Path:
        return self.folder / f"step-{step:08d}.{suffix}"

    def _write(
        self,
        step: int,
        tensors: dict[str, Tensor],
        values: Mapping[str, object],
        logged: Extent | None,
        stalled: float,
    ) -> None:
        """Write one state, in a thread of its own. stalled: seconds that training waited for the copies."""
        from safetensors.torch import save_file

        began = time.perf_counter()
        path = self._path(step, "safetensors")
        try:
            self._remove_leftovers()
            with replacing(path) as aside:
                # straight from the copies, without the interpreter's lock
                save_file(tensors, aside)
                header = {
                    "sha256": _sha256(aside),
                    "size": aside.stat().st_size,
                    "step": step,
                    "values": values,
                    "values_sha256": _digest(values),
                    "log": dataclasses.asdict(logged) if logged else None,
                }
            if self.log is not None and logged is not None:
                write_atomic(self._path(step, "jsonl"), _whole_log(self.log, logged))
            write_atomic(self._path(step, "json"), json.dumps(header))
            self._damaged.discard(step)
            self._prune()
        except Exception as error:  # whatever it is, training must learn that it goes on unsaved
            self._note_failure(step, error)
            return
        self.failures = 0
        self._costs.append(stalled + time.perf_counter() - began)

    def refuse_if_hopeless(self) -> None:
        """Raises MachineError when several saves in a row have failed."""
        if self.failures >= MAX_FAILURES:
            self.wait()  # it may be a newer state than the message would name
            raise MachineError(
                f"{self.folder}: {self.failures} saves in a row failed; free some space, then start again: "
                f"training goes on from step {self.newest_step or 0}"
            )

    def note_failure(self, step: int, error: Exception) -> None:
        """Count a save that failed while it was prepared, and say why; the one in progress ends first.

        Args:
            step: whose state it was.
            error: that ended the save.
        """
        self.wait()
        self._note_failure(step, error)

    def _note_failure(self, step: int, error: Exception) -> None:
        """As `note_failure`, where nothing is being written: what is half written is removed."""
        self.failures += 1
        self._remove_leftovers()
        reason = error.strerror if isinstance(error, OSError) else None
        print(
            f"paribus: could not save the training state of step {step}: "
            f"{reason or str(error) or type(error).__name__}; the one before stays",
            file=sys.stderr,
        )

    def _remove_leftovers(self) -> None:
        """Leftovers of a killed or failed save: files written aside, and those of a state whose JSON is missing."""
        for path in self.folder.glob(".step-*"):
            path.unlink(missing_ok=True)
        for path in self.folder.glob("step-*"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def _prune(self) -> None:
        """Remove damaged states, and of the others all but the newest `keep`."""
        steps = self.steps()
        whole = [step for step in steps if step not in self._damaged]
        kept = whole[: self.keep]
        for step in steps:
            if step not in kept:
                for suffix in ("json", "safetensors", "jsonl"):
                    self._path(step, suffix).unlink(missing_ok=True)
        self._damaged.clear()


def _whole_log(log: Path, logged: Extent) -> bytes:
    """The content that the run logged so far. Raises MachineError where the file no longer holds it."""
    content = beginning(log, logged)
    if content is None:
        raise MachineError(
            f"{log}: rows of the log were lost or altered while the run was under way"
        )
    return content


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host. From CUDA all copies are queued, into pinned memory, and then waited for once."""
    copies = {}
    for name, tensor in tensors.items():
        source = tensor.detach().contiguous()
        copies[name] = source.to("cpu", copy=True, non_blocking=source.is_cuda)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return copies


def _digest(values: Mapping[str, object]) -> str:
    """sha256 of plain values, which JSON gives back as they were."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
